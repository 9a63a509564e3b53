"""Whether a text ends within a character that a reader sees as one."""

from __future__ import annotations

import unicodedata

__all__ = ["ends_mid_grapheme"]

_ZERO_WIDTH_JOINER = "\u200d"
_REGIONAL_INDICATORS = frozenset(map(chr, range(0x1F1E6, 0x1F200)))
"""The letters of which two make a flag."""
_LEADING_JAMO = frozenset(map(chr, range(0x1100, 0x1160)))
"""Consonants that begin a syllable."""
_VIRAMA_CLASS = 9


def ends_mid_grapheme(text: str) -> bool:
    """Whether the next character must belong to the last: behind a joiner, half a flag, a consonant
    that begins a syllable, a sign that joins consonants. That an accent might follow makes nothing
    a half thing."""
    last = text[-1:]
    if last.isascii():  # nearly always
        return False
    if last in _REGIONAL_INDICATORS:
        return (len(text) - len(text.rstrip("".join(_REGIONAL_INDICATORS)))) % 2 == 1
    return (
        last == _ZERO_WIDTH_JOINER
        or last in _LEADING_JAMO
        or unicodedata.combining(last) == _VIRAMA_CLASS
    )
