"""The contract of a stopping policy.

A *policy* is a frozen dataclass of options, shared by all requests; its fields are the options that
users may set. ``start()`` creates a *stopper*, the state machine of one trace. A stopper receives
events and replies to each with a command or with None. It is not called again after a stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from adjourn.policies.events import Command, Event
from adjourn.policies.evidence.hidden_states import Layer

__all__ = ["Needs", "Policy", "Stopper", "SupportsPatience", "scale_patience"]


@dataclass(frozen=True, slots=True)
class Needs:
    """The events and engine features that a policy requires. The gateway sends only events that are
    declared here, and refuses a policy at start-up, by name, if the engine lacks a feature.

    start             a checkpoint at the beginning of the trace
    cues              a checkpoint at every cue
    sentences, paragraphs, steps
                      a checkpoint at the end of every one of them
    interval          a checkpoint every so many tokens (0: none)
    reasoning_chunks  every decoded chunk of the trace
    probes            probes, whose results have log-probabilities
    end_logprob       probes that score the end of the trace
    hidden_states     the outputs of these layers, with probes (empty: none)
    models            the model must be one of these, for which the policy was trained (empty: any)
    embeddings        vectors of texts of the trace, from an embedder
    rewards           scores of the trace so far, from a reward model
    inducers          names of the dialect's texts that the policy uses in probes or inserts
    trace_endings     ``TraceEnding`` events, to which the policy may reply with ``Extend``
    end_bias          added to the end marker's logit from the first token on
    logprobs          log-probabilities of so many tokens with every token of the trace (0: none);
                      they slow the main stream
    min_checkpoints   checkpoints that must be probed before the policy can stop; the gateway sends
                      the whole series of probes, or none if it is not worth its cost
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
        """The kinds of text units whose ends are checkpoints."""
        kinds = ("sentence", self.sentences), ("paragraph", self.paragraphs), ("step", self.steps)
        return frozenset(kind for kind, needed in kinds if needed)

    @property
    def has_queries(self) -> bool:
        """Whether the policy may return a ``Query``."""
        return self.probes or self.embeddings

    def __or__(self, other: Needs) -> Needs:
        """Everything that either needs, at the shorter interval."""
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

    def observe(self, event: Event) -> Command | None:
        """Reply to an event. An exception mutes the policy for this response."""
        ...


class Policy(Protocol):
    """The options of a stopping rule. ``name``: what users write, and a metric label.

    Instances are hashable and comparable by their options: what the gateway measured for a policy
    is kept under it. See ``SupportsPatience`` for an optional method.
    """

    name: ClassVar[str]

    @property
    def needs(self) -> Needs: ...

    def start(self) -> Stopper:
        """A new stopper, for one trace."""
        ...


@runtime_checkable
class SupportsPatience(Protocol):
    """A policy with this optional method follows the effort that clients ask for."""

    def with_patience(self, factor: float) -> Policy:
        """A copy that waits ``factor`` times as long (greater than 0, never 1) before it stops, in
        whatever option that means: 0.5 for a hurried one, 2 for a patient one."""
        ...


def scale_patience(policy: Policy, factor: float) -> Policy:
    """The policy at ``factor`` times its patience; the policy itself if it has no such method."""
    if factor == 1 or not isinstance(policy, SupportsPatience):
        return policy
    return policy.with_patience(factor)
