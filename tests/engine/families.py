"""Run responses of every model family through its own vLLM parser, in the engine's environment.

    .engine/bin/python -m tests.engine.families [NAME …]

A tokenizer with single characters and the family's marker tokens replaces the real one. A response
is fed token by token through vLLM's parser into a session, as the gateway does; then it is cut, and
the answer after the closing sequence is fed through a new parser. Prints the results as one JSON
object per line, which ``test_families.py`` checks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adjourn.policies.never import Never
from adjourn.policies.policy import Policy
from adjourn.policies.session.orders import Cut
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.text.dialect import Dialect, TokenizedDialect, builtin_dialects
from adjourn.policies.text.markers import TokenIds

__all__ = ["ANSWER", "FAMILIES", "TRACE_SENTENCES", "Family", "response_text"]

TRACE_SENTENCES = ("Add one and one. ", "Here it is two?", " Yes.")
ANSWER = "It is two."


@dataclass(frozen=True, slots=True)
class Family:
    """The texts of one model family.

    ``parser`` is vLLM's name of the reasoning parser, ``special_tokens`` the texts that are single
    tokens, and ``prompt`` the end of the rendered chat template. The model writes ``trace_start``
    (which the parser shows as ``shown_start``), the trace, ``trace_end`` and ``answer``;
    ``call_start`` begins a tool call, and ``message_separator`` is between two messages of one
    trace."""

    parser: str
    special_tokens: tuple[str, ...]
    prompt: str
    trace_end: str
    trace_start: str = ""
    shown_start: str = ""
    answer: str = ANSWER
    call_start: str = ""
    message_separator: str = ""
    template_kwargs: dict[str, Any] | None = None


_THINK = ("<think>", "</think>", "<tool_call>", "<|im_start|>", "<|im_end|>")
_DSML = "<\uff5cDSML\uff5ctool_calls>"
_CHATML = "<|im_start|>assistant\n"
_COHERE = ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>", "<|CHATBOT_TOKEN|>")
_RESPONSE = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
_TEXT = ("<|START_TEXT|>", "<|END_TEXT|>")
_ASSISTANT = "<|end|><|start|>assistant"
_ANALYSIS = "<|channel|>analysis<|message|>"

FAMILIES = {
    "qwen3": Family(
        "qwen3", _THINK, _CHATML, "\n</think>\n\n", "<think>\n", "\n", call_start="<tool_call>"
    ),
    "qwen3.5": Family(
        "qwen3", _THINK, _CHATML + "<think>\n", "\n</think>\n\n", call_start="<tool_call>"
    ),
    "deepseek-r1": Family("deepseek_r1", _THINK, "<think>\n", "\n</think>\n\n"),
    "deepseek-r1-0528": Family(
        "deepseek_r1", _THINK, "", "\n</think>\n\n", "<think>\n", "\n"
    ),
    "deepseek-v3": Family(
        "deepseek_v3", _THINK, "<think>", "</think>", template_kwargs={"thinking": True}
    ),
    "deepseek-v4": Family(
        "deepseek_v4", (*_THINK, _DSML), "<think>", "</think>",
        call_start=_DSML,
    ),
    "glm45": Family(
        "glm45", (*_THINK, "<|user|>", "<|assistant|>"), "<|assistant|>", "</think>\n",
        "\n<think>", "\n", call_start="<tool_call>",
    ),
    "glm47": Family(
        "glm47", (*_THINK, "<|user|>", "<|assistant|>"), "<|assistant|><think>", "</think>",
        call_start="<tool_call>",
    ),
    "kimi-k2": Family(
        "kimi_k2", ("<think>", "</think>", "<|tool_calls_section_begin|>", "<|im_middle|>"),
        "assistant<|im_middle|>", "</think>", "<think>", call_start="<|tool_calls_section_begin|>",
    ),
    "minimax-m2": Family(
        "minimax_m2", ("<think>", "</think>", "<minimax:tool_call>"), "ai\n<think>\n",
        "\n</think>\n\n", call_start="<minimax:tool_call>",
    ),
    "nemotron": Family(
        "nemotron_v3", _THINK, _CHATML + "<think>\n", "\n</think>\n", call_start="<tool_call>"
    ),
    "granite-4.2": Family(
        "granite_thinking_parser", _THINK, _CHATML + "<think>\n", "\n</think>\n",
        call_start="<tool_call>",
    ),
    "seed": Family(
        "seed_oss",
        ("<seed:think>", "</seed:think>", "<seed:tool_call>", "<seed:bos>", "<seed:eos>"),
        "<seed:bos>assistant\n", "</seed:think>\n", "<seed:think>", call_start="<seed:tool_call>",
    ),
    "mistral": Family(
        "mistral", ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[INST]", "[/INST]"), "[/INST]",
        "[/THINK]", "[THINK]", call_start="[TOOL_CALLS]",
    ),
    "cohere": Family(
        "cohere_command3", (*_COHERE, *_RESPONSE), "<|CHATBOT_TOKEN|>", "<|END_THINKING|>",
        "<|START_THINKING|>", answer=f"<|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>",
    ),
    "cohere-plus": Family(
        "cohere_command4", (*_COHERE, *_TEXT), "<|CHATBOT_TOKEN|><|START_THINKING|>",
        "<|END_THINKING|>", answer=f"<|START_TEXT|>{ANSWER}<|END_TEXT|>",
    ),
    "gemma4": Family(
        "gemma4", ("<|channel>", "<channel|>", "<|tool_call>", "<|turn>", "<turn|>"),
        "<|turn>model\n", "\n<channel|>", "<|channel>thought\n", call_start="<|tool_call>",
        template_kwargs={"enable_thinking": True},
    ),
    "harmony": Family(
        "openai_gptoss", (), "<|start|>assistant", _ASSISTANT, _ANALYSIS,
        answer=f"<|channel|>final<|message|>{ANSWER}", message_separator=_ASSISTANT + _ANALYSIS,
        call_start=_ASSISTANT + "<|channel|>commentary",
    ),
    "olmo3": Family("olmo3", (), _CHATML + "<think>", "</think>"),
    "granite-3.2": Family(
        "granite", (), "", "\n\nHere is my response:\n\n", "Here is my thought process:\n\n", "\n\n"
    ),
}  # fmt: skip

DIALECT_OF = {"qwen3.5": "qwen3", "deepseek-r1-0528": "deepseek-r1", "deepseek-v4": "deepseek-v3"}
"""The dialect of a family that has none of its own name."""


def response_text(family: Family) -> str:
    """A complete response of the model: trace, markers and answer."""
    return (
        family.trace_start
        + family.message_separator.join(TRACE_SENTENCES)
        + family.trace_end
        + family.answer
    )


class FamilyTokenizer:
    """Tokenizer of one family: marker tokens, and one token per character for all other text."""

    def __init__(self, family: Family) -> None:
        self.backend = (
            _harmony_tokenizer()
            if not family.special_tokens and family.message_separator
            else _character_tokenizer(family)
        )

    def encode(self, text: str) -> TokenIds:
        return tuple(self.backend.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode(list(ids)))


def _character_tokenizer(family: Family) -> Any:
    """A byte-level BPE tokenizer with the merges that Olmo's markers consist of."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("<", "/"), ("Ġ", "</"), ("t", "h"), ("i", "n"), ("in", "k"), ("th", "ink")]
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE({token_text: i for i, token_text in enumerate(vocabulary)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(token, special=False) for token in family.special_tokens])
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)


