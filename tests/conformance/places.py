"""Where a client can be pointed: the engine itself, and gateways before it."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
from collections.abc import Iterator

from benchmarks.services import engine, free_port, gateway, running

__all__ = ["DIRECT", "FIRES", "GATEWAYS", "MODELS", "Places", "places"]

Places = dict[str, str]
"""Base URLs by name."""

DIRECT = ("direct", "direct again")
GATEWAYS = {"off": "off", "never": "never", "fires": "budget(max=6, grace=0)"}
FIRES = GATEWAYS["fires"]
MODELS = {"vllm": "pocket", "standin": "standin"}
# Some clients send no temperature.
_GREEDY = '--override-generation-config={"temperature": 0}'


@contextlib.contextmanager
def places(upstream: str) -> Iterator[tuple[str, Places]]:
    """What stands behind them, and they. ``upstream`` is `vllm` or `standin`. The engine is asked
    twice: the second time is the control, and the first has filled its cache."""
    start = engine(free_port(), _GREEDY) if upstream == "vllm" else _standin()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(start)
        found = dict.fromkeys(DIRECT, url)
        for name, policy in GATEWAYS.items():
            options = ("--policy", policy, "--hold-out", "0")
            found[name] = stack.enter_context(gateway(url, free_port(), *options))
        yield _named(upstream, url), found


def _named(upstream: str, url: str) -> str:
    if upstream == "standin":
        return "the stand-in"
    with urllib.request.urlopen(f"{url}/version") as reply:
        return f"vLLM {json.load(reply)['version']}"


@contextlib.contextmanager
def _standin() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.standin", "--port", str(port), "--rate", "400"]
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/health", within=20):
        yield url
