"""The dashboard's JSON: its structure is one that Grafana 11 reads, and every metric is shown.

Grafana itself does not run here; ``test_dashboard_queries.py`` runs the queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import Metric

from adjourn.server.metrics import Metrics
from tests.docker.dashboard import BOARD, SELECTOR, panels, title_of

ROWS = [
    "Is it worth it?",
    "Is it safe?",
    "What did it do?",
    "What does it cost?",
    "The engine (vLLM)",
]
UNITS = {"s", "short", "none", "bytes", "percentunit", "reqps", "cpm"}
UNITS |= {"count:tokens", "count:tokens/s", "count:traces"}
NOT_SHOWN = {"adjourn_build_info"}  # the version, for queries by hand


def test_uid_and_schema_version() -> None:
    """Links contain the uid, so it never changes; Grafana 11 reads the schema version."""
    assert BOARD["uid"] == "adjourn"
    assert 39 <= BOARD["schemaVersion"] <= 41
    assert BOARD.get("id") is None


def test_rows_are_in_order() -> None:
    """Savings, safety, activity and cost, and the engine's own metrics in a collapsed row."""
    rows = [panel for panel in BOARD["panels"] if panel["type"] == "row"]

    assert [row["title"] for row in rows] == ROWS
    assert [row["collapsed"] for row in rows] == [False] * 4 + [True]
    assert all(bool(row["panels"]) == row["collapsed"] for row in rows)


@pytest.mark.parametrize("panel", panels(), ids=title_of)
def test_a_panel_has_description_unit_thresholds_and_legends(panel: dict[str, Any]) -> None:
    """Also the data source variable, and a unique refId per query."""
    defaults = panel["fieldConfig"]["defaults"]

    assert len(panel["description"]) > 30
    assert defaults["unit"] in UNITS
    assert defaults["thresholds"]["steps"][0]["value"] is None
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(target["legendFormat"] for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_panels_do_not_overlap() -> None:
    """Within the 24 columns of the grid; panel ids are unique."""
    all_panels = BOARD["panels"] + [p for row in BOARD["panels"] for p in row.get("panels", ())]
    occupied: set[tuple[int, int]] = set()
    for panel in all_panels:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        assert not cells & occupied, panel["title"]
        occupied |= cells
    assert len({panel["id"] for panel in all_panels}) == len(all_panels)


def test_titles_in_a_row_are_unique() -> None:
    """Of the panels in collapsed rows."""
    for row in BOARD["panels"]:
        titles = [panel["title"] for panel in row.get("panels", ())]
        assert len(set(titles)) == len(titles)


def test_data_source_model_and_policy_are_variables() -> None:
    """Model and policy select all by default."""
    source, *others = BOARD["templating"]["list"]

    assert (source["name"], source["type"], source["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    assert [variable["name"] for variable in others] == ["model", "policy"]
    for variable in others:
        assert variable["includeAll"]
        assert variable["multi"]
        assert variable["allValue"] == ".*"
        assert variable["query"]["query"] == variable["definition"]


def test_every_metric_is_shown() -> None:
    """Each metric family that the gateway exports is in a panel, except ``NOT_SHOWN``."""
    shown = {
        name for panel in panels() for t in panel["targets"] for name in metric_names(t["expr"])
    }

    for family in exported_families():
        samples = {family.name + end for end in ("", "_total", "_bucket", "_sum", "_count")}
        assert samples & shown or family.name in NOT_SHOWN, family.name


def metric_names(expression: str) -> set[str]:
    return {found[1] for found in SELECTOR.finditer(expression)}


def exported_families() -> Iterator[Metric]:
    for family in Metrics().registry.collect():
        if not family.name.startswith("adjourn_process_"):
            yield family
