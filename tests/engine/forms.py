"""What the ``forms`` model thinks, and the forms in which it answers.

It thinks one text, unsure of every token at first and sure later; a program and a string stand in
it. From within the program on, it would nearly as soon end its trace at the end of each sentence.
How it answers is told by a word of the prompt: in prose, with a program, in JSON, by two calls.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

__all__ = ["CALLED", "ENDS", "FORMS", "THOUGHT", "learn", "words"]

_GUESSES = (
    (" Maybe", " one", " or", " else", " two", " it was."),
    (" Perhaps", " three", " of", " them", " make", " it so."),
    (" Or", " five", " might", " as well", " be", " the sum."),
    (" Who", " knows", " what", " else", " there", " has been."),
)
_KNOWN = (
    (" Wait", " the", " two", " were given."),
    (" Hmm", " so", " try", " this:\n"),
    ("```py\n", "x = 1.\n", "y = 2. # done.\n", "```\n"),
    ("That", " says", ' {"a":', ' "b. ', 'c. "}', " and that.", " It", " holds."),
    (" So", " it", " stays", " at that.", " Each", " step", " was", " seen."),
    (" Both", " halves", " fit.", " All", " that", " was asked", " for", " is here."),
    (" No", " more", " can", " come", " of it.", " The end", " is", " near."),
)


def _apart(sentences: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Each token once, so that each tells what follows it: one that came before is spelled anew."""
    seen: dict[str, int] = {}
    made = []
    for token in (token for sentence in sentences for token in sentence):
        times = seen[token] = seen.get(token, 0) + 1
        end = token[-1] if token[-1] in ".\n" else ""
        made.append(token if times == 1 else f"{token.removesuffix(end)}{times}{end}")
    return tuple(made)


_MORE = ((" Step", " by", " step", " it holds."),) * 24
THOUGHT = _apart(_GUESSES + _KNOWN + _MORE)
_UNSURE = sum(map(len, _GUESSES))
_NARROW = THOUGHT.index("x = 1.\n")
ENDS = [
    "".join(THOUGHT[:place]).rstrip()
    for place, token in enumerate(THOUGHT, 1)
    if token.endswith((".", ":\n", "`\n"))
]
"""The thought up to the end of each sentence that stands in neither program nor string."""
_DOUBTS = (" Wait", " Hmm")
_OTHERS = (" red", " green", " blue")

CALLED = tuple(f'{{"name": "add", "arguments": {{"to": {n}}}}}' for n in (1, 2))
FORMS = {
    "prose": ("It is", " two. Wait,", " no. Hmm:", " two it is."),
    "code": ("Thus:\n", "```python\n", "n = 1. # Wait\n", "```", "\nDone."),
    "json": ('{"name": "', "two. Wait, no.", '", "steps": [1', ", 2", "]}"),
    "tools": ("<tool_call>", CALLED[0], "</tool_call>", CALLED[1]),
}
"""A word of the prompt, and the tokens of the answer."""


def words() -> tuple[str, ...]:
    """All that must be tokens."""
    answers = (token for form in FORMS.values() for token in form)
    return tuple(dict.fromkeys((*THOUGHT, *_OTHERS, *answers, *FORMS)))


def learn(rules: Any, coder: Any, end: int) -> None:
    """``rules``: of which token follows which; weights are in nats over the model's scale."""

    def token(text: str) -> int:
        (found,) = coder.ids(text)
        return int(found)

    def nats(less: float) -> float:
        return 100.0 - less / rules.scale

    line, closed = token("\n"), token("</think>")
    thought = [token(text) for text in THOUGHT]
    turn = coder.ids("<|im_start|>assistant\n<think>\n")
    for one, following in pairwise(dict.fromkeys(turn[-3:])):
        rules.follow(one, following, 100.0)
    rules.follow(line, token("<think>"), 120.0)
    rules.never_behind(token("<think>"), token("<think>"))
    rules.follow(line, thought[0], 110.0)
    rules.never_behind(thought[0], thought[0])
    for place, (one, following) in enumerate(pairwise(thought)):
        rules.follow(one, following, 100.0)
        if place + 1 < _UNSURE or THOUGHT[place + 1] in _DOUBTS:
            for other in _OTHERS:
                rules.follow(one, token(other), nats(2.0))
        if place >= _NARROW and THOUGHT[place].endswith((".", "\n", ". ")):
            rules.follow(one, line, nats(2.9))
    rules.follow(thought[-1], line, 100.0)
    rules.follow(line, closed, 100.0)
    rules.never_behind(closed, closed)
    rules.follow(closed, line, 100.0)
    _answer(rules, token, line, end)


def _answer(rules: Any, token: Any, line: int, end: int) -> None:
    # The closing sequence ends with two newlines, of which the second is not told from the first.
    for form, texts in FORMS.items():
        ids = [token(text) for text in texts]
        rules.follow(line, ids[0], 60.0)
        for other in FORMS:
            if other != form:
                rules.never_behind(ids[0], token(other))
        if form != "tools":
            for one, following in pairwise([*ids, end]):
                rules.follow(one, following, 100.0)
    begin, first, over, second = (token(text) for text in FORMS["tools"])
    rules.follow(begin, first, 100.0)
    rules.never_behind(first, first)
    rules.follow(begin, second, 90.0)
    for call in (first, second):
        rules.follow(call, over, 100.0)
    rules.follow(over, begin, 100.0)
    rules.never_behind(begin, second)
    rules.follow(over, end, 90.0)
