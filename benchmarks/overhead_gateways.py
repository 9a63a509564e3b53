"""Start, check and stop the gateways that `benchmarks.overhead` compares."""

from __future__ import annotations

import getpass
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = ["Gateway", "GatewayNotInstalled", "active_streams", "start_gateways", "start_standin"]

ROOT = Path(__file__).parent.parent
LITELLM_REQUIREMENT = "litellm[proxy]==1.106.2"
NGINX_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
{user}
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_body_buffer_size 1m;
  keepalive_requests 1000000;
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""
LITELLM_CONFIG = """
model_list:
  - model_name: standin
    litellm_params:
      model: hosted_vllm/standin
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: none
litellm_settings: {{telemetry: false, num_retries: 0}}
"""


class GatewayNotInstalled(Exception):
    """A gateway is not installed; the message says how to install it."""


@dataclass(slots=True)
class Gateway:
    """A running gateway. For `direct` the port is the stand-in's, and there is no process."""

    name: str
    port: int
    process: subprocess.Popen[bytes] | None = None
    version: str = ""
    idle_cpu: float = 0.0  # CPU seconds per second without load
    log: Path | None = None
    pids: list[int] = field(default_factory=list)

    def memory_mb(self) -> float:
        """Resident megabytes of the whole process tree."""
        return sum(int(psutil.Process(pid).memory_info().rss) for pid in self.process_ids()) / 1e6

    def process_ids(self) -> list[int]:
        """The ids of the process and all its descendants; none for `direct`."""
        if self.process is None:
            return []
        top = psutil.Process(self.process.pid)
        return [top.pid, *(child.pid for child in top.children(recursive=True))]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def start_standin() -> Iterator[int]:
    """Run the stand-in; gives its port."""
    port = free_port()
    with _run_process(
        [sys.executable, "-m", "benchmarks.standin", "--port", str(port)], None
    ) as process:
        _wait_until_ready(port, "/health", process, 20)
        yield port


def active_streams(port: int, patience: float = 2.0) -> int:
    """The number of the stand-in's streams still active after up to `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/standin/stats")
        active = int(json.loads(connection.getresponse().read())["active"])
        connection.close()
        if active == 0 or time.monotonic() > deadline:
            return active
        time.sleep(0.05)


@contextmanager
def start_gateways(names: list[str], upstream: int, folder: Path) -> Iterator[list[Gateway]]:
    """Start the named gateways one after the other; stop them at the end of the block.

    Raises GatewayNotInstalled, or RuntimeError if one does not start or stream.
    """
    if not names:
        yield []
        return
    with (
        _STARTERS[names[0]](upstream, folder) as first,
        start_gateways(names[1:], upstream, folder) as rest,
    ):
        yield [first, *rest]


@contextmanager
def _no_gateway(upstream: int, folder: Path) -> Iterator[Gateway]:
    yield Gateway("direct", upstream)


@contextmanager
def _start_nginx(upstream: int, folder: Path) -> Iterator[Gateway]:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        raise GatewayNotInstalled(
            "nginx: apt-get update && apt-get install -y --no-install-recommends nginx-light"
        )
    port = free_port()
    config = folder / "nginx.conf"
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    config.write_text(NGINX_CONFIG.format(folder=folder, upstream=upstream, port=port, user=user))
    version = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stderr
    command = [binary, "-c", str(config), "-p", str(folder), "-e", str(folder / "nginx-error.log")]
    with _start_gateway(
        "nginx", port, command, folder, "/health", version.split("/")[-1].strip()
    ) as gateway:
        yield gateway


@contextmanager
def _start_adjourn(upstream: int, folder: Path) -> Iterator[Gateway]:
    binary = ROOT / ".venv" / "bin" / "adjourn"
    if not binary.exists():
        raise GatewayNotInstalled("adjourn: make install")
    port = free_port()
    url = f"http://127.0.0.1:{upstream}"
    command = [str(binary), "serve", "--upstream", url, "--port", str(port), "--policy", "deer"]
    with _start_gateway("adjourn", port, command, folder, "/ready") as gateway:
        yield gateway


@contextmanager
def _start_litellm(upstream: int, folder: Path) -> Iterator[Gateway]:
    home = ROOT / ".bench" / "litellm"
    if not (home / "bin" / "litellm").exists():
        uv = str(ROOT / "scripts" / "uv")
        python = ["--python", str(home / "bin" / "python")]
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(home)], check=True)
        subprocess.run(
            [uv, "pip", "install", "--system-certs", *python, LITELLM_REQUIREMENT], check=True
        )
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(upstream=upstream))
    command = [str(home / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    # No API keys, like the others, and no download of its price list.
    settings = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    version = LITELLM_REQUIREMENT.split("==")[-1]
    with _start_gateway(
        "litellm", port, command, folder, "/health/liveliness", version, settings
    ) as gateway:
        yield gateway


_STARTERS = {
    "direct": _no_gateway,
    "nginx": _start_nginx,
    "adjourn": _start_adjourn,
    "litellm": _start_litellm,
}


@contextmanager
def _start_gateway(
    name: str,
    port: int,
    command: list[str],
    folder: Path,
    ready: str,
    version: str = "",
    environment: dict[str, str] | None = None,
) -> Iterator[Gateway]:
    log = folder / f"{name}.log"
    with _run_process(command, log, environment) as process:
        _wait_until_ready(port, ready, process, 180, log)
        gateway = Gateway(name, port, process, version, log=log)
        _check_streaming(gateway)
        yield gateway


@contextmanager
def _run_process(
    command: list[str], log: Path | None, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with open(log or os.devnull, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield process
    finally:
        pids = [process.pid]
        if process.poll() is None:
            pids += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
            process.terminate()
        _terminate(process, pids)


def _terminate(process: subprocess.Popen[bytes], pids: list[int]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in pids[1:]:
        if psutil.pid_exists(pid):
            psutil.Process(pid).terminate()


def _wait_until_ready(
    port: int,
    path: str,
    process: subprocess.Popen[bytes],
    seconds: float,
    log: Path | None = None,
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:] if log else ""
    raise RuntimeError(f"{process.args!r} was not ready on {path}\n{tail}")


def _check_streaming(gateway: Gateway) -> None:
    """Raise RuntimeError unless one stream passes through the gateway."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    request = {
        "model": "standin",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "standin": {"tokens": 50},
    }
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    connection.request("POST", "/v1/chat/completions", json.dumps(request), headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    if response.status != 200 or body.count(b"data: {") < 60:
        raise RuntimeError(f"{gateway.name} answers {response.status}: {body[:500]!r}")
