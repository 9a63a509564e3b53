"""Train the pocket reward model: `.engine/bin/python -m benchmarks.pocket.reward`, a few minutes on one core.

It is the pocket model itself with one number read off its last state in place of a next token, as vLLM serves a
`Qwen3ForSequenceClassification`. The trace so far is closed, where the model makes up its mind what the answer is, and the
head, 192 weights, is fitted to tell whether the value that stands last in the trace is the right one so far. Nothing
else is trained, so what is committed is the head: `reward/` holds it beside links to the model's own files.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM

from benchmarks.pocket import CHAINS
from benchmarks.pocket.chains import Chain
from benchmarks.pocket.task import Problem

MODEL = CHAINS.model
FOLDER = Path(__file__).parent / "reward"
SHORTEST, LONGEST = 24, 320
"""Tokens of a trace that are read."""
PENALTY = 2e-3
"""Of the weights' squares, for features scaled to a deviation of one."""
LABELS = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "num_labels": 1,
    "id2label": {"0": "right"},
    "label2id": {"right": 0},
}
TEMPLATE = """\
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{- '<|im_start|>assistant\\n<think>\\n' + message.content + '\\n</think>\\n\\n' -}}
  {%- else -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
"""
_LINE = re.compile(r"(\d+) [+\-*] \d+ = .* = (\d+)")


def right_so_far(one: Chain, thought: str) -> bool | None:
    """Whether the last whole line of a derivation came to the right value; None before the first."""
    values = [one.start]
    for step in one.steps:
        values.append(step.apply(values[-1]))
    found, done = None, 0
    for line in thought.split("\n")[:-1]:
        if (read := _LINE.fullmatch(line)) is None:
            done = 0  # a derivation begins, or ended
        elif done < len(one.steps):
            done += 1
            found = int(read[2]) == values[done]
    return found


def examples(
    problems: Iterator[Problem], rng: random.Random, tokenizer: Tokenizer
) -> Iterator[tuple[list[int], bool]]:
    """Token ids of a problem and its trace up to somewhere, and whether that is right so far."""
    for one in problems:
        assert isinstance(one, Chain)
        whole = "".join(piece.text for piece in CHAINS.thought(one, rng))
        ids = tokenizer.encode(whole, add_special_tokens=False).ids
        part = tokenizer.decode(ids[: rng.randint(SHORTEST, min(len(ids), LONGEST))])
        if (right := right_so_far(one, part)) is not None:
            text = (
                f"<|im_start|>user\n{one.prompt}<|im_end|>\n"
                f"<|im_start|>assistant\n<think>\n{part}\n</think>\n\n"
            )
            yield tokenizer.encode(text, add_special_tokens=False).ids, right


@torch.no_grad()
def states(model: Qwen3ForCausalLM, rows: list[list[int]], at_once: int = 16) -> torch.Tensor:
    """The last state of each row."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = torch.empty(len(rows), model.config.hidden_size)
    for begin in range(0, len(order), at_once):
        chosen = order[begin : begin + at_once]
        lengths = torch.tensor([len(rows[i]) for i in chosen])
        longest = int(lengths.max())
        # Padded behind: what is causal does not see it.
        ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in chosen])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        found[chosen] = hidden[torch.arange(len(chosen)), lengths - 1].float()
    return found


def fit(seen: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Weights of a logistic rule without a constant, which would not change any order."""
    mean, deviation = seen.mean(0), seen.std(0) + 1e-3
    scaled = (seen - mean) / deviation
    weights, constant = (torch.zeros(size, requires_grad=True) for size in (seen.shape[1], 1))
    optimizer = torch.optim.LBFGS([weights, constant], max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = scaled @ weights + constant
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, right)
        value = value + PENALTY * (weights * weights).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (weights / deviation).detach()


def auroc(scores: torch.Tensor, right: torch.Tensor) -> float:
    """The chance that one that is right scores higher than one that is not."""
    ranks = torch.empty_like(scores)
    ranks[scores.argsort()] = torch.arange(1, len(scores) + 1, dtype=scores.dtype)
    hits = right.sum()
    return float((ranks[right == 1].sum() - hits * (hits + 1) / 2) / (hits * (len(right) - hits)))


def export(weights: torch.Tensor) -> None:
    """Write the head, and link what it stands on."""
    FOLDER.mkdir(exist_ok=True)
    config = json.loads((MODEL / "config.json").read_text()) | LABELS
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    settings = json.loads((MODEL / "tokenizer_config.json").read_text())
    settings["chat_template"] = TEMPLATE
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save_file({"score.weight": weights[None].contiguous()}, FOLDER / "score.safetensors")
    for name in ("model.safetensors", "tokenizer.json"):
        (FOLDER / name).unlink(missing_ok=True)
        (FOLDER / name).symlink_to(Path("..") / "models" / MODEL.name / name)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=6000)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    model = Qwen3ForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    told = examples(CHAINS.training(rng), rng, tokenizer)
    tried = list(
        examples(iter(CHAINS.held_out(options.held_out, options.seed + 7)), rng, tokenizer)
    )
    learned = [next(told) for _ in range(options.traces)]
    weights = fit(
        states(model, [ids for ids, _ in learned]), torch.tensor([float(y) for _, y in learned])
    )
    export(weights)
    scores = states(model, [ids for ids, _ in tried]) @ weights
    right = torch.tensor([float(y) for _, y in tried])
    print(
        f"AUROC on {len(tried)} held-out traces, {100 * right.mean():.0f} % right so far: {auroc(scores, right):.3f}"
    )


if __name__ == "__main__":
    main()
