"""``make demo``: send held-out problems to a real engine, with full thinking and with a policy.

Prints a table of accuracy and cost, and one trace that shows where it was cut.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from benchmarks.client import ModelResponse, openai_client, progress_bar, send_all
from benchmarks.pocket import CHAINS
from benchmarks.services import free_port, start_engine, start_gateway
from benchmarks.statistics import paired_difference, share_interval

__all__ = ["cost_table", "main"]

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--policy", default=CHAINS.policy)
    parser.add_argument("--serve", action="store_true", help="only serve, until interrupted")
    parser.add_argument("--port", type=int, default=8000, help="port of the gateway, with --serve")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        run(options)


def run(options: argparse.Namespace) -> None:
    port = options.port if options.serve else free_port()
    with contextlib.ExitStack() as stack:
        with console.status("starting vLLM on the CPU with the pocket model (about a minute)…"):
            upstream = stack.enter_context(start_engine(free_port()))
        hold_out = ("--hold-out", "0") if not options.serve else ()
        url = stack.enter_context(
            start_gateway(upstream, port, "--policy", options.policy, *hold_out)
        )
        console.print(f"vLLM at {upstream}, Adjourn at {url}, policy {options.policy}")
        if options.serve:
            _serve_until_interrupted(url)
        else:
            asyncio.run(_compare(url, options))


def _serve_until_interrupted(url: str) -> None:
    console.print(
        f"use any OpenAI client with {url}/v1 and model [b]pocket[/b]; Ctrl-C stops; e.g.\n"
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' -d "
        """'{"model":"pocket","messages":[{"role":"user","content":"""
        """"Start with 47. Add 38. Multiply by 3. What is the result?"}]}'"""
    )
    import signal

    signal.pause()


async def _compare(url: str, options: argparse.Namespace) -> None:
    problems, concurrency = CHAINS.held_out_problems(options.problems), options.concurrency
    with progress_bar() as bar:
        async with openai_client(url) as send:
            # Warm up the engine, so that neither side is measured on a cold one.
            await send_all(send, problems[:16], "off", concurrency=8, bar=bar, label="warming up")
            full, full_seconds = await send_all(
                send, problems, "off", concurrency=concurrency, bar=bar, label="full thinking"
            )
            cut, cut_seconds = await send_all(
                send, problems, options.policy, concurrency=concurrency, bar=bar
            )
    arms = {"full thinking": (full, full_seconds), options.policy: (cut, cut_seconds)}
    console.print(cost_table(arms))
    delta, low, high = paired_difference([r.correct for r in cut], [r.correct for r in full])
    console.print(
        f"accuracy difference {100 * delta:+.1f} points, 95 % interval "
        f"[{100 * low:+.1f}, {100 * high:+.1f}]; temperature 0.6, {len(problems)} held-out "
        f"problems, {concurrency} at a time"
    )
    _show_example(full, cut)


def cost_table(arms: dict[str, tuple[list[ModelResponse], float]], samples: int = 1) -> Table:
    """A table with one column per policy; the first is the baseline of the others.

    ``samples``: responses per problem.
    """
    table = Table(title="Accuracy and cost")
    table.add_column("means per request")
    for name in arms:
        table.add_column(name, justify="right")
    baseline = next(iter(arms.values()))[0]
    columns = [_policy_column(runs, seconds, baseline, samples) for runs, seconds in arms.values()]
    for row in columns[0]:
        table.add_row(row, *(column[row] for column in columns))
    return table


def _policy_column(
    runs: list[ModelResponse], seconds: float, baseline: list[ModelResponse], samples: int
) -> dict[str, str]:
    right, low, high = (100 * x for x in share_interval([r.correct for r in runs], samples))
    net, full = [r.net_tokens for r in runs], [r.net_tokens for r in baseline]
    crt, crt_low, crt_high = paired_difference(net, full, ratio=True, samples=samples)
    cr, _, _ = paired_difference(
        [r.completion_tokens for r in runs], [r.completion_tokens for r in baseline], ratio=True
    )
    times = sorted(r.seconds for r in runs)
    stopped = sum(bool(r.adjourn_field.get("stopped")) for r in runs)

    def mean(kind: str) -> str:
        return f"{sum(getattr(r, kind) for r in runs) / len(runs):.1f}"

    return {
        "right": f"{right:.1f} %",
        "  95 % interval": f"{low:.1f} to {high:.1f}",
        "stopped early": f"{100 * stopped / len(runs):.0f} %",
        "reasoning tokens": mean("reasoning_tokens"),
        "answer tokens, markers included": mean("answer_tokens"),
        "probe tokens": mean("probe_tokens"),
        "wasted tokens": mean("wasted_tokens"),
        "net tokens": mean("net_tokens"),
        "CR (without probes)": f"{cr:.3f}",
        "CRT (net)": f"{crt:.3f}",
        "  95 % interval ": "" if runs is baseline else f"{crt_low:.3f} to {crt_high:.3f}",
        "median seconds": f"{times[len(times) // 2]:.2f}",
        "p95 seconds": f"{times[int(len(times) * 0.95)]:.2f}",
        "requests per second": f"{len(runs) / seconds:.2f}",
    }


def _show_example(full_responses: list[ModelResponse], cut_responses: list[ModelResponse]) -> None:
    """Print the request that was shortened most, among those with both answers right."""
    pairs = [
        (f, o)
        for f, o in zip(full_responses, cut_responses, strict=True)
        if o.adjourn_field.get("stopped") and f.correct and o.correct
    ]
    if not pairs:
        return
    full, cut = max(pairs, key=lambda pair: pair[0].reasoning_tokens - pair[1].reasoning_tokens)
    text = Text()
    text.append(cut.problem.prompt + "\n\n", style="bold")
    text.append(cut.reasoning_text.rstrip() + "\n")
    note = cut.adjourn_field
    text.append(
        f"─── cut after {note['tokens']['reasoning']} tokens: {note['reason']}"
        f", confidence {note.get('confidence', 0):.3f} ───\n",
        style="bold red",
    )
    text.append(cut.answer_text.strip() + "\n\n", style="bold green")
    saved = full.reasoning_tokens - cut.reasoning_tokens
    text.append(f"with full thinking the trace has {saved} more tokens and the same answer:\n")
    text.append("… " + full.reasoning_text[-400:].strip(), style="dim")
    console.print(Panel(text, title="one trace"))


if __name__ == "__main__":
    main()
