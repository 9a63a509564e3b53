"""The task: chains of integer operations, thought through with slips and second looks.

Pure standard library, so that tests and the demo can draw problems and grade answers without torch.

A step is written by place value on one line, `47 + 38 = 15 + 70 = 85`. It is *hard* when its units carry or
borrow. In the first derivation of a trace a hard step slips now and then, always by forgetting that carry or
borrow (`15 + 70 = 75`): one wrong value, likely enough to survive sampling below temperature 1.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "CUES",
    "Derivation",
    "Problem",
    "Step",
    "boxed",
    "derive",
    "first_candidate",
    "grade",
    "held_out",
    "problem",
    "thought",
    "training",
]

LARGEST = 999
HELD_OUT_SHARE = 32
"""One problem in this many is never trained on."""

FIRST_SLIP = 0.27
"""Probability that a hard step slips the first time; about 0.16 after sampling at temperature 0.6."""
REPEATED_SLIP = 0.40
"""Probability that a hard step slips again right after it slipped: errors are stubborn."""
FRESH_SLIP = 0.05
"""Probability that a hard step slips in a later derivation after it went well."""
CLOSE = 0.29
"""Probability of closing at a settled point; about 0.18 after sampling at temperature 0.6."""
LONG, TOO_LONG = 480, 780
"""Trace lengths, in tokens (estimated), from which closing is likelier, then certain."""

CUES = ("Wait", "Hmm", "Alternatively", "But wait", "Let me double-check")

_HARD_STEPS = ((0, 1, 2, 3, 4), (15, 30, 30, 17, 8))
_STEPS = ((2, 3, 4, 5, 6), (25, 30, 22, 13, 10))
_REFLECTIONS = (
    ("Wait, let me check that again.", 20),
    ("Wait, did I miss a carry?", 15),
    ("Hmm, I should do it once more.", 15),
    ("Alternatively, I go through it from the start.", 15),
    ("But wait, was every step right?", 12),
    ("Let me double-check each step.", 23),
)
_WORDS = {
    "start": ("Start with {}.", "Take {}", "Compute step by step: begin at {}", "I have {}."),
    "+": (" Add {}.", ", add {}", ", plus {}", " I add {}."),
    "-": (" Subtract {}.", ", subtract {}", ", minus {}", " I subtract {}."),
    "*": (" Multiply by {}.", ", multiply by {}", ", times {}", " I multiply by {}."),
    "end": (" What is the result?", ". What do you get?", ".", " Which number do I have now?"),
}


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

    def slipped(self, value: int) -> int | None:
        """The result with the carry or borrow of the units forgotten; None for an easy step."""
        if self.op == "-":
            return self.apply(value) + 10 if value % 10 < self.operand % 10 else None
        units = self.parts(value, self.apply(value))[0]
        return self.apply(value) - units // 10 * 10 or None if units >= 10 else None

    def parts(self, value: int, result: int) -> list[int]:
        """The summands by place value, units first, that are written before the result."""
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
class Problem:
    """A chain, the words it is asked in, and its exact answer."""

    prompt: str
    answer: int
    start: int
    steps: tuple[Step, ...]
    hard: int
    """How many steps are hard when nothing slips."""

    @property
    def key(self) -> str:
        """The chain without its wording: what is held out is held out in every phrasing."""
        return " ".join([str(self.start), *(f"{step.op} {step.operand}" for step in self.steps)])

    @property
    def held_out(self) -> bool:
        """Whether the problem is kept for evaluation."""
        return hashlib.sha256(self.key.encode()).digest()[0] % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Derivation:
    """One pass through a chain: its written lines, its candidate result, the indices of slipped steps."""

    lines: tuple[str, ...]
    result: int
    slips: frozenset[int]


def problem(rng: random.Random) -> Problem:
    """Draw a problem: first how many steps and how many hard ones, then a chain that fits."""
    hard = _draw(rng, *_HARD_STEPS)
    while (count := _draw(rng, *_STEPS)) < hard:
        pass
    while (chain := _chain(rng, count, set(rng.sample(range(count), hard)))) is None:
        pass
    start, steps = chain
    value = start
    for step in steps:
        value = step.apply(value)
    return Problem(_ask(rng, start, steps), value, start, steps, hard)


def held_out(n: int, seed: int = 0) -> list[Problem]:
    """`n` different problems that training never saw."""
    rng, found = random.Random(f"held-out {seed}"), {}
    while len(found) < n:
        one = problem(rng)
        if one.held_out:
            found.setdefault(one.key, one)
    return list(found.values())


def training(rng: random.Random) -> Iterator[Problem]:
    """Problems without end, none of them held out."""
    while True:
        if not (one := problem(rng)).held_out:
            yield one


def derive(one: Problem, rng: random.Random, before: Derivation | None = None) -> Derivation:
    """Go through the chain once, slipping as often as a first or a later derivation (after `before`) does."""
    value, lines, slips = one.start, [], set()
    for index, step in enumerate(one.steps):
        result, wrong = step.apply(value), step.slipped(value)
        rate = (
            FIRST_SLIP if before is None else REPEATED_SLIP if index in before.slips else FRESH_SLIP
        )
        if (
            wrong is not None
            and rng.random() < rate
            and _stays_in_range(wrong, one.steps[index + 1 :])
        ):
            shown, result = (wrong if step.op == "-" else result), wrong
            slips.add(index)
        else:
            shown = result
        parts = " + ".join(map(str, step.parts(value, shown)))
        lines.append(f"{value} {step.op} {step.operand} = {parts} = {result}")
        value = result
    return Derivation(tuple(lines), value, frozenset(slips))


def thought(one: Problem, rng: random.Random) -> tuple[list[str], int]:
    """A whole trace as paragraphs (a cue opens each but the first), and the result it settles on.

    It may close only where the last two derivations agree, and then goes on for a random number of rounds:
    that is the overthinking which a stopping policy is meant to save.
    """
    last = derive(one, rng)
    operations = ", ".join(f"{step.op} {step.operand}" for step in one.steps)
    paragraphs = [
        "\n".join(
            [
                f"I start with {one.start}: {operations}.",
                *last.lines,
                f"So the result is {last.result}.",
            ]
        )
    ]
    per_round = 15 * len(one.steps) + 24
    while True:
        following = derive(one, rng, last)
        agree = following.result == last.result
        verdict = "That matches." if agree else "That differs from before."
        opening = _draw(rng, *zip(*_REFLECTIONS, strict=True))
        paragraphs.append(
            "\n".join(
                [opening, *following.lines, f"So the result is {following.result}. {verdict}"]
            )
        )
        last, tokens = following, per_round * len(paragraphs)
        chance = 1.0 if tokens > TOO_LONG else 0.5 if tokens > LONG else CLOSE
        if agree and rng.random() < chance:
            return paragraphs, last.result


def boxed(text: str) -> int | None:
    """The integer in the last `\\boxed{…}` of an answer; None when there is none to read."""
    found = re.findall(r"\\boxed\{\s*(-?\d+)\s*\}", text)
    return int(found[-1]) if found else None


def grade(text: str, one: Problem) -> bool:
    """Whether an answer (with or without its thought before it) is right."""
    return boxed(text.rpartition("</think>")[2]) == one.answer


def first_candidate(thinking: str) -> int | None:
    """The result that the first derivation came to; None when there is none."""
    found = re.search(r"result is (\d+)\.", thinking)
    return int(found[1]) if found else None


def _draw(rng: random.Random, values, weights):
    return rng.choices(values, weights)[0]


def _chain(rng: random.Random, count: int, hard: set[int]) -> tuple[int, tuple[Step, ...]] | None:
    """A start and steps, exactly those at the indices `hard` being hard; None when the draw led nowhere."""
    start = value = rng.randint(11, 99)
    steps: list[Step] = []
    for index in range(count):
        for _ in range(40):
            op = rng.choices("+-*", (40, 33, 27))[0]
            step = Step(op, rng.randint(2, 9) if op == "*" else rng.randint(11, 99))
            result = step.apply(value)
            # No step twice: the model finds its place in the chain by the last step it wrote.
            if (
                step not in steps
                and 0 < result <= LARGEST
                and (step.slipped(value) is not None) == (index in hard)
            ):
                break
        else:
            return None
        steps.append(step)
        value = result
    value = start
    for index, step in enumerate(steps):
        # Every hard step must be one where a slip leaves the rest of the chain in range.
        if index in hard and not _stays_in_range(step.slipped(value), steps[index + 1 :]):
            return None
        value = step.apply(value)
    return start, tuple(steps)


def _stays_in_range(value: int | None, steps) -> bool:
    if value is None:
        return False
    for step in steps:
        value = step.apply(value)
        if not 0 < value <= LARGEST:
            return False
    return 0 < value <= LARGEST


def _ask(rng: random.Random, start: int, steps: tuple[Step, ...]) -> str:
    style = rng.randrange(len(_WORDS["start"]))
    middle = "".join(_WORDS[step.op][style].format(step.operand) for step in steps)
    return _WORDS["start"][style].format(start) + middle + _WORDS["end"][style]
