"""Codex CLI and Claude Code, one shot each, in an empty folder and a home of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from feature import KEY, MODEL, QUESTION, URL, feature, report

BIN = Path(os.environ["NODE_BIN"])


def shot(command: list[str], **variables: str) -> list[Any]:
    """The JSON lines that a command prints, run where it can harm nothing."""
    with tempfile.TemporaryDirectory() as home:
        places = {"HOME": home, "CODEX_HOME": home, "CLAUDE_CONFIG_DIR": home}
        ran = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            env={"PATH": os.environ["PATH"]} | places | variables,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
    print(ran.stdout, ran.stderr, file=sys.stderr)
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{command[0]} printed nothing, status {ran.returncode}")
    return lines


# A context of 4,096 tokens holds neither its tools nor its instructions; the surroundings change
# from run to run.
BARE = {
    "web_search": "disabled",
    "include_permissions_instructions": False,
    "include_environment_context": False,
    "skills.include_instructions": False,
    **dict.fromkeys(("features.multi_agent", "features.goals", "features.shell_tool"), False),
}


@feature("Codex CLI, one shot")
def codex() -> Any:
    provider = {
        "name": "adjourn",
        "base_url": f"{URL}/v1",
        "env_key": "KEY",
        "wire_api": "responses",
        "request_max_retries": 0,
        "stream_max_retries": 0,
    }
    (brief := Path(tempfile.gettempdir()) / "adjourn-codex.md").write_text("Be brief.")
    given = BARE | {"model_provider": "adjourn", "model_instructions_file": str(brief)}
    given |= {f"model_providers.adjourn.{key}": value for key, value in provider.items()}
    settings = [w for key, value in given.items() for w in ("-c", f"{key}={json.dumps(value)}")]
    once = ["--json", "--ephemeral", "--skip-git-repo-check"]
    events = shot(["codex", "exec", *once, "-m", MODEL, *settings, QUESTION], KEY=KEY)
    assert events[-1]["type"] == "turn.completed", events[-1]
    told = ("item.completed", "turn.completed")
    return {"events": [event for event in events if event["type"] in told]}


@feature("Claude Code, one shot")
def claude() -> Any:
    *_, result = shot(
        [
            *("claude", "-p", "--bare", "--no-session-persistence", "--output-format", "json"),
            *("--model", MODEL, "--tools", ""),
            *("--system-prompt", "Be brief.", QUESTION),
        ],
        ANTHROPIC_BASE_URL=URL,
        ANTHROPIC_API_KEY=KEY,
        ANTHROPIC_SMALL_FAST_MODEL=MODEL,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        CLAUDE_CODE_MAX_OUTPUT_TOKENS="1500",
        DISABLE_TELEMETRY="1",
        IS_SANDBOX="1",
    )
    assert not result["is_error"], result["result"]
    return {key: result.get(key) for key in ("subtype", "result", "stop_reason", "usage")}


if __name__ == "__main__":
    report()
