"""Fail open: count a fault and let the response continue without its policy."""

from __future__ import annotations

from adjourn.policies.session.session import Session
from adjourn.server.metrics import Metrics

__all__ = ["FailOpen"]


class FailOpen:
    """Called with a reason, a label of ``adjourn_fail_open_total``. Mutes the policy."""

    __slots__ = ("_metrics", "_policy", "_session")

    def __init__(self, session: Session, metrics: Metrics, policy: str) -> None:
        self._session = session
        self._metrics = metrics
        self._policy = policy

    def __call__(self, reason: str) -> None:
        self._metrics.fail_open.labels(self._policy, reason).inc()
        self._session.mute(reason)
