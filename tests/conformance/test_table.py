"""The page says what was found, and why."""

from __future__ import annotations

from typing import Any

from tests.conformance.compare import Verdict
from tests.conformance.table import Reasons, Row, document, rows

LINE: dict[str, Any] = {"feature": "chat", "kind": "plain", "reply": {"content": "42"}}
CELLS = {"off": Verdict.EQUAL, "never": Verdict.EQUAL, "fires": Verdict.UNTOUCHED}
ROW = Row("node", "text", CELLS)
REASON = {
    "client": "*",
    "features": ["te*"],
    "columns": ["fires"],
    "cell": "not judged",
    "why": "It is not.",
}


def test_a_feature_that_one_place_lacks_is_seen() -> None:
    """What the client reported at the engine and not at a gateway is absent there."""
    places = ("direct", "direct again", "off", "never")
    [row] = rows("node", {place: [LINE] for place in places} | {"fires": []})
    assert [cell.value for cell in row.cells.values()] == ["equal", "equal", "absent"]


def test_a_client_that_did_not_run_is_seen() -> None:
    """It has no features, and yet a row."""
    [row] = rows("node", {})
    assert set(row.cells.values()) == {Verdict.ABSENT}


def test_a_cell_that_is_not_green_has_its_reason() -> None:
    """A number in the cell, the sentence below the table, nothing left unexplained."""
    page, unexplained = document([ROW], Reasons([REASON]))
    assert "| node | text | equal | equal | **not judged** [1] |" in page
    assert "1. It is not." in page
    assert unexplained == []


def test_a_cell_without_a_reason_is_told() -> None:
    """So that the run fails."""
    _, unexplained = document([ROW], Reasons([]))
    assert unexplained == ["node: text: fires: not judged"]


def test_a_reason_without_a_cell_is_told() -> None:
    """A cell that turned green takes its reason along, and another verdict needs another."""
    reasons = Reasons([REASON, REASON | {"cell": "differs", "why": "Long mended."}])
    document([ROW], reasons)
    assert reasons.idle() == ["Long mended."]
