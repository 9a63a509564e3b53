"""The events that a policy receives and the commands that it returns: frozen values.

Count tokens, never events: one event may carry several tokens (speculative decoding, a stream
interval). Times (``at``) are seconds of the driver's monotonic clock, durations are in seconds, and
positions are in tokens of the trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adjourn.policies.evidence.hidden_states import HiddenStates

__all__ = [
    "Checkpoint",
    "CheckpointKind",
    "Command",
    "Embed",
    "EmbeddingFailed",
    "EmbeddingResult",
    "Event",
    "Extend",
    "Probe",
    "ProbeFailed",
    "ProbeResult",
    "Query",
    "QueryResult",
    "ReasoningChunk",
    "Stop",
    "TraceEnded",
    "TraceEnding",
]

CheckpointKind = Literal["start", "cue", "interval", "sentence", "paragraph", "step"]


@dataclass(frozen=True, slots=True)
class Probe:
    """Send an auxiliary request to the engine, from the exact token ids of the trace so far.

    The model continues the trace, the closing sequence and the inducer greedily, concurrently with
    the main stream, for at most ``max_tokens`` tokens.

    ``inducer``: the name of a text of the dialect ("answer"); "" appends none.
    ``close_trace``: False leaves the closing sequence out, to ask for the trace's next tokens.
    ``top_logprobs``: how many of the most probable tokens' log-probabilities to return at each
    step. ``score_end``: return the log-probability of the closing sequence at this place.
    ``hidden_states``: return the hidden states of the last token that the model is given.
    """

    inducer: str = "answer"
    max_tokens: int = 20
    close_trace: bool = True
    top_logprobs: int = 1
    score_end: bool = False
    hidden_states: bool = False


@dataclass(frozen=True, slots=True)
class Embed:
    """Ask the embedder, which is a separate model, for the vector of this text."""

    text: str


Query = Probe | Embed
"""A request that runs concurrently with the trace. At most one is in flight."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the trace. ``position``: tokens of the trace to keep; None keeps all decoded so far.

    ``reason`` becomes a metric label: use a small fixed set of words per policy. ``confidence``:
    in [0, 1], or None if the policy has none. ``text_name``: the name of a text of the dialect that
    is appended to the kept trace, as if the model had written it; "" appends none.
    """

    reason: str
    position: int | None = None
    confidence: float | None = None
    text_name: str = ""


@dataclass(frozen=True, slots=True)
class Extend:
    """Continue the trace in a new stream: in place of its end, as the reply to a ``TraceEnding``,
    or after everything decoded so far, as the reply to a ``ReasoningChunk``.

    ``text_name``: the name of a text of the dialect that is inserted there, with the suffix
    ``-on-newline`` added if the trace has just ended a line; "" inserts none. ``end_bias``: added
    to the end marker's logit from now on; None leaves it as it is.
    """

    text_name: str = "wait"
    end_bias: float | None = None


Command = Query | Stop | Extend


@dataclass(frozen=True, slots=True)
class ReasoningChunk:
    """A chunk of the trace, as decoded. ``position``: tokens of the trace including the chunk.

    ``logprobs``: for each token, the log-probabilities of the most probable tokens at its place,
    highest first, if the policy's ``Needs`` ask for them. Empty, for the chunk or for one token, if
    the engine returned none.
    """

    text: str
    token_ids: tuple[int, ...]
    position: int
    at: float
    logprobs: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place where the trace may be cut. ``position``: tokens of the trace before it.

    ``cue``: the cue's word, for the kind "cue". ``text``: the sentence or step that ended, for
    those kinds.
    """

    kind: CheckpointKind
    position: int
    at: float
    cue: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The reply to a probe that was sent at ``position``.

    ``tokens``: the text of each generated token, or ``token_id:N`` if the probe asked for one token
    with ``top_logprobs`` above 1 or ``score_end``. ``logprobs``: for each token its natural
    log-probability, which is the highest at its step because decoding is greedy. ``finished``: the
    model ended the text itself. A probe with ``score_end`` generates nothing: ``tokens`` has the
    first token that was scored. ``top_logprobs``: for each token, the log-probabilities of the most
    probable tokens, highest first. ``end_logprob``: that of the closing sequence up to and
    including its end marker, and ``hidden_states``: both None unless the probe asked for them.
    """

    probe: Probe
    position: int
    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    finished: bool
    seconds: float
    at: float
    top_logprobs: tuple[tuple[float, ...], ...] = ()
    end_logprob: float | None = None
    hidden_states: HiddenStates | None = None

    @property
    def query(self) -> Query:
        return self.probe


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """A probe without a result. ``reason``: ``error``, ``timeout``, ``bad-reply``, or ``price`` if
    it was not sent because it would have cost more tokens than it was expected to save."""

    probe: Probe
    position: int
    reason: str
    at: float

    @property
    def query(self) -> Query:
        return self.probe


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """The vector of a text whose step ended at ``position``; the embedder sets its length."""

    embed: Embed
    vector: tuple[float, ...]
    position: int
    seconds: float
    at: float

    @property
    def query(self) -> Query:
        return self.embed


@dataclass(frozen=True, slots=True)
class EmbeddingFailed:
    """An embedding without a result. ``reason``: ``error``, ``timeout`` or ``bad-reply``."""

    embed: Embed
    position: int
    reason: str
    at: float

    @property
    def query(self) -> Query:
        return self.embed


QueryResult = ProbeResult | ProbeFailed | EmbeddingResult | EmbeddingFailed
"""The result of a query, or its failure."""


@dataclass(frozen=True, slots=True)
class TraceEnding:
    """The model is about to end the trace after ``position`` tokens; an ``Extend`` prevents it.
    Sent only to a policy whose ``Needs`` have ``trace_endings``."""

    position: int
    at: float


@dataclass(frozen=True, slots=True)
class TraceEnded:
    """The model has ended the trace by itself after ``position`` tokens."""

    position: int
    at: float


Event = ReasoningChunk | Checkpoint | QueryResult | TraceEnding | TraceEnded
