"""What a stopping policy is.

A *policy* is a frozen dataclass of options, shared by all requests; its fields are what a user
may set. ``start()`` makes a *stopper*, the small state machine of one trace. A stopper gets
events and answers each with a command or with None; it is never asked again after a stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from adjourn.policies.events import Command, Event
from adjourn.policies.evidence.hidden_states import Layer

__all__ = ["Needs", "Policy", "Stopper"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a policy must be given. The server asks the engine for exactly this and refuses at
    start-up, with a clear message, what the engine can't give.

    ``start``: a checkpoint where the trace begins. ``cues``, ``sentences``, ``paragraphs``,
    ``steps``: one at every cue, and at every end of the others. ``interval``: one every so many
    tokens (0: none). ``thoughts``: every decoded piece. ``probes``: side requests with
    log-probabilities; ``ending``: among them the end's; ``hidden_states``: with them those behind
    these layers. ``models``: those that it was learned from, of which this one must be one.
    ``embeddings``: texts of the trace as vectors, by an embedder; ``rewards``: of the trace so far,
    by a reward model. ``inducers``: texts of the dialect that it draws with, or puts into the
    trace. ``extends``: to be told when the model would end the trace, which it may extend.
    ``bias``: what the end marker's logit is raised by from the beginning. ``logprobs``: with each
    token of the trace, those of so many (0: none); the engine pays for them on the main stream.
    ``series``: checkpoints that must be probed before the policy can stop, which are worth their
    price together or not at all.
    """

    start: bool = False
    cues: bool = False
    sentences: bool = False
    paragraphs: bool = False
    steps: bool = False
    interval: int = 0
    reasoning_chunks: bool = False
    probes: bool = False
    end_logprob: bool = False
    hidden_states: frozenset[Layer] = frozenset()
    models: frozenset[str] = frozenset()
    embeddings: bool = False
    rewards: bool = False
    inducers: frozenset[str] = frozenset()
    trace_endings: bool = False
    end_bias: float = 0.0
    logprobs: int = 0
    min_checkpoints: int = 1

    @property
    def boundary_kinds(self) -> frozenset[str]:
        """The kinds of ends that are looked for."""
        kinds = ("sentence", self.sentences), ("paragraph", self.paragraphs), ("step", self.steps)
        return frozenset(kind for kind, wanted in kinds if wanted)

    @property
    def has_queries(self) -> bool:
        """Whether anything is asked beside the trace."""
        return self.probes or self.embeddings

    def __or__(self, other: Needs) -> Needs:
        intervals = [n for n in (self.interval, other.interval) if n]
        return Needs(
            start=self.start or other.start,
            cues=self.cues or other.cues,
            sentences=self.sentences or other.sentences,
            paragraphs=self.paragraphs or other.paragraphs,
            steps=self.steps or other.steps,
            interval=min(intervals, default=0),
            reasoning_chunks=self.reasoning_chunks or other.reasoning_chunks,
            probes=self.probes or other.probes,
            end_logprob=self.end_logprob or other.end_logprob,
            hidden_states=self.hidden_states | other.hidden_states,
            models=self.models | other.models,
            embeddings=self.embeddings or other.embeddings,
            rewards=self.rewards or other.rewards,
            inducers=self.inducers | other.inducers,
            trace_endings=self.trace_endings or other.trace_endings,
            end_bias=max(self.end_bias, other.end_bias),
            logprobs=max(self.logprobs, other.logprobs),
            min_checkpoints=max(self.min_checkpoints, other.min_checkpoints),
        )


class Stopper(Protocol):
    """The state of one trace under a policy."""

    def observe(self, event: Event) -> Command | None: ...


class Policy(Protocol):
    """Options of one stopping rule. ``name`` is what users write and metrics carry."""

    name: ClassVar[str]

    @property
    def needs(self) -> Needs: ...

    def start(self) -> Stopper: ...
