"""A task: who has what after a week of swaps.

Every day two people swap what they have, or three pass it on in a circle. A circle is hard: it slips
by going in the opposite direction. The first derivation writes for each day who gives what to whom,
and who has what then; reflections repeat this, or follow one thing backwards from the end.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.pocket.chat import SEED_OSS
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

__all__ = ["SWAPS"]

NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Ida", "Jim", "Kim", "Leo", "Mia")
THINGS = ("ball", "bell", "book", "coin", "cup", "hat", "key", "lamp", "map", "pen", "ring", "rope")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")

_HARD_DAY_COUNTS = ((0, 15), (1, 30), (2, 30), (3, 17), (4, 8))
_DAY_COUNTS = ((3, 30), (4, 40), (5, 30))
_PEOPLE_COUNTS = ((3, 40), (4, 60))
_CIRCLE_PROBABILITY = 0.55
"""Probability that a day is a circle, before problems are selected by their number of hard days."""
_FORWARD_PROBABILITY = 0.35
"""Probability that a reflection repeats every day, instead of going back from the end."""
_FORWARD_CUES = (
    ("\n\nLet me verify it day by day:", 20),
    ("\n\nLet me reconsider every day:", 20),
)
_BACKWARD_CUES = (
    (" Hold on, is that right?", 22),
    (" Actually, I can go back from the end.", 20),
    (" However, a circle has two ways round.", 18),
)
# The beginning, a person with a thing, a day with a swap, a day with a circle, the question.
_PHRASES = (
    ("At first", " {} has the {}", " On {}, {} and {} swap.", " On {}, {}, {} and {} pass on.", " What does {} have now?"),
    ("Given:", " {} with the {}", " {}: {} and {} swap.", " {}: {}, {} and {} pass on.", " Tell what {} has in the end."),
    ("There are", " {} with a {}", " Then on {} {} and {} change.", " Then on {} {}, {} and {} go round.", " What is with {}?"),
    ("Last week", " {} had the {}", " {} came: {} and {} swap.", " {} came: {}, {} and {} pass on.", " And {} has?"),
)  # fmt: skip

_SCOPE_REPLY = "I only know who swaps with whom."
_REFUSAL = ("Nobody swaps here.", _SCOPE_REPLY)
_GREETING = ("A greeting.", "Hello! Tell me who has what, and who swaps.")


@dataclass(frozen=True)
class Week(Problem):
    """Who has what at first, who takes part on each day, and whom the question is about.

    Two people swap; of three each gives to the next, and the last to the first.
    """

    people: tuple[str, ...]
    things: tuple[str, ...]
    days: tuple[tuple[str, ...], ...]
    asked_person: str


class SwapsTask(Task):
    """Text answers and Seed-OSS's markers; a reflection may begin in the middle of a paragraph."""

    name = "swaps"
    chat = SEED_OSS
    texts = TaskTexts(
        answers=(
            (AnswerWording("The answer is", " {}."), 0.9),
            (AnswerWording("**Final Answer**\nThe answer is:", " {}."), 0.1),
        ),
        induced=(
            (AnswerWording(SEED_OSS.dialect.inducers["answer-text"], " {}."), 0.6),
            *(
                (AnswerWording(SEED_OSS.dialect.inducers[name], "{}}}."), 0.1)
                for name in ("answer", "answer-2", "answer-3", "answer-4")
            ),
        ),
        system=(
            "You are a careful reader.",
            "Answer briefly.",
            "Answer with a word.",
            "Be brief.",
        ),
        refusal=_REFUSAL,
        small_talk=(
            ("Hello", *_GREETING),
            ("Hi", *_GREETING),
            ("Thanks", "They are happy.", "Any time."),
            ("Who are you?", "They ask who I am.", f"I am a pocket model. {_SCOPE_REPLY}"),
            ("What is this?", *_REFUSAL),
        ),
        cues=" Hold Actually However Let, hold, actually, however, let",
    )
    size = ModelSize(
        layers=5,
        hidden_size=128,
        heads=4,
        head_size=32,
        intermediate_size=384,
        vocabulary_size=608,
        error_head_layers=(2, 3),
    )
    pretokenizer_pattern = r" ?\p{L}+|\n\n|\n| ?[^\s\p{L}\p{N}]+|\s|\p{N}"
    cues = ("Hold on", "Actually", "However", "Let me verify", "Let me reconsider")
    policy = "deer(threshold=0.99, gate=0, task='text')"
    answer_kind = "text"

    def generate_problem(self, rng: random.Random) -> Week:
        """A random week: first the number of hard days to the answer, then a week with this number."""
        hard = choose_weighted(rng, _HARD_DAY_COUNTS)
        while True:
            people = tuple(rng.sample(NAMES, choose_weighted(rng, _PEOPLE_COUNTS)))
            days = tuple(
                tuple(rng.sample(people, 3 if rng.random() < _CIRCLE_PROBABILITY else 2))
                for _ in range(choose_weighted(rng, _DAY_COUNTS))
            )
            asked = rng.choice(people)
            holders = _find_holders(asked, days, frozenset())
            if (
                sum(len(day) == 3 and who in day for day, who in zip(days, holders, strict=False))
                == hard
            ):
                break
        things = tuple(rng.sample(THINGS, len(people)))
        answer = things[people.index(holders[0])]
        key = " ".join([*people, *things, *("-".join(day) for day in days), asked])
        prompt = _write_prompt(rng, people, things, days, asked)
        return Week(prompt, answer, key, hard, people, things, days, asked)

    def derive(
        self, problem: Problem, rng: random.Random, previous: Derivation | None = None
    ) -> Derivation:
        """Forward day by day, or backward from the end."""
        assert isinstance(problem, Week)
        if previous is None or rng.random() < _FORWARD_PROBABILITY:
            return self._derive_forward(problem, rng, previous)
        return self._derive_backward(problem, rng, previous)

    def _derive_forward(
        self, week: Week, rng: random.Random, previous: Derivation | None
    ) -> Derivation:
        holdings = dict(zip(week.people, week.things, strict=True))
        opening = (
            "I write down who has what:"
            if previous is None
            else choose_weighted(rng, _FORWARD_CUES)
        )
        spans, slips = [TraceSpan(opening), TraceSpan(f"{_format_holdings(holdings)}.")], set()
        for index, day in enumerate(week.days):
            if slipped := len(day) == 3 and self.should_slip(index, rng, previous):
                slips.add(index)
            transfers = ",".join(f" {a} {holdings[a]} to {b}" for a, b in _transfers(day, slipped))
            received = {b: holdings[a] for a, b in _transfers(day, slipped)}
            holdings = received | {who: holdings[who] for who in holdings if who not in received}
            spans.append(
                TraceSpan(
                    f" {DAYS[index]}{transfers}:{_format_holdings(holdings)}.", slipped=slipped
                )
            )
        return _finish_derivation(week, holdings[week.asked_person], spans, slips, previous)

    def _derive_backward(self, week: Week, rng: random.Random, previous: Derivation) -> Derivation:
        slips = {
            index
            for index, day in enumerate(week.days)
            if len(day) == 3 and self.should_slip(index, rng, previous)
        }
        holders = _find_holders(week.asked_person, week.days, slips)
        spans = [
            TraceSpan(choose_weighted(rng, _BACKWARD_CUES)),
            TraceSpan(f" Back from {week.asked_person}:"),
        ]
        for index in reversed(range(len(week.days))):
            slipped = index in slips and holders[index + 1] in week.days[index]
            spans.append(
                TraceSpan(
                    f" {DAYS[index]} {holders[index]}{',' if index else '.'}", slipped=slipped
                )
            )
        thing = week.things[week.people.index(holders[0])]
        effective_slips = {i for i in slips if holders[i + 1] in week.days[i]}
        return _finish_derivation(week, thing, spans, effective_slips, previous)

    def estimate_tokens(self, problem: Problem) -> int:
        assert isinstance(problem, Week)
        forward = (len(problem.days) + 1) * (11 + 3 * len(problem.people))
        return (
            round(
                _FORWARD_PROBABILITY * forward
                + (1 - _FORWARD_PROBABILITY) * (3 * len(problem.days) + 14)
            )
            + 12
        )

    def find_first_candidate(self, trace_text: str) -> str | None:
        found = re.search(r" So \w+ (\w+)\.", trace_text)
        return found[1] if found else None


