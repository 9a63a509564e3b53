"""Which dialect a model speaks: asked of a vocabulary that is a few words and single characters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from adjourn.policies.text.dialect import TokenizedDialect, builtin_dialects
from adjourn.policies.text.markers import NO_PARTIAL_MATCH, MarkerKind, TokenIds
from adjourn.server.engines.adapter import Adapter, ProbeResponse
from adjourn.server.engines.capabilities import _CapabilityCheck, _detect_dialect
from adjourn.server.upstream.client import BadReply

THINK = ("<think>", "</think>", "<tool_call>")
HARMONY = ("<|start|>", "<|end|>", "<|channel|>", "<|message|>", "assistant", "analysis", "final")


class Vocabulary:
    """The one call of an adapter that is made here. What is no word is its characters."""

    def __init__(self, words: Sequence[str], *, unknown: bool = False) -> None:
        self.words = sorted(words, key=len, reverse=True)
        self.unknown = unknown

    async def tokenize(self, model: str, text: str, headers: object) -> list[int]:
        ids, rest = [], text
        while rest:
            word = next((word for word in self.words if rest.startswith(word)), rest[0])
            known = word in self.words
            ids.append(self.words.index(word) if known else 1 if self.unknown else ord(word) + 1000)
            rest = rest[len(word) :] if known or not self.unknown else ""
        return ids


def told(
    model: str, words: Sequence[str], forced: str | None = None, **options: Any
) -> TokenizedDialect | None:
    adapter = cast(Adapter, Vocabulary(words, **options))
    return asyncio.run(_detect_dialect(adapter, model, builtin_dialects(), forced, [], {}))


@pytest.mark.parametrize(
    ("model", "words", "expected"),
    [
        ("Qwen/Qwen3-8B", THINK, "qwen3"),
        ("Qwen/Qwen3.5-4B", THINK, "qwen3"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", THINK, "deepseek-r1"),
        ("deepseek-ai/DeepSeek-V3.1", THINK, "deepseek-v3"),
        ("zai-org/GLM-4.5-Air", THINK, "glm45"),
        ("zai-org/GLM-4.7", THINK, "glm47"),
        ("moonshotai/Kimi-K2-Thinking", THINK, "kimi-k2"),
        ("MiniMaxAI/MiniMax-M2", THINK, "minimax-m2"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", THINK, "nemotron"),
        ("ibm-granite/granite-4.2-8b", THINK, "granite-4.2"),
        ("a-house-model", THINK, "qwen3"),
        ("openai/gpt-oss-20b", HARMONY, "harmony"),
        ("a-house-model", HARMONY, "harmony"),
        ("a-house-model", ("<|channel>", "<channel|>"), "gemma4"),
        (
            "a-house-model",
            ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_TEXT|>"),
            "cohere-plus",
        ),
        ("allenai/Olmo-3-32B-Think", ("</", "think", ">"), "olmo3"),
        ("ibm-granite/granite-3.2-8b-instruct", (), "granite-3.2"),
        ("a-house-model", ("</", "think", ">"), None),
        ("Qwen/Qwen3-8B", (), None),
    ],
)
def test_a_dialect_is_told(model: str, words: Sequence[str], expected: str | None) -> None:
    """By tokens first, among those by name; plain text by name alone."""
    marks = told(model, words)
    assert (marks.definition.name if marks else None) == expected


def test_an_unknown_token_is_no_marker() -> None:
    """A vocabulary that makes one token of whatever it does not know holds no marker."""
    assert told("a-house-model", (), unknown=True) is None


def test_a_dialect_may_be_forced() -> None:
    """Whatever the name says."""
    marks = told("a-house-model", ("</", "think", ">"), forced="olmo3")
    assert marks is not None
    assert (marks.definition.name, len(marks.closing)) == ("olmo3", 3)


def read(marks: TokenizedDialect, ids: TokenIds) -> list[MarkerKind | None]:
    """What is whole behind each id."""
    found, place = [], NO_PARTIAL_MATCH
    for token in ids:
        place = marks.matcher.advance(place, token)
        whole = marks.matcher.complete_match(place)
        found.append(whole[0] if whole else None)
    return found


def test_harmony_in_ids() -> None:
    """The header that opens a trace and the one that ends it, each whole with its last token."""
    marks = told("gpt-oss", HARMONY)
    assert marks is not None
    assert read(marks, marks.start) == [None, None, MarkerKind.START]
    assert read(marks, marks.closing + marks.header)[-2:] == [MarkerKind.END, None]
    assert MarkerKind.END not in read(marks, marks.closing)


def test_plain_text_is_known_behind_a_space() -> None:
    """A space is part of the next token, so a marker behind it is other ids."""
    marks = told("olmo-3", ("</", " </", "think", ">"))
    assert marks is not None
    for spelling in ("</think>", " </think>"):
        ids = asyncio.run(Vocabulary(("</", " </", "think", ">")).tokenize("", spelling, None))
        assert read(marks, tuple(ids))[-1] is MarkerKind.END


def test_a_tool_call_in_plain_text_is_no_break() -> None:
    """Where its marker is several tokens, the parser does not wait for it."""
    marks = told("qwen3", THINK[:2])
    assert marks is not None
    ids = asyncio.run(Vocabulary(THINK[:2]).tokenize("", "<tool_call>", None))
    assert set(read(marks, tuple(ids))) == {None}


def test_an_engine_that_will_not_tell() -> None:
    """Then there is no dialect, and it is said what is missing."""

    class Silent:
        async def tokenize(self, *_: object) -> list[int]:
            raise BadReply("no")

    missing: dict[str, str] = {}
    found = asyncio.run(
        _detect_dialect(cast(Adapter, Silent()), "x", builtin_dialects(), None, [], missing)
    )
    assert (found, list(missing)) == (None, ["/tokenize"])


@pytest.mark.parametrize(("ending", "scored"), [(-7.0, True), (-0.2, False), (0.0, False)])
def test_scores_that_cannot_be(ending: float, scored: bool) -> None:
    """Where an engine tells log-probabilities as it samples, the only choice is always certain: two
    tokens at one place that are both likely give it away."""

    class Scoring(Vocabulary):
        async def probe(self, *_: object) -> ProbeResponse:
            return ProbeResponse("", ("a",), (-0.1,), False, 1, 1, end_logprob=ending)

    marks = told("qwen3", THINK)
    missing: dict[str, str] = {}
    talk = _CapabilityCheck(cast(Adapter, Scoring(THINK)), "m", marks, [], missing)
    asyncio.run(talk._check_probes([1]))
    assert (missing == {}) is scored
