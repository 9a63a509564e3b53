"""The made-up tokenizer: pieces of text and their ids, the same in every process."""

from __future__ import annotations

import random
import re
from zlib import crc32

__all__ = [
    "BLANK",
    "END",
    "END_THINK",
    "HELD",
    "NEWLINE",
    "PIECES",
    "REASONING",
    "START",
    "THINK",
    "decode",
    "encode",
]

THINK, END_THINK, END, START, HELD, NEWLINE, BLANK = 1, 2, 3, 4, 5, 198, 271

_SPECIAL = {
    THINK: "<think>",
    END_THINK: "</think>",
    END: "<|im_end|>",
    START: "<|im_start|>",
    HELD: "",  # half a character: a detokenizer says nothing until the other half is there
    NEWLINE: "\n",
    BLANK: "\n\n",
}
# Openings share their first letters with cues ("We" and "Wait", "Let n" and "Let me"), so that a
# scanner has its ordinary work to do, but none is one.
_OPENINGS = tuple(
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

PIECES: dict[int, str] = dict(_SPECIAL)
PIECES.update(enumerate([*_OPENINGS, *_WORDS, " Wait", "."], start=300))
_IDS = {piece: token for token, piece in PIECES.items() if piece}

_MARKER = r"<think>|</think>|<\|im_start\|>|<\|im_end\|>"
_PIECE = re.compile(
    rf"{_MARKER}|\n\n|\n| ?[^\W\d_]+|\d| ?(?!{_MARKER})[^\w\s]|.", re.DOTALL | re.UNICODE
)
_FIRST_HASHED, _HASHED = 1_000, 150_000


def encode(text: str) -> list[int]:
    """The ids of a text. `decode` gives the text back, in the process that encoded it."""
    return [_IDS.get(piece) or _learn(piece) for piece in _PIECE.findall(text)]


def decode(tokens: list[int]) -> str:
    return "".join(PIECES.get(token, "\N{REPLACEMENT CHARACTER}") for token in tokens)


def _learn(piece: str) -> int:
    token = crc32(piece.encode("utf-8", "surrogatepass")) % _HASHED
    for _ in range(_HASHED):
        if PIECES.setdefault(_FIRST_HASHED + token, piece) == piece:
            break
        token = (token + 1) % _HASHED
    _IDS[piece] = _FIRST_HASHED + token
    return _FIRST_HASHED + token


def _ramble(length: int) -> tuple[int, ...]:
    """Sentences without a cue, and without a loop that a policy could find."""
    rng = random.Random(20260801)
    tokens: list[int] = []
    while len(tokens) < length:
        tokens += encode(rng.choice(_OPENINGS) + "".join(rng.choices(_WORDS, k=rng.randint(7, 17))))
        tokens += encode(".")
    return tuple(tokens[:length])


REASONING = _ramble(65_536)
