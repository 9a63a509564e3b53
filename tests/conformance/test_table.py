"""The page has all results, and a reason for each unexpected one."""

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


def test_a_feature_missing_on_one_target_is_absent() -> None:
    """The client reported it for the engine but not for a gateway."""
    places = ("direct", "direct again", "off", "never")
    cells = verdicts_by_feature({place: [LINE] for place in places} | {"fires": []})["chat"]
    assert [cell.value for cell in cells.values()] == ["equal", "equal", "absent"]


def test_a_client_that_never_ran_is_reported() -> None:
    """It is on the page, and fails the run."""
    page, unexplained = render_page({"openai-node": SuiteResult()}, Reasons([]))
    assert "| 0 of 0 |" in page
    assert unexplained == ["openai-node: never ran"]


def test_an_unexpected_result_has_a_numbered_reason() -> None:
    """The number is in the cell and the sentence below the table."""
    page, unexplained = render_page(FOUND, Reasons([REASON]))
    assert "| text | equal | equal | **not shortened** [1] |" in page
    assert "1. It is not." in page
    assert unexplained == []


def test_a_cell_without_a_reason_is_reported() -> None:
    """It fails the run."""
    _, unexplained = render_page(FOUND, Reasons([]))
    assert unexplained == ["openai-node: text: fires: not shortened"]


def test_a_reason_without_a_cell_is_reported() -> None:
    """A reason is unused if its cell is now good or has another verdict."""
    reasons = Reasons([REASON, REASON | {"cell": "differs", "why": "Long mended."}])
    render_page(FOUND, reasons)
    assert reasons.unused() == ["Long mended."]


def test_the_page_counts_good_cells() -> None:
    """By client, with its version, the engine's, and a link to its table."""
    page, _ = render_page(FOUND, Reasons([REASON]))
    assert "| [openai-node](#openai-node) | 7.0 | vLLM 1.2 | 1 of 1 | 1 of 1 | 0 of 1 |" in page
    assert "## openai-node" in page


def test_a_run_of_some_features_keeps_the_others(tmp_path: Path) -> None:
    """Stored results of features that were not run are unchanged."""
    assert load_result("openai_node", tmp_path) == SuiteResult()
    save_result("openai_node", FOUND["openai-node"], tmp_path)
    again = SuiteResult("vLLM 1.3", "7.0", {"text": CELLS | {"fires": Verdict.SHORTER}, "n": CELLS})
    kept = load_result("openai_node", tmp_path).merged_with(
        SuiteResult("vLLM 1.3", "7.0", {"n": CELLS})
    )
    assert kept == SuiteResult("vLLM 1.3", "7.0", {"text": CELLS, "n": CELLS})
    assert kept.merged_with(again) == again


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_the_version_of_a_client_is_pinned(suite: Any) -> None:
    """Except for the client that is installed with the engine."""
    assert (suite.version() is None) == (suite.environment == "engine")


def test_the_committed_page_matches_the_results() -> None:
    """Every unexpected cell has a reason, every reason a cell, and nothing was edited by hand."""
    reasons = Reasons.load(REASONS_PATH)
    page, unexplained = render_page(
        {suite.client: load_result(suite.name) for suite in SUITES}, reasons
    )
    assert (unexplained, reasons.unused()) == ([], [])
    assert PAGE_PATH.read_text("utf-8") == page
