"""Stored results, one file per suite: verdicts only, since replies are large and private."""

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
    """The verdicts of one client, with the versions of the engine and the client in that run."""

    engine: str = ""
    client_version: str | None = None
    features: Mapping[str, VerdictsByGateway] = field(default_factory=dict)

    def merged_with(self, new: SuiteResult) -> SuiteResult:
        """These results, with those of a newer run replacing them by feature."""
        return SuiteResult(new.engine, new.client_version, {**self.features, **new.features})


def load_result(suite: str, folder: Path = RESULTS_FOLDER) -> SuiteResult:
    """The stored result; an empty one if the suite never ran."""
    file = folder / f"{suite}.json"
    if not file.exists():
        return SuiteResult()
    stored = json.loads(file.read_text("utf-8"))
    features = {
        name: {target: Verdict(value) for target, value in verdicts.items()}
        for name, verdicts in stored["features"].items()
    }
    return SuiteResult(stored["engine"], stored["version"], features)


def save_result(suite: str, result: SuiteResult, folder: Path = RESULTS_FOLDER) -> None:
    """Write the result of a suite to its file."""
    features = {
        name: {target: verdict.value for target, verdict in verdicts.items()}
        for name, verdicts in result.features.items()
    }
    stored = {"engine": result.engine, "version": result.client_version, "features": features}
    folder.mkdir(exist_ok=True)
    (folder / f"{suite}.json").write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
