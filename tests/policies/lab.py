"""What the core's tests share: a small dialect in made-up ids, events, policies by script."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from policies.appraisal import Appraiser
from policies.deer import Deer
from policies.dialect import Dialect, Marks
from policies.events import (
    Checkpoint,
    CheckpointKind,
    Event,
    Probe,
    ProbeFailed,
    ProbeResult,
    Thought,
)
from policies.markers import Mark, Markers
from policies.orders import Order
from policies.policy import Needs, Policy
from policies.session import Session
from policies.states import TABLE, State

__all__ = [
    "CLOSING",
    "CLOSING_ON_NEWLINE",
    "CUES",
    "EAGER",
    "END",
    "GATE",
    "MARKS",
    "PROMPT",
    "START",
    "THOUGHTS",
    "Dear",
    "Generous",
    "Scripted",
    "cue",
    "ended",
    "failed",
    "fed",
    "interval",
    "kinds",
    "result",
    "session",
    "thought",
]

START, END = 1, 2
CUES = Needs(cues=True, probes=True)
CLOSING, CLOSING_ON_NEWLINE = (10, END, 11), (END, 11)
PROMPT = (5, 6, START)
MARKS = Marks(
    dialect=Dialect(
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
    markers=Markers({(START,): Mark.START, (END,): Mark.END}),
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


class Generous(Appraiser):
    """Every probe is worth its price."""

    def worth(self, position: int, asked: int, looks: int = 1) -> bool:
        return True


class Dear(Appraiser):
    """No probe is worth its price."""

    def worth(self, position: int, asked: int, looks: int = 1) -> bool:
        return False


@dataclass(frozen=True)
class Scripted:
    """Answers each event with what ``script`` says, be it what no policy ought to say."""

    script: Callable[[Event], Any]
    needs: Needs = CUES
    name: ClassVar[str] = "scripted"

    def start(self) -> Scripted:
        return self

    def observe(self, event: Event) -> Any:
        return self.script(event)


class Watched(Session):
    """A session whose state may only change along a row of the table, one step at a time."""

    _state: State | None = None

    @property
    def state(self) -> State:
        assert self._state is not None
        return self._state

    @state.setter
    def state(self, after: State) -> None:
        allowed = {State.OPENING} if self._state is None else set(TABLE[self._state].values())
        assert after in allowed
        self._state = after


def session(policy: Policy, *, prompt: tuple[int, ...] = PROMPT, **options: Any) -> Session:
    """A session that has seen its prompt, by default one that opens a trace."""
    made = Watched(policy, MARKS, options.pop("appraiser", Generous()), **options)
    made.opened(prompt)
    return made


def thought(text: str, *ids: int, position: int = 0) -> Thought:
    return Thought(text, ids, position, at=0.0)


def cue(position: int, word: str = "Wait") -> Checkpoint:
    return Checkpoint("cue", position, at=0.0, cue=word)


def interval(position: int) -> Checkpoint:
    return Checkpoint("interval", position, at=0.0)


def ended(kind: CheckpointKind, position: int, text: str = "") -> Checkpoint:
    """The end of a sentence, a paragraph or a step."""
    return Checkpoint(kind, position, at=0.0, text=text)


def result(
    position: int,
    answer: str = "7",
    certainty: float = 0.99,
    probe: Probe | None = None,
    *,
    closed: bool = True,
    seconds: float = 0.0,
    at: float = 0.0,
    **more: Any,
) -> ProbeResult:
    """A probe's result whose tokens are the answer's characters, each with this probability."""
    tokens = (*answer, "}") if closed else tuple(answer)
    logprob = math.log(certainty)
    return ProbeResult(
        probe=probe or Probe(),
        position=position,
        text="".join(tokens),
        tokens=tokens,
        logprobs=(logprob,) * len(tokens),
        finished=closed,
        seconds=seconds,
        at=at,
        **more,
    )


def failed(position: int, probe: Probe | None = None, reason: str = "error") -> ProbeFailed:
    return ProbeFailed(probe or Probe(), position, reason, at=0.0)


GATE = Probe(max_tokens=1)
EAGER = Deer(gate=0, gap=0)
THOUGHTS = Needs(thoughts=True)


def fed(made: Session, *pieces: tuple[str, *tuple[int, ...]]) -> list[Order | None]:
    """What the session says to each piece."""
    return [made.feed(text, ids, at=0.0) for text, *ids in pieces]


def kinds(made: Session) -> dict[str, int]:
    """The ledger's entries that are not nothing, the prompt's aside."""
    names = ("reasoning", "answer", "marker", "closing", "probe", "wasted")
    return {name: value for name in names if (value := getattr(made.ledger, name))}
