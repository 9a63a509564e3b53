"""schemathesis, on the engine's own description of our routes: odd bodies get no 5xx of ours.

What a body did at the engine itself is asked where the gateway answers with a 5xx.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from feature import MODEL, URL, feature, report

HERE = Path(__file__).parent
EXAMPLES = os.environ.get("EXAMPLES", "30")


def fuzzed(path: str) -> Any:
    subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"{URL}/openapi.json"),
            *("--url", URL, "--include-path", path, "--checks", "no_5xx_of_our_own"),
            *("--phases", "fuzzing", "--max-examples", EXAMPLES, "--generation-deterministic"),
            *("--generation-database", "none", "--request-timeout", "60", "--warnings", "off"),
            *("--continue-on-failure", "--no-color"),
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_check", "MODEL": MODEL},
        cwd=HERE,
        stdout=sys.stderr,
        check=True,
    )
    return "no 5xx of our own"


for path in (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
    *("/v1/models", "/tokenize"),
):
    feature(path, "plain")(lambda path=path: fuzzed(path))

if __name__ == "__main__":
    report()
