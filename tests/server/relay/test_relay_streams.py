"""Whatever the engine's bytes look like on their way, the client gets what the API promises."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.stopping.budget import Budget
from adjourn.server.relay.relay import Relay
from adjourn.server.stream.sse import event_data
from tests.policies.session_helpers import PROMPT
from tests.server.relay.relay_helpers import (
    COMMENTS,
    DONE,
    GROUPS,
    PLACES,
    RecordingSink,
    ScriptedEngine,
    make_chunk,
    make_relay,
    response_events,
    run_relay,
    split_bytes,
)


def test_a_response_is_complete_with_its_last_event() -> None:
    """A client that leaves then has not left early, even if the engine's stream goes on."""
    complete: list[bool] = []

    class WatchingSink(RecordingSink):
        relay: Relay

        async def write(self, events: list[bytes]) -> None:
            await super().write(events)
            asyncio.get_running_loop().call_soon(lambda: complete.append(self.relay.is_complete))

    async def run() -> None:
        answer = make_chunk({"content": "7"}, [9], "stop", prompt=list(PROMPT))
        sink = WatchingSink()
        sink.relay = make_relay(ScriptedEngine([answer, DONE, b"", b": bye\n\n"]), sink)
        await sink.relay.run()

    asyncio.run(run())
    assert complete[:2] == [False, True]


@given(GROUPS, st.booleans(), st.booleans(), st.booleans(), COMMENTS, PLACES)
def test_a_stream_does_not_depend_on_its_reads(
    groups: list[list[str]],
    both: bool,
    usage: bool,
    crlf: bool,
    comments: list[bytes],
    places: list[int],
) -> None:
    """Nothing is lost, sent twice or out of order; comments and line ends are kept."""
    events = response_events(groups, both, usage)
    pairs = zip(comments, events, strict=False)
    events = [event for pair in pairs for event in pair] + events[len(comments) :]
    if crlf:
        events = [event.replace(b"\n", b"\r\n") for event in events]
    whole, _, _ = run_relay(events, return_token_ids=True)
    assert whole.raw == b"".join(events)
    split, _, session = run_relay(split_bytes(b"".join(events), places), return_token_ids=True)
    assert split.raw == whole.raw
    assert session.ledger.prompt == len(PROMPT)


@given(GROUPS, st.booleans(), PLACES)
def test_token_ids_are_hidden(groups: list[list[str]], both: bool, places: list[int]) -> None:
    """A client that did not request token ids gets none, and all text."""
    events = response_events(groups, both, False)
    whole, _, _ = run_relay(events)
    split, _, _ = run_relay(split_bytes(b"".join(events), places))
    assert split.raw == whole.raw
    assert b'ids":[' not in split.raw
    words = "".join(word for group in groups for word in group)
    assert split.joined("reasoning") == words + ("z" if both else "")
    assert split.joined("content") == "7 é"


@given(GROUPS, st.integers(1, 20), st.booleans(), PLACES, PLACES)
def test_the_answer_continues_what_the_client_saw(
    groups: list[list[str]], limit: int, crlf: bool, mains: list[int], answers: list[int]
) -> None:
    """The answer's prompt has exactly the tokens whose text was sent, and all of it arrives."""
    events = response_events(groups, False, False)
    answer = [
        make_chunk({"content": "4"}, [50]),
        make_chunk({"content": "2 é"}, [51], "stop"),
        DONE,
    ]
    if crlf:
        events, answer = ([e.replace(b"\n", b"\r\n") for e in es] for es in (events, answer))
    sink, wire, session = run_relay(
        split_bytes(b"".join(events), mains),
        split_bytes(b"".join(answer), answers),
        Budget(max=limit, grace=0),
    )
    if not session.stopped:
        assert wire.resumed is None or session.mute_reason
        assert sink.joined("content") == "7 é"
        return
    assert wire.resumed is not None
    kept = len(wire.resumed) - len(PROMPT) - len(session.closing)
    seen, ids = "", 0
    for group in groups:
        if ids >= kept:
            break
        seen, ids = seen + "".join(group), ids + max(len(group), 1)
    assert ids == kept
    assert sink.joined("reasoning") == seen
    assert sink.joined("content") == "42 é"
    assert sink.chunks()[-1]["adjourn"]["stopped"] is True


@given(GROUPS, PLACES, st.booleans())
def test_a_stream_without_done(groups: list[list[str]], places: list[int], newline: bool) -> None:
    """A finished response gets its ``[DONE]``, even without a last line end."""
    whole = b"".join(response_events(groups, False, False)[:-1])
    sink, _, _ = run_relay(split_bytes(whole if newline else whole.rstrip(), places))
    assert sink.error is None
    assert event_data(sink.events[-1]) == b"[DONE]"
    assert sink.joined("content") == "7 é"


@given(GROUPS, PLACES, st.integers(1, 10))
def test_a_stream_that_ends_before_its_finish(
    groups: list[list[str]], places: list[int], kept: int
) -> None:
    """What came is sent, then an error, and nothing that looks like a complete response."""
    events = response_events(groups, False, False)[:-2][: kept + 1]
    sink, _, _ = run_relay(split_bytes(b"".join(events), places))
    assert sink.error is not None
    assert sink.error.reason == "truncated"
    assert DONE not in sink.raw
    assert [e.get("choices") is not None for e in sink.chunks()] == [True] * len(sink.chunks())


@given(GROUPS, PLACES, st.booleans())
def test_an_error_event(groups: list[list[str]], places: list[int], done: bool) -> None:
    """The client gets it as the engine wrote it, after everything before it."""
    error = 'data: {"error": {"message": "é", "type": "InternalServerError"}}\n\n'.encode()
    events = [*response_events(groups, False, False)[:-2], error, *([DONE] if done else [])]
    sink, _, _ = run_relay(split_bytes(b"".join(events), places))
    assert sink.error is None
    assert error in sink.raw
    assert sink.raw.endswith(DONE)
    words = "".join(word for group in groups for word in group)
    assert sink.joined("reasoning") == words


@pytest.mark.parametrize("junk", [b"data: {\n\n", b"data: 5\n\n", b'data: {"choices":5}\n\n'])
def test_an_unreadable_chunk_is_passed_on(junk: bytes) -> None:
    """It is counted and mutes the policy; the stream goes on."""
    events = response_events([["a"], ["b"]], False, False)
    sink, _, session = run_relay([*events[:2], junk, *events[2:]])
    assert junk in sink.raw
    assert session.mute_reason == "unreadable-chunk"
    assert sink.raw.endswith(DONE)
