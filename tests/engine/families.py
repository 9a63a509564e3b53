"""Every family of models, as its own vLLM parser reads it: run by the engine's Python.

    .engine/bin/python -m tests.engine.families [NAME …]

A tokenizer of single characters and a family's marker tokens stands in for the real one. A response
is written token by token through vLLM's parser into a session, as the gateway does; then it is cut,
and the answer is written behind the closing sequence through a parser of its own. What came out is
printed, one JSON object a line, for ``test_families.py`` to judge.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from policies.appraisal import Appraiser
from policies.budget import Budget
from policies.dialect import Dialect, Marks, builtin
from policies.markers import Ids
from policies.never import Never
from policies.orders import Cut
from policies.policy import Policy
from policies.session import Session

__all__ = ["ANSWER", "FAMILIES", "THOUGHTS", "Family", "spelled"]

THOUGHTS = ("Add one and one. ", "Here it is two?", " Yes.")
ANSWER = "It is two."


@dataclass(frozen=True, slots=True)
class Family:
    """How one family writes. ``parser``: vLLM's name for it. ``tokens``: its single tokens.
    ``prompt`` ends as the chat template does; ``written`` is what the model writes before its
    thoughts and ``shown`` what the parser shows of that; ``end`` closes them; ``call`` begins a
    tool call. ``again`` parts two messages of one trace."""

    parser: str
    tokens: tuple[str, ...]
    prompt: str
    end: str
    written: str = ""
    shown: str = ""
    answer: str = ANSWER
    call: str = ""
    again: str = ""
    template: dict[str, Any] | None = None


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
        "qwen3", _THINK, _CHATML, "\n</think>\n\n", "<think>\n", "\n", call="<tool_call>"
    ),
    "qwen3.5": Family(
        "qwen3", _THINK, _CHATML + "<think>\n", "\n</think>\n\n", call="<tool_call>"
    ),
    "deepseek-r1": Family("deepseek_r1", _THINK, "<think>\n", "\n</think>\n\n"),
    "deepseek-r1-0528": Family(
        "deepseek_r1", _THINK, "", "\n</think>\n\n", "<think>\n", "\n"
    ),
    "deepseek-v3": Family(
        "deepseek_v3", _THINK, "<think>", "</think>", template={"thinking": True}
    ),
    "deepseek-v4": Family(
        "deepseek_v4", (*_THINK, _DSML), "<think>", "</think>",
        call=_DSML,
    ),
    "glm45": Family(
        "glm45", (*_THINK, "<|user|>", "<|assistant|>"), "<|assistant|>", "</think>\n",
        "\n<think>", "\n", call="<tool_call>",
    ),
    "glm47": Family(
        "glm47", (*_THINK, "<|user|>", "<|assistant|>"), "<|assistant|><think>", "</think>",
        call="<tool_call>",
    ),
    "kimi-k2": Family(
        "kimi_k2", ("<think>", "</think>", "<|tool_calls_section_begin|>", "<|im_middle|>"),
        "assistant<|im_middle|>", "</think>", "<think>", call="<|tool_calls_section_begin|>",
    ),
    "minimax-m2": Family(
        "minimax_m2", ("<think>", "</think>", "<minimax:tool_call>"), "ai\n<think>\n",
        "\n</think>\n\n", call="<minimax:tool_call>",
    ),
    "nemotron": Family(
        "nemotron_v3", _THINK, _CHATML + "<think>\n", "\n</think>\n", call="<tool_call>"
    ),
    "granite-4.2": Family(
        "granite_thinking_parser", _THINK, _CHATML + "<think>\n", "\n</think>\n",
        call="<tool_call>",
    ),
    "seed": Family(
        "seed_oss",
        ("<seed:think>", "</seed:think>", "<seed:tool_call>", "<seed:bos>", "<seed:eos>"),
        "<seed:bos>assistant\n", "</seed:think>\n", "<seed:think>", call="<seed:tool_call>",
    ),
    "mistral": Family(
        "mistral", ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[INST]", "[/INST]"), "[/INST]",
        "[/THINK]", "[THINK]", call="[TOOL_CALLS]",
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
        "<|turn>model\n", "\n<channel|>", "<|channel>thought\n", call="<|tool_call>",
        template={"enable_thinking": True},
    ),
    "harmony": Family(
        "openai_gptoss", (), "<|start|>assistant", _ASSISTANT, _ANALYSIS,
        answer=f"<|channel|>final<|message|>{ANSWER}", again=_ASSISTANT + _ANALYSIS,
        call=_ASSISTANT + "<|channel|>commentary",
    ),
    "olmo3": Family("olmo3", (), _CHATML + "<think>", "</think>"),
    "granite-3.2": Family(
        "granite", (), "", "\n\nHere is my response:\n\n", "Here is my thought process:\n\n", "\n\n"
    ),
}  # fmt: skip

SPOKEN = {"qwen3.5": "qwen3", "deepseek-r1-0528": "deepseek-r1", "deepseek-v4": "deepseek-v3"}
"""Whose dialect another family speaks."""


def spelled(family: Family) -> str:
    """The whole response, from what the model writes first to its answer."""
    return family.written + family.again.join(THOUGHTS) + family.end + family.answer


class Coder:
    """Texts and ids of one family: its marker tokens, everything else a character a token."""

    def __init__(self, family: Family) -> None:
        self.tokenizer = _harmony() if not family.tokens and family.again else _small(family)

    def ids(self, text: str) -> Ids:
        return tuple(self.tokenizer.encode(text))

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))


def _small(family: Family) -> Any:
    """Byte-level, with the pieces that Olmo's markers are made of."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("<", "/"), ("Ġ", "</"), ("t", "h"), ("i", "n"), ("in", "k"), ("th", "ink")]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(token, special=False) for token in family.tokens])
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)


