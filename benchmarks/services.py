"""Start engines and gateways as a user would, wait until they are ready, and stop them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from adjourn.server.engines.vllm import hidden_state_options
from benchmarks.pocket import CHAINS
from benchmarks.pocket.task import Task

__all__ = [
    "HIDDEN_STATE_LAYERS",
    "LLAMA",
    "ROOT",
    "free_port",
    "hidden_state_arguments",
    "start_embedder",
    "start_engine",
    "start_gateway",
    "start_llama",
    "start_process",
    "start_reward_model",
    "start_vllm",
]

ROOT = Path(__file__).resolve().parent.parent
REWARD_MODEL = ROOT / "benchmarks" / "pocket" / "reward"
LLAMA = ROOT / ".llama" / "bin" / "llama-server-vulkan"
"""llama.cpp's server, installed by `make llama`."""
ENGINE_ARGUMENTS = (
    "--served-model-name=pocket",
    "--block-size=32",
    "--max-model-len=4096",
    "--enable-prompt-tokens-details",
    # Without this a small model generates whitespace without end inside a grammar.
    '--structured-outputs-config={"backend": "xgrammar", "disable_any_whitespace": true}',
    "--disable-uvicorn-access-log",
    # With a model this small a separate worker process only busy-waits; on two cores that starves
    # the API server, which then delivers the tokens of a second at once.
    "--distributed-executor-backend=uni",
)
POOLING_ARGUMENTS = (
    "--runner=pooling",
    "--max-model-len=4096",
    "--disable-uvicorn-access-log",
    "--distributed-executor-backend=uni",
)
HIDDEN_STATE_LAYERS = (2, 3, 5)
"""The layers, of the pocket model's five, whose states the engine returns."""
ENGINE_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT / "engine"),  # the connector that returns hidden states
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else vLLM still starts a worker process
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_STARTUP_SECONDS = 300.0


def hidden_state_arguments(layers: tuple[int, ...] = HIDDEN_STATE_LAYERS) -> tuple[str, ...]:
    """The engine arguments that make vLLM return the hidden states after these layers."""
    options = hidden_state_options(layers)
    return tuple(f"{name}={json.dumps(value)}" for name, value in options.items())


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def start_process(
    command: list[str],
    ready_url: str,
    *,
    env: dict[str, str] | None = None,
    log: Path | None = None,
    timeout: float = _STARTUP_SECONDS,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a new process group; gives it once ``ready_url`` answers with 200.

    Stops the group at the end of the block. Raises RuntimeError with the end of the output if the
    process does not become ready in ``timeout`` seconds.
    """
    if threading.current_thread() is threading.main_thread():
        # Without this, a terminated caller would leave the process running.
        signal.signal(signal.SIGTERM, _exit_on_signal)
    path = log or Path(tempfile.mkstemp(suffix=".log", prefix="adjourn-")[1])
    with path.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, ready_url, path, timeout)
        yield process
    finally:
        _terminate(process)


def _exit_on_signal(signum: int, frame: object) -> NoReturn:
    sys.exit(128 + signum)


def _wait_until_ready(
    process: subprocess.Popen[bytes], url: str, log: Path, timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    tail = log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"{process.args!r} did not become ready:\n{tail}")


def _terminate(process: subprocess.Popen[bytes]) -> None:
    for signal_number, seconds in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


@contextlib.contextmanager
def start_vllm(port: int, model: Path, *arguments: str) -> Iterator[str]:
    """Run vLLM on the CPU with the model in a folder; gives its base URL."""
    python = ROOT / ".engine" / "bin" / "python"
    if not python.exists():
        raise RuntimeError(".engine/bin/python not found: run `make engine` first")
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", f"--model={model}",
        "--host=127.0.0.1", f"--port={port}", *arguments,
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with start_process(command, f"{url}/health", env=ENGINE_ENVIRONMENT):
        yield url


def start_engine(
    port: int, *extra_arguments: str, task: Task = CHAINS
) -> contextlib.AbstractContextManager[str]:
    """Run vLLM on the CPU with a task's pocket model; gives its base URL."""
    return start_vllm(
        port, task.model_path, *ENGINE_ARGUMENTS, *task.chat.parser_arguments, *extra_arguments
    )


def start_embedder(port: int) -> contextlib.AbstractContextManager[str]:
    """Run vLLM with the pocket model as an embedding model: the mean of its last hidden states."""
    pooler = '--pooler-config={"pooling_type": "MEAN"}'
    names = "--served-model-name=pocket-embedder", "--convert=embed"
    return start_vllm(port, CHAINS.model_path, *POOLING_ARGUMENTS, *names, pooler)


def start_reward_model(port: int) -> contextlib.AbstractContextManager[str]:
    """Run vLLM with the pocket reward model; gives its base URL."""
    return start_vllm(port, REWARD_MODEL, *POOLING_ARGUMENTS, "--served-model-name=pocket-reward")


@contextlib.contextmanager
def start_llama(port: int) -> Iterator[str]:
    """Run llama.cpp's server on the CPU with the pocket model; gives its base URL."""
    if not LLAMA.exists():
        raise RuntimeError(f"{LLAMA} not found: run `make llama` first")
    command = [
        str(LLAMA), "--model", str(ROOT / ".llama" / "pocket.gguf"), "--alias", "pocket", "--jinja",
        "--host", "127.0.0.1", "--port", str(port), "--ctx-size", "16384", "--parallel", "4",
        "--threads", "1", "--slots",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with start_process(command, f"{url}/health", timeout=60.0):
        yield url


@contextlib.contextmanager
def start_gateway(
    upstream: str,
    port: int,
    *options: str,
    env: dict[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[str]:
    """Run the gateway for ``upstream``; gives its base URL once it is ready."""
    command = [
        str(ROOT / ".venv" / "bin" / "adjourn"), "serve", "--upstream", upstream,
        "--port", str(port), *options,
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with start_process(command, f"{url}/ready", timeout=60.0, env=env, log=log):
        yield url
