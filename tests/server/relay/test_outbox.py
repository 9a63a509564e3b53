"""The outbox: what is withheld, withdrawn, rendered and written, and in which order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from adjourn.policies.never import Never
from adjourn.policies.session.session import Session
from adjourn.server.api.chat import ChatEndpoint
from adjourn.server.api.endpoint import NO_EXTRAS
from adjourn.server.api.request import parse_chat
from adjourn.server.config import Settings
from adjourn.server.relay.outbox import Outbox
from adjourn.server.relay.times import Times
from adjourn.server.stream.chunk import decode_chunk
from adjourn.server.stream.sse import event_data
from tests.policies.session_helpers import DIALECT, AlwaysProbe
from tests.server.relay.relay_helpers import RecordingSink, make_chunk


def make_outbox(
    sink: RecordingSink, *, released: int = 0, always_summarize: bool = False, **fields: Any
) -> tuple[Outbox, Session]:
    """The outbox of a chat request, whose session has released so many chunks."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, **fields}
    request = parse_chat(json.dumps(body).encode(), {}, Settings(), None, {"m": None})
    session = Session(Never(), DIALECT, AlwaysProbe())
    session.released_chunks = released
    endpoint = ChatEndpoint(request, 0, NO_EXTRAS)
    return Outbox(session, endpoint, sink, Times(0.0), always_summarize), session


def put(outbox: Outbox, number: int, text: str, finish: str | None = None, **more: Any) -> bytes:
    event = make_chunk({"content": text}, [number], finish, **more)
    outbox.put(number, event, decode_chunk(event_data(event) or b""))
    return event


def test_events_wait_for_their_chunk() -> None:
    """In order: an event after a withheld one waits too, whatever its own number."""
    sink = RecordingSink()
    outbox, session = make_outbox(sink, released=1)
    for number, text in ((1, "a"), (2, "b"), (0, "c"), (3, "d")):
        put(outbox, number, text)
    asyncio.run(outbox.flush())
    assert sink.joined("content") == "a"
    assert not outbox.is_empty
    session.released_chunks = 2
    asyncio.run(outbox.flush())
    assert sink.joined("content") == "abc"
    session.released_chunks = 3
    asyncio.run(outbox.flush())
    assert sink.joined("content") == "abcd"
    assert outbox.is_empty


def test_withdrawn_events_are_never_sent() -> None:
    """Those after the kept chunks come back in order; the others stay."""
    sink = RecordingSink()
    outbox, session = make_outbox(sink)
    events = [put(outbox, number, text) for number, text in ((1, "a"), (2, "b"), (3, "c"))]
    assert [event for event, _ in outbox.withdraw(1)] == events[1:]
    session.released_chunks = 9
    asyncio.run(outbox.flush())
    assert sink.joined("content") == "a"


def test_token_ids_are_hidden_when_an_event_is_released() -> None:
    """Unless the client requested them."""
    for wanted in (False, True):
        sink = RecordingSink()
        outbox, _ = make_outbox(sink, released=1, return_token_ids=wanted)
        event = put(outbox, 1, "a")
        asyncio.run(outbox.flush())
        assert (sink.raw == event) is wanted


def test_the_usage_of_one_of_several_streams_is_replaced() -> None:
    """By the ledger of the whole response."""
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    for rewrite in (False, True):
        sink = RecordingSink()
        outbox, session = make_outbox(sink, released=1)
        session.ledger.prompt, session.ledger.answer = 3, 4
        outbox.should_rewrite_usage = rewrite
        put(outbox, 1, "a", usage=dict(usage))
        asyncio.run(outbox.flush())
        (chunk,) = sink.chunks()
        assert chunk["usage"]["completion_tokens"] == (4 if rewrite else 1)


def test_the_summary_is_on_the_last_chunk() -> None:
    """If the client gets one."""
    for wanted in (False, True):
        sink = RecordingSink()
        outbox, _ = make_outbox(sink, released=2, always_summarize=wanted)
        put(outbox, 1, "a")
        put(outbox, 2, "", "stop")
        asyncio.run(outbox.flush())
        assert ["adjourn" in chunk for chunk in sink.chunks()] == [False, wanted]


def test_a_cancelled_write_loses_nothing() -> None:
    """Its events are written by the next flush, once; a second task waits for the first."""

    class StuckSink(RecordingSink):
        def __init__(self) -> None:
            super().__init__()
            self.free = asyncio.Event()

        async def write(self, events: list[bytes]) -> None:
            await self.free.wait()
            await super().write(events)

    async def run() -> None:
        sink = StuckSink()
        outbox, _ = make_outbox(sink, released=2)
        put(outbox, 1, "a")
        first = asyncio.ensure_future(outbox.flush())
        await asyncio.sleep(0)
        put(outbox, 2, "b")
        second = asyncio.ensure_future(outbox.flush())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        sink.free.set()
        await second
        assert sink.joined("content") == "ab"
        assert outbox.is_empty

    asyncio.run(run())
