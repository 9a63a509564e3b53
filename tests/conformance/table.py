"""docs/compatibility.md, from what the runs found and reasons.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.services import ROOT
from tests.conformance.compare import Line, Verdict, verdict
from tests.conformance.places import DIRECT, FIRES, GATEWAYS
from tests.conformance.results import Cells, Result

__all__ = ["PAGE", "REASONS", "Reasons", "document", "rows"]

PAGE = ROOT / "docs" / "compatibility.md"
REASONS = Path(__file__).parent / "reasons.toml"

_HEAD = """# Compatibility

Does my client work? These do, unmodified, pointed at the gateway by their base URL alone. Each was
pointed at the engine itself and at gateways before it, with the same requests at temperature 0, and
what it made of the replies compared. The engine is vLLM on the CPU with the pocket model; where a
client is put before an engine that fails, a stand-in plays it.

"""
_KEY = f"""
The columns are three gateways before one engine, and count the cells that are as they should be:

- **off**, without a policy: equal to the engine's reply, key for key, but for ids and times, what
  the engine's cache held, and how a stream was cut into chunks;
- **never**, with a policy that judges each trace and never fires: equal again;
- **fires**, with `{FIRES}`: the same keys, types and order of events, and a
  **shorter** trace; where a feature has no trace, equal.

`make conformance` makes this page from `tests/conformance`, where the clients' versions are pinned;
`scripts/conformance` runs single clients, and `--only` single features.
"""


def rows(found: Mapping[str, list[Line]]) -> dict[str, Cells]:
    """A client's features and what became of each, from what it reported at each place."""
    at = {
        place: {line["feature"]: line for line in found.get(place, [])}
        for place in (*DIRECT, *GATEWAYS)
    }
    features = dict.fromkeys(name for lines in at.values() for name in lines)
    return {name: _cells(name, at) for name in features}


def _cells(feature: str, at: Mapping[str, Mapping[str, Line]]) -> Cells:
    direct = [at[place][feature] for place in DIRECT if feature in at[place]]
    return {
        place: verdict(direct, at[place].get(feature), fires=place == "fires") for place in GATEWAYS
    }


@dataclass
class Reasons:
    """Why cells are not green: patterns of clients and features, columns, and a sentence."""

    entries: list[dict[str, Any]]
    used: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> Reasons:
        return cls(tomllib.loads(path.read_text("utf-8")).get("reason", []))

    def of(self, client: str, feature: str, column: str, cell: Verdict) -> str | None:
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

    def idle(self) -> list[str]:
        """Reasons that no cell needs any more."""
        return [e["why"] for at, e in enumerate(self.entries) if at not in self.used]


@dataclass
class _Notes:
    """The reasons that the page gives, numbered as they come, and the cells that lack one."""

    reasons: Reasons
    numbers: dict[str, int] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)

    def text(self, client: str, feature: str, column: str, cell: Verdict) -> str:
        if cell.good:
            return cell.value
        why = self.reasons.of(client, feature, column, cell)
        if why is None:
            self.unexplained.append(f"{client}: {feature}: {column}: {cell.value}")
        number = self.numbers.setdefault(why or "Not explained.", len(self.numbers) + 1)
        return f"**{cell.value}** [{number}]"


def document(results: Mapping[str, Result], reasons: Reasons) -> tuple[str, list[str]]:
    """The page, and the cells that are neither green nor explained. ``results`` are by client."""
    notes = _Notes(reasons)
    parts = [_HEAD, _lines(_summary(results, notes)), _KEY]
    for client, result in results.items():
        parts += [f"\n## {client}\n\n", _lines(_features(client, result, notes))]
    if notes.numbers:
        why = (f"{number}. {text}" for text, number in notes.numbers.items())
        parts += ["\n## Cells that are not as they should be\n\n", _lines(why)]
    return "".join(parts), notes.unexplained


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _head(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _summary(results: Mapping[str, Result], notes: _Notes) -> Iterator[str]:
    yield from _head("client", "version", "before", *GATEWAYS)
    for client, result in results.items():
        if not result.features:
            notes.unexplained.append(f"{client}: never ran")
        anchor = client.lower().translate(str.maketrans(" ", "-", ",'"))
        counts = [
            f"{sum(cells[place].good for cells in result.features.values())}"
            f" of {len(result.features)}"
            for place in GATEWAYS
        ]
        version = result.version or "the engine's"
        yield f"| [{client}](#{anchor}) | {version} | {result.engine} | {' | '.join(counts)} |"


def _features(client: str, result: Result, notes: _Notes) -> Iterator[str]:
    yield from _head("feature", *GATEWAYS)
    for feature, cells in result.features.items():
        texts = [notes.text(client, feature, place, cells[place]) for place in GATEWAYS]
        yield f"| {feature} | {' | '.join(texts)} |"