def _harmony() -> Any:
    """gpt-oss's own vocabulary: needs o200k_base.tiktoken where TIKTOKEN_ENCODINGS_BASE points."""
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
class Said:
    """What the parser made of some ids."""

    reasoning: str
    content: str
    called: bool
    ids: Ids


class Reading:
    """vLLM's parser of a family, as its server makes it, one a response."""

    def __init__(self, family: Family, coder: Coder) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser.parser_manager import ParserManager

        made = ParserManager.get_parser(
            reasoning_parser_name=family.parser,
            is_harmony=family.parser == "openai_gptoss",
        )
        template = {"chat_template_kwargs": family.template} if family.template else {}
        self._coder = coder
        self._parser = made(coder.tokenizer, **template)
        message = {"role": "user", "content": "Hi"}
        request = ChatCompletionRequest(model="x", messages=[message], **template)
        self._request = self._parser.adjust_request(request)

    def stream(self, prompt: Ids, ids: Ids, size: int) -> Iterator[Said]:
        for begin in range(0, len(ids), size):
            some = ids[begin : begin + size]
            delta = self._parser.parse_delta(
                self._coder.text(some), list(some), self._request, list(prompt),
                finished=begin + size >= len(ids),
            )  # fmt: skip
            called = bool(delta and delta.tool_calls)
            said = (delta.reasoning or "", delta.content or "") if delta else ("", "")
            yield Said(*said, called, some)

    def whole(self, ids: Ids) -> tuple[str, str]:
        """Unstreamed: reasoning and content."""
        reasoning, content, _ = self._parser.parse(
            self._coder.text(ids), self._request, model_output_token_ids=list(ids)
        )
        return reasoning or "", content or ""


@dataclass(slots=True)
class Run:
    """One response through parser and session. ``shown``: the reasoning that was released."""

    session: Session
    shown: str = ""
    reasoning: str = ""
    content: str = ""
    cut: Cut | None = None

    @classmethod
    def of(
        cls, family: Family, marks: Marks, coder: Coder, policy: Policy, text: str, size: int
    ) -> Run:
        prompt, ids = coder.ids(family.prompt), coder.ids(text)
        run = cls(Session(policy, marks, Appraiser()))
        run.session.opened(prompt)
        texts: list[str] = []
        for said in Reading(family, coder).stream(prompt, ids, size):
            answering = bool(said.content) or said.called
            command = run.session.feed(said.reasoning, said.ids, 0.0, answering=answering)
            texts.append(said.reasoning)
            run.content += said.content
            if isinstance(command, Cut):
                run.cut = command
                break
        run.reasoning = "".join(texts)
        run.shown = "".join(texts[: run.session.released])
        return run

    def facts(self) -> dict[str, Any]:
        return {
            "shown": self.shown,
            "reasoning": self.reasoning,
            "content": self.content,
            "state": self.session.state.value,
            "muted": self.session.muted,
            "ledger": asdict(self.session.ledger),
        }


def examined(name: str, dialect: Dialect, size: int) -> dict[str, Any]:
    """All that is to be known of a family, at so many tokens a chunk."""
    family = FAMILIES[name]
    coder = Coder(family)
    marks = Marks.of(dialect, {text: coder.ids(text) for text in dialect.texts})
    natural = Run.of(family, marks, coder, Never(), spelled(family), size)
    cut = Run.of(family, marks, coder, Budget(max=20, grace=0), spelled(family), size)
    assert cut.cut is not None, f"{name} was not cut"
    prompt, ids = coder.ids(family.prompt), coder.ids(spelled(family))
    kept, answer = ids[: cut.cut.kept], coder.ids(family.answer)
    resumed = list(Reading(family, coder).stream((*prompt, *kept, *cut.cut.closing), answer, size))
    opening = () if family.written else marks.start
    facts = {
        "family": name,
        "size": size,
        "natural": natural.facts(),
        "trace": _trace(family, dialect, coder),
        "cut": cut.facts(),
        "kept": coder.text(kept),
        "closing": coder.text(cut.cut.closing),
        "after": {
            "reasoning": "".join(said.reasoning for said in resumed),
            "content": "".join(said.content for said in resumed),
        },
        "whole": Reading(family, coder).whole((*opening, *kept, *cut.cut.closing, *answer)),
    }
    if family.call:
        text = family.written + THOUGHTS[0] + family.call
        facts["call"] = Run.of(family, marks, coder, Never(), text, size).facts()
    return facts


def _trace(family: Family, dialect: Dialect, coder: Coder) -> int:
    """How many tokens of the response are the trace's: those between the two markers."""
    rest = spelled(family)
    for marker in dialect.start:
        before, found, behind = rest.partition(marker)
        if found and not before.strip():
            rest = behind
            break
    ends = [rest.index(marker) for marker in dialect.end if marker in rest]
    return len(coder.ids(rest[: min(ends)]))


def main() -> None:
    dialects = builtin()
    for name in sys.argv[1:] or FAMILIES:
        for size in (1, 3):
            try:
                facts = examined(name, dialects[SPOKEN.get(name, name)], size)
            except Exception as error:
                facts = {"family": name, "size": size, "error": f"{type(error).__name__}: {error}"}
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
