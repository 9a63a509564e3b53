"""A byte stream is split into events however it is chunked, and no byte is lost or changed."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adjourn.server.stream.sse import EventSplitter, event_data

_PARTS = [
    b"\n",
    b"\n\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\r",
    b"data: x",
    b"data:",
    b": note",
    b"id: 7",
    b"a",
]
_STREAMS = st.lists(st.sampled_from(_PARTS), max_size=14).map(b"".join)


def split(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    return [event for piece in pieces for event in splitter.feed(piece)], splitter.remainder


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """The stream in chunks of these sizes, repeated."""
    pieces = []
    while stream:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(stream[:size])
        stream = stream[size:]
    return pieces


def oracle(event: bytes) -> bytes | None:
    """An event's data as the standard defines it: field by field, line by line."""
    lines = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    fields = [line.partition(b":") for line in lines if b":" in line]
    values = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
    return b"\n".join(values) if values else None


@given(_STREAMS, st.lists(st.integers(1, 5), min_size=1, max_size=5))
@example(b"data: x\n\n\n", [1])
@example(b"data: x\r\r\ndata: y\r\r", [9, 1])
def test_events_do_not_depend_on_the_chunking(stream: bytes, sizes: list[int]) -> None:
    """Chunks give the events and the remainder of the whole stream."""
    assert split(cut(stream, sizes)) == split([stream])


@given(_STREAMS, st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_no_byte_is_lost_or_changed(stream: bytes, sizes: list[int]) -> None:
    """The events and the remainder, concatenated, are the bytes fed."""
    events, rest = split(cut(stream, sizes))
    assert b"".join(events) + rest == stream


@given(_STREAMS)
def test_an_event_is_complete(stream: bytes) -> None:
    """It ends with a blank line and has no other; the remainder has none but at its end."""
    blank = re.compile(rb"\n\n|\r\n\r\n|\r\r")
    events, rest = split([stream])
    for event in events:
        assert re.search(rb"(\r\n|\n|\r)(\r\n|\n|\r)\Z", event)
        assert blank.search(event[:-2].rstrip(b"\r\n")) is None
    assert blank.search(rest[:-2]) is None


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", [b"data: a\n\n", b"data: b\n\n"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"data: a\r\n\r\n", b"data: b\r\n\r\n"]),
        (b"data: a\r\rdata: b\n\n", [b"data: a\r\r", b"data: b\n\n"]),
        (b": keep-alive\n\ndata: a\n\n", [b": keep-alive\n\n", b"data: a\n\n"]),
        (b"data: a\ndata: b\n\n", [b"data: a\ndata: b\n\n"]),
        (b"data: a\n", []),
        (b"", []),
    ],
)
def test_streams(stream: bytes, expected: list[bytes]) -> None:
    """Each kind of line end, comments, events of several lines, half an event."""
    events, rest = split([stream])
    assert events == expected
    assert rest == stream[len(b"".join(expected)) :]


@given(_STREAMS)
@example(b"data: x\r\n\n")
@example(b"data: x\n\n\n")
def test_event_data_follows_the_standard(stream: bytes) -> None:
    """The fast path and the general one agree."""
    for event in split([stream])[0]:
        assert event_data(event) == oracle(event)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b"data: [DONE]\n\n", b"[DONE]"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data: x\r\n\r\n", b"x"),
        (b"event: error\ndata: x\n\n", b"x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: \n\n", b""),
        (b": ping\n\n", None),
        (b"\n\n", None),
    ],
)
def test_data(event: bytes, expected: bytes | None) -> None:
    """One space after the colon is not data; lines are joined; a comment has none."""
    assert event_data(event) == expected
