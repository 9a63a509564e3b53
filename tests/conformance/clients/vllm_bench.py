"""``vllm bench serve``, vLLM's own load generator: what it counted."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from feature import MODEL, URL, feature, report
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

HERE = Path(__file__).parent
COUNTS = ("completed", "failed", "total_input_tokens", "total_output_tokens")


def serve(backend: str, endpoint: str, template: str = "{}") -> Any:
    add_cli_args(parser := FlexibleArgumentParser())
    lines = [json.loads(line) for line in (HERE / "questions.jsonl").read_text().splitlines()]
    turns = [[template.format(line["prompt"]), line["answer"]] for line in lines]
    asked = [{"conversations": [{"value": text} for text in pair]} for pair in turns]
    with tempfile.TemporaryDirectory() as folder:
        (data := Path(folder) / "sharegpt.json").write_text(json.dumps(asked))
        given = parser.parse_args(
            [
                *("--backend", backend, "--base-url", URL, "--endpoint", endpoint),
                *("--model", MODEL, "--tokenizer", os.environ["TOKENIZER"], "--temperature", "0"),
                *("--dataset-name", "sharegpt", "--dataset-path", str(data)),
                *("--sharegpt-output-len", "1500", "--num-prompts", "3", "--max-concurrency", "1"),
                *("--disable-shuffle", "--save-result", "--result-dir", folder),
                *("--result-filename", "result.json"),
            ]
        )
        with contextlib.redirect_stdout(sys.stderr):
            main(given)
        counted = json.loads((Path(folder) / "result.json").read_text())
    assert counted["completed"] == 3, "a request failed"
    return {key: counted[key] for key in COUNTS}


@feature("openai-chat")
def chat() -> Any:
    return serve("openai-chat", "/v1/chat/completions")


@feature("openai")
def completions() -> Any:
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    return serve("openai", "/v1/completions", template)


if __name__ == "__main__":
    report()
