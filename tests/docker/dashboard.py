"""The provisioned Grafana dashboard: its panels and queries."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

__all__ = ["BOARD", "SELECTOR", "TARGETS", "panels", "title_of"]

ROOT = Path(__file__).parents[2]
BOARD = json.loads((ROOT / "docker/grafana/dashboards/adjourn.json").read_text("utf-8"))
SELECTOR = re.compile(r"\b((?:adjourn_|vllm:)\w+)(\{[^}]*\})?")
"""A metric in PromQL: its name, and its label selector if it has one."""


def panels() -> list[dict[str, Any]]:
    """All panels, including those in collapsed rows, without the rows themselves."""
    every_panel = [p for panel in BOARD["panels"] for p in (panel, *panel.get("panels", ()))]
    return [panel for panel in every_panel if panel["type"] != "row"]


def title_of(panel: dict[str, Any]) -> str:
    return str(panel["title"])


TARGETS = [
    pytest.param(panel, target, id=f"{panel['title']} {target['refId']}")
    for panel in panels()
    for target in panel["targets"]
]
"""Test parameters: every query, with its panel."""
