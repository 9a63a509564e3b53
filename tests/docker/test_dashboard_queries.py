"""The dashboard's queries, run by a real Prometheus that has scraped a gateway under load."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.docker.dashboard import BOARD, SELECTOR, TARGETS, panels, title_of
from tests.docker.load import CUE, TOKENS
from tests.docker.scraping import PrometheusClient, start_scraped_gateway


@pytest.fixture(scope="module")
def scraped(
    prometheus: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrometheusClient]:
    with start_scraped_gateway(prometheus, tmp_path_factory.mktemp("scraped")) as client:
        yield client


@pytest.mark.prometheus
@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_query_returns_finite_numbers(
    scraped: PrometheusClient, panel: dict[str, Any], target: dict[str, Any]
) -> None:
    """For all models and policies, and for selected ones."""
    for variables in (
        {},
        {"model": "(standin|other)", "policy": "(deer|budget|first-finish|partial-reward|none)"},
    ):
        values = scraped.values(target["expr"], **variables)

        assert values
        assert all(math.isfinite(value) for value in values)


@pytest.mark.prometheus
@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_every_selector_matches_a_series(
    scraped: PrometheusClient, panel: dict[str, Any], target: dict[str, Any]
) -> None:
    """Checked separately, because `or vector(0)` would hide a wrong metric name or label."""
    for found in SELECTOR.finditer(target["expr"]):
        assert scraped.query(found[0]), found[0]


@pytest.mark.prometheus
@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_legend_labels_exist_and_distinguish_the_series(
    scraped: PrometheusClient, panel: dict[str, Any], target: dict[str, Any]
) -> None:
    """Every {{label}} is in every series, and no two series have the same legend."""
    labels = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
    series = [found["metric"] for found in scraped.query(target["expr"])]
    legends = {tuple(metric.get(label) for label in labels) for metric in series}

    assert all(label in metric for metric in series for label in labels)
    assert len(legends) == len(series)


@pytest.mark.prometheus
@pytest.mark.parametrize("panel", [p for p in panels() if p["type"] == "stat"], ids=title_of)
def test_a_stat_without_traffic_is_not_nan(
    scraped: PrometheusClient, panel: dict[str, Any]
) -> None:
    """It has no value, so that Grafana shows the panel's text, instead of 0 / 0."""
    idle = replace(scraped, at=scraped.idle_at, window=3)

    assert all(map(math.isfinite, idle.values(panel["targets"][0]["expr"])))


@pytest.mark.prometheus
@pytest.mark.parametrize("name", ["model", "policy"])
def test_a_variable_offers_the_scraped_values(scraped: PrometheusClient, name: str) -> None:
    """label_values(metric, label), queried as Grafana does."""
    (variable,) = (v for v in BOARD["templating"]["list"] if v["name"] == name)
    label_values = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
    assert label_values is not None

    offered = scraped.get(f"label/{label_values[2]}/values", **{"match[]": label_values[1]})

    assert set(offered) >= {"model": {"standin", "other"}, "policy": {"deer", "budget"}}[name]


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("title", "low", "high"),
    [
        ("Tokens saved per cut (measured)", TOKENS - CUE - 1, TOKENS - CUE + 1),
        ("Median reasoning tokens at a cut", 32, 64),
        ("Engine", 1, 1),
        ("Net saving (estimate)", 0.001, 0.95),
        ("Upstream errors", 0.5, 20),
    ],
)
def test_a_stat_shows_the_value_of_the_load(
    scraped: PrometheusClient, title: str, low: float, high: float
) -> None:
    """Within the limits that the load implies."""
    assert low <= stat_value(scraped, title) <= high


UNDER_POLICY = 'adjourn_requests_total{policy="deer"}'
ALL_ANSWERED = 'adjourn_requests_total{policy=~"deer|none"%s}'


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("title", "part", "whole"),
    [
        (
            "Traces ended early",
            'adjourn_triggers_total{policy="deer",action="carried-out"}',
            UNDER_POLICY,
        ),
        ("Requests with an error", ALL_ANSWERED % ',status=~"5.."', ALL_ANSWERED % ""),
        ("Client disconnects", ALL_ANSWERED % ',status="499"', ALL_ANSWERED % ""),
        (
            "Cuts refused",
            'adjourn_triggers_total{policy="deer",action="refused"}',
            'adjourn_triggers_total{policy="deer",action=~"refused|carried-out"}',
        ),
        ("Policy errors (fail open)", 'adjourn_fail_open_total{policy=~"deer|none"}', UNDER_POLICY),
    ],
)
def test_a_share_equals_that_of_the_counters(
    scraped: PrometheusClient, title: str, part: str, whole: str
) -> None:
    """Computed from the raw counters, because timing changes the load's outcome on a busy machine.
    The tolerance is for Prometheus, which extrapolates each series to the ends of the window."""
    share = scraped.increase(part) / scraped.increase(whole)

    assert share > 0
    assert 0.6 * share <= stat_value(scraped, title) <= 1.6 * share


def stat_value(scraped: PrometheusClient, title: str) -> float:
    """The value of the stat panel with this title, for the load's policy."""
    (panel,) = (p for p in panels() if p["title"] == title and p["type"] == "stat")
    (value,) = scraped.values(panel["targets"][0]["expr"], policy="(deer|none)")
    return value
