"""Renders docs/compatibility.md from the stored results and reasons.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.services import ROOT
from tests.conformance.compare import FeatureReport, Verdict, compare_reports
from tests.conformance.results import SuiteResult, VerdictsByGateway
from tests.conformance.targets import DIRECT_TARGETS, FIRING_POLICY, GATEWAY_POLICIES

__all__ = ["PAGE_PATH", "REASONS_PATH", "Reasons", "render_page", "verdicts_by_feature"]

PAGE_PATH = ROOT / "docs" / "compatibility.md"
REASONS_PATH = Path(__file__).parent / "reasons.toml"

_INTRODUCTION = """# Compatibility

These clients work with the gateway, unmodified, if their base URL is set to it. Each client sends
the same requests at temperature 0 to the engine itself and through the gateway, and the results are
compared. The engine is vLLM on the CPU with the pocket model; for failures a stand-in replaces it.

"""
_LEGEND = f"""
The columns are three gateways in front of one engine; each counts the expected results:

- **off**, without a policy: equal to the engine's reply in every key, except ids, times,
  prefix-cache hits, and the division of a stream into chunks;
- **never**, with a policy that observes each trace and never fires: also equal;
- **fires**, with `{FIRING_POLICY}`: the same keys, types and order of events, and a
  **shorter** trace; equal if a feature has no trace.

`make conformance` generates this page from `tests/conformance`, where the clients' versions are
pinned; `scripts/conformance` runs single clients, and `--only` single features.
"""


def verdicts_by_feature(reports: Mapping[str, list[FeatureReport]]) -> dict[str, VerdictsByGateway]:
    """The verdicts of a client by feature, from its reports by target."""
    by_target = {
        target: {line["feature"]: line for line in reports.get(target, [])}
        for target in (*DIRECT_TARGETS, *GATEWAY_POLICIES)
    }
    features = dict.fromkeys(name for by_name in by_target.values() for name in by_name)
    return {name: _feature_verdicts(name, by_target) for name in features}


def _feature_verdicts(
    feature: str, by_target: Mapping[str, Mapping[str, FeatureReport]]
) -> VerdictsByGateway:
    direct = [
        by_target[target][feature] for target in DIRECT_TARGETS if feature in by_target[target]
    ]
    return {
        target: compare_reports(
            direct, by_target[target].get(feature), policy_fires=target == "fires"
        )
        for target in GATEWAY_POLICIES
    }


@dataclass
class Reasons:
    """Explanations of cells that are not good, from reasons.toml.

    ``entries`` have patterns of clients and features, columns, a verdict and a sentence. State:
    ``used``, the indices of the entries that `find` returned.
    """

    entries: list[dict[str, Any]]
    used: set[int] = field(default_factory=set)

    @classmethod
    def load(cls, path: Path) -> Reasons:
        return cls(tomllib.loads(path.read_text("utf-8")).get("reason", []))

    def find(self, client: str, feature: str, column: str, cell: Verdict) -> str | None:
        """The explanation of a cell; None if there is none."""
        for index, entry in enumerate(self.entries):
            if (
                fnmatchcase(client, entry["client"])
                and any(fnmatchcase(feature, name) for name in entry["features"])
                and column in entry["columns"]
                and cell.value == entry["cell"]
            ):
                self.used.add(index)
                return str(entry["why"])
        return None

    def unused(self) -> list[str]:
        """The explanations that no cell has used."""
        return [entry["why"] for index, entry in enumerate(self.entries) if index not in self.used]


@dataclass
class _Footnotes:
    """The reasons on the page, numbered in order of use, and the cells without one."""

    reasons: Reasons
    numbers: dict[str, int] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)

    def cell_text(self, client: str, feature: str, column: str, cell: Verdict) -> str:
        if cell.is_good:
            return cell.value
        why = self.reasons.find(client, feature, column, cell)
        if why is None:
            self.unexplained.append(f"{client}: {feature}: {column}: {cell.value}")
        number = self.numbers.setdefault(why or "No reason given.", len(self.numbers) + 1)
        return f"**{cell.value}** [{number}]"


def render_page(results: Mapping[str, SuiteResult], reasons: Reasons) -> tuple[str, list[str]]:
    """(page, cells that are neither good nor explained) from the results by client."""
    notes = _Footnotes(reasons)
    parts = [_INTRODUCTION, _join_lines(_summary_table(results, notes)), _LEGEND]
    for client, result in results.items():
        parts += [f"\n## {client}\n\n", _join_lines(_feature_table(client, result, notes))]
    if notes.numbers:
        why = (f"{number}. {text}" for text, number in notes.numbers.items())
        parts += ["\n## Unexpected results\n\n", _join_lines(why)]
    return "".join(parts), notes.unexplained


def _join_lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _table_head(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _summary_table(results: Mapping[str, SuiteResult], notes: _Footnotes) -> Iterator[str]:
    yield from _table_head("client", "version", "engine", *GATEWAY_POLICIES)
    for client, result in results.items():
        if not result.features:
            notes.unexplained.append(f"{client}: never ran")
        anchor = client.lower().translate(str.maketrans(" ", "-", ",'"))
        counts = [
            f"{sum(cells[column].is_good for cells in result.features.values())}"
            f" of {len(result.features)}"
            for column in GATEWAY_POLICIES
        ]
        version = result.client_version or "the engine's"
        yield f"| [{client}](#{anchor}) | {version} | {result.engine} | {' | '.join(counts)} |"


def _feature_table(client: str, result: SuiteResult, notes: _Footnotes) -> Iterator[str]:
    yield from _table_head("feature", *GATEWAY_POLICIES)
    for feature, cells in result.features.items():
        texts = [
            notes.cell_text(client, feature, column, cells[column]) for column in GATEWAY_POLICIES
        ]
        yield f"| {feature} | {' | '.join(texts)} |"
