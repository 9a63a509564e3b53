"""What a task of the pocket model is: problems that are thought through with slips and second looks.

Pure standard library, so that tests and the demo can draw problems and grade answers without torch.
A step is *hard* when it can slip. In the first derivation of a trace a hard step slips now and then, always in
the same way: one wrong token, likely enough to survive sampling below temperature 1. Then come rounds of second
looks, each opened by a cue. A trace may close only where its last two derivations agree, and then goes on for a
random number of rounds: that is the overthinking which a stopping policy is meant to save.
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
"""One problem in this many is never trained on."""


@dataclass(frozen=True)
class Problem:
    """A question and its exact answer, both as they are written."""

    prompt: str
    answer: str
    key: str
    """The problem without its wording: what is held out is held out in every phrasing."""
    hard_steps: int
    """How many steps on the way to the answer are hard when nothing slips."""

    @property
    def is_held_out(self) -> bool:
        """Whether the problem is kept for evaluation."""
        return hashlib.sha256(self.key.encode()).digest()[0] % HELD_OUT_ONE_IN == 0

    def is_correct(self, text: str) -> bool:
        """Whether what a response says behind its thought is right."""
        return canonically_equal(extract_final_answer(text), self.answer)


@dataclass(frozen=True)
class TraceSpan:
    """A run of thought. Tokens never reach over its ends."""

    text: str
    slipped: bool | None = None
    """Of a step: whether it slipped."""
    candidate: str | None = None
    """Of a derivation's last piece: the answer that it came to."""


@dataclass(frozen=True)
class Derivation:
    """One way to a candidate: its text, and the indices of slipped steps."""

    spans: tuple[TraceSpan, ...]
    result: str
    slipped_steps: frozenset[int]


@dataclass(frozen=True)
class AnswerWording:
    """A wording: what stands before an answer, how the answer itself is written, and what follows it."""

    prefix: str
    template: str
    suffix: str = ""

    def format(self, answer: str) -> str:
        """The whole sentence."""
        return self.prefix + self.template.format(answer) + self.suffix


@dataclass(frozen=True)
class TaskTexts:
    """What a model says around its thoughts.

    Wordings of answers with their weights: ``answers`` are the model's own, ``induced`` begin with the text by
    which a gateway draws out a trial answer. ``small_talk``: prompts that are not the task, each with a thought
    and an answer; ``refusal`` is both for any other such prompt.
    """

    answers: tuple[tuple[AnswerWording, float], ...]
    induced: tuple[tuple[AnswerWording, float], ...]
    system: tuple[str, ...]
    refusal: tuple[str, str]
    small_talk: tuple[tuple[str, str, str], ...]
    cues: str
    """The cues in mid-sentence and in any case, so that each is one token wherever it stands."""


@dataclass(frozen=True)
class ModelSize:
    """A model's architecture. ``doubt``: the layers after which a step's slip, then a candidate's wrongness,
    should be visible to the layers above."""

    layers: int
    hidden_size: int
    heads: int
    head_size: int
    intermediate_size: int
    vocabulary_size: int
    error_head_layers: tuple[int, int]


class Task(ABC):
    """Problems, thoughts and the words around them; all that training and evaluation know of a task."""

    name: ClassVar[str]
    """Names the model's folder and the report; served, every one is called "pocket"."""
    chat: ClassVar[ChatFormat]
    texts: ClassVar[TaskTexts]
    size: ClassVar[ModelSize]
    pretokenizer_pattern: ClassVar[str]
    """A regular expression of the texts that are never parts of one token together."""
    cues: ClassVar[tuple[str, ...]]
    policy: ClassVar[str]
    """The policy that is measured on this model."""
    answer_kind: ClassVar[Kind] = "boxed"
    """What kind of trial answer suits."""

    first_slip: ClassVar[float] = 0.27
    """Probability that a hard step slips the first time; about 0.16 after sampling at temperature 0.6."""
    repeated_slip: ClassVar[float] = 0.40
    """Probability that a hard step slips again right after it slipped: errors are stubborn."""
    fresh_slip: ClassVar[float] = 0.05
    """Probability that a hard step slips in a later derivation after it went well."""
    close_probability: ClassVar[float] = 0.29
    """Probability of closing at a settled point; about 0.18 after sampling at temperature 0.6."""
    likely_close_tokens: ClassVar[int] = 480
    certain_close_tokens: ClassVar[int] = 780
    """Trace lengths, in tokens (estimated), from which closing is likelier, then certain."""

    @abstractmethod
    def generate_problem(self, rng: random.Random) -> Problem:
        """Draw a problem."""

    @abstractmethod
    def derive(
        self, problem: Problem, rng: random.Random, previous: Derivation | None = None
    ) -> Derivation:
        """Go through the problem once: the first time, or after a derivation with a cue for a beginning."""

    @abstractmethod
    def estimate_tokens(self, problem: Problem) -> int:
        """About how long a derivation is."""

    @abstractmethod
    def find_first_candidate(self, trace_text: str) -> str | None:
        """The answer that the first derivation came to; None when there is none."""

    @property
    def model_path(self) -> Path:
        """The folder of the weights."""
        return MODELS / self.name

    def held_out_problems(self, n: int, seed: int = 0) -> list[Problem]:
        """`n` different problems that training never saw."""
        rng, found = random.Random(f"held-out {seed}"), {}
        while len(found) < n:
            one = self.generate_problem(rng)
            if one.is_held_out:
                found.setdefault(one.key, one)
        return list(found.values())

    def training_problems(self, rng: random.Random) -> Iterator[Problem]:
        """Problems without end, none of them held out."""
        while True:
            if not (one := self.generate_problem(rng)).is_held_out:
                yield one

    def write_trace(self, problem: Problem, rng: random.Random) -> list[TraceSpan]:
        """A whole trace; its last piece has the answer that it settles on."""
        last = self.derive(problem, rng)
        pieces = [*last.spans]
        for rounds in count(2):
            following = self.derive(problem, rng, last)
            pieces += following.spans
            agree, last = following.result == last.result, following
            tokens = self.estimate_tokens(problem) * rounds
            chance = (
                1.0
                if tokens > self.certain_close_tokens
                else 0.5
                if tokens > self.likely_close_tokens
                else self.close_probability
            )
            if agree and rng.random() < chance:
                return pieces
        raise AssertionError

    def should_slip(self, index: int, rng: random.Random, previous: Derivation | None) -> bool:
        """Whether the hard step slips this time."""
        if previous is None:
            return rng.random() < self.first_slip
        return rng.random() < (
            self.repeated_slip if index in previous.slipped_steps else self.fresh_slip
        )


def choose_weighted(rng: random.Random, weighted: tuple[tuple[T, float], ...]) -> T:
    """One of these, by their weights."""
    values, weights = zip(*weighted, strict=True)
    return rng.choices(values, weights)[0]
