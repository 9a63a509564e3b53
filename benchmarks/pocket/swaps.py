"""A task: who has what after a week of swaps.

Every day two people swap what they have, or three pass it on in a circle. Such a circle is hard: it slips by
being gone round the other way. The first derivation writes down each day who gives what to whom, and who has what
then; second looks do so again, or follow the one thing backwards from the end.
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
"""Probability that a day is a circle, before problems are chosen by how many are on the way to the answer."""
_FORWARD_PROBABILITY = 0.35
"""Probability that a second look goes through every day again, instead of back from the end."""
_FORWARD_CUES = (
    ("\n\nLet me verify it day by day:", 20),
    ("\n\nLet me reconsider every day:", 20),
)
_BACKWARD_CUES = (
    (" Hold on, is that right?", 22),
    (" Actually, I can go back from the end.", 20),
    (" However, a circle has two ways round.", 18),
)
# Who begins, a person and a thing, the day of a swap, that of a circle, the question.
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
    """Who has what at first, who takes part on each day, and who is asked about.

    Two swap; of three each gives to the next one named, and the last to the first.
    """

    people: tuple[str, ...]
    things: tuple[str, ...]
    days: tuple[tuple[str, ...], ...]
    asked_person: str


class SwapsTask(Task):
    """Short texts, and Seed-OSS's markers; a second look begins in mid-paragraph or with a paragraph of its own."""

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
        """Draw how many days are hard on the way to the answer, then a week that is so."""
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
        """Day by day, or backwards from the end."""
        assert isinstance(problem, Week)
        if previous is None or rng.random() < _FORWARD_PROBABILITY:
            return self._derive_forward(problem, rng, previous)
        return self._derive_backward(problem, rng, previous)

    def _derive_forward(
        self, week: Week, rng: random.Random, before: Derivation | None
    ) -> Derivation:
        has = dict(zip(week.people, week.things, strict=True))
        opening = (
            "I write down who has what:" if before is None else choose_weighted(rng, _FORWARD_CUES)
        )
        pieces, slips = [TraceSpan(opening), TraceSpan(f"{_format_holdings(has)}.")], set()
        for index, day in enumerate(week.days):
            if slipped := len(day) == 3 and self.should_slip(index, rng, before):
                slips.add(index)
            given = ",".join(f" {a} {has[a]} to {b}" for a, b in _transfers(day, slipped))
            moved = {b: has[a] for a, b in _transfers(day, slipped)}
            has = moved | {who: has[who] for who in has if who not in moved}
            pieces.append(
                TraceSpan(f" {DAYS[index]}{given}:{_format_holdings(has)}.", slipped=slipped)
            )
        return _finish_derivation(week, has[week.asked_person], pieces, slips, before)

    def _derive_backward(self, week: Week, rng: random.Random, before: Derivation) -> Derivation:
        slips = {
            index
            for index, day in enumerate(week.days)
            if len(day) == 3 and self.should_slip(index, rng, before)
        }
        holders = _find_holders(week.asked_person, week.days, slips)
        pieces = [
            TraceSpan(choose_weighted(rng, _BACKWARD_CUES)),
            TraceSpan(f" Back from {week.asked_person}:"),
        ]
        for index in reversed(range(len(week.days))):
            slipped = index in slips and holders[index + 1] in week.days[index]
            pieces.append(
                TraceSpan(
                    f" {DAYS[index]} {holders[index]}{',' if index else '.'}", slipped=slipped
                )
            )
        thing = week.things[week.people.index(holders[0])]
        on_the_way = {i for i in slips if holders[i + 1] in week.days[i]}
        return _finish_derivation(week, thing, pieces, on_the_way, before)

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


def _format_holdings(has: dict[str, str]) -> str:
    return ",".join(f" {who} {thing}" for who, thing in has.items())


def _transfers(day: Sequence[str], other_way: bool) -> list[tuple[str, str]]:
    """Who gives to whom."""
    pairs = list(zip(day, [*day[1:], day[0]], strict=True))
    return [(b, a) for a, b in pairs] if other_way else pairs


def _find_holders(
    asked: str, days: Sequence[Sequence[str]], slips: set[int] | frozenset[int]
) -> list[str]:
    """Who had, before each day and after the last, what ``asked`` has in the end."""
    holders = [asked]
    for index, day in reversed(list(enumerate(days))):
        givers = {b: a for a, b in _transfers(day, index in slips)}
        holders.insert(0, givers.get(holders[0], holders[0]))
    return holders


def _finish_derivation(
    week: Week, thing: str, pieces: list[TraceSpan], slips: set[int], before: Derivation | None
) -> Derivation:
    verdict = ""
    if before is not None:
        verdict = " The same." if thing == before.result else " Not the same."
    said = f" So {week.asked_person} {thing}.{verdict}"
    return Derivation((*pieces, TraceSpan(said, candidate=thing)), thing, frozenset(slips))


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
