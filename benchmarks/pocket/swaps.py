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

from benchmarks.pocket.chat import SEED
from benchmarks.pocket.task import Answer, Derivation, Piece, Problem, Size, Task, Words, drawn

__all__ = ["SWAPS"]

NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Ida", "Jim", "Kim", "Leo", "Mia")
THINGS = ("ball", "bell", "book", "coin", "cup", "hat", "key", "lamp", "map", "pen", "ring", "rope")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")

_HARD_DAYS = ((0, 15), (1, 30), (2, 30), (3, 17), (4, 8))
_DAYS = ((3, 30), (4, 40), (5, 30))
_PEOPLE = ((3, 40), (4, 60))
_CIRCLES = 0.55
"""Probability that a day is a circle, before problems are chosen by how many are on the way to the answer."""
_AGAIN = 0.35
"""Probability that a second look goes through every day again, instead of back from the end."""
_FORWARD = (
    ("\n\nLet me verify it day by day:", 20),
    ("\n\nLet me reconsider every day:", 20),
)
_BACKWARD = (
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

_ONLY = "I only know who swaps with whom."
_REFUSAL = ("Nobody swaps here.", _ONLY)
_GREETING = ("A greeting.", "Hello! Tell me who has what, and who swaps.")


@dataclass(frozen=True)
class Week(Problem):
    """Who has what at first, who takes part on each day, and who is asked about.

    Two swap; of three each gives to the next one named, and the last to the first.
    """

    people: tuple[str, ...]
    things: tuple[str, ...]
    days: tuple[tuple[str, ...], ...]
    asked: str


class Swaps(Task):
    """Short texts, and Seed-OSS's markers; a second look begins in mid-paragraph or with a paragraph of its own."""

    name = "swaps"
    chat = SEED
    words = Words(
        answers=(
            (Answer("The answer is", " {}."), 0.9),
            (Answer("**Final Answer**\nThe answer is:", " {}."), 0.1),
        ),
        induced=(
            (Answer(SEED.dialect.inducers["answer-text"], " {}."), 0.6),
            *(
                (Answer(SEED.dialect.inducers[name], "{}}}."), 0.1)
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
            ("Who are you?", "They ask who I am.", f"I am a pocket model. {_ONLY}"),
            ("What is this?", *_REFUSAL),
        ),
        cues=" Hold Actually However Let, hold, actually, however, let",
    )
    size = Size(layers=5, width=128, heads=4, head=32, inner=384, vocabulary=608, doubt=(2, 3))
    parts = r" ?\p{L}+|\n\n|\n| ?[^\s\p{L}\p{N}]+|\s|\p{N}"
    cues = ("Hold on", "Actually", "However", "Let me verify", "Let me reconsider")
    policy = "deer(threshold=0.99, gate=0, task='text')"
    answers = "text"

    def problem(self, rng: random.Random) -> Week:
        """Draw how many days are hard on the way to the answer, then a week that is so."""
        hard = drawn(rng, _HARD_DAYS)
        while True:
            people = tuple(rng.sample(NAMES, drawn(rng, _PEOPLE)))
            days = tuple(
                tuple(rng.sample(people, 3 if rng.random() < _CIRCLES else 2))
                for _ in range(drawn(rng, _DAYS))
            )
            asked = rng.choice(people)
            holders = _back(asked, days, frozenset())
            if (
                sum(len(day) == 3 and who in day for day, who in zip(days, holders, strict=False))
                == hard
            ):
                break
        things = tuple(rng.sample(THINGS, len(people)))
        answer = things[people.index(holders[0])]
        key = " ".join([*people, *things, *("-".join(day) for day in days), asked])
        prompt = _ask(rng, people, things, days, asked)
        return Week(prompt, answer, key, hard, people, things, days, asked)

    def derive(
        self, problem: Problem, rng: random.Random, before: Derivation | None = None
    ) -> Derivation:
        """Day by day, or backwards from the end."""
        assert isinstance(problem, Week)
        if before is None or rng.random() < _AGAIN:
            return self._forward(problem, rng, before)
        return self._backward(problem, rng, before)

    def _forward(self, week: Week, rng: random.Random, before: Derivation | None) -> Derivation:
        has = dict(zip(week.people, week.things, strict=True))
        opening = "I write down who has what:" if before is None else drawn(rng, _FORWARD)
        pieces, slips = [Piece(opening), Piece(f"{_state(has)}.")], set()
        for index, day in enumerate(week.days):
            if slipped := len(day) == 3 and self.slips(index, rng, before):
                slips.add(index)
            given = ",".join(f" {a} {has[a]} to {b}" for a, b in _gifts(day, slipped))
            moved = {b: has[a] for a, b in _gifts(day, slipped)}
            has = moved | {who: has[who] for who in has if who not in moved}
            pieces.append(Piece(f" {DAYS[index]}{given}:{_state(has)}.", slipped=slipped))
        return _settled(week, has[week.asked], pieces, slips, before)

    def _backward(self, week: Week, rng: random.Random, before: Derivation) -> Derivation:
        slips = {
            index
            for index, day in enumerate(week.days)
            if len(day) == 3 and self.slips(index, rng, before)
        }
        holders = _back(week.asked, week.days, slips)
        pieces = [Piece(drawn(rng, _BACKWARD)), Piece(f" Back from {week.asked}:")]
        for index in reversed(range(len(week.days))):
            slipped = index in slips and holders[index + 1] in week.days[index]
            pieces.append(
                Piece(f" {DAYS[index]} {holders[index]}{',' if index else '.'}", slipped=slipped)
            )
        thing = week.things[week.people.index(holders[0])]
        on_the_way = {i for i in slips if holders[i + 1] in week.days[i]}
        return _settled(week, thing, pieces, on_the_way, before)

    def tokens(self, problem: Problem) -> int:
        assert isinstance(problem, Week)
        forward = (len(problem.days) + 1) * (11 + 3 * len(problem.people))
        return round(_AGAIN * forward + (1 - _AGAIN) * (3 * len(problem.days) + 14)) + 12

    def first_candidate(self, thinking: str) -> str | None:
        found = re.search(r" So \w+ (\w+)\.", thinking)
        return found[1] if found else None


SWAPS = Swaps()


def _state(has: dict[str, str]) -> str:
    return ",".join(f" {who} {thing}" for who, thing in has.items())


def _gifts(day: Sequence[str], other_way: bool) -> list[tuple[str, str]]:
    """Who gives to whom."""
    pairs = list(zip(day, [*day[1:], day[0]], strict=True))
    return [(b, a) for a, b in pairs] if other_way else pairs


def _back(asked: str, days: Sequence[Sequence[str]], slips: set[int] | frozenset[int]) -> list[str]:
    """Who had, before each day and after the last, what ``asked`` has in the end."""
    holders = [asked]
    for index, day in reversed(list(enumerate(days))):
        givers = {b: a for a, b in _gifts(day, index in slips)}
        holders.insert(0, givers.get(holders[0], holders[0]))
    return holders


def _settled(
    week: Week, thing: str, pieces: list[Piece], slips: set[int], before: Derivation | None
) -> Derivation:
    verdict = ""
    if before is not None:
        verdict = " The same." if thing == before.result else " Not the same."
    said = f" So {week.asked} {thing}.{verdict}"
    return Derivation((*pieces, Piece(said, candidate=thing)), thing, frozenset(slips))


def _ask(
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
