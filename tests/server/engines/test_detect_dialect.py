"""Detecting the dialect of a model from its name and its vocabulary."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from adjourn.policies.text.dialect import TokenizedDialect, builtin_dialects
from adjourn.policies.text.markers import NO_PARTIAL_MATCH, MarkerKind, TokenIds
from adjourn.server.engines.adapter import Adapter
from adjourn.server.engines.detect_dialect import detect_dialect
from adjourn.server.upstream.client import BadReply
from tests.server.engines.vocabulary import HARMONY, THINK, Vocabulary


def detect(
    model: str, words: Sequence[str], forced: str | None = None, **options: Any
) -> TokenizedDialect | None:
    adapter = cast(Adapter, Vocabulary(words, **options))
    return asyncio.run(detect_dialect(adapter, model, builtin_dialects(), forced, [], {}))


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
def test_the_dialect_fits_the_vocabulary_and_then_the_name(
    model: str, words: Sequence[str], expected: str | None
) -> None:
    """Among the dialects whose markers are tokens, the name decides. Dialects whose markers are
    plain text are chosen by name only."""
    dialect = detect(model, words)
    assert (dialect.definition.name if dialect else None) == expected


def test_an_unknown_token_is_not_a_marker() -> None:
    """Some vocabularies turn any unknown text into one token."""
    assert detect("a-house-model", (), has_unknown_token=True) is None


def test_a_forced_dialect_is_used_for_any_name() -> None:
    dialect = detect("a-house-model", ("</", "think", ">"), forced="olmo3")
    assert dialect is not None
    assert (dialect.definition.name, len(dialect.closing)) == ("olmo3", 3)


def matches_after(dialect: TokenizedDialect, ids: TokenIds) -> list[MarkerKind | None]:
    """For each id, the kind of the marker that it completes, if any."""
    found, position = [], NO_PARTIAL_MATCH
    for token in ids:
        position = dialect.matcher.advance(position, token)
        match = dialect.matcher.complete_match(position)
        found.append(match[0] if match else None)
    return found


def test_harmony_headers_are_markers() -> None:
    """The header that opens a trace and the one that ends it match at their last token."""
    dialect = detect("gpt-oss", HARMONY)
    assert dialect is not None
    assert matches_after(dialect, dialect.start) == [None, None, MarkerKind.START]
    assert matches_after(dialect, dialect.closing + dialect.header)[-2:] == [MarkerKind.END, None]
    assert MarkerKind.END not in matches_after(dialect, dialect.closing)


def test_a_plain_text_marker_matches_after_a_space() -> None:
    """A space is part of the next token, so the marker after it has other ids."""
    words = ("</", " </", "think", ">")
    dialect = detect("olmo-3", words)
    assert dialect is not None
    for spelling in ("</think>", " </think>"):
        ids = asyncio.run(Vocabulary(words).tokenize("", spelling, None))
        assert matches_after(dialect, tuple(ids))[-1] is MarkerKind.END


def test_a_tool_call_of_several_tokens_is_not_a_marker() -> None:
    """The engine's parser does not wait for such a text either."""
    dialect = detect("qwen3", THINK[:2])
    assert dialect is not None
    ids = asyncio.run(Vocabulary(THINK[:2]).tokenize("", "<tool_call>", None))
    assert set(matches_after(dialect, tuple(ids))) == {None}


def test_an_engine_that_does_not_tokenize_has_no_dialect() -> None:
    """That is added to the missing capabilities."""

    class Refusing:
        async def tokenize(self, *_: object) -> list[int]:
            raise BadReply("no")

    missing: dict[str, str] = {}
    found = asyncio.run(
        detect_dialect(cast(Adapter, Refusing()), "x", builtin_dialects(), None, [], missing)
    )
    assert (found, list(missing)) == (None, ["/tokenize"])
