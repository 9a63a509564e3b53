"""Train a task's model from scratch: `python -m benchmarks.pocket.train swaps --minutes 30`.

Writes the model folder every few minutes, replacing each file atomically; `--resume` continues an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.pocket import TASKS
from benchmarks.pocket import tokenizer as pocket_tokenizer
from benchmarks.pocket.samples import Batch, batches
from benchmarks.pocket.task import Task

ERROR_LOSS_WEIGHT = 0.3
PEAK_LEARNING_RATE = 3e-3
"""Peak learning rate."""
WARM_UP_SHARE = 0.02
"""Share of the run in which the learning rate rises."""
SAVE_INTERVAL = 240
"""Seconds between two exports of the model."""


def model_config(task: Task, tokenizer) -> Qwen3Config:
    """The architecture, with one or two million parameters."""
    size = task.size
    return Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        head_dim=size.head_size,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.token_to_id(task.chat.stop_token),
        pad_token_id=tokenizer.token_to_id(task.chat.special_tokens[0]),
        bos_token_id=None,
        attn_implementation="sdpa",
    )


class ErrorDetectionHead(torch.nn.Module):
    """Predicts from the output of a layer, at marked tokens, whether an error occurred there.

    Used in training only: with the loss of the answer alone the model learns to detect errors slowly.
    How the model uses this is learned from the answer. State: ``hidden_states`` of the last pass.
    """

    def __init__(self, model: Qwen3ForCausalLM, layer: int):
        super().__init__()
        self.classifier = torch.nn.Linear(model.config.hidden_size, 1)
        self.hidden_states: torch.Tensor | None = None
        model.model.layers[layer].register_forward_hook(self._capture_output)

    def _capture_output(self, _layer, _inputs, output) -> None:
        self.hidden_states = output[0] if isinstance(output, tuple) else output

    def forward(self, truth: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy (nats) over the last pass's tokens whose label in `truth` is not -1."""
        marked = truth >= 0
        if not marked.any():
            return torch.zeros(())
        state = functional.rms_norm(
            self.hidden_states[marked].float(), (self.hidden_states.shape[-1],)
        )
        return functional.binary_cross_entropy_with_logits(
            self.classifier(state)[:, 0], truth[marked].float()
        )


