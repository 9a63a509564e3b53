"""Everything that Prometheus sees. Labels are bounded: ``model`` is one the engine serves or
``other``, ``policy`` the name of an installed policy, and nothing carries a user's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from adjourn import __version__
from adjourn.policies.session.ledger import Ledger
from adjourn.policies.session.trigger import Action

__all__ = ["Metrics"]

_SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LATENCY_BUCKETS = (0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_TOKEN_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_OUTCOMES = ("ok", "error", "timeout", "bad-reply")
_POOLING_KINDS = ("embedding", "reward")
_FAIL_OPEN_REASONS = (
    "policy-error",
    "internal-error",
    "unreadable-chunk",
    *(f"{kind}-{outcome}" for kind in ("probe", *_POOLING_KINDS) for outcome in _OUTCOMES[1:]),
    "resume-failed",
    "resume-rejected",
    "ids-not-honoured",
    "no-token-left",
)


class Metrics:
    """One registry and its families. Counters end in ``_total`` when scraped."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(namespace="adjourn", registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"adjourn_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"adjourn_{name}", text, labels, registry=registry, buckets=buckets)

        self.requests = counter(
            "requests", "Requests answered.", "endpoint", "model", "policy", "status"
        )
        self.requests_in_flight = Gauge(
            "adjourn_requests_in_flight", "Requests now.", ("endpoint",), registry=registry
        )
        self.request_duration = histogram(
            "request_duration_seconds",
            "From the request's arrival to its last byte.",
            _SECONDS_BUCKETS,
            "endpoint",
            "model",
            "policy",
        )
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds",
            "From the request's arrival to the first byte of its stream.",
            _SECONDS_BUCKETS,
            "model",
            "policy",
        )
        self.added_first_token = histogram(
            "added_first_token_seconds",
            "The part of the time to the first token that the gateway itself took.",
            _LATENCY_BUCKETS,
            "model",
        )
        self.resume_gap = histogram(
            "resume_gap_seconds",
            "From the decision to cut to the first byte of the answer.",
            _SECONDS_BUCKETS,
            "model",
        )
        self.tokens = counter(
            "tokens",
            "Tokens by kind: prompt, reasoning, marker, answer, closing, probe, wasted, prefilled.",
            "model",
            "policy",
            "kind",
        )
        self.triggers = counter(
            "triggers",
            "Decisions to stop, by what became of them: carried-out, held-out, observed, refused "
            "(by the engine), abandoned (the client left).",
            "model",
            "policy",
            "action",
        )
        self.stops = counter(
            "stops", "Traces ended early, by the policy's reason.", "model", "policy", "reason"
        )
        self.tokens_at_stop = histogram(
            "tokens_at_stop",
            "Tokens of the trace kept at a cut.",
            _TOKEN_BUCKETS,
            "model",
            "policy",
        )
        self.tokens_after_trigger = histogram(
            "tokens_after_trigger",
            "Tokens thought behind a trigger that was not carried out: what a cut saves.",
            _TOKEN_BUCKETS,
            "model",
            "policy",
            "action",
        )
        self.trace_tokens = histogram(
            "trace_tokens",
            "Tokens of reasoning that the client got, by what became of the trace: carried-out, "
            "held-out, observed, refused, or whole where nothing triggered.",
            _TOKEN_BUCKETS,
            "model",
            "policy",
            "outcome",
        )
        self.rescues = counter(
            "rescues",
            "Responses that would have ended within their trace and got an answer, by what would "
            "have ended them: length, stop.",
            "model",
            "policy",
            "reason",
        )
        self.escapes = counter(
            "escapes",
            "Answers behind a cut in which the model opened a trace again, by what became of it: "
            "ended, refused (by the engine), left.",
            "model",
            "policy",
            "action",
        )
        self.traces = counter(
            "traces",
            "Traces of policies over several, by what became of them: chosen (the client got it), "
            "answered (it only had a vote), given-up, failed.",
            "model",
            "policy",
            "outcome",
        )
        self.probes = counter(
            "probes",
            "Probes, by outcome: ok, error, timeout, bad-reply.",
            "model",
            "policy",
            "outcome",
        )
        self.probe_seconds = histogram(
            "probe_seconds",
            "From sending a probe to its result.",
            _SECONDS_BUCKETS,
            "model",
            "policy",
        )
        self.probe_price = Gauge(
            "adjourn_probe_price_tokens",
            "What one checkpoint's probes cost now, in tokens of a stream.",
            ("model", "policy"),
            registry=registry,
        )
        self.pooling_requests = counter(
            "pooling_requests",
            "Requests to the models beside the engine's, by kind (embedding, reward) and outcome: "
            "ok, error, timeout, bad-reply.",
            "kind",
            "model",
            "policy",
            "outcome",
        )
        self.pooling_tokens = counter(
            "pooling_tokens",
            "Tokens that those models read; they are in no kind of adjourn_tokens_total.",
            "kind",
            "model",
            "policy",
        )
        self.pooling_seconds = histogram(
            "pooling_seconds",
            "From sending such a request to its result.",
            _SECONDS_BUCKETS,
            "kind",
            "model",
            "policy",
        )
        self.passed_through = counter(
            "passed_through",
            "Requests handed through without a policy, though one was set, by reason.",
            "model",
            "reason",
        )
        self.fail_open = counter(
            "fail_open", "Policy trouble that the stream outlived, by reason.", "policy", "reason"
        )
        self.upstream_errors = counter(
            "upstream_errors", "What the engine did wrong, by reason.", "reason"
        )
        self.upstream_aborts = counter(
            "upstream_aborts", "Upstream work that the gateway ended, by reason.", "reason"
        )
        self.client_disconnects = counter(
            "client_disconnects",
            "Clients that left early, by phase: sending, before-first-token, streaming, "
            "unstreamed.",
            "phase",
        )
        self.engine_up = Gauge(
            "adjourn_engine_up", "Whether the engine answered when last asked.", registry=registry
        )
        build = Gauge("adjourn_build_info", "Version.", ("version",), registry=registry)
        build.labels(__version__).set(1)
        for reason in ("down", "broken", "truncated", "timeout"):
            self.upstream_errors.labels(reason)
        for reason in ("cut", "reopened", "lost", "client-left"):
            self.upstream_aborts.labels(reason)
        for phase in ("sending", "before-first-token", "streaming", "unstreamed"):
            self.client_disconnects.labels(phase)

    def initialize_series(self, model: str, policy: str, pooling_kinds: Sequence[str] = ()) -> None:
        """Bring what a model under a policy will count into being, at zero: to Prometheus the
        step from no series to a first one is no increase. ``beside``: the kinds of other models
        that the policy asks."""
        for status in ("200", "499", "502"):
            self.requests.labels("/v1/chat/completions", model, policy, status)
        for kind in Ledger.__dataclass_fields__:
            self.tokens.labels(model, policy, kind)
        for action in get_args(Action):
            self.triggers.labels(model, policy, action)
        for reason in ("length", "stop"):
            self.rescues.labels(model, policy, reason)
        for action in ("ended", "refused", "left"):
            self.escapes.labels(model, policy, action)
        for outcome in _OUTCOMES:
            self.probes.labels(model, policy, outcome)
        for kind in pooling_kinds:
            self.pooling_tokens.labels(kind, model, policy)
            for outcome in _OUTCOMES:
                self.pooling_requests.labels(kind, model, policy, outcome)
        for reason in _FAIL_OPEN_REASONS:
            self.fail_open.labels(policy, reason)
        for family in (self.time_to_first_token, self.tokens_at_stop, self.probe_seconds):
            family.labels(model, policy)
        self.tokens_after_trigger.labels(model, policy, "held-out")
        self.added_first_token.labels(model)
        self.resume_gap.labels(model)
