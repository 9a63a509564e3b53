"""Claude Code, one shot, on /v1/messages."""

from __future__ import annotations

from typing import Any

from agent import shot
from feature import KEY, MODEL, QUESTION, URL, feature, report


@feature("one shot on /v1/messages")
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
