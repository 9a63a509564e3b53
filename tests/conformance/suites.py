"""The clients under test, and how to run one: its script, in its environment, on a target."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pocket import CHAINS
from benchmarks.services import ROOT
from tests.conformance.compare import FeatureReport
from tests.conformance.targets import MODEL_NAMES, TargetUrls

__all__ = ["BUILD_FOLDER", "SUITES", "ReportsByTarget", "Suite", "run_suite"]

ReportsByTarget = dict[str, list[FeatureReport]]
"""The reports of a client, by target."""

CLIENTS_FOLDER = Path(__file__).parent / "clients"
BUILD_FOLDER = ROOT / ".bench" / "conformance"
_NODE_FOLDER = BUILD_FOLDER / "node"
_TIMEOUT = 1500  # seconds for one client on one target


@dataclass(frozen=True, slots=True)
class Suite:
    """One client: ``client`` is its name on the page, ``package`` the package of its version.

    The environments `node`, `engine` and `gateway` are shared; any other is the client's own.
    """

    client: str
    package: str
    script: str
    environment: str
    upstream: str = "vllm"

    @property
    def name(self) -> str:
        return self.script.partition(".")[0]

    def command(self) -> list[str]:
        """The interpreter and the script."""
        programs = {
            "node": "node",
            "engine": str(ROOT / ".engine" / "bin" / "python"),
            "gateway": str(ROOT / ".venv" / "bin" / "python"),
        }
        python = BUILD_FOLDER / self.environment / "bin" / "python"
        return [programs.get(self.environment, str(python)), self.script]

    def version(self) -> str | None:
        """The pinned version; None if the client is installed with the engine."""
        pins = CLIENTS_FOLDER / f"{self.environment}.txt"
        if self.environment in ("node", "gateway"):
            pins = CLIENTS_FOLDER / "package.json"
        if not pins.exists():
            return None
        pattern = rf'^\s*"?{re.escape(self.package)}(?:==|": ")([\w.+-]+)'
        pin = re.search(pattern, pins.read_text("utf-8"), re.MULTILINE)
        return pin[1] if pin else None


SUITES = (
    Suite("openai-python", "openai", "openai_python.py", "sdk"),
    Suite("openai-python, faults", "openai", "openai_faults.py", "sdk", "standin"),
    Suite("openai-node", "openai", "openai_node.mjs", "node"),
    Suite("Anthropic SDK", "anthropic", "anthropic_python.py", "sdk"),
    Suite("LangChain", "langchain-openai", "langchain_chat.py", "langchain"),
    Suite("LangChain's tests", "langchain-tests", "langchain_standard.py", "langchain"),
    Suite("LiteLLM", "litellm", "litellm_client.py", "litellm"),
    Suite("lm-evaluation-harness", "lm-eval", "lm_evaluation.py", "evaluations"),
    Suite("inspect-ai", "inspect-ai", "inspect_evaluation.py", "evaluations"),
    Suite("vllm bench serve", "vllm", "vllm_bench.py", "engine"),
    Suite("GuideLLM", "guidellm", "guidellm_load.py", "guidellm"),
    Suite("Codex CLI", "@openai/codex", "codex_cli.py", "gateway"),
    Suite("Claude Code", "@anthropic-ai/claude-code", "claude_code.py", "gateway"),
    Suite("schemathesis", "schemathesis", "schemathesis_fuzz.py", "schemathesis"),
)


def run_suite(
    suite: Suite, target_urls: TargetUrls, log_folder: Path, feature_pattern: str
) -> ReportsByTarget:
    """The client's reports for each target, of features whose name matches the pattern."""
    reports = {}
    for target, url in target_urls.items():
        log = log_folder / f"{suite.name}-{target.replace(' ', '-')}.log"
        reports[target] = list(_run_client(suite, url, target_urls["direct"], log, feature_pattern))
    return reports


def _run_client(
    suite: Suite, url: str, direct: str, log: Path, only: str
) -> Iterator[FeatureReport]:
    environment = os.environ | {
        "ONLY": only,
        "DIRECT": direct,
        "TOKENIZER": str(CHAINS.model_path),
        "NODE_BIN": str(_NODE_FOLDER / "node_modules" / ".bin"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    folder = _NODE_FOLDER if suite.environment == "node" else CLIENTS_FOLDER
    with log.open("wb") as errors:
        try:
            out = subprocess.run(
                [*suite.command(), url, MODEL_NAMES[suite.upstream]],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=_TIMEOUT,
            ).stdout
        except subprocess.TimeoutExpired as late:  # missing features become "absent" cells
            out = late.stdout or b""
    for line in out.decode().splitlines():
        if line.startswith("{"):
            yield json.loads(line)
