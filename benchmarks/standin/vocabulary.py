"""A made-up tokenizer: texts of tokens and their ids, the same in every process."""

from __future__ import annotations

import random
import re
from zlib import crc32

__all__ = [
    "BLANK_LINE",
    "END_THINK",
    "IM_END",
    "IM_START",
    "NEWLINE",
    "PARTIAL_CHAR",
    "REASONING_IDS",
    "THINK",
    "TOKEN_TEXTS",
    "decode",
    "encode",
]

THINK, END_THINK, IM_END, IM_START, PARTIAL_CHAR, NEWLINE, BLANK_LINE = 1, 2, 3, 4, 5, 198, 271

_SPECIAL_TEXTS = {
    THINK: "<think>",
    END_THINK: "</think>",
    IM_END: "<|im_end|>",
    IM_START: "<|im_start|>",
    PARTIAL_CHAR: "",  # half a character: a detokenizer emits no text until it is complete
    NEWLINE: "\n",
    BLANK_LINE: "\n\n",
}
# These share their first letters with cues ("We" and "Wait", "Let n" and "Let me"), so that a cue
# scanner does its usual work, but none is a cue.
_SENTENCE_STARTS = tuple(
    f" {word}"
    for word in ("We", "Let", "The", "Then", "Hence", "As", "Both", "Because", "This", "Adding")
)
_WORDS = (
    *re.findall(
        " [^ \\n]+",
        """ a the of is and to in we n x sum term first second next gives equals so with from which
 value number digits carry left right product step over add multiply by both sides this case even
 odd small large bound at most least café ≈ ≤ therefore remainder table row column per each factor
 prime square""",
    ),
    *",1234567890",
)

TOKEN_TEXTS: dict[int, str] = dict(_SPECIAL_TEXTS)
TOKEN_TEXTS.update(enumerate([*_SENTENCE_STARTS, *_WORDS, " Wait", "."], start=300))
_TOKEN_IDS = {piece: token for token, piece in TOKEN_TEXTS.items() if piece}

_MARKER_PATTERN = r"<think>|</think>|<\|im_start\|>|<\|im_end\|>"
_TOKEN_PATTERN = re.compile(
    rf"{_MARKER_PATTERN}|\n\n|\n| ?[^\W\d_]+|\d| ?(?!{_MARKER_PATTERN})[^\w\s]|.",
    re.DOTALL | re.UNICODE,
)
_FIRST_HASHED_ID, _HASH_RANGE = 1_000, 150_000


def encode(text: str) -> list[int]:
    """The token ids of a text. `decode` restores the text in the process that encoded it."""
    return [_TOKEN_IDS.get(piece) or _assign_id(piece) for piece in _TOKEN_PATTERN.findall(text)]


def decode(tokens: list[int]) -> str:
    """The text of token ids; ids that `encode` did not return become U+FFFD."""
    return "".join(TOKEN_TEXTS.get(token, "\N{REPLACEMENT CHARACTER}") for token in tokens)


def _assign_id(piece: str) -> int:
    token = crc32(piece.encode("utf-8", "surrogatepass")) % _HASH_RANGE
    for _ in range(_HASH_RANGE):
        if TOKEN_TEXTS.setdefault(_FIRST_HASHED_ID + token, piece) == piece:
            break
        token = (token + 1) % _HASH_RANGE
    _TOKEN_IDS[piece] = _FIRST_HASHED_ID + token
    return _FIRST_HASHED_ID + token


def _make_reasoning(length: int) -> tuple[int, ...]:
    """Sentences without a cue, and without a repetition that a policy could detect."""
    rng = random.Random(20260801)
    tokens: list[int] = []
    while len(tokens) < length:
        tokens += encode(
            rng.choice(_SENTENCE_STARTS) + "".join(rng.choices(_WORDS, k=rng.randint(7, 17)))
        )
        tokens += encode(".")
    return tuple(tokens[:length])


REASONING_IDS = _make_reasoning(65_536)
