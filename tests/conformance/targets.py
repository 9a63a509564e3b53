"""The targets of a client: the engine itself, and gateways in front of it."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
from collections.abc import Iterator

from benchmarks.services import free_port, start_engine, start_gateway, start_process

__all__ = [
    "DIRECT_TARGETS",
    "FIRING_POLICY",
    "GATEWAY_POLICIES",
    "MODEL_NAMES",
    "TargetUrls",
    "start_targets",
]

TargetUrls = dict[str, str]
"""Base URLs by name."""

DIRECT_TARGETS = ("direct", "direct again")
GATEWAY_POLICIES = {"off": "off", "never": "never", "fires": "budget(max=6, grace=0)"}
FIRING_POLICY = GATEWAY_POLICIES["fires"]
MODEL_NAMES = {"vllm": "pocket", "standin": "standin"}
# For clients that send no temperature.
_GREEDY = '--override-generation-config={"temperature": 0}'


@contextlib.contextmanager
def start_targets(upstream: str) -> Iterator[tuple[str, TargetUrls]]:
    """Start an engine and the gateways; gives (description of the engine, URLs by target).

    ``upstream`` is `vllm` or `standin`. The engine itself is two targets: the second run shows how
    much its replies differ once its prefix cache is filled.
    """
    start = start_engine(free_port(), _GREEDY) if upstream == "vllm" else _start_standin()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(start)
        urls = dict.fromkeys(DIRECT_TARGETS, url)
        for name, policy in GATEWAY_POLICIES.items():
            options = ("--policy", policy, "--hold-out", "0")
            urls[name] = stack.enter_context(start_gateway(url, free_port(), *options))
        yield _describe_engine(upstream, url), urls


def _describe_engine(upstream: str, url: str) -> str:
    if upstream == "standin":
        return "the stand-in"
    with urllib.request.urlopen(f"{url}/version") as reply:
        return f"vLLM {json.load(reply)['version']}"


@contextlib.contextmanager
def _start_standin() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.standin", "--port", str(port), "--rate", "400"]
    url = f"http://127.0.0.1:{port}"
    with start_process(command, f"{url}/health", timeout=20):
        yield url
