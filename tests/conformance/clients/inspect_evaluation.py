"""inspect-ai, on a task of three questions."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import inspect_ai
from feature import KEY, MODEL, URL, feature, report
from inspect_ai.dataset import json_dataset
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes

QUESTIONS = Path(__file__).parent / "questions.jsonl"


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
        # Samples are read when they are asked for.
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


@feature("chat")
def inspect() -> Any:
    return inspected(streamed=False)


@feature("chat, streamed")
def inspect_streamed() -> Any:
    return inspected(streamed=True)


if __name__ == "__main__":
    report()
