"""What the ``forms`` model thinks, and the forms in which it answers.

It thinks one text, unsure of every token at first and sure later; a program and a string stand in
it. From within the program on, it would nearly as soon end its trace at the end of each sentence.
How it answers is told by a word of the prompt: in prose, with a program, in JSON, by two calls.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

__all__ = [
    "ANSWER_FORMATS",
    "SENTENCE_PREFIXES",
    "TOOL_CALLS",
    "TRACE_TOKENS",
    "add_rules",
    "vocabulary",
]

_UNSURE_SENTENCES = (
    (" Maybe", " one", " or", " else", " two", " it was."),
    (" Perhaps", " three", " of", " them", " make", " it so."),
    (" Or", " five", " might", " as well", " be", " the sum."),
    (" Who", " knows", " what", " else", " there", " has been."),
)
_SURE_SENTENCES = (
    (" Wait", " the", " two", " were given."),
    (" Hmm", " so", " try", " this:\n"),
    ("```py\n", "x = 1.\n", "y = 2. # done.\n", "```\n"),
    ("That", " says", ' {"a":', ' "b. ', 'c. "}', " and that.", " It", " holds."),
    (" So", " it", " stays", " at that.", " Each", " step", " was", " seen."),
    (" Both", " halves", " fit.", " All", " that", " was asked", " for", " is here."),
    (" No", " more", " can", " come", " of it.", " The end", " is", " near."),
)


def _make_tokens_unique(sentences: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Each token once, so that each tells what follows it: one that came before is spelled anew."""
    seen: dict[str, int] = {}
    made = []
    for token in (token for sentence in sentences for token in sentence):
        times = seen[token] = seen.get(token, 0) + 1
        end = token[-1] if token[-1] in ".\n" else ""
        made.append(token if times == 1 else f"{token.removesuffix(end)}{times}{end}")
    return tuple(made)


_FILLER_SENTENCES = ((" Step", " by", " step", " it holds."),) * 24
TRACE_TOKENS = _make_tokens_unique(_UNSURE_SENTENCES + _SURE_SENTENCES + _FILLER_SENTENCES)
_UNSURE_COUNT = sum(map(len, _UNSURE_SENTENCES))
_MAY_END_FROM = TRACE_TOKENS.index("x = 1.\n")
SENTENCE_PREFIXES = [
    "".join(TRACE_TOKENS[:place]).rstrip()
    for place, token in enumerate(TRACE_TOKENS, 1)
    if token.endswith((".", ":\n", "`\n"))
]
"""The thought up to the end of each sentence that stands in neither program nor string."""
_CUE_TOKENS = (" Wait", " Hmm")
_ALTERNATIVES = (" red", " green", " blue")

TOOL_CALLS = tuple(f'{{"name": "add", "arguments": {{"to": {n}}}}}' for n in (1, 2))
ANSWER_FORMATS = {
    "prose": ("It is", " two. Wait,", " no. Hmm:", " two it is."),
    "code": ("Thus:\n", "```python\n", "n = 1. # Wait\n", "```", "\nDone."),
    "json": ('{"name": "', "two. Wait, no.", '", "steps": [1', ", 2", "]}"),
    "tools": ("<tool_call>", TOOL_CALLS[0], "</tool_call>", TOOL_CALLS[1]),
}
"""A word of the prompt, and the tokens of the answer."""


def vocabulary() -> tuple[str, ...]:
    """All that must be tokens."""
    answers = (token for form in ANSWER_FORMATS.values() for token in form)
    return tuple(dict.fromkeys((*TRACE_TOKENS, *_ALTERNATIVES, *answers, *ANSWER_FORMATS)))


def add_rules(rules: Any, tokenizer: Any, eos_id: int) -> None:
    """``rules``: of which token follows which; weights are in nats over the model's scale."""

    def token(text: str) -> int:
        (found,) = tokenizer.encode(text)
        return int(found)

    def nats(less: float) -> float:
        return 100.0 - less / rules.scale

    line, closed = token("\n"), token("</think>")
    thought = [token(text) for text in TRACE_TOKENS]
    turn = tokenizer.encode("<|im_start|>assistant\n<think>\n")
    for one, following in pairwise(dict.fromkeys(turn[-3:])):
        rules.add_transition(one, following, 100.0)
    rules.add_transition(line, token("<think>"), 120.0)
    rules.forbid_after(token("<think>"), token("<think>"))
    rules.add_transition(line, thought[0], 110.0)
    rules.forbid_after(thought[0], thought[0])
    for place, (one, following) in enumerate(pairwise(thought)):
        rules.add_transition(one, following, 100.0)
        if place + 1 < _UNSURE_COUNT or TRACE_TOKENS[place + 1] in _CUE_TOKENS:
            for other in _ALTERNATIVES:
                rules.add_transition(one, token(other), nats(2.0))
        if place >= _MAY_END_FROM and TRACE_TOKENS[place].endswith((".", "\n", ". ")):
            rules.add_transition(one, line, nats(2.9))
    rules.add_transition(thought[-1], line, 100.0)
    rules.add_transition(line, closed, 100.0)
    rules.forbid_after(closed, closed)
    rules.add_transition(closed, line, 100.0)
    _add_answer_rules(rules, token, line, eos_id)


def _add_answer_rules(rules: Any, token: Any, line: int, end: int) -> None:
    # The closing sequence ends with two newlines, of which the second is not told from the first.
    for form, texts in ANSWER_FORMATS.items():
        ids = [token(text) for text in texts]
        rules.add_transition(line, ids[0], 60.0)
        for other in ANSWER_FORMATS:
            if other != form:
                rules.forbid_after(ids[0], token(other))
        if form != "tools":
            for one, following in pairwise([*ids, end]):
                rules.add_transition(one, following, 100.0)
    begin, first, over, second = (token(text) for text in ANSWER_FORMATS["tools"])
    rules.add_transition(begin, first, 100.0)
    rules.forbid_after(first, first)
    rules.add_transition(begin, second, 90.0)
    for call in (first, second):
        rules.add_transition(call, over, 100.0)
    rules.add_transition(over, begin, 100.0)
    rules.forbid_after(begin, second)
    rules.add_transition(over, end, 90.0)
