"""What the last runs found, a file a suite: verdicts alone, for replies are large and private."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.compare import Verdict

__all__ = ["Cells", "Result", "read", "write"]

FOLDER = Path(__file__).parent / "results"

Cells = Mapping[str, Verdict]
"""A feature's verdicts by gateway."""


@dataclass(frozen=True, slots=True)
class Result:
    """``engine`` and ``version`` (the client's) say between which two a feature was tried."""

    engine: str = ""
    version: str | None = None
    features: Mapping[str, Cells] = field(default_factory=dict)

    def updated(self, new: Result) -> Result:
        """With what a run of some features found."""
        return Result(new.engine, new.version, {**self.features, **new.features})


def read(suite: str, folder: Path = FOLDER) -> Result:
    """Empty where the suite never ran."""
    file = folder / f"{suite}.json"
    if not file.exists():
        return Result()
    kept = json.loads(file.read_text("utf-8"))
    features = {
        name: {place: Verdict(value) for place, value in cells.items()}
        for name, cells in kept["features"].items()
    }
    return Result(kept["engine"], kept["version"], features)


def write(suite: str, result: Result, folder: Path = FOLDER) -> None:
    features = {
        name: {place: cell.value for place, cell in cells.items()}
        for name, cells in result.features.items()
    }
    kept = {"engine": result.engine, "version": result.version, "features": features}
    folder.mkdir(exist_ok=True)
    (folder / f"{suite}.json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
