"""Metrics and log lines of a finished request that ran under a policy."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from adjourn.policies.session.ledger import Ledger
from adjourn.policies.session.session import Session
from adjourn.server.metrics import Metrics
from adjourn.server.relay.times import Times

__all__ = ["RequestTelemetry"]

log = logging.getLogger("adjourn.request")


@dataclass(slots=True)
class RequestTelemetry:
    """Collects the sessions and times of one request while it runs, and records them at its end.

    ``labels`` are (model, policy); ``arrived`` is in seconds on the monotonic clock. The response
    adds a session and its times for each choice or trace that it starts. It sets ``is_race`` if
    the request runs several traces of which the client gets one, and then ``chosen_times`` to the
    times of the chosen trace.
    """

    metrics: Metrics
    labels: tuple[str, str]
    request_id: str
    arrived: float
    stream: bool
    sessions: list[Session] = field(default_factory=list)
    times: list[Times] = field(default_factory=list)
    is_race: bool = False
    chosen_times: Times | None = None

    def record(self, status: int, probe_cost: float) -> None:
        """Write all metrics and one log line per choice or trace. Call it once per request."""
        self._record_times()
        self.metrics.probe_price.labels(*self.labels).set(probe_cost)
        for choice, session in enumerate(self.sessions):
            if choice and not self.is_race:
                session.ledger.prompt = 0  # the choices share one prompt
            self._record_tokens(session)
            self._record_trigger(session)
            self._log_completion(status, choice, session)

    def _record_times(self) -> None:
        labels, metrics = self.labels, self.metrics
        written = [times for times in self.times if times.first_write]
        if self.is_race:
            written = [] if self.chosen_times is None else [self.chosen_times]
        if written and self.stream:
            times = min(written, key=lambda times: times.first_write)
            metrics.time_to_first_token.labels(*labels).observe(times.first_write - times.arrived)
        if written and self.stream and not self.is_race:
            added = times.request_sent - times.arrived + times.first_write - times.first_read
            metrics.added_first_token.labels(labels[0]).observe(added)
        for times in self.times:
            if times.resumed:
                metrics.resume_gap.labels(labels[0]).observe(times.resumed - times.triggered)

    def _record_tokens(self, session: Session) -> None:
        metrics, labels = self.metrics, self.labels
        for kind in Ledger.__dataclass_fields__:
            metrics.tokens.labels(*labels, kind).inc(getattr(session.ledger, kind))
        if session.policy_error is not None:
            metrics.fail_open.labels(labels[1], "policy-error").inc()
            log.error("policy %s failed", labels[1], exc_info=session.policy_error)

    def _record_trigger(self, session: Session) -> None:
        metrics, labels = self.metrics, self.labels
        trigger = session.trigger
        if session.rescued_finish_reason is not None:
            metrics.rescues.labels(*labels, session.rescued_finish_reason).inc()
        if session.ledger.reasoning:
            outcome = trigger.action if trigger else "whole"
            metrics.trace_tokens.labels(*labels, outcome).observe(session.ledger.reasoning)
        if trigger is None:
            return
        metrics.triggers.labels(*labels, trigger.action).inc()
        if session.stopped:
            metrics.stops.labels(*labels, trigger.stop.reason).inc()
            metrics.tokens_at_stop.labels(*labels).observe(trigger.position)
        elif trigger.tokens_after is not None:
            metrics.tokens_after_trigger.labels(*labels, trigger.action).observe(
                trigger.tokens_after
            )

    def _log_completion(self, status: int, choice: int, session: Session) -> None:
        trigger = session.trigger
        log.info(
            "completion",
            extra={
                "fields": {
                    "request_id": self.request_id,
                    "choice": choice,
                    "model": self.labels[0],
                    "policy": self.labels[1],
                    "status": status,
                    "seconds": round(time.perf_counter() - self.arrived, 4),
                    "trigger": trigger.action if trigger else None,
                    "reason": trigger.stop.reason if trigger else None,
                    "muted": session.mute_reason,
                    "probes": session.probe_count,
                    "tokens": {
                        kind: getattr(session.ledger, kind) for kind in Ledger.__dataclass_fields__
                    },
                }
            },
        )
