"""Overhead of the gateway: CPU per token, time to first token, throughput, memory.

    python -m benchmarks.overhead [--quick] [--out benchmarks/results]

Each gateway uses the same stand-in for vLLM. They are measured in turn, round after round, so that
other load on the machine affects all of them. Numbers are comparable within one run only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.overhead_gateways import (
    ROOT,
    Gateway,
    GatewayNotInstalled,
    active_streams,
    start_gateways,
    start_standin,
)
from benchmarks.overhead_load import Load, cpu_seconds
from benchmarks.overhead_report import Measurements, plot, summarize, tables

GATEWAY_NAMES = ["direct", "nginx", "adjourn", "litellm"]
TOKENS_PER_SECOND = 30.0  # tokens per second of a paced stream


@dataclass(frozen=True, slots=True)
class MeasurementPlan:
    """Durations in seconds, and for the long stream tokens and tokens per second."""

    rounds: int = 3
    warmup: float = 3.0
    paced: float = 15.0
    flood: float = 6.0
    first: float = 15.0
    idle: float = 5.0
    long_tokens: int = 32_000
    long_window: int = 4_000
    long_rate: float = 1_000.0

    @property
    def long(self) -> float:
        """Seconds of the long stream."""
        return self.long_tokens / self.long_rate


QUICK = MeasurementPlan(1, 1.5, 4.0, 2.0, 4.0, 1.0, 8_000, 1_500, 1_000.0)


@dataclass(frozen=True, slots=True)
class LoadTest:
    """One measurement of one gateway. ``key`` names its results in Measurements."""

    key: str
    load: Load
    seconds: float


def load_tests(plan: MeasurementPlan, gateway: Gateway) -> Iterator[LoadTest]:
    """The measurements of one round for this gateway."""
    paced = [plan.warmup, plan.warmup + plan.paced]
    # On average 500 tokens share the fixed cost of a request.
    streams = {"tokens": [250, 750], "rate": TOKENS_PER_SECOND}
    if gateway.process is not None:
        yield LoadTest("cpu_32", Load(gateway.port, 32, paced, streams), paced[1])
        if gateway.name != "litellm":  # LiteLLM can't keep up with 256 streams
            yield LoadTest("cpu_256", Load(gateway.port, 256, paced, streams), paced[1])
    flood = [plan.warmup / 2, plan.warmup / 2 + plan.flood]
    yield LoadTest("flood_64", Load(gateway.port, 64, flood, {"tokens": 2_000}), flood[1])
    first = [plan.warmup, plan.warmup + plan.first]
    short = {"tokens": [15, 45], "answer_tokens": 4, "rate": TOKENS_PER_SECOND}
    yield LoadTest("first_32", Load(gateway.port, 32, first, short, start_spread=1.0), first[1])
    if gateway.name in ("adjourn", "nginx"):
        early, late, window = 100, plan.long_tokens - plan.long_window, plan.long_window
        snapshots = [early, early + window, late - 100, plan.long_tokens - 100]
        steady = {"tokens": plan.long_tokens + 1_000, "rate": plan.long_rate}
        yield LoadTest(
            "long", Load(gateway.port, 8, snapshots, steady, snapshots_by_tokens=True), plan.long
        )


def measure(test: LoadTest, gateway: Gateway, upstream: int, measurements: Measurements) -> None:
    """Run a load test in a subprocess, and add its results and errors to the measurements."""
    pids = gateway.process_ids()
    load = asdict(test.load) | {"pids": pids, "timeout": 4 * test.seconds + 30}
    command = [sys.executable, "-m", "benchmarks.overhead_load", json.dumps(load)]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if completed.returncode:
        raise RuntimeError(f"the load on {gateway.name} failed:\n{completed.stderr[-2000:]}")
    result = json.loads(completed.stdout)
    name = gateway.name
    if left := active_streams(upstream):
        measurements.errors[name].append(
            f"{test.key}: {left} streams continued after their clients disconnected"
        )
    if result["errors"]:
        measurements.errors[name].append(f"{test.key}: {result['errors']} x {result['error']}")

    def cost(begin: int, end: int) -> float:
        """CPU microseconds per token between two snapshots, without the idle CPU time."""
        a, b = result["snapshots"][begin], result["snapshots"][end]
        cpu = b["cpu_seconds"] - a["cpu_seconds"] - gateway.idle_cpu * (b["seconds"] - a["seconds"])
        return float(cpu / max(b["tokens"] - a["tokens"], 1) * 1e6)

    a, b = result["snapshots"][0], result["snapshots"][-1]
    speed = (b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"])
    if test.key.startswith("cpu"):
        measurements.add(test.key, name, cost(0, 1))
        share = speed / (test.load.streams * TOKENS_PER_SECOND)
        measurements.add(f"share_{test.load.streams}", name, share)
        if share < 0.97:
            measurements.errors[name].append(f"{test.key}: kept up with {share:.0%} of the tokens")
    elif test.key == "flood_64":
        measurements.add("flood_64", name, speed)
    elif test.key == "first_32":
        measurements.first_byte_ms[name].append(
            [1e3 * seconds for seconds in result["first_byte_seconds"]]
        )
    else:
        measurements.add("early", name, cost(0, 1))
        measurements.add("late", name, cost(2, 3))


def run_benchmark(plan: MeasurementPlan, names: list[str], console: Console) -> Measurements:
    """Start the gateways, and run all load tests round after round."""
    measurements = Measurements(
        defaultdict(lambda: defaultdict(list)), defaultdict(list), defaultdict(list)
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with (
        tempfile.TemporaryDirectory(prefix="overhead-") as folder,
        Progress(*columns, console=console) as progress,
    ):
        bar = progress.add_task("starting the gateways", total=None)
        with start_standin() as upstream, start_gateways(names, upstream, Path(folder)) as running:
            tests = [test for gateway in running for test in load_tests(plan, gateway)]
            total = plan.rounds * sum(test.seconds for test in tests) + plan.idle
            progress.update(bar, total=total, description="idle")
            _measure_idle(running, plan.idle)
            progress.advance(bar, plan.idle)
            for round_number in range(plan.rounds):
                for key in ("cpu_32", "cpu_256", "flood_64", "first_32", "long"):
                    for gateway in (
                        running[round_number % len(running) :]
                        + running[: round_number % len(running)]
                    ):
                        for test in load_tests(plan, gateway):
                            if test.key == key:
                                description = (
                                    f"round {round_number + 1}/{plan.rounds} {key:9}{gateway.name}"
                                )
                                progress.update(bar, description=description)
                                measure(test, gateway, upstream, measurements)
                                progress.advance(bar, test.seconds)
            for gateway in running:
                measurements.versions[gateway.name] = gateway.version
                if gateway.process is not None:
                    measurements.add("memory", gateway.name, gateway.memory_mb())
    return measurements


def _measure_idle(running: list[Gateway], seconds: float) -> None:
    before = [cpu_seconds(gateway.process_ids()) for gateway in running]
    time.sleep(seconds)
    for gateway, cpu in zip(running, before, strict=True):
        gateway.idle_cpu = (cpu_seconds(gateway.process_ids()) - cpu) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead")
    parser.add_argument(
        "--quick", action="store_true", help="one short round, to check that everything works"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, help="rounds (default: 3, with --quick: 1)")
    parser.add_argument("--gateways", nargs="+", choices=GATEWAY_NAMES, default=GATEWAY_NAMES)
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    plan = QUICK if options.quick else MeasurementPlan()
    if options.rounds:
        plan = MeasurementPlan(**(asdict(plan) | {"rounds": options.rounds}))
    try:
        measurements = run_benchmark(
            plan, [name for name in GATEWAY_NAMES if name in options.gateways], console
        )
    except GatewayNotInstalled as missing:
        console.print(f"[red]Not installed.[/] {missing}\nOr exclude it with --gateways.")
        sys.exit(2)
    except RuntimeError as failure:
        console.print(f"[red]Failed.[/] {failure}", highlight=False)
        sys.exit(1)
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "python": sys.version}
    report = {"machine": machine, "plan": asdict(plan), **summarize(measurements)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "overhead.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(measurements, report, options.out / "overhead.png")
    for table in tables(report):
        console.print(table)
    for name, errors in measurements.errors.items():
        for error in errors:
            console.print(f"[red]{name}[/] {error}")
    console.print(f"{options.out / 'overhead.json'}, {options.out / 'overhead.png'}")


if __name__ == "__main__":
    main()
