"""Compute hidden states with transformers, in the engine's environment, as a reference.

    .engine/bin/python -m tests.engine.reference_hidden_states MODEL < JSON

Reads a list of prompts (lists of token ids). Writes for each prompt and each layer the output
states of the last ``LAST_TOKENS`` tokens: prompts x layers x tokens x width.
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoModelForCausalLM

LAST_TOKENS = 3


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
    layer_outputs: list[torch.Tensor] = []
    for layer in model.model.layers:
        # A hook, because transformers itself returns the last layer's states after normalization.
        layer.register_forward_hook(lambda *call: layer_outputs.append(call[-1]))
    results = []
    for prompt in json.load(sys.stdin):
        layer_outputs.clear()
        with torch.inference_mode():
            model(torch.tensor([prompt]))
        results.append([states[0, -LAST_TOKENS:].float().tolist() for states in layer_outputs])
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
