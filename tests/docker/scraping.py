"""A gateway under load, and a real Prometheus that has scraped it and a recorded vLLM."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from benchmarks import services
from benchmarks.services import free_port, start_process
from tests.docker.load import send_load

__all__ = ["PrometheusClient", "start_scraped_gateway"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class PrometheusClient:
    """Queries of a Prometheus at time ``at``, with ``window`` seconds in place of Grafana's
    $__rate_interval and $__range. At ``idle_at`` there had been no request for several scrapes."""

    url: str
    at: float | None = None
    window: int = 60
    idle_at: float | None = None

    def get(self, path: str, **params: str) -> Any:
        """The ``data`` of a request to the HTTP API."""
        reply = httpx.get(f"{self.url}/api/v1/{path}", params=params, trust_env=False).json()
        assert reply["status"] == "success", f"{reply.get('error')}: {params}"
        return reply["data"]

    def query(self, expression: str, **variables: str) -> list[dict[str, Any]]:
        """The series of an expression, after substituting the dashboard's variables."""
        window = f"{self.window}s"
        values = {"model": ".*", "policy": ".*", "__rate_interval": window, "__range": window}
        for name, value in (values | variables).items():
            expression = expression.replace(f"${name}", value)
        assert "$" not in expression
        time_field = {} if self.at is None else {"time": str(self.at)}
        return list(self.get("query", query=expression, **time_field)["result"])

    def increase(self, selector: str) -> float:
        """The sum of the counters' differences between the first and last scrape of the window."""
        series = [found["values"] for found in self.query(f"{selector}[$__range]")]
        return sum(float(samples[-1][1]) - float(samples[0][1]) for samples in series)

    def values(self, expression: str, **variables: str) -> list[float]:
        """The value of each series of an expression."""
        return [float(series["value"][1]) for series in self.query(expression, **variables)]


@contextmanager
def start_scraped_gateway(prometheus: str, folder: Path) -> Iterator[PrometheusClient]:
    """Start stand-in, gateway and Prometheus in ``folder``, and send two rounds of load. Gives a
    client for the window of the second round."""
    standin = f"http://127.0.0.1:{(port := free_port())}"
    settings = f"probe_timeout: 1\nresume_timeout: 3\nreward_url: {standin}\n"
    (folder / "adjourn.yaml").write_text(settings, "utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    standin_command = [sys.executable, "-m", "benchmarks.standin", "--port", str(port)]
    gateway_options = ["--config", str(folder / "adjourn.yaml"), "--policy", "deer"]
    gateway_options += ["--hold-out", "0.5"]
    prometheus_command = [
        prometheus,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        "--log.level=warn",
    ]
    with ExitStack() as stack:
        enter = stack.enter_context
        engine = enter(start_recorded_engine())
        enter(start_process(standin_command, f"{standin}/health", log=folder / "standin.log"))
        gateway = enter(services.start_gateway(standin, free_port(), *gateway_options))
        write_configuration(folder, gateway=gateway.removeprefix("http://"), engine=engine)
        enter(start_process(prometheus_command, f"{url}/-/ready", log=folder / "prometheus.log"))
        client = PrometheusClient(url)
        # Only the second round is measured: Prometheus computes no increase for a series that did
        # not exist at the previous scrape, and the first round creates the series.
        asyncio.run(send_load(gateway))
        wait_for_two_scrapes(client)
        start = time.time()
        wait_for_two_scrapes(client)
        asyncio.run(send_load(gateway))
        wait_for_two_scrapes(client)
        end = time.time()
        wait_for_two_scrapes(client)
        wait_for_two_scrapes(client)
        yield PrometheusClient(url, end, math.ceil(end - start), idle_at=time.time())


def write_configuration(folder: Path, **targets: str) -> None:
    """Write a prometheus.yml like that of docker/, but with faster scrapes."""
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [target]}]}
        for name, target in targets.items()
    ]
    configuration = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}}
    text = json.dumps(configuration | {"scrape_configs": jobs})  # JSON is YAML
    (folder / "prometheus.yml").write_text(text, "utf-8")


def wait_for_two_scrapes(client: PrometheusClient) -> None:
    """Wait until gateway and engine have both been scraped twice from now on."""
    since = time.time()

    def scraped_twice() -> bool:
        times = client.values("timestamp(up == 1)")
        return len(times) == 2 and min(times) > since + 1.0

    deadline = time.monotonic() + 30.0
    while not scraped_twice():
        assert time.monotonic() < deadline, "Prometheus does not scrape both gateway and engine"
        time.sleep(0.1)


@contextmanager
def start_recorded_engine() -> Iterator[str]:
    """Serve recorded metrics of vLLM 0.32.0, whose counters grow with each scrape."""
    recorded = (HERE / "vllm.prom").read_text("utf-8").replace('"pocket"', '"standin"')
    scrapes = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal scrapes
            scrapes += 1
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(multiply_counters(recorded, scrapes).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def multiply_counters(recorded: str, factor: int) -> str:
    """The exposition text with the values of all metrics but gauges multiplied."""
    lines, is_counter = [], False
    for line in recorded.splitlines():
        if line.startswith("#"):
            is_counter = not line.endswith(" gauge")
        elif is_counter:
            sample, _, value = line.rpartition(" ")
            line = f"{sample} {float(value) * factor}"
        lines.append(line)
    return "\n".join(lines) + "\n"
