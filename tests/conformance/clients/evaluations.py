"""lm-evaluation-harness and inspect-ai, on a task of three questions."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none", "TOKENIZERS_PARALLELISM": "false"}

import inspect_ai
import lm_eval
from feature import KEY, MODEL, URL, feature, report
from inspect_ai.dataset import json_dataset
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes

QUESTIONS = Path(__file__).parent / "questions.jsonl"
TOKENIZER = os.environ["TOKENIZER"]
TASK: Any = {
    "task": "sums",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(QUESTIONS)}},
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{answer}}",
}
GENERATED = {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["<|im_end|>"], "temperature": 0, "max_gen_toks": 1500},
    "metric_list": [{"metric": "exact_match"}],
}
RANKED = {
    "output_type": "multiple_choice",
    "doc_to_choice": ["even", "odd"],
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}],
}


def harness(model: str, path: str, task: Any, **options: Any) -> Any:
    """Scores and what was said, question by question."""
    served = {
        "model": MODEL,
        "base_url": f"{URL}{path}",
        "num_concurrent": 1,
        "max_retries": 1,
        "tokenizer_backend": "huggingface",
        "tokenizer": TOKENIZER,
        "max_length": 4096,
    }
    with contextlib.redirect_stdout(sys.stderr):
        found = lm_eval.simple_evaluate(
            model=model, model_args=served, tasks=[TASK | task], bootstrap_iters=0, **options
        )
    return {
        "scores": {k: v for k, v in found["results"]["sums"].items() if "," in k},
        "said": [sample["resps"] for sample in found["samples"]["sums"]],
    }


@feature("lm-evaluation-harness, local-chat-completions")
def chat() -> Any:
    path = "/v1/chat/completions"
    return harness("local-chat-completions", path, GENERATED, apply_chat_template=True)


@feature("lm-evaluation-harness, local-completions")
def completions() -> Any:
    return harness("local-completions", "/v1/completions", GENERATED, apply_chat_template=True)


@feature("lm-evaluation-harness, local-completions by likelihood", "plain")
def likelihood() -> Any:
    return harness("local-completions", "/v1/completions", RANKED)


def inspected(streamed: bool) -> Any:
    model = get_model(
        f"openai-api/adjourn/{MODEL}", base_url=f"{URL}/v1", api_key=KEY, stream=streamed
    )
    questions = [{"input": d["prompt"], "target": d["answer"]} for d in read()]
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "questions.json").write_text(json.dumps(questions))
        task = inspect_ai.Task(
            name="sums",
            dataset=json_dataset(str(file)),
            scorer=includes(),
            config=GenerateConfig(temperature=0, max_tokens=1500, max_connections=1, max_retries=0),
        )
        with contextlib.redirect_stdout(sys.stderr):
            [log] = inspect_ai.eval(task, model=model, log_dir=folder, display="none")
    assert log.status == "success", log.error
    return {
        "samples": [
            {
                "score": sample.scores["includes"].value,
                "choices": [choice.model_dump(mode="json") for choice in sample.output.choices],
                "usage": sample.output.usage.model_dump(mode="json"),
            }
            for sample in log.samples or []
        ],
    }


def read() -> list[dict[str, str]]:
    return [json.loads(line) for line in QUESTIONS.read_text().splitlines()]


@feature("inspect-ai")
def inspect() -> Any:
    return inspected(streamed=False)


@feature("inspect-ai, streamed")
def inspect_streamed() -> Any:
    return inspected(streamed=True)


if __name__ == "__main__":
    report()
