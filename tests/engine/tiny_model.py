"""A model of a few kilobytes that speaks a family's dialect: run by the engine's Python.

    .engine/bin/python -m tests.engine.tiny_model FAMILY FOLDER

It knows nothing but which token follows which: its embeddings are unit vectors, its head holds the
rules, its one layer of attention only tells what share of the tokens seen are which. It writes what
its family writes before a trace, thinks in circles for ever and, once the trace is closed behind
its back, answers. ``calls`` answers with two tool calls, ``escapes`` thinks once more first, and
``forms`` does as ``forms.py`` says.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from adjourn.policies.text.dialect import builtin_dialects
from tests.engine import answer_formats as forms
from tests.engine.answer_formats import TOOL_CALLS
from tests.engine.families import Family, FamilyTokenizer

__all__ = ["ANSWER_TOKENS", "QWEN3_VARIANTS", "SERVED_FAMILIES", "TOOL_CALLS", "TRACE_LOOP"]

TRACE_LOOP = ("Add", " one", " and", " one more", ",")
ANSWER_TOKENS = ("It", " is", " two", "!")
SERVED_FAMILIES = {
    "seed": Family(
        "seed_oss",
        ("<seed:think>", "</seed:think>", "<seed:tool_call>", "<seed:bos>", "<seed:eos>"),
        "<seed:bos>assistant\n",
        "",
        "<seed:think>",
    ),
    "mistral": Family("mistral", ("[THINK]", "[/THINK]", "[TOOL_CALLS]"), " Go:", "", "[THINK]"),
    "olmo3": Family("olmo3", (), "assistant\n<think>", ""),
}
"""How the served families begin."""

_QWEN3 = Family(
    "qwen3",
    ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>"),
    "<|im_start|>assistant\n",
    "",
    "<think>\n",
)
QWEN3_VARIANTS = dict.fromkeys(("calls", "escapes", "forms"), _QWEN3)
"""Models of one family that do more than answer."""
# A turn as Qwen3's template writes it, for who kept its reasoning.
_TURN_TEMPLATE = (
    "{% if message.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n<think>\n' + message.reasoning.strip('\n') + '\n</think>\n\n' }}"
    "{% endif %}{{ message.content or '' }}"
    '{% for call in message.tool_calls or [] %}{{ \'<tool_call>{"name": "\' }}'
    '{{ call.function.name + \'", "arguments": \' + (call.function.arguments | tojson) }}'
    "{{ '}</tool_call>' }}{% endfor %}"
    "{% if message.role == 'assistant' %}{{ '<|eos|>' }}{% endif %}"
)
_HIDDEN_SIZES = {"forms": 256}
_ATTENTION_SCALES = {"forms": 1e-5}
"""How loud a layer is that tells what was seen, beside the token that is read."""


class TransitionRules:
    """Which token follows which, as a head over unit vectors."""

    def __init__(self, vocabulary: int, size: int, attention_scale: float) -> None:
        import torch

        self.columns: dict[int, int] = {}
        self.head = torch.zeros(vocabulary, size)
        self.attention_scale = attention_scale
        self.scale = math.sqrt(size)  # of a vector whose norm was made that of its size

    def column_of(self, token: int) -> int:
        return self.columns.setdefault(token, len(self.columns))

    def add_transition(self, token: int, next_token: int, weight: float) -> None:
        self.head[next_token, self.column_of(token)] += weight

    def forbid_after(self, token: int, earlier_token: int) -> None:
        """``token`` does not come once ``seen`` is anywhere before."""
        self.penalize_after(token, earlier_token, 80_000.0)

    def penalize_after(self, token: int, earlier_token: int, weight: float) -> None:
        """``token`` loses ``weight`` times the share that ``seen`` has of all tokens before."""
        self.head[token, self.column_of(earlier_token)] -= weight / (
            self.scale * self.attention_scale
        )


def _build_rules(
    name: str, family: Family, closing: str, coder: Any, vocabulary: int, end: int
) -> TransitionRules:
    rules = TransitionRules(
        vocabulary, _HIDDEN_SIZES.get(name, 64), _ATTENTION_SCALES.get(name, 1e-3)
    )
    if name == "forms":
        forms.add_rules(rules, coder, end)
        return rules
    prompt, closed = coder.encode(family.prompt), coder.encode(closing)
    written = coder.encode(family.trace_start)
    circle, answer = (
        [coder.encode(word)[0] for word in words] for words in (TRACE_LOOP, ANSWER_TOKENS)
    )
    path = [prompt[-1], *written, circle[0]]
    for step, (token, following) in enumerate(pairwise(path)):
        rules.add_transition(token, following, 100.0 - step)
    for token, following in pairwise([*circle, circle[0]]):
        rules.add_transition(token, following, 100.0)
    if name == "calls":
        _add_tool_call_rules(rules, coder, closed[-1], circle[-1], end)
    else:
        for token, following in pairwise([closed[-1], *answer, end]):
            rules.add_transition(token, following, 90.0)
    # A marker is written once, and there are no thoughts behind the closing sequence.
    if name == "escapes":
        # Or twice: one in some 30 tokens is too few to keep it from a second.
        rules.penalize_after(written[0], written[0], 280.0)
    elif written:
        rules.forbid_after(written[0], written[0])
    only = next(token for token in closed if token not in (*prompt, *written))
    rules.forbid_after(circle[0], only)
    return rules


def _add_tool_call_rules(
    rules: TransitionRules, coder: Any, closed: int, thought: int, end: int
) -> None:
    """Two calls behind ``closed``, and behind ``thought`` too where its logit is raised by some
    50."""
    begin, over = (coder.encode(marker)[0] for marker in ("<tool_call>", "</tool_call>"))
    first, second = (coder.encode(call)[0] for call in TOOL_CALLS)
    rules.add_transition(closed, begin, 90.0)
    rules.add_transition(thought, begin, 95.0)
    rules.add_transition(begin, first, 200.0)
    rules.add_transition(begin, second, 190.0)
    rules.forbid_after(first, first)
    for call in (first, second):
        rules.add_transition(call, over, 200.0)
    rules.add_transition(over, begin, 100.0)
    rules.forbid_after(begin, second)
    rules.add_transition(over, end, 90.0)


def build_model(name: str, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    family = {**SERVED_FAMILIES, **QWEN3_VARIANTS}[name]
    own = forms.vocabulary() if name == "forms" else (*TRACE_LOOP, *ANSWER_TOKENS, *TOOL_CALLS)
    words = tuple(dict.fromkeys((*family.special_tokens, *own, "<|eos|>")))
    coder = FamilyTokenizer(Family(family.parser, words, family.prompt, family.trace_end))
    end, vocabulary = coder.encode("<|eos|>")[0], len(coder.backend)
    closing = builtin_dialects()[name if name in SERVED_FAMILIES else family.parser].closing
    rules = _build_rules(name, family, closing, coder, vocabulary, end)
    size = rules.head.shape[1]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=size, intermediate_size=size, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=size, max_position_embeddings=2048,
        eos_token_id=end, bos_token_id=None, tie_word_embeddings=False, dtype="float32",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    embedding = torch.zeros(vocabulary, size)
    for token, place in rules.columns.items():
        embedding[token, place] = 1.0
    nothing, all_of_it, ones = torch.zeros(size, size), torch.eye(size), torch.ones(size)
    layer = "model.layers.0."
    weights = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": ones,
        "lm_head.weight": rules.head,
        f"{layer}input_layernorm.weight": ones,
        f"{layer}post_attention_layernorm.weight": ones,
        f"{layer}self_attn.q_proj.weight": nothing,
        f"{layer}self_attn.k_proj.weight": nothing,
        f"{layer}self_attn.v_proj.weight": all_of_it,
        f"{layer}self_attn.o_proj.weight": all_of_it * rules.attention_scale,
        **{f"{layer}mlp.{part}_proj.weight": nothing for part in ("gate", "up", "down")},
    }
    coder.backend.eos_token = "<|eos|>"
    coder.backend.chat_template = (
        "{% for message in messages %}"
        + (_TURN_TEMPLATE if name in QWEN3_VARIANTS else "{{ message.content }}")
        + "{% endfor %}{% if add_generation_prompt %}{{ " + repr(family.prompt) + " }}{% endif %}"
    )  # fmt: skip
    coder.backend.save_pretrained(folder)
    config.save_pretrained(folder)
    save_file({key: value.clone() for key, value in weights.items()}, folder / "model.safetensors")


if __name__ == "__main__":
    build_model(sys.argv[1], Path(sys.argv[2]))
