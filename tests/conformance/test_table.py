"""The page says what was found, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conformance.compare import Verdict
from tests.conformance.results import SuiteResult, load_result, save_result
from tests.conformance.suites import SUITES
from tests.conformance.table import (
    PAGE_PATH,
    REASONS_PATH,
    Reasons,
    render_page,
    verdicts_by_feature,
)

LINE: dict[str, Any] = {"feature": "chat", "kind": "plain", "reply": {"content": "42"}}
CELLS = {"off": Verdict.EQUAL, "never": Verdict.EQUAL, "fires": Verdict.UNCHANGED}
FOUND = {"openai-node": SuiteResult("vLLM 1.2", "7.0", {"text": CELLS})}
REASON = {
    "client": "*",
    "features": ["te*"],
    "columns": ["fires"],
    "cell": "not shortened",
    "why": "It is not.",
}


def test_a_feature_that_one_place_lacks_is_seen() -> None:
    """What the client reported at the engine and not at a gateway is absent there."""
    places = ("direct", "direct again", "off", "never")
    cells = verdicts_by_feature({place: [LINE] for place in places} | {"fires": []})["chat"]
    assert [cell.value for cell in cells.values()] == ["equal", "equal", "absent"]


def test_a_client_that_did_not_run_is_seen() -> None:
    """It stands on the page, and fails the run."""
    page, unexplained = render_page({"openai-node": SuiteResult()}, Reasons([]))
    assert "| 0 of 0 |" in page
    assert unexplained == ["openai-node: never ran"]


def test_a_cell_that_is_not_green_has_its_reason() -> None:
    """A number in the cell, the sentence below the table, nothing left unexplained."""
    page, unexplained = render_page(FOUND, Reasons([REASON]))
    assert "| text | equal | equal | **not shortened** [1] |" in page
    assert "1. It is not." in page
    assert unexplained == []


def test_a_cell_without_a_reason_is_told() -> None:
    """So that the run fails."""
    _, unexplained = render_page(FOUND, Reasons([]))
    assert unexplained == ["openai-node: text: fires: not shortened"]


def test_a_reason_without_a_cell_is_told() -> None:
    """A cell that turned green takes its reason along, and another verdict needs another."""
    reasons = Reasons([REASON, REASON | {"cell": "differs", "why": "Long mended."}])
    render_page(FOUND, reasons)
    assert reasons.unused() == ["Long mended."]


def test_the_page_counts_what_is_as_it_should_be() -> None:
    """By client, with its version and the engine's, and a way to its table."""
    page, _ = render_page(FOUND, Reasons([REASON]))
    assert "| [openai-node](#openai-node) | 7.0 | vLLM 1.2 | 1 of 1 | 1 of 1 | 0 of 1 |" in page
    assert "## openai-node" in page


def test_a_run_of_some_features_keeps_the_others(tmp_path: Path) -> None:
    """What was found survives in its file, and only what was run anew changes."""
    assert load_result("openai_node", tmp_path) == SuiteResult()
    save_result("openai_node", FOUND["openai-node"], tmp_path)
    again = SuiteResult("vLLM 1.3", "7.0", {"text": CELLS | {"fires": Verdict.SHORTER}, "n": CELLS})
    kept = load_result("openai_node", tmp_path).merged_with(
        SuiteResult("vLLM 1.3", "7.0", {"n": CELLS})
    )
    assert kept == SuiteResult("vLLM 1.3", "7.0", {"text": CELLS, "n": CELLS})
    assert kept.merged_with(again) == again


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_a_clients_version_is_pinned(suite: Any) -> None:
    """All but the one that the engine brings, which has the engine's."""
    assert (suite.version() is None) == (suite.environment == "engine")


def test_the_page_is_made_of_what_was_found() -> None:
    """No cell without its reason, no reason without its cell, and nothing edited by hand."""
    reasons = Reasons.load(REASONS_PATH)
    page, unexplained = render_page(
        {suite.client: load_result(suite.name) for suite in SUITES}, reasons
    )
    assert (unexplained, reasons.unused()) == ([], [])
    assert PAGE_PATH.read_text("utf-8") == page
