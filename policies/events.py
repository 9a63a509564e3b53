"""What a policy sees and what it may ask for: frozen values, no behaviour.

Events go in, commands come out. Nothing here reads a clock, and tokens are counted, never
events: one event may carry several tokens (speculative decoding, a stream interval).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Checkpoint",
    "CheckpointKind",
    "Command",
    "Event",
    "Probe",
    "ProbeFailed",
    "ProbeResult",
    "Stop",
    "Thought",
    "TraceEnd",
]

CheckpointKind = Literal["cue", "interval"]


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the model something beside the running trace, from its exact token ids.

    ``inducer`` names a text of the dialect (``"answer"``) that is put behind the closing
    sequence; ``max_tokens`` bounds what the model writes then, greedily.
    """

    inducer: str = "answer"
    max_tokens: int = 20


@dataclass(frozen=True, slots=True)
class Stop:
    """End the trace. ``position``: tokens of the trace to keep; None keeps all decoded so far.

    ``reason`` becomes a metric's label, so it comes from a small fixed set per policy.
    ``confidence`` in [0, 1] where the policy has one.
    """

    reason: str
    position: int | None = None
    confidence: float | None = None


Command = Probe | Stop


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of the trace, as decoded. ``position``: tokens of the trace up to its end."""

    text: str
    token_ids: tuple[int, ...]
    position: int
    at: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place where a policy may look. ``position``: tokens of the trace before it.

    ``at`` is in seconds on the driver's monotonic clock; ``cue`` is empty for an interval.
    """

    kind: CheckpointKind
    position: int
    at: float
    cue: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe drew out at ``position``.

    ``tokens`` and ``logprobs`` (natural logarithms, of the greedy and hence most probable token
    at each step) have one entry a token; ``finished`` tells whether the model ended by itself.
    """

    probe: Probe
    position: int
    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    finished: bool
    seconds: float
    at: float


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """A probe that brought nothing: ``reason`` is ``error``, ``timeout``, ``bad-reply`` or
    ``price`` (it would have cost more than it was expected to save and was not sent)."""

    probe: Probe
    position: int
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class TraceEnd:
    """The model ended the trace by itself after ``position`` tokens."""

    position: int
    at: float


Event = Thought | Checkpoint | ProbeResult | ProbeFailed | TraceEnd
