"""A model of a few kilobytes that speaks a family's dialect: run by the engine's Python.

    .engine/bin/python -m tests.engine.tiny FAMILY FOLDER

It knows nothing but which token follows which: its embeddings are unit vectors, its head holds the
rules, its one layer of attention only tells whether a token was seen at all. It writes what its
family writes before a trace, thinks in circles for ever and, once the trace is closed behind its
back, answers.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from policies.dialect import builtin
from tests.engine.families import Coder, Family

__all__ = ["ANSWERED", "CIRCLE", "SERVED"]

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
    "gemma4": Family(
        "gemma4",
        ("<|channel>", "<channel|>", "<|tool_call>", "<|turn>", "thought"),
        "<|turn>model\n",
        "",
        "<|channel>thought\n",
    ),
    "olmo3": Family("olmo3", (), "assistant\n<think>", ""),
}
"""How the served families begin."""

_SIZE = 64


class Rules:
    """Which token follows which, as a head over unit vectors."""

    def __init__(self, vocabulary: int) -> None:
        import torch

        self.places: dict[int, int] = {}
        self.head = torch.zeros(vocabulary, _SIZE)

    def place(self, token: int) -> int:
        return self.places.setdefault(token, len(self.places))

    def follow(self, token: int, following: int, weight: float) -> None:
        self.head[following, self.place(token)] += weight

    def never_behind(self, token: int, seen: int) -> None:
        """``token`` does not come once ``seen`` is anywhere before."""
        self.head[token, self.place(seen)] -= 1e7


def _learn(family: Family, closing: str, coder: Any, vocabulary: int, end: int) -> Rules:
    rules = Rules(vocabulary)
    prompt, closed = coder.ids(family.prompt), coder.ids(closing)
    written = coder.ids(family.written)
    circle, answer = ([coder.ids(word)[0] for word in words] for words in (CIRCLE, ANSWERED))
    path = [prompt[-1], *written, circle[0]]
    for step, (token, following) in enumerate(pairwise(path)):
        rules.follow(token, following, 100.0 - step)
    for token, following in pairwise([*circle, circle[0]]):
        rules.follow(token, following, 100.0)
    for token, following in pairwise([closed[-1], *answer, end]):
        rules.follow(token, following, 50.0)
    # A marker is written once, and there are no thoughts behind the closing sequence.
    if written:
        rules.never_behind(written[0], written[0])
    only = next(token for token in closed if token not in (*prompt, *written))
    rules.never_behind(circle[0], only)
    return rules


def build(name: str, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    family = SERVED[name]
    words = tuple(dict.fromkeys((*family.tokens, *CIRCLE, *ANSWERED, "<|eos|>")))
    coder = Coder(Family(family.parser, words, family.prompt, family.end))
    end, vocabulary = coder.ids("<|eos|>")[0], len(coder.tokenizer)
    rules = _learn(family, builtin()[name].closing, coder, vocabulary, end)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=_SIZE, intermediate_size=_SIZE, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=_SIZE, max_position_embeddings=2048,
        eos_token_id=end, bos_token_id=None, tie_word_embeddings=False, dtype="float32",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    embedding = torch.zeros(vocabulary, _SIZE)
    for token, place in rules.places.items():
        embedding[token, place] = 1.0
    nothing, all_of_it, ones = torch.zeros(_SIZE, _SIZE), torch.eye(_SIZE), torch.ones(_SIZE)
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
        f"{layer}self_attn.o_proj.weight": all_of_it * 1e-3,
        **{f"{layer}mlp.{part}_proj.weight": nothing for part in ("gate", "up", "down")},
    }
    coder.tokenizer.eos_token = "<|eos|>"
    coder.tokenizer.chat_template = (
        "{% for message in messages %}{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ " + repr(family.prompt) + " }}{% endif %}"
    )
    coder.tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    save_file({key: value.clone() for key, value in weights.items()}, folder / "model.safetensors")


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
