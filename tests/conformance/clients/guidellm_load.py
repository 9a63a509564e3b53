"""GuideLLM: what its report counted."""

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


def load(path: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        backend = {
            "kind": "openai_http",
            "target": URL,
            "model": MODEL,
            "request_format": path,
            "max_tokens": 1500,
            "extras": {"body": {"temperature": 0, "ignore_eos": False}},
        }
        options = {
            "backend": backend,
            "profile": {"kind": "synchronous"},
            "constraint": {"kind": "max_requests", "count": 3},
            "tokenizer": {"kind": "hf_auto", "model": os.environ["TOKENIZER"]},
            "data": {"kind": "json_file", "path": str(HERE / "questions.jsonl")},
            "output": {"kind": "json", "path": str(file)},
        }
        words = [w for name, value in options.items() for w in (f"--{name}", json.dumps(value))]
        subprocess.run(
            [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console", *words],
            stdout=sys.stderr,
            check=True,
        )
        [benchmark] = json.loads(file.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert len(requests["successful"]) == 3, "a request failed"
    return {
        "counts": {kind: len(made or ()) for kind, made in requests.items()},
        "requests": [
            {
                "said": one["output"],
                "reasoning": one["reasoning_output"],
                "input_tokens": one["input_metrics"]["text_tokens"],
                "output_tokens": one["output_metrics"]["text_tokens"],
            }
            for one in requests["successful"]
        ],
    }


@feature("/v1/chat/completions")
def chat() -> Any:
    return load("/v1/chat/completions")


@feature("/v1/completions", "plain")
def completions() -> Any:
    """The prompt is raw, so that there is no trace."""
    return load("/v1/completions")


@feature("/v1/responses")
def responses() -> Any:
    return load("/v1/responses")


if __name__ == "__main__":
    report()
