"""Which clients there are, and how one is run: its script, in its own environment, at a place."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.services import MODEL, ROOT
from tests.conformance.compare import Line
from tests.conformance.places import MODELS, Places

__all__ = ["BUILT", "SUITES", "Suite", "run"]

HERE = Path(__file__).parent / "clients"
BUILT = ROOT / ".bench" / "conformance"
_LONGEST = 900  # seconds for one client at one place


@dataclass(frozen=True, slots=True)
class Suite:
    """``client`` is the table's name for it; the environment `node` runs JavaScript."""

    client: str
    script: str
    environment: str
    upstream: str = "vllm"

    @property
    def name(self) -> str:
        return self.script.partition(".")[0]

    def command(self) -> list[str]:
        programs = {
            "node": "node",
            "engine": str(ROOT / ".engine" / "bin" / "python"),
            "gateway": str(ROOT / ".venv" / "bin" / "python"),
        }
        python = BUILT / self.environment / "bin" / "python"
        return [programs.get(self.environment, str(python)), self.script]


SUITES = (
    Suite("openai-python", "openai_python.py", "sdk"),
    Suite("openai-python, faults", "openai_faults.py", "sdk", "standin"),
    Suite("openai-node", "openai_node.mjs", "node"),
    Suite("Anthropic SDK", "anthropic_python.py", "sdk"),
    Suite("LangChain", "langchain_chat.py", "langchain"),
    Suite("LangChain's tests", "langchain_standard.py", "langchain"),
    Suite("LiteLLM", "litellm_client.py", "litellm"),
    Suite("evaluations", "evaluations.py", "evaluations"),
    Suite("vllm bench serve", "vllm_bench.py", "engine"),
    Suite("GuideLLM", "guidellm_load.py", "guidellm"),
    Suite("schemathesis", "schemathesis_fuzz.py", "schemathesis"),
    Suite("coding agents", "coding_agents.py", "gateway"),
)


def run(suite: Suite, places: Places, logs: Path) -> dict[str, list[Line]]:
    """What the client reported at each place, in order."""
    found = {}
    for place, url in places.items():
        log = logs / f"{suite.name}-{place.replace(' ', '-')}.log"
        found[place] = list(_reported(suite, url, places["direct"], log))
    return found


def _reported(suite: Suite, url: str, direct: str, log: Path) -> Iterator[Line]:
    environment = os.environ | {
        "DIRECT": direct,
        "TOKENIZER": str(MODEL),
        "NODE_BIN": str(BUILT / "node" / "node_modules" / ".bin"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    folder = BUILT / "node" if suite.environment == "node" else HERE
    with log.open("wb") as errors:
        try:
            out = subprocess.run(
                [*suite.command(), url, MODELS[suite.upstream]],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=_LONGEST,
            ).stdout
        except subprocess.TimeoutExpired as late:  # what is missing shows in the table
            out = late.stdout or b""
    for line in out.decode().splitlines():
        if line.startswith("{"):
            yield json.loads(line)
