"""Hidden states as transformers computes them: run by the engine's Python.

    .engine/bin/python -m tests.engine.reference_hidden_states MODEL < JSON

reads a list of prompts in ids, and writes for each the states of its last tokens, behind every
layer.
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoModelForCausalLM

LAST_TOKENS = 3


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
    behind: list[torch.Tensor] = []
    for layer in model.model.layers:
        # Behind the last one too, where what transformers tells is normed.
        layer.register_forward_hook(lambda *call: behind.append(call[-1]))
    told = []
    for prompt in json.load(sys.stdin):
        behind.clear()
        with torch.inference_mode():
            model(torch.tensor([prompt]))
        told.append([states[0, -LAST_TOKENS:].float().tolist() for states in behind])
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
