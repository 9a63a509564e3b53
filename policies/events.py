"""What a policy sees and what it may ask for: frozen values, no behaviour.

Events go in, commands come out. Nothing here reads a clock, and tokens are counted, never
events: one event may carry several tokens (speculative decoding, a stream interval).
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
    """Ask the model something beside the running trace, from its exact token ids.

    ``inducer`` names a text of the dialect (``"answer"``) that is put behind the closing
    sequence, "" puts none there; ``max_tokens`` bounds what the model writes then, greedily.
    ``close_trace=False`` leaves the trace open: it asks what the model is about to think.
    ``top``: of so many tokens at each step, the most probable ones, the log-probabilities.
    ``ending`` asks how probable it is that the trace ends here, ``hidden_states`` for those of the
    last token of all that is put to the model.
    """

    inducer: str = "answer"
    max_tokens: int = 20
    close_trace: bool = True
    top_logprobs: int = 1
    score_end: bool = False
    hidden_states: bool = False


@dataclass(frozen=True, slots=True)
class Embed:
    """Ask the embedder, a model of its own, for the vector of this text."""

    text: str


Query = Probe | Embed
"""What is asked beside the running trace, one at a time."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the trace. ``position``: tokens of the trace to keep; None keeps all decoded so far.

    ``reason`` becomes a metric's label, so it comes from a small fixed set per policy.
    ``confidence`` in [0, 1] where the policy has one. ``text`` names a text of the dialect that is
    put behind what is kept, as if the model had thought it.
    """

    reason: str
    position: int | None = None
    confidence: float | None = None
    text_name: str = ""


@dataclass(frozen=True, slots=True)
class Extend:
    """Let the trace go on in a new stream: where the model would end it, in answer to ``Closing``,
    or, in answer to ``Thought``, behind all that was decoded.

    ``text`` names a text of the dialect that is put there; where the trace has just ended a line,
    its name with ``-on-newline`` does. ``bias``: what the end marker's logit is raised by from now
    on; None leaves it.
    """

    text_name: str = "wait"
    end_bias: float | None = None


Command = Query | Stop | Extend


@dataclass(frozen=True, slots=True)
class ReasoningChunk:
    """A piece of the trace, as decoded. ``position``: tokens of the trace up to its end.

    ``logprobs``: for each token those of the most probable ones at its place, highest first, where
    the policy needs them; () where the engine told none for this piece, or for one token.
    """

    text: str
    token_ids: tuple[int, ...]
    position: int
    at: float
    logprobs: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place where a policy may look. ``position``: tokens of the trace before it.

    ``at`` is in seconds on the driver's monotonic clock. ``cue``: the word, at a cue. ``text``:
    the sentence or step that ended, at the end of one.
    """

    kind: CheckpointKind
    position: int
    at: float
    cue: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe drew out at ``position``.

    ``tokens`` (texts; ``token_id:N`` where a single one was asked for with ``top`` or ``ending``)
    and ``logprobs`` (natural logarithms, of the greedy and hence most probable token
    at each step) have one entry a token; ``finished`` tells whether the model ended by itself. A
    probe for the ``ending`` draws nothing: ``tokens`` names the first that was scored.
    ``top``: for each token the log-probabilities of the most probable ones, highest first.
    ``ending``: that of the closing sequence up to its marker, and ``hidden_states``, where the
    probe asked for them.
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
    """A probe that brought nothing: ``reason`` is ``error``, ``timeout``, ``bad-reply`` or
    ``price`` (it would have cost more than it was expected to save and was not sent)."""

    probe: Probe
    position: int
    reason: str
    at: float

    @property
    def query(self) -> Query:
        return self.probe


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """The vector of a text, of whatever length, that was asked for at ``position``."""

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
    """An embedder that brought nothing: ``reason`` is ``error``, ``timeout`` or ``bad-reply``."""

    embed: Embed
    position: int
    reason: str
    at: float

    @property
    def query(self) -> Query:
        return self.embed


QueryResult = ProbeResult | ProbeFailed | EmbeddingResult | EmbeddingFailed
"""What came of a question."""


@dataclass(frozen=True, slots=True)
class TraceEnding:
    """The model would end the trace after ``position`` tokens. Shown where a policy extends."""

    position: int
    at: float


@dataclass(frozen=True, slots=True)
class TraceEnded:
    """The model ended the trace by itself after ``position`` tokens."""

    position: int
    at: float


Event = ReasoningChunk | Checkpoint | QueryResult | TraceEnding | TraceEnded