def compute_losses(
    model: Qwen3ForCausalLM, error_heads: torch.nn.ModuleList, batch: Batch
) -> tuple[torch.Tensor, ...]:
    """(total loss, and for the log the mean losses (nats) of trace, answer, slip head, candidate head)."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(
            input_ids=batch.ids,
            position_ids=batch.position,
            attention_mask=batch.mask,
            use_cache=False,
        ).last_hidden_state
        counted = batch.loss_weight > 0
        logits = model.lm_head(hidden[counted])
    weight = batch.loss_weight[counted]
    losses = functional.cross_entropy(logits.float(), batch.label[counted], reduction="none")
    with torch.no_grad():
        trace_loss, answer_loss = losses[weight == 1].mean(), losses[weight > 2].mean()
    slip, wrong = (
        head(truth)
        for head, truth in zip(
            error_heads, (batch.slip_target, batch.wrong_candidate_target), strict=True
        )
    )
    loss = (losses * weight).sum() / weight.sum() + ERROR_LOSS_WEIGHT * (slip + wrong)
    return loss, trace_loss, answer_loss, slip.detach(), wrong.detach()


def make_optimizers(
    model: Qwen3ForCausalLM, error_heads: torch.nn.ModuleList
) -> list[torch.optim.Optimizer]:
    """Muon, which needs fewer steps, for the matrices inside the layers; AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    matrix_ids = {id(p) for p in matrices}
    rest = [p for p in [*model.parameters(), *error_heads.parameters()] if id(p) not in matrix_ids]
    return [
        torch.optim.Muon(
            matrices, lr=PEAK_LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def load_with_new_layers(model: Qwen3ForCausalLM, weights: dict[str, torch.Tensor]) -> bool:
    """Load weights of a model with as many layers or fewer; returns whether layers were added, as identities."""
    added = model.load_state_dict(weights, strict=False).missing_keys
    for name in added:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(model.get_parameter(name))
    return bool(added)


def learning_rate(progress: float) -> float:
    """Warm-up, then half a cosine down to a fiftieth."""
    if progress < WARM_UP_SHARE:
        return PEAK_LEARNING_RATE * max(progress / WARM_UP_SHARE, 0.01)
    return PEAK_LEARNING_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def unfinished_share(progress: float) -> float:
    """The share of traces left unfinished: steps and error detection are learned in the first derivation."""
    return min(0.75, 0.2 + 2.2 * (1 - progress))


def export_model(model: Qwen3ForCausalLM, tokenizer, task: Task, folder: Path) -> None:
    """Write all files of the model to a temporary folder, then move each into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as name:
        fresh = Path(name)
        copy = Qwen3ForCausalLM(model.config)
        copy.load_state_dict(model.state_dict())
        copy.to(torch.bfloat16).save_pretrained(fresh)
        pocket_tokenizer.save(tokenizer, task, fresh)
        settings = {
            "do_sample": True,
            "temperature": 0.6,
            "eos_token_id": model.config.eos_token_id,
            "pad_token_id": model.config.pad_token_id,
        }
        (fresh / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        for file in fresh.iterdir():
            file.chmod(0o644)
            os.replace(file, folder / file.name)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS, help="the task to learn")
    parser.add_argument(
        "--minutes",
        type=float,
        default=60,
        help="wall-clock minutes of the whole run, all resumed parts included",
    )
    parser.add_argument("--tokens", type=int, default=7000, help="tokens per batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="model folder (default: that of the task)")
    parser.add_argument(
        "--state",
        type=Path,
        help="checkpoint for --resume (default: one per task in the temporary folder)",
    )
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    task = TASKS[options.task]
    out = options.out or task.model_path
    checkpoint = options.state or Path(tempfile.gettempdir()) / f"pocket-{task.name}.pt"
    tokenizer = pocket_tokenizer.load(out) if options.resume else pocket_tokenizer.build(task)
    model = Qwen3ForCausalLM(model_config(task, tokenizer))
    error_heads = torch.nn.ModuleList(
        ErrorDetectionHead(model, layer) for layer in task.size.error_head_layers
    )
    optimizers = make_optimizers(model, error_heads)
    spent, step, tokens_seen = 0.0, 0, 0
    if options.resume:
        state = torch.load(checkpoint)
        if not load_with_new_layers(model, state["model"]):
            error_heads.load_state_dict(state["doubts"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        spent, step, tokens_seen = state["spent"], state["step"], state["seen"]
    print(
        f"{model.num_parameters():,} parameters, {tokenizer.get_vocab_size()} tokens in the vocabulary",
        flush=True,
    )

    total, started_at = options.minutes * 60, time.monotonic() - spent
    saved = last = time.monotonic()
    progress = spent / total
    source = batches(
        task, tokenizer, options.seed + step, options.tokens, lambda: unfinished_share(progress)
    )
    sums = torch.zeros(5)
    with tqdm(total=round(total), initial=round(spent), unit="s", mininterval=10) as bar:
        while progress < 1:
            batch = next(source)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(progress)
            loss, *parts = compute_losses(model, error_heads, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step, tokens_seen = step + 1, tokens_seen + batch.ids.numel()
            sums += torch.stack([loss.detach(), *parts]).nan_to_num()
            now = time.monotonic()
            bar.update(round(now - started_at) - bar.n)
            progress = (now - started_at) / total
            if step % 50 == 0:
                mean, sums = sums / 50, torch.zeros(5)
                pace = 50 / (now - last)
                last = now
                tqdm.write(
                    f"step {step} at {(now - started_at) / 60:.1f} min: loss {mean[0]:.4f}, trace {mean[1]:.4f}, "
                    f"answer {mean[2]:.4f}, error heads {mean[3]:.4f} {mean[4]:.4f}; {pace:.2f} steps/s, {tokens_seen / (now - started_at):,.0f} tokens/s"
                )
            if now - saved > SAVE_INTERVAL or progress >= 1:
                saved = now
                export_model(model, tokenizer, task, out)
                torch.save(
                    {
                        "model": model.state_dict(),
                        "doubts": error_heads.state_dict(),
                        "optimizers": [o.state_dict() for o in optimizers],
                        "spent": now - started_at,
                        "step": step,
                        "seen": tokens_seen,
                    },
                    checkpoint,
                )
    print(
        f"{step} steps, {tokens_seen:,} tokens, {(time.monotonic() - started_at) / 60:.1f} minutes"
    )


if __name__ == "__main__":
    main()
