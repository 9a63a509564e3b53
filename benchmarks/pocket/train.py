"""Train a task's model from scratch: `python -m benchmarks.pocket.train swaps --minutes 30`.

Writes the model folder every few minutes, each file swapped in whole; an interrupted run goes on with `--resume`.
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
from benchmarks.pocket import tokenizer as words
from benchmarks.pocket.samples import Batch, batches
from benchmarks.pocket.task import Task

ERROR_LOSS_WEIGHT = 0.3
PEAK_LEARNING_RATE = 3e-3
"""Peak learning rate."""
WARM_UP_SHARE = 0.02
"""Share of the run in which the rate rises."""
SAVE_INTERVAL = 240
"""Seconds between two writings of the model."""


def model_config(task: Task, tokenizer) -> Qwen3Config:
    """The architecture, of one or two million parameters."""
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
    """Used in training only: reads off a lower layer, at marked tokens, whether something went wrong there.

    An answer alone teaches this slowly; what the model then makes of its doubt is left to the answer.
    """

    def __init__(self, model: Qwen3ForCausalLM, layer: int):
        super().__init__()
        self.classifier = torch.nn.Linear(model.config.hidden_size, 1)
        self.hidden_states: torch.Tensor | None = None
        model.model.layers[layer].register_forward_hook(self._capture_output)

    def _capture_output(self, _layer, _inputs, output) -> None:
        self.hidden_states = output[0] if isinstance(output, tuple) else output

    def forward(self, truth: torch.Tensor) -> torch.Tensor:
        """The mean loss (nats) of telling 1 from 0 where `truth` is not -1, in the pass just made."""
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
    """The loss to descend, and for the eye the mean losses of thought, belief and the two doubts (nats)."""
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
    each = functional.cross_entropy(logits.float(), batch.label[counted], reduction="none")
    with torch.no_grad():
        thought, belief = each[weight == 1].mean(), each[weight > 2].mean()
    slip, wrong = (
        doubt(truth)
        for doubt, truth in zip(
            error_heads, (batch.slip_target, batch.wrong_candidate_target), strict=True
        )
    )
    loss = (each * weight).sum() / weight.sum() + ERROR_LOSS_WEIGHT * (slip + wrong)
    return loss, thought, belief, slip.detach(), wrong.detach()


def make_optimizers(
    model: Qwen3ForCausalLM, error_heads: torch.nn.ModuleList
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, which learns in fewer steps; AdamW for the rest."""
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in inner}
    rest = [p for p in [*model.parameters(), *error_heads.parameters()] if id(p) not in known]
    return [
        torch.optim.Muon(
            inner, lr=PEAK_LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def load_with_new_layers(model: Qwen3ForCausalLM, weights: dict[str, torch.Tensor]) -> bool:
    """Load the weights of a model with as many layers or fewer; whether layers were added, which begin as identities."""
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
    """The share of traces left unfinished: steps and doubt are learned in the first derivation, the rest is copying."""
    return min(0.75, 0.2 + 2.2 * (1 - progress))


def export_model(model: Qwen3ForCausalLM, tokenizer, task: Task, folder: Path) -> None:
    """Write everything an engine loads, beside `folder` first, then file by file into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as name:
        fresh = Path(name)
        copy = Qwen3ForCausalLM(model.config)
        copy.load_state_dict(model.state_dict())
        copy.to(torch.bfloat16).save_pretrained(fresh)
        words.save(tokenizer, task, fresh)
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
    parser.add_argument("task", choices=TASKS, help="what to learn")
    parser.add_argument(
        "--minutes",
        type=float,
        default=60,
        help="wall-clock minutes of the whole run, resumed parts included",
    )
    parser.add_argument("--tokens", type=int, default=7000, help="tokens a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="model folder, else the task's own")
    parser.add_argument(
        "--state",
        type=Path,
        help="what --resume reads, else one file a task among the temporary ones",
    )
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    task = TASKS[options.task]
    out = options.out or task.model_path
    kept = options.state or Path(tempfile.gettempdir()) / f"pocket-{task.name}.pt"
    tokenizer = words.load(out) if options.resume else words.build(task)
    model = Qwen3ForCausalLM(model_config(task, tokenizer))
    doubts = torch.nn.ModuleList(
        ErrorDetectionHead(model, layer) for layer in task.size.error_head_layers
    )
    optimizing = make_optimizers(model, doubts)
    spent, step, seen = 0.0, 0, 0
    if options.resume:
        state = torch.load(kept)
        if not load_with_new_layers(model, state["model"]):
            doubts.load_state_dict(state["doubts"])
            for optimizer, saved in zip(optimizing, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        spent, step, seen = state["spent"], state["step"], state["seen"]
    print(
        f"{model.num_parameters():,} parameters, {tokenizer.get_vocab_size()} tokens in the vocabulary",
        flush=True,
    )

    total, begun = options.minutes * 60, time.monotonic() - spent
    saved = last = time.monotonic()
    progress = spent / total
    source = batches(
        task, tokenizer, options.seed + step, options.tokens, lambda: unfinished_share(progress)
    )
    sums = torch.zeros(5)
    with tqdm(total=round(total), initial=round(spent), unit="s", mininterval=10) as bar:
        while progress < 1:
            batch = next(source)
            for optimizer in optimizing:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(progress)
            loss, *parts = compute_losses(model, doubts, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizing:
                optimizer.step()
                optimizer.zero_grad()
            step, seen = step + 1, seen + batch.ids.numel()
            sums += torch.stack([loss.detach(), *parts]).nan_to_num()
            now = time.monotonic()
            bar.update(round(now - begun) - bar.n)
            progress = (now - begun) / total
            if step % 50 == 0:
                mean, sums = sums / 50, torch.zeros(5)
                pace = 50 / (now - last)
                last = now
                tqdm.write(
                    f"step {step} at {(now - begun) / 60:.1f} min: loss {mean[0]:.4f}, thought {mean[1]:.4f}, "
                    f"belief {mean[2]:.4f}, doubts {mean[3]:.4f} {mean[4]:.4f}; {pace:.2f} steps/s, {seen / (now - begun):,.0f} tokens/s"
                )
            if now - saved > SAVE_INTERVAL or progress >= 1:
                saved = now
                export_model(model, tokenizer, task, out)
                torch.save(
                    {
                        "model": model.state_dict(),
                        "doubts": doubts.state_dict(),
                        "optimizers": [o.state_dict() for o in optimizing],
                        "spent": now - begun,
                        "step": step,
                        "seen": seen,
                    },
                    kept,
                )
    print(f"{step} steps, {seen:,} tokens, {(time.monotonic() - begun) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
