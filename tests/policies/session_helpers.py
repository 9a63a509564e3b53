"""Shared by the tests of policies: a small dialect in made-up ids, events, scripted policies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from adjourn.policies.events import (
    Checkpoint,
    CheckpointKind,
    Event,
    Probe,
    ProbeFailed,
    ProbeResult,
    ReasoningChunk,
)
from adjourn.policies.policy import Needs, Policy
from adjourn.policies.session.orders import Order
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import TRANSITIONS, State
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.text.dialect import Dialect, TokenizedDialect
from adjourn.policies.text.markers import MarkerKind, MarkerMatcher

__all__ = [
    "CHUNK_NEEDS",
    "CLOSING",
    "CLOSING_ON_NEWLINE",
    "CUE_NEEDS",
    "DIALECT",
    "EAGER_DEER",
    "END",
    "GATE_PROBE",
    "PROMPT",
    "START",
    "AlwaysProbe",
    "NeverProbe",
    "ScriptedPolicy",
    "boundary_checkpoint",
    "cue_checkpoint",
    "feed_all",
    "interval_checkpoint",
    "make_session",
    "probe_failed",
    "probe_result",
    "reasoning_chunk",
    "token_counts",
]

START, END = 1, 2
CUE_NEEDS = Needs(cues=True, probes=True)
CLOSING, CLOSING_ON_NEWLINE = (10, END, 11), (END, 11)
PROMPT = (5, 6, START)
DIALECT = TokenizedDialect(
    definition=Dialect(
        name="lab",
        start=("<think>",),
        end=("</think>",),
        closing="\n</think>\n\n",
        cues=("Wait", "But wait", "Hmm", "Let me check"),
        inducers={
            "answer": "\\boxed{",
            "wait": "\nWait",
            "wait-on-newline": "Wait",
            "finished": "I have finished.",
        },
    ),
    matcher=MarkerMatcher({(START,): MarkerKind.START, (END,): MarkerKind.END}),
    start=(START,),
    end=(END,),
    closing=CLOSING,
    closing_on_newline=CLOSING_ON_NEWLINE,
    inducers={
        "answer": (20, 21),
        "wait": (22, 23),
        "wait-on-newline": (23,),
        "finished": (24, 25, 26),
    },
)


class AlwaysProbe(ProbeCostModel):
    """Every probe is worth its cost."""

    def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
        return True


class NeverProbe(ProbeCostModel):
    """No probe is worth its cost."""

    def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
        return False


@dataclass(frozen=True)
class ScriptedPolicy:
    """Answers each event with what ``script`` returns, valid or not."""

    script: Callable[[Event], Any]
    needs: Needs = CUE_NEEDS
    name: ClassVar[str] = "scripted"

    def start(self) -> ScriptedPolicy:
        return self

    def observe(self, event: Event) -> Any:
        return self.script(event)


class CheckedSession(Session):
    """A session that asserts that each change of state is a row of ``TRANSITIONS``."""

    _state: State | None = None

    @property
    def state(self) -> State:
        assert self._state is not None
        return self._state

    @state.setter
    def state(self, after: State) -> None:
        allowed = {State.OPENING} if self._state is None else set(TRANSITIONS[self._state].values())
        assert after in allowed
        self._state = after


def make_session(
    policy: Policy,
    *,
    prompt: tuple[int, ...] = PROMPT,
    cost_model: ProbeCostModel | None = None,
    **options: Any,
) -> Session:
    """A session after its prompt, which opens a trace by default."""
    session = CheckedSession(policy, DIALECT, cost_model or AlwaysProbe(), **options)
    session.on_prompt(prompt)
    return session


def reasoning_chunk(text: str, *ids: int, position: int = 0) -> ReasoningChunk:
    return ReasoningChunk(text, ids, position, at=0.0)


def cue_checkpoint(position: int, word: str = "Wait") -> Checkpoint:
    return Checkpoint("cue", position, at=0.0, cue=word)


def interval_checkpoint(position: int) -> Checkpoint:
    return Checkpoint("interval", position, at=0.0)


def boundary_checkpoint(kind: CheckpointKind, position: int, text: str = "") -> Checkpoint:
    """The end of a sentence, a paragraph or a step."""
    return Checkpoint(kind, position, at=0.0, text=text)


def probe_result(
    position: int,
    answer: str = "7",
    probability: float = 0.99,
    probe: Probe | None = None,
    *,
    finished: bool = True,
    seconds: float = 0.0,
    at: float = 0.0,
    **more: Any,
) -> ProbeResult:
    """A result with one token per character of ``answer``, each with this probability."""
    tokens = (*answer, "}") if finished else tuple(answer)
    logprob = math.log(probability)
    return ProbeResult(
        probe=probe or Probe(),
        position=position,
        text="".join(tokens),
        tokens=tokens,
        logprobs=(logprob,) * len(tokens),
        finished=finished,
        seconds=seconds,
        at=at,
        **more,
    )


def probe_failed(position: int, probe: Probe | None = None, reason: str = "error") -> ProbeFailed:
    return ProbeFailed(probe or Probe(), position, reason, at=0.0)


GATE_PROBE = Probe(max_tokens=1)
EAGER_DEER = Deer(gate=0, gap=0)
CHUNK_NEEDS = Needs(reasoning_chunks=True)


def feed_all(session: Session, *chunks: tuple[str, *tuple[int, ...]]) -> list[Order | None]:
    """The order that each chunk (text and ids) leads to."""
    return [session.feed(text, ids, at=0.0) for text, *ids in chunks]


def token_counts(session: Session) -> dict[str, int]:
    """The ledger's counts that are not zero, without the prompt's."""
    names = ("reasoning", "answer", "marker", "closing", "probe", "wasted")
    return {name: value for name in names if (value := getattr(session.ledger, name))}
