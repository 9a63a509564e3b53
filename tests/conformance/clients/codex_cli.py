"""Codex CLI, one shot, on /v1/responses."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from agent import shot
from feature import KEY, MODEL, QUESTION, URL, feature, report

# A context of 4,096 tokens holds neither its tools nor its instructions; the surroundings change
# from run to run.
BARE = {
    "web_search": "disabled",
    "include_permissions_instructions": False,
    "include_environment_context": False,
    "skills.include_instructions": False,
    "tools.experimental_request_user_input.enabled": False,
    **dict.fromkeys(("features.multi_agent", "features.goals", "features.shell_tool"), False),
}


@feature("one shot on /v1/responses")
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


if __name__ == "__main__":
    report()
