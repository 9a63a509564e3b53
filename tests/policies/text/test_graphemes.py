"""Whether a text ends within a grapheme."""

from __future__ import annotations

import pytest

from adjourn.policies.text.graphemes import ends_mid_grapheme


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("a.", False),
        ("\u00e9", False),
        ("e\u0301", False),
        ("\U0001f469", False),
        ("\U0001f469\u200d", True),
        ("\U0001f469\u200d\U0001f4bb", False),
        ("\U0001f1e9", True),
        ("\U0001f1e9\U0001f1ea", False),
        ("a\U0001f1e9\U0001f1ea\U0001f1eb", True),
        ("\u1112", True),
        ("\u1112\u1161\u11ab", False),
        ("\u0915\u094d", True),
        ("\u0915\u094d\u0937", False),
    ],
)
def test_texts_that_end_mid_grapheme(text: str, expected: bool) -> None:
    """After a joiner, half a flag, a leading consonant, a virama; not before an accent."""
    assert ends_mid_grapheme(text) is expected