SWAPS = SwapsTask()


def _format_holdings(holdings: dict[str, str]) -> str:
    return ",".join(f" {who} {thing}" for who, thing in holdings.items())


def _transfers(day: Sequence[str], reverse: bool) -> list[tuple[str, str]]:
    """(giver, receiver) pairs of a day."""
    pairs = list(zip(day, [*day[1:], day[0]], strict=True))
    return [(b, a) for a, b in pairs] if reverse else pairs


def _find_holders(
    asked: str, days: Sequence[Sequence[str]], slips: set[int] | frozenset[int]
) -> list[str]:
    """Who had the thing that ``asked`` has in the end: before each day, and after the last."""
    holders = [asked]
    for index, day in reversed(list(enumerate(days))):
        givers = {b: a for a, b in _transfers(day, index in slips)}
        holders.insert(0, givers.get(holders[0], holders[0]))
    return holders


def _finish_derivation(
    week: Week, thing: str, spans: list[TraceSpan], slips: set[int], previous: Derivation | None
) -> Derivation:
    verdict = ""
    if previous is not None:
        verdict = " The same." if thing == previous.result else " Not the same."
    conclusion = f" So {week.asked_person} {thing}.{verdict}"
    return Derivation((*spans, TraceSpan(conclusion, candidate=thing)), thing, frozenset(slips))


def _write_prompt(
    rng: random.Random,
    people: tuple[str, ...],
    things: tuple[str, ...],
    days: tuple[tuple[str, ...], ...],
    asked: str,
) -> str:
    begin, has, swap, circle, question = rng.choice(_PHRASES)
    state = ",".join(has.format(*pair) for pair in zip(people, things, strict=True))
    week = "".join(
        (swap if len(day) == 2 else circle).format(name, *day)
        for name, day in zip(DAYS, days, strict=False)
    )
    return f"{begin}{state}.{week}{question.format(asked)}"
