"""Built-in dialects are complete; a user's are read, or refused with the key that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from adjourn.policies.text.cues import Cue, CueScanner
from adjourn.policies.text.dialect import Dialect, builtin_dialects, override_dialects

WHOLE = {
    "start": "<a>",
    "end": "</a>",
    "closing": "\n</a>\n\n",
    "cues": ["Wait"],
    "inducers": {"answer": "\\boxed{"},
}


@pytest.mark.parametrize("name", list(builtin_dialects()))
def test_a_builtin_dialect_is_complete(name: str) -> None:
    """It has markers, a closing sequence with an end marker, cues that are found, an inducer."""
    dialect = builtin_dialects()[name]
    assert dialect.name == name
    assert set(dialect.start).isdisjoint({*dialect.end, *dialect.breaks})
    assert any(marker in dialect.closing + dialect.header for marker in dialect.end)
    assert dialect.identifying_texts or dialect.models
    assert dialect.inducers["answer"].endswith("{")
    for cue in dialect.cues:
        scanner = CueScanner(dialect.cues)
        assert scanner.feed(f"So. {cue}, no") == [Cue(cue, 4)]


def test_models_are_matched_in_lower_case() -> None:
    """Patterns are compared with a lower-case name, so they are lower case themselves."""
    patterns = [pattern for d in builtin_dialects().values() for pattern in d.models]
    assert patterns == [pattern.lower() for pattern in patterns]


def test_a_dialect_is_loaded_from_configuration() -> None:
    """Lists become tuples, other values stay."""
    dialect = Dialect.load("mine", {**WHOLE, "models": ["*mine*"]})
    assert dialect == Dialect(
        name="mine",
        start=("<a>",),
        end=("</a>",),
        closing="\n</a>\n\n",
        cues=("Wait",),
        inducers={"answer": "\\boxed{"},
        models=("*mine*",),
    )


def test_a_header_may_contain_the_end_marker() -> None:
    """Then a probe ends the trace although the closing sequence alone does not."""
    data = WHOLE | {"closing": "<stop>", "header": "</a>", "start": ["<a>", "<b>"], "tokens": []}
    dialect = Dialect.load("mine", data)
    assert (dialect.start, dialect.header, dialect.identifying_texts) == (
        ("<a>", "<b>"),
        "</a>",
        (),
    )


def test_a_dialect_is_identified_by_its_markers() -> None:
    """Without `tokens`, each marker must be one token."""
    assert Dialect.load("mine", WHOLE).identifying_texts == ("<a>", "</a>")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"start": ""}, "start"),
        ({"end": ""}, "end"),
        ({"closing": ""}, "closing"),
        ({"closing": "</b>"}, "closing"),
        ({"cuse": ["Wait"]}, "cuse"),
        ({"cues": [""]}, "cues"),
        ({"cues": "Wait"}, "cues"),
        ({"cues": [1]}, "cues"),
        ({"cues": None}, "cues"),
        ({"models": "*mine*"}, "models"),
        ({"start": 5}, "start"),
        ({"end": 5}, "end"),
        ({"inducers": "x"}, "inducers"),
        ({"inducers": {"answer": 5}}, "inducers"),
        ({"warnings": ["x"]}, "warnings"),
        ({"start": []}, "start"),
        ({"end": ["</a>", ""]}, "end"),
        ({"breaks": "<tool>"}, "breaks"),
        ({"tokens": [1]}, "tokens"),
        ({"header": 5}, "header"),
    ],
)
def test_a_wrong_key_is_named(change: dict[str, Any], named: str) -> None:
    """A value that would fail at a request is refused on reading, with dialect and key."""
    with pytest.raises(ValueError, match=f"'mine'.*{named}"):
        Dialect.load("mine", WHOLE | change)


@pytest.mark.parametrize("missing", list(WHOLE))
def test_a_missing_key_is_named(missing: str) -> None:
    """A dialect needs markers, cues and inducers."""
    data = {key: value for key, value in WHOLE.items() if key != missing}
    with pytest.raises(ValueError, match=f"'mine'.*{missing}"):
        Dialect.load("mine", data)


def test_keys_of_a_known_dialect_are_replaced() -> None:
    """The changed key has the user's value; other keys and the order stay."""
    changed = override_dialects(builtin_dialects(), {"qwen3": {"cues": ["Hm"]}})
    assert list(changed) == list(builtin_dialects())
    assert changed["qwen3"].cues == ("Hm",)
    assert changed["qwen3"].closing == builtin_dialects()["qwen3"].closing
    assert changed["mistral"] == builtin_dialects()["mistral"]


def test_a_new_dialect_is_tried_first() -> None:
    """Missing keys come from the first built-in dialect, but for those specific to its family."""
    known = builtin_dialects()
    changed = override_dialects(known, {"mine": {"start": "<a>", "end": "</a>", "closing": "</a>"}})
    assert list(changed) == ["mine", *known]
    assert changed["mine"].cues == next(iter(known.values())).cues
    assert (changed["mine"].models, changed["mine"].warnings) == ((), {})
    assert (changed["mine"].breaks, changed["mine"].tokens, changed["mine"].header) == (
        (),
        None,
        "",
    )


def test_a_new_dialect_needs_its_own_closing() -> None:
    """Another family's closing sequence would not end its traces."""
    with pytest.raises(ValueError, match=r"'mine'.*closing"):
        override_dialects(builtin_dialects(), {"mine": {"start": "<a>", "end": "</a>"}})