def _harmony_tokenizer() -> Any:
    """The vocabulary of gpt-oss: needs o200k_base.tiktoken in TIKTOKEN_ENCODINGS_BASE."""
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding

    encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)

    class Vocabulary:
        def encode(self, text: str) -> list[int]:
            return list(encoding.encode(text, allowed_special="all"))

        def decode(self, ids: list[int]) -> str:
            return str(encoding.decode(ids))

        def get_vocab(self) -> dict[str, int]:
            return {}

    return Vocabulary()


@dataclass(frozen=True, slots=True)
class ParsedChunk:
    """The parser's result for some token ids."""

    reasoning: str
    content: str
    has_tool_call: bool
    token_ids: TokenIds


class ResponseParser:
    """vLLM's parser of a family, created as vLLM's server does. One instance parses one
    response."""

    def __init__(self, family: Family, tokenizer: FamilyTokenizer) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser.parser_manager import ParserManager

        parser_class = ParserManager.get_parser(
            reasoning_parser_name=family.parser,
            is_harmony=family.parser == "openai_gptoss",
        )
        template_fields = (
            {"chat_template_kwargs": family.template_kwargs} if family.template_kwargs else {}
        )
        self._tokenizer = tokenizer
        self._parser = parser_class(tokenizer.backend, **template_fields)
        message = {"role": "user", "content": "Hi"}
        request = ChatCompletionRequest(model="x", messages=[message], **template_fields)
        self._request = self._parser.adjust_request(request)

    def parse_stream(
        self, prompt: TokenIds, ids: TokenIds, chunk_size: int
    ) -> Iterator[ParsedChunk]:
        """Parse ``ids`` in chunks of ``chunk_size`` tokens."""
        for start in range(0, len(ids), chunk_size):
            chunk = ids[start : start + chunk_size]
            delta = self._parser.parse_delta(
                self._tokenizer.decode(chunk), list(chunk), self._request, list(prompt),
                finished=start + chunk_size >= len(ids),
            )  # fmt: skip
            has_tool_call = bool(delta and delta.tool_calls)
            texts = (delta.reasoning or "", delta.content or "") if delta else ("", "")
            yield ParsedChunk(*texts, has_tool_call, chunk)

    def parse_whole(self, ids: TokenIds) -> tuple[str, str]:
        """Parse an unstreamed response into (reasoning, content)."""
        reasoning, content, _ = self._parser.parse(
            self._tokenizer.decode(ids), self._request, model_output_token_ids=list(ids)
        )
        return reasoning or "", content or ""


