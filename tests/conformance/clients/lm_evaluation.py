"""lm-evaluation-harness, on a task of three questions."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none", "TOKENIZERS_PARALLELISM": "false"}

import lm_eval
from feature import MODEL, URL, feature, report
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

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


used: list[int] = []


class Counting:
    """Notes the tokens that a reply took; the harness keeps its text alone."""

    def parse_generations(self, outputs: Any, **options: Any) -> Any:
        replies = outputs if isinstance(outputs, list) else [outputs]
        used.extend(reply["usage"]["completion_tokens"] for reply in replies)
        return super().parse_generations(outputs=outputs, **options)


class Completions(Counting, LocalCompletionsAPI): ...


class Chat(Counting, LocalChatCompletion): ...


def harness(api: Any, path: str, task: Any, **options: Any) -> Any:
    """Scores and what was said, question by question."""
    model = api(
        model=MODEL,
        base_url=f"{URL}{path}",
        num_concurrent=1,
        max_retries=1,
        tokenizer_backend="huggingface",
        tokenizer=TOKENIZER,
        max_length=4096,
    )
    used.clear()
    with contextlib.redirect_stdout(sys.stderr):
        found = lm_eval.simple_evaluate(
            model=model, tasks=[TASK | task], bootstrap_iters=0, **options
        )
    return {
        "scores": {k: v for k, v in found["results"]["sums"].items() if "," in k},
        "completion_tokens": sum(used),
        "said": [sample["resps"] for sample in found["samples"]["sums"]],
    }


TEMPLATED = {"apply_chat_template": True}


@feature("local-chat-completions")
def chat() -> Any:
    return harness(Chat, "/v1/chat/completions", GENERATED, **TEMPLATED)


@feature("local-completions")
def completions() -> Any:
    return harness(Completions, "/v1/completions", GENERATED, **TEMPLATED)


@feature("local-completions, the prompt opens the trace")
def opened() -> Any:
    prompt = "<|im_start|>user\n{{prompt}}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    return harness(Completions, "/v1/completions", GENERATED | {"doc_to_text": prompt})


@feature("local-completions by likelihood", "plain")
def likelihood() -> Any:
    return harness(Completions, "/v1/completions", RANKED)


if __name__ == "__main__":
    report()
