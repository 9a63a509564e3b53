"""A model of a few kilobytes that speaks a family's dialect: run by the engine's Python.

    .engine/bin/python -m tests.engine.tiny FAMILY FOLDER

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

from policies.dialect import builtin
from tests.engine import forms
from tests.engine.families import Coder, Family
from tests.engine.forms import CALLED

__all__ = ["ANSWERED", "CALLED", "CIRCLE", "SERVED", "STRAYING"]

CIRCLE = ("Add", " one", " and", " one more", ",")
ANSWERED = ("It", " is", " two", "!")
SERVED = {
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
STRAYING = dict.fromkeys(("calls", "escapes", "forms"), _QWEN3)
"""Models of one family that do more than answer."""
# A turn as Qwen3's template writes it, for who kept its reasoning.
_TURN = (
    "{% if message.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n<think>\n' + message.reasoning.strip('\n') + '\n</think>\n\n' }}"
    "{% endif %}{{ message.content or '' }}"
    '{% for call in message.tool_calls or [] %}{{ \'<tool_call>{"name": "\' }}'
    '{{ call.function.name + \'", "arguments": \' + (call.function.arguments | tojson) }}'
    "{{ '}</tool_call>' }}{% endfor %}"
    "{% if message.role == 'assistant' %}{{ '<|eos|>' }}{% endif %}"
)
_SIZES = {"forms": 256}
_WHISPERS = {"forms": 1e-5}
"""How loud a layer is that tells what was seen, beside the token that is read."""


class Rules:
    """Which token follows which, as a head over unit vectors."""

    def __init__(self, vocabulary: int, size: int, whisper: float) -> None:
        import torch

        self.places: dict[int, int] = {}
        self.head = torch.zeros(vocabulary, size)
        self.whisper = whisper
        self.scale = math.sqrt(size)  # of a vector whose norm was made that of its size

    def place(self, token: int) -> int:
        return self.places.setdefault(token, len(self.places))

    def follow(self, token: int, following: int, weight: float) -> None:
        self.head[following, self.place(token)] += weight

    def never_behind(self, token: int, seen: int) -> None:
        """``token`` does not come once ``seen`` is anywhere before."""
        self.rarely_behind(token, seen, 80_000.0)

    def rarely_behind(self, token: int, seen: int, weight: float) -> None:
        """``token`` loses ``weight`` times the share that ``seen`` has of all tokens before."""
        self.head[token, self.place(seen)] -= weight / (self.scale * self.whisper)


def _learn(name: str, family: Family, closing: str, coder: Any, vocabulary: int, end: int) -> Rules:
    rules = Rules(vocabulary, _SIZES.get(name, 64), _WHISPERS.get(name, 1e-3))
    if name == "forms":
        forms.learn(rules, coder, end)
        return rules
    prompt, closed = coder.ids(family.prompt), coder.ids(closing)
    written = coder.ids(family.written)
    circle, answer = ([coder.ids(word)[0] for word in words] for words in (CIRCLE, ANSWERED))
    path = [prompt[-1], *written, circle[0]]
    for step, (token, following) in enumerate(pairwise(path)):
        rules.follow(token, following, 100.0 - step)
    for token, following in pairwise([*circle, circle[0]]):
        rules.follow(token, following, 100.0)
    if name == "calls":
        _call(rules, coder, closed[-1], circle[-1], end)
    else:
        for token, following in pairwise([closed[-1], *answer, end]):
            rules.follow(token, following, 90.0)
    # A marker is written once, and there are no thoughts behind the closing sequence.
    if name == "escapes":
        # Or twice: one in some 30 tokens is too few to keep it from a second.
        rules.rarely_behind(written[0], written[0], 280.0)
    elif written:
        rules.never_behind(written[0], written[0])
    only = next(token for token in closed if token not in (*prompt, *written))
    rules.never_behind(circle[0], only)
    return rules


def _call(rules: Rules, coder: Any, closed: int, thought: int, end: int) -> None:
    """Two calls behind ``closed``, and behind ``thought`` too where its logit is raised by some
    50."""
    begin, over = (coder.ids(marker)[0] for marker in ("<tool_call>", "</tool_call>"))
    first, second = (coder.ids(call)[0] for call in CALLED)
    rules.follow(closed, begin, 90.0)
    rules.follow(thought, begin, 95.0)
    rules.follow(begin, first, 200.0)
    rules.follow(begin, second, 190.0)
    rules.never_behind(first, first)
    for call in (first, second):
        rules.follow(call, over, 200.0)
    rules.follow(over, begin, 100.0)
    rules.never_behind(begin, second)
    rules.follow(over, end, 90.0)


def build(name: str, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    family = {**SERVED, **STRAYING}[name]
    own = forms.words() if name == "forms" else (*CIRCLE, *ANSWERED, *CALLED)
    words = tuple(dict.fromkeys((*family.tokens, *own, "<|eos|>")))
    coder = Coder(Family(family.parser, words, family.prompt, family.end))
    end, vocabulary = coder.ids("<|eos|>")[0], len(coder.tokenizer)
    closing = builtin()[name if name in SERVED else family.parser].closing
    rules = _learn(name, family, closing, coder, vocabulary, end)
    size = rules.head.shape[1]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=size, intermediate_size=size, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=size, max_position_embeddings=2048,
        eos_token_id=end, bos_token_id=None, tie_word_embeddings=False, dtype="float32",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    embedding = torch.zeros(vocabulary, size)
    for token, place in rules.places.items():
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
        f"{layer}self_attn.o_proj.weight": all_of_it * rules.whisper,
        **{f"{layer}mlp.{part}_proj.weight": nothing for part in ("gate", "up", "down")},
    }
    coder.tokenizer.eos_token = "<|eos|>"
    coder.tokenizer.chat_template = (
        "{% for message in messages %}" + (_TURN if name in STRAYING else "{{ message.content }}")
        + "{% endfor %}{% if add_generation_prompt %}{{ " + repr(family.prompt) + " }}{% endif %}"
    )  # fmt: skip
    coder.tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    save_file({key: value.clone() for key, value in weights.items()}, folder / "model.safetensors")


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
