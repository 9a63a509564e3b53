"""A task: chains of integer operations.

A step is one line with the summands by place value, `47 + 38 = 15 + 70 = 85`. It is hard if its
units carry or borrow, and slips by forgetting that carry or borrow (`15 + 70 = 75`).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from benchmarks.pocket.chat import QWEN3
from benchmarks.pocket.task import (
    AnswerWording,
    Derivation,
    ModelSize,
    Problem,
    Task,
    TaskTexts,
    TraceSpan,
    choose_weighted,
)

__all__ = ["CHAINS"]

MAX_VALUE = 999

_HARD_STEP_COUNTS = ((0, 1, 2, 3, 4), (15, 30, 30, 17, 8))
_STEP_COUNTS = ((2, 3, 4, 5, 6), (25, 30, 22, 13, 10))
_REFLECTIONS = (
    ("Wait, let me check that again.", 20),
    ("Wait, did I miss a carry?", 15),
    ("Hmm, I should do it once more.", 15),
    ("Alternatively, I go through it from the start.", 15),
    ("But wait, was every step right?", 12),
    ("Let me double-check each step.", 23),
)
_PHRASES = {
    "start": ("Start with {}.", "Take {}", "Compute step by step: begin at {}", "I have {}."),
    "+": (" Add {}.", ", add {}", ", plus {}", " I add {}."),
    "-": (" Subtract {}.", ", subtract {}", ", minus {}", " I subtract {}."),
    "*": (" Multiply by {}.", ", multiply by {}", ", times {}", " I multiply by {}."),
    "end": (" What is the result?", ". What do you get?", ".", " Which number do I have now?"),
}
_SCOPE_REPLY = "I only know chains of integer operations."
_REFUSAL = ("This is not a chain of operations.", _SCOPE_REPLY)
_GREETING = ("This is a greeting.", "Hello! Give me a chain of integer operations.")
_FINAL_ANSWER = "**Final Answer**\n\\boxed{"


@dataclass(frozen=True)
class Step:
    """One operation of a chain: `+`, `-` or `*`, and its operand."""

    op: str
    operand: int

    def apply(self, value: int) -> int:
        """The exact result."""
        if self.op == "+":
            return value + self.operand
        return value - self.operand if self.op == "-" else value * self.operand

    def apply_with_slip(self, value: int) -> int | None:
        """The result without the carry or borrow of the units; None for an easy step."""
        if self.op == "-":
            return self.apply(value) + 10 if value % 10 < self.operand % 10 else None
        units = self.place_values(value, self.apply(value))[0]
        return self.apply(value) - units // 10 * 10 or None if units >= 10 else None

    def place_values(self, value: int, result: int) -> list[int]:
        """The summands by place value, units first, shown before the result."""
        if self.op == "-":
            places = [result % 10, result // 10 % 10 * 10, result // 100 * 100]
        elif self.op == "+":
            places = [
                value % 10 + self.operand % 10,
                (value // 10 % 10 + self.operand // 10) * 10,
                value // 100 * 100,
            ]
        else:
            places = [
                value % 10 * self.operand,
                value // 10 % 10 * 10 * self.operand,
                value // 100 * 100 * self.operand,
            ]
        return places if places[2] else places[:2]


@dataclass(frozen=True)
class Chain(Problem):
    """A start value, and the steps from it."""

    start: int
    steps: tuple[Step, ...]


class ChainsTask(Task):
    """Boxed numbers and Qwen3's markers; each reflection is a paragraph that repeats all steps."""

    name = "chains"
    chat = QWEN3
    texts = TaskTexts(
        answers=(
            (AnswerWording("The result is \\boxed{", "{}}}", "."), 0.9),
            (AnswerWording(_FINAL_ANSWER, "{}}}"), 0.1),
        ),
        induced=((AnswerWording("\n" + _FINAL_ANSWER, "{}}}"), 1),),
        system=(
            "You are a helpful assistant.",
            "Think step by step.",
            "Answer with a boxed number.",
            "Be brief.",
        ),
        refusal=_REFUSAL,
        small_talk=(
            ("Hello", *_GREETING),
            ("Hi", *_GREETING),
            ("Thank you", "This is a thank you.", "You are welcome."),
            ("Who are you?", "This asks who I am.", f"I am a pocket model. {_SCOPE_REPLY}"),
            ("What is this?", *_REFUSAL),
        ),
        cues=" Wait Hmm Alternatively But Let, hmm, but, let",
    )
    size = ModelSize(
        layers=5,
        hidden_size=192,
        heads=3,
        head_size=64,
        intermediate_size=512,
        vocabulary_size=640,
        error_head_layers=(2, 3),
    )
    # One token per digit. Newlines are single or in pairs, so that text cut or joined at a newline
    # keeps its token ids.
    pretokenizer_pattern = r"\d| [+\-*=] (?=\d)| ?\p{L}+|\n\n|\n| ?[^\s\p{L}\p{N}]+|\s|\p{N}"
    cues = ("Wait", "Hmm", "Alternatively", "But wait", "Let me double-check")
    policy = "deer(threshold=0.99, gate=0)"

    def generate_problem(self, rng: random.Random) -> Chain:
        """A random chain: first the numbers of steps and of hard steps, then a chain with these."""
        hard = _choose_count(rng, *_HARD_STEP_COUNTS)
        while (count := _choose_count(rng, *_STEP_COUNTS)) < hard:
            pass
        while (chain := _random_chain(rng, count, set(rng.sample(range(count), hard)))) is None:
            pass
        start, steps = chain
        value = start
        for step in steps:
            value = step.apply(value)
        key = " ".join([str(start), *(f"{step.op} {step.operand}" for step in steps)])
        return Chain(_write_prompt(rng, start, steps), str(value), key, hard, start, steps)

    def derive(
        self, problem: Problem, rng: random.Random, previous: Derivation | None = None
    ) -> Derivation:
        """One line per step, from the start value."""
        assert isinstance(problem, Chain)
        if previous is None:
            operations = ", ".join(f"{step.op} {step.operand}" for step in problem.steps)
            opening = f"I start with {problem.start}: {operations}.\n"
        else:
            opening = f"\n\n{choose_weighted(rng, _REFLECTIONS)}\n"
        value, spans, slips = problem.start, [TraceSpan(opening)], set()
        for index, step in enumerate(problem.steps):
            result, wrong = step.apply(value), step.apply_with_slip(value)
            slipped = (
                wrong is not None
                and self.should_slip(index, rng, previous)
                and _stays_in_range(wrong, problem.steps[index + 1 :])
            )
            shown = result
            if slipped:
                shown, result = (wrong if step.op == "-" else result), wrong
                slips.add(index)
            parts = " + ".join(map(str, step.place_values(value, shown)))
            line = f"{value} {step.op} {step.operand} = {parts} = {result}\n"
            spans.append(TraceSpan(line, slipped=slipped))
            value = result
        result, verdict = str(value), ""
        if previous is not None:
            verdict = (
                " That matches." if result == previous.result else " That differs from before."
            )
        spans.append(TraceSpan(f"So the result is {result}.{verdict}", candidate=result))
        return Derivation(tuple(spans), result, frozenset(slips))

    def estimate_tokens(self, problem: Problem) -> int:
        assert isinstance(problem, Chain)
        return 15 * len(problem.steps) + 24

    def find_first_candidate(self, trace_text: str) -> str | None:
        found = re.search(r"result is (\d+)\.", trace_text)
        return found[1] if found else None


