"""The interface of a pocket-model task: problems, and reasoning traces with errors and reflections.

Imports no torch, so that tests and the demo can generate problems and grade answers without it.
A step is *hard* if it can slip, that is, go wrong. In the first derivation of a trace a hard step
sometimes slips, always in the same way: one wrong token, likely enough to be sampled below
temperature 1. Then follow reflections: further derivations, each beginning with a cue. A trace may
close only after its last two derivations agree, and then continues for a random number of rounds:
this is the overthinking that a stopping policy should save.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import ClassVar, TypeVar

from adjourn.policies.evidence.answers import AnswerKind as Kind
from adjourn.policies.evidence.answers import canonically_equal, extract_final_answer
from benchmarks.pocket.chat import ChatFormat

__all__ = [
    "AnswerWording",
    "Derivation",
    "ModelSize",
    "Problem",
    "Task",
    "TaskTexts",
    "TraceSpan",
    "choose_weighted",
]

T = TypeVar("T")
MODELS = Path(__file__).parent / "models"
HELD_OUT_ONE_IN = 32
"""One problem in this many is held out of training."""


@dataclass(frozen=True)
class Problem:
    """A question and its exact answer, both as text."""

    prompt: str
    answer: str
    key: str
    """The problem without its wording: a problem is held out in every wording."""
    hard_steps: int
    """The number of hard steps to the answer if none slips."""

    @property
    def is_held_out(self) -> bool:
        """True if the problem is used for evaluation only."""
        return hashlib.sha256(self.key.encode()).digest()[0] % HELD_OUT_ONE_IN == 0

    def is_correct(self, text: str) -> bool:
        """True if this text after the trace contains the right answer."""
        return canonically_equal(extract_final_answer(text), self.answer)


@dataclass(frozen=True)
class TraceSpan:
    """A part of a trace. No token crosses its ends."""

    text: str
    slipped: bool | None = None
    """Whether this step slipped; None if the span is not a step."""
    candidate: str | None = None
    """In the last span of a derivation: the answer that it reached."""


@dataclass(frozen=True)
class Derivation:
    """One path to a candidate answer: its text, and the indices of the steps that slipped."""

    spans: tuple[TraceSpan, ...]
    result: str
    slipped_steps: frozenset[int]


@dataclass(frozen=True)
class AnswerWording:
    """A wording of an answer: the text before it, the format of the answer, the text after it."""

    prefix: str
    template: str
    suffix: str = ""

    def format(self, answer: str) -> str:
        """The sentence with this answer."""
        return self.prefix + self.template.format(answer) + self.suffix


@dataclass(frozen=True)
class TaskTexts:
    """The texts of a task's model outside its derivations.

    ``answers``: wordings of the model's own answers, with weights. ``induced``: wordings that begin
    with an inducer of the gateway, with weights. ``small_talk``: (prompt, trace, answer) of prompts
    that are not the task. ``refusal``: (trace, answer) for any other such prompt.
    """

    answers: tuple[tuple[AnswerWording, float], ...]
    induced: tuple[tuple[AnswerWording, float], ...]
    system: tuple[str, ...]
    refusal: tuple[str, str]
    small_talk: tuple[tuple[str, str, str], ...]
    cues: str
    """The cues in mid-sentence and in each case, so that each is one token at every position."""


@dataclass(frozen=True)
class ModelSize:
    """A model's architecture.

    ``error_head_layers``: the layers after which the output shows that a step slipped, and that a
    candidate is wrong; the layers above can use both.
    """

    layers: int
    hidden_size: int
    heads: int
    head_size: int
    intermediate_size: int
    vocabulary_size: int
    error_head_layers: tuple[int, int]


class Task(ABC):
    """Problems, traces and texts of a task: all that training and evaluation need."""

    name: ClassVar[str]
    """The name of the model's folder and of the report; every task is served as "pocket"."""
    chat: ClassVar[ChatFormat]
    texts: ClassVar[TaskTexts]
    size: ClassVar[ModelSize]
    pretokenizer_pattern: ClassVar[str]
    """A regular expression whose matches are tokenized separately."""
    cues: ClassVar[tuple[str, ...]]
    policy: ClassVar[str]
    """The policy that the benchmarks measure on this model."""
    answer_kind: ClassVar[Kind] = "boxed"
    """The kind of the task's trial answers."""

    first_slip: ClassVar[float] = 0.27
    """Probability that a hard step slips the first time; about 0.16 sampled at temperature 0.6."""
    repeated_slip: ClassVar[float] = 0.40
    """Probability that a hard step slips if it slipped in the derivation before."""
    fresh_slip: ClassVar[float] = 0.05
    """Probability that a hard step slips in a later derivation if it was right before."""
    close_probability: ClassVar[float] = 0.29
    """Probability of closing after two equal candidates; about 0.18 sampled at temperature 0.6."""
    likely_close_tokens: ClassVar[int] = 480
    certain_close_tokens: ClassVar[int] = 780
    """Estimated trace lengths, in tokens, above which closing is likelier, then certain."""

    @abstractmethod
    def generate_problem(self, rng: random.Random) -> Problem:
        """A random problem."""

    @abstractmethod
    def derive(
        self, problem: Problem, rng: random.Random, previous: Derivation | None = None
    ) -> Derivation:
        """Solve the problem once. After a ``previous`` derivation the text begins with a cue."""

    @abstractmethod
    def estimate_tokens(self, problem: Problem) -> int:
        """The approximate length of a derivation, in tokens."""

    @abstractmethod
    def find_first_candidate(self, trace_text: str) -> str | None:
        """The answer of the first derivation; None if there is none."""

    @property
    def model_path(self) -> Path:
        """The folder of the weights."""
        return MODELS / self.name

    def held_out_problems(self, n: int, seed: int = 0) -> list[Problem]:
        """`n` different held-out problems; the same for the same seed."""
        rng, found = random.Random(f"held-out {seed}"), {}
        while len(found) < n:
            problem = self.generate_problem(rng)
            if problem.is_held_out:
                found.setdefault(problem.key, problem)
        return list(found.values())

    def training_problems(self, rng: random.Random) -> Iterator[Problem]:
        """An endless sequence of problems, none of them held out."""
        while True:
            if not (problem := self.generate_problem(rng)).is_held_out:
                yield problem

    def write_trace(self, problem: Problem, rng: random.Random) -> list[TraceSpan]:
        """A whole trace; its last span has the final candidate."""
        last = self.derive(problem, rng)
        spans = [*last.spans]
        for rounds in count(2):
            current = self.derive(problem, rng, last)
            spans += current.spans
            agree, last = current.result == last.result, current
            tokens = self.estimate_tokens(problem) * rounds
            probability = (
                1.0
                if tokens > self.certain_close_tokens
                else 0.5
                if tokens > self.likely_close_tokens
                else self.close_probability
            )
            if agree and rng.random() < probability:
                return spans
        raise AssertionError

    def should_slip(self, index: int, rng: random.Random, previous: Derivation | None) -> bool:
        """True if the hard step with this index slips in this derivation."""
        if previous is None:
            return rng.random() < self.first_slip
        return rng.random() < (
            self.repeated_slip if index in previous.slipped_steps else self.fresh_slip
        )


def choose_weighted(rng: random.Random, weighted: tuple[tuple[T, float], ...]) -> T:
    """A random value, by the weights."""
    values, weights = zip(*weighted, strict=True)
    return rng.choices(values, weights)[0]
