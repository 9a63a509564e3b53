"""Whether a text ends within a grapheme, a character as a reader sees it."""

from __future__ import annotations

import unicodedata

__all__ = ["ends_mid_grapheme"]

_ZERO_WIDTH_JOINER = "\u200d"
_REGIONAL_INDICATORS = frozenset(map(chr, range(0x1F1E6, 0x1F200)))
"""Two of these letters make a flag."""
_LEADING_JAMO = frozenset(map(chr, range(0x1100, 0x1160)))
"""Consonants that begin a Korean syllable."""
_VIRAMA_CLASS = 9


def ends_mid_grapheme(text: str) -> bool:
    """Whether the next character must belong to the last one: after a zero-width joiner, half a
    flag, a leading consonant or a virama. A combining accent that might follow does not count."""
    last = text[-1:]
    if last.isascii():  # the common case
        return False
    if last in _REGIONAL_INDICATORS:
        return (len(text) - len(text.rstrip("".join(_REGIONAL_INDICATORS)))) % 2 == 1
    return (
        last == _ZERO_WIDTH_JOINER
        or last in _LEADING_JAMO
        or unicodedata.combining(last) == _VIRAMA_CLASS
    )
