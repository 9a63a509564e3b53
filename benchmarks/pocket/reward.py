"""Train the pocket reward model: `.engine/bin/python -m benchmarks.pocket.reward`, a few minutes on one core.

It is the pocket model with a linear head that reads one number from its last hidden state, as vLLM serves a
`Qwen3ForSequenceClassification`. The closing sequence is appended to the trace so far, because the model decides on
an answer there; the head, 192 weights, is fitted to predict whether the last value in the trace is right so far.
Nothing else is trained: `reward/` has the head, and links to the model's other files.
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

MODEL = CHAINS.model_path
REWARD_FOLDER = Path(__file__).parent / "reward"
MIN_TOKENS, MAX_TOKENS = 24, 320
"""The range of trace lengths in the training data, in tokens."""
L2_PENALTY = 2e-3
"""Weight of the L2 penalty, for features scaled to a standard deviation of one."""
LABEL_CONFIG = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "num_labels": 1,
    "id2label": {"0": "right"},
    "label2id": {"right": 0},
}
CHAT_TEMPLATE = """\
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{- '<|im_start|>assistant\\n<think>\\n' + message.content + '\\n</think>\\n\\n' -}}
  {%- else -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
"""
_STEP_LINE = re.compile(r"(\d+) [+\-*] \d+ = .* = (\d+)")


def is_last_step_correct(chain: Chain, trace_text: str) -> bool | None:
    """Whether the last complete line of a derivation has the right value; None if there is no line."""
    values = [chain.start]
    for step in chain.steps:
        values.append(step.apply(values[-1]))
    correct, done = None, 0
    for line in trace_text.split("\n")[:-1]:
        if (match := _STEP_LINE.fullmatch(line)) is None:
            done = 0  # between two derivations
        elif done < len(chain.steps):
            done += 1
            correct = int(match[2]) == values[done]
    return correct


def training_examples(
    problems: Iterator[Problem], rng: random.Random, tokenizer: Tokenizer
) -> Iterator[tuple[list[int], bool]]:
    """(token ids of a problem and a random prefix of its trace, whether that is right so far)."""
    for problem in problems:
        assert isinstance(problem, Chain)
        trace_text = "".join(span.text for span in CHAINS.write_trace(problem, rng))
        ids = tokenizer.encode(trace_text, add_special_tokens=False).ids
        prefix = tokenizer.decode(ids[: rng.randint(MIN_TOKENS, min(len(ids), MAX_TOKENS))])
        if (correct := is_last_step_correct(problem, prefix)) is not None:
            text = (
                f"<|im_start|>user\n{problem.prompt}<|im_end|>\n"
                f"<|im_start|>assistant\n<think>\n{prefix}\n</think>\n\n"
            )
            yield tokenizer.encode(text, add_special_tokens=False).ids, correct


@torch.no_grad()
def last_hidden_states(
    model: Qwen3ForCausalLM, rows: list[list[int]], batch_size: int = 16
) -> torch.Tensor:
    """The hidden state of each row's last token: shape (rows, hidden size)."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    states = torch.empty(len(rows), model.config.hidden_size)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        lengths = torch.tensor([len(rows[i]) for i in indices])
        longest = int(lengths.max())
        # Padding after the end does not matter: attention is causal.
        ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in indices])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        states[indices] = hidden[torch.arange(len(indices)), lengths - 1].float()
    return states


def fit(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Weights of a logistic regression; the constant is dropped, since it changes no order."""
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    scaled = (features - mean) / deviation
    weights, constant = (torch.zeros(size, requires_grad=True) for size in (features.shape[1], 1))
    optimizer = torch.optim.LBFGS([weights, constant], max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = scaled @ weights + constant
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        value = value + L2_PENALTY * (weights * weights).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (weights / deviation).detach()


def auroc(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """The probability that a right one scores higher than a wrong one."""
    ranks = torch.empty_like(scores)
    ranks[scores.argsort()] = torch.arange(1, len(scores) + 1, dtype=scores.dtype)
    hits = labels.sum()
    return float((ranks[labels == 1].sum() - hits * (hits + 1) / 2) / (hits * (len(labels) - hits)))


def export(weights: torch.Tensor) -> None:
    """Write the head, and links to the files of the model."""
    REWARD_FOLDER.mkdir(exist_ok=True)
    config = json.loads((MODEL / "config.json").read_text()) | LABEL_CONFIG
    (REWARD_FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    settings = json.loads((MODEL / "tokenizer_config.json").read_text())
    settings["chat_template"] = CHAT_TEMPLATE
    (REWARD_FOLDER / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save_file({"score.weight": weights[None].contiguous()}, REWARD_FOLDER / "score.safetensors")
    for name in ("model.safetensors", "tokenizer.json"):
        (REWARD_FOLDER / name).unlink(missing_ok=True)
        (REWARD_FOLDER / name).symlink_to(Path("..") / "models" / MODEL.name / name)


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
    examples = training_examples(CHAINS.training_problems(rng), rng, tokenizer)
    held_out = list(
        training_examples(
            iter(CHAINS.held_out_problems(options.held_out, options.seed + 7)), rng, tokenizer
        )
    )
    training = [next(examples) for _ in range(options.traces)]
    weights = fit(
        last_hidden_states(model, [ids for ids, _ in training]),
        torch.tensor([float(y) for _, y in training]),
    )
    export(weights)
    scores = last_hidden_states(model, [ids for ids, _ in held_out]) @ weights
    labels = torch.tensor([float(y) for _, y in held_out])
    print(
        f"AUROC on {len(held_out)} held-out traces, {100 * labels.mean():.0f} % right so far: {auroc(scores, labels):.3f}"
    )


if __name__ == "__main__":
    main()