CHAINS = ChainsTask()


def _choose_count(rng: random.Random, values: tuple[int, ...], weights: tuple[int, ...]) -> int:
    return rng.choices(values, weights)[0]


def _random_chain(
    rng: random.Random, count: int, hard: set[int]
) -> tuple[int, tuple[Step, ...]] | None:
    """A start value and steps, hard exactly at the indices `hard`; None if this attempt failed."""
    start = value = rng.randint(11, 99)
    steps: list[Step] = []
    for index in range(count):
        for _ in range(40):
            op = rng.choices("+-*", (40, 33, 27))[0]
            step = Step(op, rng.randint(2, 9) if op == "*" else rng.randint(11, 99))
            result = step.apply(value)
            # No step twice: the model finds its position in the chain by the last step it wrote.
            if (
                step not in steps
                and 0 < result <= MAX_VALUE
                and (step.apply_with_slip(value) is not None) == (index in hard)
            ):
                break
        else:
            return None
        steps.append(step)
        value = result
    value = start
    for index, step in enumerate(steps):
        # After a slip of a hard step the rest of the chain must stay in range.
        if index in hard and not _stays_in_range(step.apply_with_slip(value), steps[index + 1 :]):
            return None
        value = step.apply(value)
    return start, tuple(steps)


def _stays_in_range(value: int | None, steps) -> bool:
    if value is None:
        return False
    for step in steps:
        value = step.apply(value)
        if not 0 < value <= MAX_VALUE:
            return False
    return 0 < value <= MAX_VALUE


def _write_prompt(rng: random.Random, start: int, steps: tuple[Step, ...]) -> str:
    style = rng.randrange(len(_PHRASES["start"]))
    middle = "".join(_PHRASES[step.op][style].format(step.operand) for step in steps)
    return _PHRASES["start"][style].format(start) + middle + _PHRASES["end"][style]
