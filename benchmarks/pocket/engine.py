"""A vLLM engine on the pocket model: started, spoken to over HTTP, stopped. Standard library only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Engine", "running"]

NAME = "pocket"
PATIENCE = 300
"""Seconds to wait for the engine to be ready."""


class Engine:
    """An OpenAI-compatible vLLM server at a base URL."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def post(self, path: str, **body) -> dict:
        """One JSON request, and its JSON answer."""
        data = json.dumps({"model": NAME, **body}).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)

    def ready(self) -> bool:
        """Whether the server answers."""
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5):
                return True
        except OSError:
            return False

    def encode(self, text: str) -> list[int]:
        """Token ids of a fixed string."""
        return self.post("/tokenize", prompt=text, add_special_tokens=False)["tokens"]


@contextmanager
def running(model: Path, port: int, log: Path) -> Iterator[Engine]:
    """Start vLLM on the CPU at 127.0.0.1, in this interpreter's environment, and stop it at the end."""
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model),
        "--served-model-name",
        NAME,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--block-size",
        "32",
        "--reasoning-parser",
        "qwen3",
        "--enable-prompt-tokens-details",
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as sink:
        # A session of its own, so that the engine's worker processes end with it.
        process = subprocess.Popen(
            command, env=environment, stdout=sink, stderr=sink, start_new_session=True
        )
    try:
        engine, deadline = Engine(f"http://127.0.0.1:{port}"), time.monotonic() + PATIENCE
        while not engine.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the engine did not start; see {log}")
            time.sleep(0.5)
        yield engine
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
