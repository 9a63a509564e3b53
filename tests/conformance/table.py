"""docs/compatibility.md, from what the clients reported and reasons.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.conformance.compare import Line, Verdict, verdict
from tests.conformance.places import DIRECT, FIRES, GATEWAYS

__all__ = ["Reasons", "Row", "document", "rows"]

_HEAD = f"""# Compatibility

Unmodified clients, pointed at the engine and at gateways before it. Made by `make conformance`;
the engine is vLLM on the CPU with the pocket model, at temperature 0, except where a client is put
before an engine that fails, which a stand-in plays. The clients' versions are pinned in
`tests/conformance/clients`.

- **off**, **never**: the gateway with no policy, and with one that never fires. What the client
  made of its reply must be what it made of the engine's, key for key, but for ids and times, what
  the engine's cache held, and how a stream was cut into chunks.
- **fires**: the gateway with `{FIRES}`. The same keys, types and order of events, and a shorter
  trace; where a feature has no trace, equal.

"""


@dataclass(frozen=True, slots=True)
class Row:
    """A client's feature and what became of it before each gateway."""

    client: str
    feature: str
    cells: Mapping[str, Verdict]


def rows(client: str, found: Mapping[str, list[Line]]) -> list[Row]:
    """``found``: what the client reported at each place."""
    at = {
        place: {line["feature"]: line for line in found.get(place, [])}
        for place in (*DIRECT, *GATEWAYS)
    }
    features = dict.fromkeys(name for lines in at.values() for name in lines)
    return [Row(client, name, _cells(name, at)) for name in features or ("everything",)]


def _cells(feature: str, at: Mapping[str, Mapping[str, Line]]) -> dict[str, Verdict]:
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

    def of(self, row: Row, column: str) -> str | None:
        for at, entry in enumerate(self.entries):
            if (
                fnmatchcase(row.client, entry["client"])
                and any(fnmatchcase(row.feature, name) for name in entry["features"])
                and column in entry["columns"]
                and row.cells[column].value == entry["cell"]
            ):
                self.used.add(at)
                return str(entry["why"])
        return None

    def idle(self) -> list[str]:
        """Reasons that no cell needs any more."""
        return [e["why"] for at, e in enumerate(self.entries) if at not in self.used]


def document(table: Iterable[Row], reasons: Reasons) -> tuple[str, list[str]]:
    """The page, and the cells that are neither green nor explained."""
    notes: dict[str, int] = {}
    unexplained: list[str] = []
    lines = [f"| client | feature | {' | '.join(GATEWAYS)} |", "|---|---|" + "---|" * len(GATEWAYS)]
    for row in table:
        cells = []
        for column in GATEWAYS:
            cell = row.cells[column]
            text = cell.value
            if not cell.good:
                why = reasons.of(row, column)
                if why is None:
                    unexplained.append(f"{row.client}: {row.feature}: {column}: {text}")
                mark = notes.setdefault(why or "Not explained.", len(notes) + 1)
                text = f"**{text}** [{mark}]"
            cells.append(text)
        lines.append(f"| {row.client} | {row.feature} | {' | '.join(cells)} |")
    why = "\n".join(f"{mark}. {text}" for text, mark in notes.items())
    foot = f"\n## Cells that are not green\n\n{why}\n" if notes else ""
    return _HEAD + "\n".join(lines) + "\n" + foot, unexplained
