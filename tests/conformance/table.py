"""docs/compatibility.md, from what the runs found and reasons.toml."""

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

Does my client work? These do, unmodified, pointed at the gateway by their base URL alone. Each was
pointed at the engine itself and at gateways before it, with the same requests at temperature 0, and
what it made of the replies compared. The engine is vLLM on the CPU with the pocket model; where a
client is put before an engine that fails, a stand-in plays it.

"""
_LEGEND = f"""
The columns are three gateways before one engine, and count the cells that are as they should be:

- **off**, without a policy: equal to the engine's reply, key for key, but for ids and times, what
  the engine's cache held, and how a stream was cut into chunks;
- **never**, with a policy that judges each trace and never fires: equal again;
- **fires**, with `{FIRING_POLICY}`: the same keys, types and order of events, and a
  **shorter** trace; where a feature has no trace, equal.

`make conformance` makes this page from `tests/conformance`, where the clients' versions are pinned;
`scripts/conformance` runs single clients, and `--only` single features.
"""


def verdicts_by_feature(reports: Mapping[str, list[FeatureReport]]) -> dict[str, VerdictsByGateway]:
    """A client's features and what became of each, from what it reported at each place."""
    at = {
        place: {line["feature"]: line for line in reports.get(place, [])}
        for place in (*DIRECT_TARGETS, *GATEWAY_POLICIES)
    }
    features = dict.fromkeys(name for lines in at.values() for name in lines)
    return {name: _feature_verdicts(name, at) for name in features}


def _feature_verdicts(
    feature: str, at: Mapping[str, Mapping[str, FeatureReport]]
) -> VerdictsByGateway:
    direct = [at[place][feature] for place in DIRECT_TARGETS if feature in at[place]]
    return {
        place: compare_reports(direct, at[place].get(feature), policy_fires=place == "fires")
        for place in GATEWAY_POLICIES
    }


@dataclass
class Reasons:
    """Why cells are not green: patterns of clients and features, columns, and a sentence."""

    entries: list[dict[str, Any]]
    used: set[int] = field(default_factory=set)

    @classmethod
    def load(cls, path: Path) -> Reasons:
        return cls(tomllib.loads(path.read_text("utf-8")).get("reason", []))

    def find(self, client: str, feature: str, column: str, cell: Verdict) -> str | None:
        for at, entry in enumerate(self.entries):
            if (
                fnmatchcase(client, entry["client"])
                and any(fnmatchcase(feature, name) for name in entry["features"])
                and column in entry["columns"]
                and cell.value == entry["cell"]
            ):
                self.used.add(at)
                return str(entry["why"])
        return None

    def unused(self) -> list[str]:
        """Reasons that no cell needs any more."""
        return [e["why"] for at, e in enumerate(self.entries) if at not in self.used]


@dataclass
class _Footnotes:
    """The reasons that the page gives, numbered as they come, and the cells that lack one."""

    reasons: Reasons
    numbers: dict[str, int] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)

    def cell_text(self, client: str, feature: str, column: str, cell: Verdict) -> str:
        if cell.is_good:
            return cell.value
        why = self.reasons.find(client, feature, column, cell)
        if why is None:
            self.unexplained.append(f"{client}: {feature}: {column}: {cell.value}")
        number = self.numbers.setdefault(why or "Not explained.", len(self.numbers) + 1)
        return f"**{cell.value}** [{number}]"


def render_page(results: Mapping[str, SuiteResult], reasons: Reasons) -> tuple[str, list[str]]:
    """The page, and the cells that are neither green nor explained. ``results`` are by client."""
    notes = _Footnotes(reasons)
    parts = [_INTRODUCTION, _join_lines(_summary_table(results, notes)), _LEGEND]
    for client, result in results.items():
        parts += [f"\n## {client}\n\n", _join_lines(_feature_table(client, result, notes))]
    if notes.numbers:
        why = (f"{number}. {text}" for text, number in notes.numbers.items())
        parts += ["\n## Cells that are not as they should be\n\n", _join_lines(why)]
    return "".join(parts), notes.unexplained


def _join_lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _table_head(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _summary_table(results: Mapping[str, SuiteResult], notes: _Footnotes) -> Iterator[str]:
    yield from _table_head("client", "version", "before", *GATEWAY_POLICIES)
    for client, result in results.items():
        if not result.features:
            notes.unexplained.append(f"{client}: never ran")
        anchor = client.lower().translate(str.maketrans(" ", "-", ",'"))
        counts = [
            f"{sum(cells[place].is_good for cells in result.features.values())}"
            f" of {len(result.features)}"
            for place in GATEWAY_POLICIES
        ]
        version = result.client_version or "the engine's"
        yield f"| [{client}](#{anchor}) | {version} | {result.engine} | {' | '.join(counts)} |"


def _feature_table(client: str, result: SuiteResult, notes: _Footnotes) -> Iterator[str]:
    yield from _table_head("feature", *GATEWAY_POLICIES)
    for feature, cells in result.features.items():
        texts = [
            notes.cell_text(client, feature, place, cells[place]) for place in GATEWAY_POLICIES
        ]
        yield f"| {feature} | {' | '.join(texts)} |"
