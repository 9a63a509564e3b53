"""What the last runs found, a file a suite: verdicts alone, for replies are large and private."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.compare import Verdict

__all__ = ["SuiteResult", "VerdictsByGateway", "load_result", "save_result"]

RESULTS_FOLDER = Path(__file__).parent / "results"

VerdictsByGateway = Mapping[str, Verdict]
"""A feature's verdicts by gateway."""


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """``engine`` and ``version`` (the client's) say between which two a feature was tried."""

    engine: str = ""
    client_version: str | None = None
    features: Mapping[str, VerdictsByGateway] = field(default_factory=dict)

    def merged_with(self, new: SuiteResult) -> SuiteResult:
        """With what a run of some features found."""
        return SuiteResult(new.engine, new.client_version, {**self.features, **new.features})


def load_result(suite: str, folder: Path = RESULTS_FOLDER) -> SuiteResult:
    """Empty where the suite never ran."""
    file = folder / f"{suite}.json"
    if not file.exists():
        return SuiteResult()
    kept = json.loads(file.read_text("utf-8"))
    features = {
        name: {place: Verdict(value) for place, value in cells.items()}
        for name, cells in kept["features"].items()
    }
    return SuiteResult(kept["engine"], kept["version"], features)


def save_result(suite: str, result: SuiteResult, folder: Path = RESULTS_FOLDER) -> None:
    features = {
        name: {place: cell.value for place, cell in cells.items()}
        for name, cells in result.features.items()
    }
    kept = {"engine": result.engine, "version": result.client_version, "features": features}
    folder.mkdir(exist_ok=True)
    (folder / f"{suite}.json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
