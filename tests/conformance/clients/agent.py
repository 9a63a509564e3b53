"""A coding agent of npm's, run once in an empty folder, with a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["shot"]

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
