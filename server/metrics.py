"""The Prometheus metrics. Labels are bounded: ``model`` is a model that the engine serves, or
``other``; ``policy`` is the name of an installed policy; no label contains a user's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, get_args, get_type_hints

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from adjourn import __version__
from adjourn.policies.session.ledger import Ledger
from adjourn.policies.session.trigger import Action

__all__ = ["Metrics"]

_NAMESPACE = "adjourn"
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


@dataclass(frozen=True, slots=True)
class _Metric:
    """Definition of a metric: its name without ``adjourn_``, help text, labels, and, for a
    histogram, its buckets."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class Metrics:
    """The metrics of one gateway, in a registry of their own.

    The annotations are the table of all metrics: attribute, kind and definition. ``__init__``
    creates an attribute for each. A counter's name ends in ``_total`` when it is scraped.
    """

    requests: Annotated[
        Counter,
        _Metric("requests", "Requests answered.", ("endpoint", "model", "policy", "status")),
    ]
    requests_in_flight: Annotated[
        Gauge,
        _Metric("requests_in_flight", "Requests being served now.", ("endpoint",)),
    ]
    request_duration: Annotated[
        Histogram,
        _Metric(
            "request_duration_seconds",
            "From the request's arrival to its last byte.",
            ("endpoint", "model", "policy"),
            _SECONDS_BUCKETS,
        ),
    ]
    time_to_first_token: Annotated[
        Histogram,
        _Metric(
            "time_to_first_token_seconds",
            "From the request's arrival to the first byte of its stream.",
            ("model", "policy"),
            _SECONDS_BUCKETS,
        ),
    ]
    added_first_token: Annotated[
        Histogram,
        _Metric(
            "added_first_token_seconds",
            "The gateway's own part of the time to the first token.",
            ("model",),
            _LATENCY_BUCKETS,
        ),
    ]
    resume_gap: Annotated[
        Histogram,
        _Metric(
            "resume_gap_seconds",
            "From the decision to cut to the first byte of the answer.",
            ("model",),
            _SECONDS_BUCKETS,
        ),
    ]
    tokens: Annotated[
        Counter,
        _Metric(
            "tokens",
            "Tokens by kind: prompt, reasoning, marker, answer, closing, probe, wasted, prefilled.",
            ("model", "policy", "kind"),
        ),
    ]
    triggers: Annotated[
        Counter,
        _Metric(
            "triggers",
            "Decisions to stop, by outcome: carried-out, held-out, observed, refused (by the "
            "engine), abandoned (the client left).",
            ("model", "policy", "action"),
        ),
    ]
    stops: Annotated[
        Counter,
        _Metric(
            "stops",
            "Traces that were cut, by the policy's reason.",
            ("model", "policy", "reason"),
        ),
    ]
    tokens_at_stop: Annotated[
        Histogram,
        _Metric(
            "tokens_at_stop",
            "Tokens of the trace that a cut kept.",
            ("model", "policy"),
            _TOKEN_BUCKETS,
        ),
    ]
    tokens_after_trigger: Annotated[
        Histogram,
        _Metric(
            "tokens_after_trigger",
            "Tokens of the trace after a trigger that was not carried out: what a cut would have "
            "saved.",
            ("model", "policy", "action"),
            _TOKEN_BUCKETS,
        ),
    ]
    trace_tokens: Annotated[
        Histogram,
        _Metric(
            "trace_tokens",
            "Reasoning tokens that the client received, by outcome of the trace: carried-out, "
            "held-out, observed, refused, or whole if nothing triggered.",
            ("model", "policy", "outcome"),
            _TOKEN_BUCKETS,
        ),
    ]
    rescues: Annotated[
        Counter,
        _Metric(
            "rescues",
            "Responses that would have ended inside their trace and got an answer, by the finish "
            "reason that it replaced: length, stop.",
            ("model", "policy", "reason"),
        ),
    ]
    escapes: Annotated[
        Counter,
        _Metric(
            "escapes",
            "Traces that the model opened again after a cut, by outcome: ended, refused (by the "
            "engine), left.",
            ("model", "policy", "action"),
        ),
    ]
    traces: Annotated[
        Counter,
        _Metric(
            "traces",
            "Traces of sampling policies, by outcome: chosen (the client got it), answered (it "
            "only voted), given-up, failed.",
            ("model", "policy", "outcome"),
        ),
    ]
    probes: Annotated[
        Counter,
        _Metric(
            "probes",
            "Probes by outcome: ok, error, timeout, bad-reply.",
            ("model", "policy", "outcome"),
        ),
    ]
    probe_seconds: Annotated[
        Histogram,
        _Metric(
            "probe_seconds",
            "From sending a probe to its result.",
            ("model", "policy"),
            _SECONDS_BUCKETS,
        ),
    ]
    probe_price: Annotated[
        Gauge,
        _Metric(
            "probe_price_tokens",
            "Current price of one checkpoint's probes, in tokens of a stream.",
            ("model", "policy"),
        ),
    ]
    pooling_requests: Annotated[
        Counter,
        _Metric(
            "pooling_requests",
            "Requests to auxiliary models, by kind (embedding, reward) and outcome: ok, error, "
            "timeout, bad-reply.",
            ("kind", "model", "policy", "outcome"),
        ),
    ]
    pooling_tokens: Annotated[
        Counter,
        _Metric(
            "pooling_tokens",
            "Tokens that auxiliary models read; they are in no kind of adjourn_tokens_total.",
            ("kind", "model", "policy"),
        ),
    ]
    pooling_seconds: Annotated[
        Histogram,
        _Metric(
            "pooling_seconds",
            "From sending a request to an auxiliary model to its result.",
            ("kind", "model", "policy"),
            _SECONDS_BUCKETS,
        ),
    ]
    passed_through: Annotated[
        Counter,
        _Metric(
            "passed_through",
            "Requests passed through although a policy was selected, by reason.",
            ("model", "reason"),
        ),
    ]
    fail_open: Annotated[
        Counter,
        _Metric(
            "fail_open",
            "Policy errors after which the response continued without the policy, by reason.",
            ("policy", "reason"),
        ),
    ]
    upstream_errors: Annotated[
        Counter, _Metric("upstream_errors", "Errors of the engine, by reason.", ("reason",))
    ]
    upstream_aborts: Annotated[
        Counter,
        _Metric(
            "upstream_aborts", "Engine requests that the gateway aborted, by reason.", ("reason",)
        ),
    ]
    client_disconnects: Annotated[
        Counter,
        _Metric(
            "client_disconnects",
            "Clients that left early, by phase: sending, before-first-token, streaming, "
            "unstreamed.",
            ("phase",),
        ),
    ]
    engine_up: Annotated[Gauge, _Metric("engine_up", "1 if the engine answered the last check.")]
    build_info: Annotated[Gauge, _Metric("build_info", "The gateway's version.", ("version",))]

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace=_NAMESPACE, registry=self.registry)
        for attribute, annotation in get_type_hints(type(self), include_extras=True).items():
            kind, metric = get_args(annotation)
            options = {"buckets": metric.buckets} if metric.buckets else {}
            name = f"{_NAMESPACE}_{metric.name}"
            created = kind(name, metric.help, metric.labels, registry=self.registry, **options)
            setattr(self, attribute, created)
        self.build_info.labels(__version__).set(1)
        for reason in ("down", "broken", "truncated", "timeout"):
            self.upstream_errors.labels(reason)
        for reason in ("cut", "reopened", "lost", "client-left"):
            self.upstream_aborts.labels(reason)
        for phase in ("sending", "before-first-token", "streaming", "unstreamed"):
            self.client_disconnects.labels(phase)

    def initialize_series(self, model: str, policy: str, pooling_kinds: Sequence[str] = ()) -> None:
        """Create the series of a model under a policy, at zero. Prometheus counts no increase when
        a series first appears with a value, so the first event would be missing from rates.

        ``pooling_kinds``: the kinds of auxiliary models that the policy uses.
        """
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
