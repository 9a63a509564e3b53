"""Trace and answers of the tiny model ``forms``, as rules for ``tests.engine.tiny_model``.

Its trace is a fixed text that contains a program and a quoted string. At first the model is unsure
of every token, later sure. From the program on, ending the trace is almost as probable as going on
at the end of each sentence. A word of the prompt selects the format of the answer: prose, a
program, JSON, or two tool calls.
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
    """Number repeated tokens, so that each token determines its successor."""
    seen: dict[str, int] = {}
    unique = []
    for token in (token for sentence in sentences for token in sentence):
        occurrence = seen[token] = seen.get(token, 0) + 1
        end = token[-1] if token[-1] in ".\n" else ""
        unique.append(token if occurrence == 1 else f"{token.removesuffix(end)}{occurrence}{end}")
    return tuple(unique)


_FILLER_SENTENCES = ((" Step", " by", " step", " it holds."),) * 24
TRACE_TOKENS = _make_tokens_unique(_UNSURE_SENTENCES + _SURE_SENTENCES + _FILLER_SENTENCES)
_UNSURE_COUNT = sum(map(len, _UNSURE_SENTENCES))
_MAY_END_FROM = TRACE_TOKENS.index("x = 1.\n")
SENTENCE_PREFIXES = [
    "".join(TRACE_TOKENS[:place]).rstrip()
    for place, token in enumerate(TRACE_TOKENS, 1)
    if token.endswith((".", ":\n", "`\n"))
]
"""The trace up to the end of each sentence that is in neither the program nor the string."""
_CUE_TOKENS = (" Wait", " Hmm")
_ALTERNATIVES = (" red", " green", " blue")

TOOL_CALLS = tuple(f'{{"name": "add", "arguments": {{"to": {n}}}}}' for n in (1, 2))
ANSWER_FORMATS = {
    "prose": ("It is", " two. Wait,", " no. Hmm:", " two it is."),
    "code": ("Thus:\n", "```python\n", "n = 1. # Wait\n", "```", "\nDone."),
    "json": ('{"name": "', "two. Wait, no.", '", "steps": [1', ", 2", "]}"),
    "tools": ("<tool_call>", TOOL_CALLS[0], "</tool_call>", TOOL_CALLS[1]),
}
"""By the word of the prompt that selects the format: the tokens of the answer."""


def vocabulary() -> tuple[str, ...]:
    """Every text that must be a single token."""
    answers = (token for form in ANSWER_FORMATS.values() for token in form)
    return tuple(dict.fromkeys((*TRACE_TOKENS, *_ALTERNATIVES, *answers, *ANSWER_FORMATS)))


def add_rules(rules: Any, tokenizer: Any, eos_id: int) -> None:
    """Add the transitions of the model to ``rules`` (``tiny_model.TransitionRules``). The model's
    logits are the weights times ``rules.scale``."""

    def token(text: str) -> int:
        (found,) = tokenizer.encode(text)
        return int(found)

    def weight_below_top(nats: float) -> float:
        return 100.0 - nats / rules.scale

    newline, trace_end = token("\n"), token("</think>")
    trace = [token(text) for text in TRACE_TOKENS]
    turn = tokenizer.encode("<|im_start|>assistant\n<think>\n")
    for current, following in pairwise(dict.fromkeys(turn[-3:])):
        rules.add_transition(current, following, 100.0)
    rules.add_transition(newline, token("<think>"), 120.0)
    rules.forbid_after(token("<think>"), token("<think>"))
    rules.add_transition(newline, trace[0], 110.0)
    rules.forbid_after(trace[0], trace[0])
    for index, (current, following) in enumerate(pairwise(trace)):
        rules.add_transition(current, following, 100.0)
        if index + 1 < _UNSURE_COUNT or TRACE_TOKENS[index + 1] in _CUE_TOKENS:
            for other in _ALTERNATIVES:
                rules.add_transition(current, token(other), weight_below_top(2.0))
        if index >= _MAY_END_FROM and TRACE_TOKENS[index].endswith((".", "\n", ". ")):
            rules.add_transition(current, newline, weight_below_top(2.9))
    rules.add_transition(trace[-1], newline, 100.0)
    rules.add_transition(newline, trace_end, 100.0)
    rules.forbid_after(trace_end, trace_end)
    rules.add_transition(trace_end, newline, 100.0)
    _add_answer_rules(rules, token, newline, eos_id)


def _add_answer_rules(rules: Any, token: Any, newline: int, end: int) -> None:
    # The closing sequence ends with two newlines. The model cannot distinguish the second from the
    # first, so the answer follows any newline once the rules above allow nothing better.
    for form, texts in ANSWER_FORMATS.items():
        ids = [token(text) for text in texts]
        rules.add_transition(newline, ids[0], 60.0)
        for other in ANSWER_FORMATS:
            if other != form:
                rules.forbid_after(ids[0], token(other))
        if form != "tools":
            for current, following in pairwise([*ids, end]):
                rules.add_transition(current, following, 100.0)
    call_start, first, call_end, second = (token(text) for text in ANSWER_FORMATS["tools"])
    rules.add_transition(call_start, first, 100.0)
    rules.forbid_after(first, first)
    rules.add_transition(call_start, second, 90.0)
    for call in (first, second):
        rules.add_transition(call, call_end, 100.0)
    rules.add_transition(call_end, call_start, 100.0)
    rules.forbid_after(call_start, second)
    rules.add_transition(call_end, end, 90.0)
