"""``vllm bench serve``, vLLM's own load generator: what it counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from feature import MODEL, URL, feature, report

HERE = Path(__file__).parent
COUNTS = ("completed", "failed", "total_input_tokens", "total_output_tokens")


def serve(backend: str, endpoint: str, *options: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"),
                *("--backend", backend, "--base-url", URL, "--endpoint", endpoint),
                *("--model", MODEL, "--tokenizer", os.environ["TOKENIZER"], "--temperature", "0"),
                *("--dataset-name", "custom", "--dataset-path", str(HERE / "questions.jsonl")),
                *("--custom-output-len", "1500", "--num-prompts", "3", "--max-concurrency", "1"),
                *("--disable-shuffle", "--save-result", "--result-dir", folder, *options),
            ],
            stdout=sys.stderr,
            check=True,
        )
        [file] = Path(folder).glob("*.json")
        counted = json.loads(file.read_text())
    assert counted["completed"] == 3, "a request failed"
    return {key: counted[key] for key in COUNTS}


@feature("openai-chat")
def chat() -> Any:
    return serve("openai-chat", "/v1/chat/completions", "--skip-chat-template")


@feature("openai")
def completions() -> Any:
    return serve("openai", "/v1/completions")


if __name__ == "__main__":
    report()
