"""Parse policies; a readiness probe that `adjourn learn` wrote is named by its path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from adjourn.policies.evidence.readiness import (
    UNTRAINED,
    BadReadinessClassifier,
    ReadinessClassifier,
)
from adjourn.policies.policy import Policy
from adjourn.policies.registry import BadPolicy
from adjourn.policies.registry import parse as parse_with

__all__ = ["parse_policy"]


@lru_cache(maxsize=64)
def _read_probe(path: str) -> ReadinessClassifier:
    try:
        return ReadinessClassifier.parse(Path(path).read_bytes())
    except OSError as error:
        raise BadPolicy(f"{path}: {error.strerror}") from None
    except BadReadinessClassifier as error:
        raise BadPolicy(f"{path}: {error}") from None


class _ProbeFiles(Mapping[str, ReadinessClassifier]):
    """Readiness probes by path. The empty path is an untrained one, to record training data."""

    def __getitem__(self, path: str) -> ReadinessClassifier:
        return _read_probe(path) if path else UNTRAINED

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


_PROBE_FILES = _ProbeFiles()


def parse_policy(specification: str) -> Policy:
    """The policy that ``specification`` describes. Raises BadPolicy."""
    return parse_with(specification, readiness_probes=_PROBE_FILES)
