"""Build a model of a few kilobytes for a family's dialect, in the engine's environment.

    .engine/bin/python -m tests.engine.tiny_model FAMILY FOLDER

The model is a table of which token follows which: its embeddings are unit vectors, its head holds
the rules, and its one attention layer only measures the share of each token in the context. It
writes the start marker of its family, repeats ``TRACE_LOOP`` without end and, once the closing
sequence is in its context, writes an answer. ``calls`` answers with two tool calls, ``escapes``
opens a second trace first, and ``forms`` follows ``answer_formats.py``.
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
"""The families with a tiny model: parser, marker tokens, end of the prompt and start marker."""

_QWEN3 = Family(
    "qwen3",
    ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>"),
    "<|im_start|>assistant\n",
    "",
    "<think>\n",
)
QWEN3_VARIANTS = dict.fromkeys(("calls", "escapes", "forms"), _QWEN3)
"""Tiny models of one family that do more than answer."""
# One turn as Qwen3's chat template renders it when the client sends the reasoning back.
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
"""The weight of the attention output, relative to the embedding of the current token."""


class TransitionRules:
    """Which token follows which, as the output head of a model whose embeddings are unit vectors.
    State: ``head`` (vocabulary x size) and ``columns``, the dimension of each token; changed only
    by the ``add_``, ``forbid_`` and ``penalize_`` methods."""

    def __init__(self, vocabulary: int, size: int, attention_scale: float) -> None:
        import torch

        self.columns: dict[int, int] = {}
        self.head = torch.zeros(vocabulary, size)
        self.attention_scale = attention_scale
        self.scale = math.sqrt(size)  # RMSNorm scales a unit vector to this length

    def column_of(self, token: int) -> int:
        """The embedding dimension of the token, assigned at first use."""
        return self.columns.setdefault(token, len(self.columns))

    def add_transition(self, token: int, next_token: int, weight: float) -> None:
        """Add ``weight`` times ``scale`` to the logit of ``next_token`` after ``token``."""
        self.head[next_token, self.column_of(token)] += weight

    def forbid_after(self, token: int, earlier_token: int) -> None:
        """Never generate ``token`` if ``earlier_token`` is anywhere in the context."""
        self.penalize_after(token, earlier_token, 80_000.0)

    def penalize_after(self, token: int, earlier_token: int, weight: float) -> None:
        """Reduce the logit of ``token`` by ``weight`` times the share of ``earlier_token`` in the
        context."""
        self.head[token, self.column_of(earlier_token)] -= weight / (
            self.scale * self.attention_scale
        )


def _build_rules(
    name: str, family: Family, closing: str, tokenizer: Any, vocabulary: int, end: int
) -> TransitionRules:
    rules = TransitionRules(
        vocabulary, _HIDDEN_SIZES.get(name, 64), _ATTENTION_SCALES.get(name, 1e-3)
    )
    if name == "forms":
        forms.add_rules(rules, tokenizer, end)
        return rules
    prompt, closed = tokenizer.encode(family.prompt), tokenizer.encode(closing)
    written = tokenizer.encode(family.trace_start)
    loop, answer = (
        [tokenizer.encode(word)[0] for word in words] for words in (TRACE_LOOP, ANSWER_TOKENS)
    )
    path = [prompt[-1], *written, loop[0]]
    for step, (token, following) in enumerate(pairwise(path)):
        rules.add_transition(token, following, 100.0 - step)
    for token, following in pairwise([*loop, loop[0]]):
        rules.add_transition(token, following, 100.0)
    if name == "calls":
        _add_tool_call_rules(rules, tokenizer, closed[-1], loop[-1], end)
    else:
        for token, following in pairwise([closed[-1], *answer, end]):
            rules.add_transition(token, following, 90.0)
    # The start marker is written once, and no trace follows the closing sequence.
    if name == "escapes":
        # Twice: while the marker is one in about 30 tokens, this penalty allows a second one.
        rules.penalize_after(written[0], written[0], 280.0)
    elif written:
        rules.forbid_after(written[0], written[0])
    closing_only = next(token for token in closed if token not in (*prompt, *written))
    rules.forbid_after(loop[0], closing_only)
    return rules


def _add_tool_call_rules(
    rules: TransitionRules, tokenizer: Any, closed: int, last_of_loop: int, end: int
) -> None:
    """Two tool calls after ``closed``; also after ``last_of_loop`` if the client's bias raises the
    start of the call by 50."""
    call_start, call_end = (
        tokenizer.encode(marker)[0] for marker in ("<tool_call>", "</tool_call>")
    )
    first, second = (tokenizer.encode(call)[0] for call in TOOL_CALLS)
    rules.add_transition(closed, call_start, 90.0)
    rules.add_transition(last_of_loop, call_start, 95.0)
    rules.add_transition(call_start, first, 200.0)
    rules.add_transition(call_start, second, 190.0)
    rules.forbid_after(first, first)
    for call in (first, second):
        rules.add_transition(call, call_end, 200.0)
    rules.add_transition(call_end, call_start, 100.0)
    rules.forbid_after(call_start, second)
    rules.add_transition(call_end, end, 90.0)


def build_model(name: str, folder: Path) -> None:
    """Write model, tokenizer and chat template of the tiny model ``name`` into ``folder``."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    family = {**SERVED_FAMILIES, **QWEN3_VARIANTS}[name]
    texts = forms.vocabulary() if name == "forms" else (*TRACE_LOOP, *ANSWER_TOKENS, *TOOL_CALLS)
    words = tuple(dict.fromkeys((*family.special_tokens, *texts, "<|eos|>")))
    tokenizer = FamilyTokenizer(Family(family.parser, words, family.prompt, family.trace_end))
    end, vocabulary = tokenizer.encode("<|eos|>")[0], len(tokenizer.backend)
    closing = builtin_dialects()[name if name in SERVED_FAMILIES else family.parser].closing
    rules = _build_rules(name, family, closing, tokenizer, vocabulary, end)
    size = rules.head.shape[1]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=size, intermediate_size=size, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=size, max_position_embeddings=2048,
        eos_token_id=end, bos_token_id=None, tie_word_embeddings=False, dtype="float32",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    embedding = torch.zeros(vocabulary, size)
    for token, column in rules.columns.items():
        embedding[token, column] = 1.0
    zeros, identity, ones = torch.zeros(size, size), torch.eye(size), torch.ones(size)
    layer = "model.layers.0."
    weights = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": ones,
        "lm_head.weight": rules.head,
        f"{layer}input_layernorm.weight": ones,
        f"{layer}post_attention_layernorm.weight": ones,
        f"{layer}self_attn.q_proj.weight": zeros,
        f"{layer}self_attn.k_proj.weight": zeros,
        f"{layer}self_attn.v_proj.weight": identity,
        f"{layer}self_attn.o_proj.weight": identity * rules.attention_scale,
        **{f"{layer}mlp.{part}_proj.weight": zeros for part in ("gate", "up", "down")},
    }
    tokenizer.backend.eos_token = "<|eos|>"
    tokenizer.backend.chat_template = (
        "{% for message in messages %}"
        + (_TURN_TEMPLATE if name in QWEN3_VARIANTS else "{{ message.content }}")
        + "{% endfor %}{% if add_generation_prompt %}{{ " + repr(family.prompt) + " }}{% endif %}"
    )  # fmt: skip
    tokenizer.backend.save_pretrained(folder)
    config.save_pretrained(folder)
    save_file({key: value.clone() for key, value in weights.items()}, folder / "model.safetensors")


if __name__ == "__main__":
    build_model(sys.argv[1], Path(sys.argv[2]))