@dataclass(slots=True)
class SessionRun:
    """The result of one response through parser and session. ``reasoning`` is what the parser
    returned, ``released_reasoning`` the part that the session released to the client, and ``cut``
    the order that ended the trace, if any."""

    session: Session
    released_reasoning: str = ""
    reasoning: str = ""
    content: str = ""
    cut: Cut | None = None

    @classmethod
    def execute(
        cls,
        family: Family,
        dialect: TokenizedDialect,
        tokenizer: FamilyTokenizer,
        policy: Policy,
        text: str,
        chunk_size: int,
    ) -> SessionRun:
        """Run ``text`` under ``policy`` until its end or the first cut."""
        prompt, ids = tokenizer.encode(family.prompt), tokenizer.encode(text)
        run = cls(Session(policy, dialect, ProbeCostModel()))
        run.session.on_prompt(prompt)
        texts: list[str] = []
        for parsed in ResponseParser(family, tokenizer).parse_stream(prompt, ids, chunk_size):
            answering = bool(parsed.content) or parsed.has_tool_call
            command = run.session.feed(parsed.reasoning, parsed.token_ids, 0.0, answering=answering)
            texts.append(parsed.reasoning)
            run.content += parsed.content
            if isinstance(command, Cut):
                run.cut = command
                break
        run.reasoning = "".join(texts)
        run.released_reasoning = "".join(texts[: run.session.released_chunks])
        return run

    def as_dict(self) -> dict[str, Any]:
        return {
            "shown": self.released_reasoning,
            "reasoning": self.reasoning,
            "content": self.content,
            "state": self.session.state.value,
            "muted": self.session.mute_reason,
            "ledger": asdict(self.session.ledger),
        }


def examine(name: str, dialect: Dialect, chunk_size: int) -> dict[str, Any]:
    """Run one family at ``chunk_size`` tokens per chunk: uncut, cut, resumed, unstreamed and, if it
    has ``call_start``, with a tool call."""
    family = FAMILIES[name]
    tokenizer = FamilyTokenizer(family)
    tokenized = TokenizedDialect.from_ids(
        dialect, {text: tokenizer.encode(text) for text in dialect.texts_to_tokenize}
    )
    uncut = SessionRun.execute(
        family, tokenized, tokenizer, Never(), response_text(family), chunk_size
    )
    cut = SessionRun.execute(
        family, tokenized, tokenizer, Budget(max=20, grace=0), response_text(family), chunk_size
    )
    assert cut.cut is not None, f"{name} was not cut"
    prompt, ids = tokenizer.encode(family.prompt), tokenizer.encode(response_text(family))
    kept, answer = ids[: cut.cut.kept], tokenizer.encode(family.answer)
    resumed = list(
        ResponseParser(family, tokenizer).parse_stream(
            (*prompt, *kept, *cut.cut.closing), answer, chunk_size
        )
    )
    opening = () if family.trace_start else tokenized.start
    facts = {
        "family": name,
        "size": chunk_size,
        "natural": uncut.as_dict(),
        "trace": _trace_token_count(family, dialect, tokenizer),
        "cut": cut.as_dict(),
        "kept": tokenizer.decode(kept),
        "closing": tokenizer.decode(cut.cut.closing),
        "after": {
            "reasoning": "".join(parsed.reasoning for parsed in resumed),
            "content": "".join(parsed.content for parsed in resumed),
        },
        "whole": ResponseParser(family, tokenizer).parse_whole(
            (*opening, *kept, *cut.cut.closing, *answer)
        ),
    }
    if family.call_start:
        text = family.trace_start + TRACE_SENTENCES[0] + family.call_start
        facts["call"] = SessionRun.execute(
            family, tokenized, tokenizer, Never(), text, chunk_size
        ).as_dict()
    return facts


def _trace_token_count(family: Family, dialect: Dialect, tokenizer: FamilyTokenizer) -> int:
    """The number of tokens between the two markers of the response."""
    rest = response_text(family)
    for marker in dialect.start:
        before, found, after = rest.partition(marker)
        if found and not before.strip():
            rest = after
            break
    ends = [rest.index(marker) for marker in dialect.end if marker in rest]
    return len(tokenizer.encode(rest[: min(ends)]))


def main() -> None:
    """Print the results of the families named on the command line, or of all."""
    dialects = builtin_dialects()
    for name in sys.argv[1:] or FAMILIES:
        for size in (1, 3):
            try:
                facts = examine(name, dialects[DIALECT_OF.get(name, name)], size)
            except Exception as error:
                facts = {"family": name, "size": size, "error": f"{type(error).__name__}: {error}"}
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
