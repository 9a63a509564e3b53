"""The commands ``adjourn record``, ``replay`` and ``learn``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import msgspec
import typer

if TYPE_CHECKING:
    from adjourn.lab.embedding_client import EmbeddingClient
    from adjourn.lab.engine_client import EngineClient
    from adjourn.lab.plan import RecordingPlan
    from adjourn.lab.prompts import Prompt

__all__ = ["learn", "record", "replay"]

_LearnablePolicy = Literal["learned", "lynx"]
_MAX_FAILURES_SHOWN = 5
"""Failed traces to print; the others likely failed for the same reason."""


def record(
    prompts: Annotated[
        str, typer.Argument(help="A JSONL, CSV or Parquet file, or `hf:OWNER/DATASET`.")
    ],
    upstream: Annotated[str, typer.Option(help="The engine's base URL, without /v1.")],
    out: Annotated[Path, typer.Option(help="The file to append traces to.")] = Path("traces.jsonl"),
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="POLICY",
            help="Record the checkpoints and probes of this policy; repeatable.",
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(help="Further checkpoints: `cues`, `interval=32`; repeatable."),
    ] = None,
    probe: Annotated[
        list[str] | None, typer.Option(help="A further probe: `probe(max_tokens=20)`; repeatable.")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Subset of the dataset.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of the dataset; default `test`, `validation` or `train`."),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Default: a known name, e.g. `question`, `problem`."),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Default: a known name, e.g. `answer`, `solution`."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of prompts.")] = None,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="Shuffle the prompts first.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Traces per prompt.")] = 1,
    model: Annotated[
        str | None, typer.Option(help="Required if the engine serves several.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="Use this dialect instead of detecting it.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0)] = 0.6,
    max_tokens: Annotated[int, typer.Option(min=1, help="Limit for a whole response.")] = 16384,
    seed: Annotated[int, typer.Option(help="Seed of the first sample of a prompt.")] = 0,
    body: Annotated[str, typer.Option(help="Further fields of each request, as JSON.")] = "{}",
    serve: Annotated[
        float, typer.Option(min=0, max=1, help="Share of checkpoints at which a cut is executed.")
    ] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Concurrent traces.")] = 8,
    api_key: Annotated[str | None, typer.Option(envvar="ADJOURN_UPSTREAM_API_KEY")] = None,
    embeddings_url: Annotated[
        str | None,
        typer.Option(
            envvar="ADJOURN_EMBEDDINGS_URL", help="Base URL of the embedder, without /v1."
        ),
    ] = None,
    embeddings_model: Annotated[
        str | None, typer.Option(envvar="ADJOURN_EMBEDDINGS_MODEL", help="The embedder's model.")
    ] = None,
    embeddings_api_key: Annotated[
        str | None, typer.Option(envvar="ADJOURN_EMBEDDINGS_API_KEY")
    ] = None,
) -> None:
    """Record uncut reasoning traces of a model, and the results of probes at every checkpoint.

    After a kill or an interrupt, run the same command again to continue.
    """
    from adjourn.lab.plan import BadPlan, RecordingPlan, parse_needs, parse_probe
    from adjourn.lab.policy_parser import parse_policy
    from adjourn.lab.prompts import BadPrompts, PromptSource, read_prompts
    from adjourn.policies.registry import BadPolicy

    own = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    try:
        plan = RecordingPlan.build(
            map(parse_policy, policies or ()),
            map(parse_needs, at or ()),
            map(parse_probe, probe or ()),
            own | msgspec.json.decode(body, type=dict[str, Any]),
            serve,
        )
        source = PromptSource(prompts, subset, split, question, answer, limit, shuffle)
        work = [(p, number) for p in read_prompts(source) for number in range(samples)]
    except (BadPlan, BadPolicy, BadPrompts, msgspec.MsgspecError) as error:
        _fail(str(error))
    if (embeds := any(needs.embeddings for needs in plan.needs)) and embeddings_url is None:
        _fail("a policy needs embeddings of steps: set --embeddings-url")
    with _require_lab_extra():
        from adjourn.lab.embedding_client import EmbeddingClient
        from adjourn.lab.engine_client import EngineClient
        from adjourn.lab.http_client import ENGINE_ERRORS
        from adjourn.lab.trace_log import BadTraces

        async def run() -> list[str]:
            async with AsyncExitStack() as stack:
                engine = await stack.enter_async_context(
                    EngineClient.connect(upstream, model, api_key)
                )
                embedder = None
                if embeds and embeddings_url is not None:
                    embedder = await stack.enter_async_context(
                        EmbeddingClient.connect(
                            embeddings_url, embeddings_model, embeddings_api_key
                        )
                    )
                return await _record_missing(
                    engine, embedder, dialect, plan, work, out, concurrency
                )

        try:
            failures = asyncio.run(run())
        except (BadTraces, *ENGINE_ERRORS) as error:
            _fail(f"{upstream}: {error or type(error).__name__}")
    for line in failures[:_MAX_FAILURES_SHOWN]:
        typer.echo(f"adjourn: {line}", err=True)
    if len(failures) > _MAX_FAILURES_SHOWN:
        typer.echo(f"adjourn: … and {len(failures) - _MAX_FAILURES_SHOWN} more", err=True)
    if failures:
        _fail(f"{len(failures)} traces are missing: run the command again to record them")


def replay(
    traces: Annotated[Path, typer.Argument(help="A file that `adjourn record` wrote.")],
    policies: Annotated[
        list[str],
        typer.Option(
            help="A policy or a grid: `deer(threshold=0.9..0.99)`, `{deer,never}`; repeatable."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for plot, page and numbers; default: next to the traces."),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Points of accuracy that the best setting may lose."),
    ] = 1.0,
    instant: Annotated[bool, typer.Option("--instant", help="Probes return at once.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one per core.")
    ] = None,
) -> None:
    """Replay policies over recorded traces and compare them; needs no engine."""
    with _require_lab_extra():
        from adjourn.lab.comparison import compare
        from adjourn.lab.trace_log import BadTraces
        from adjourn.policies.registry import BadPolicy

        try:
            compare(
                traces,
                policies,
                out or traces.with_suffix(".replay"),
                tolerance / 100,
                instant=instant,
                workers=workers,
            )
        except (BadTraces, BadPolicy) as error:
            _fail(str(error))


def learn(
    traces: Annotated[
        Path, typer.Argument(help="A file that `adjourn record` wrote, with --for this policy.")
    ],
    policy: Annotated[_LearnablePolicy, typer.Option(help="The policy to train.")] = "learned",
    out: Annotated[
        Path | None, typer.Option(help="The file to write; default: POLICY.json.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Points of accuracy that `learned` may lose.")
    ] = 1.0,
) -> None:
    """Train `learned`, or the readiness probe of `lynx`, on recorded traces, and evaluate it on
    held-out prompts."""
    out = out or Path(f"{policy}.json")
    with _require_lab_extra():
        from adjourn.lab import train_learned, train_lynx
        from adjourn.lab.trace_log import BadTraces
        from adjourn.policies.stopping.learned import Learned

        try:
            if policy == "lynx":
                train_lynx.train(traces, out)
            else:
                train_learned.train(traces, Learned(), out, tolerance / 100)
        except BadTraces as error:
            _fail(str(error))


async def _record_missing(
    engine: EngineClient,
    embedder: EmbeddingClient | None,
    dialect: str | None,
    plan: RecordingPlan,
    work: list[tuple[Prompt, int]],
    out: Path,
    concurrency: int,
) -> list[str]:
    """Record the samples that ``out`` does not contain yet, with a progress bar. Returns a line for
    each sample that failed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    from adjourn.lab.record import Recorder, record_samples
    from adjourn.lab.trace_log import Trace, TraceAppender
    from adjourn.policies.text.dialect import builtin_dialects

    recorder = Recorder(
        engine, await engine.resolve_dialect(builtin_dialects(), dialect), plan, embedder
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    appender = TraceAppender(out, recorder.make_header(await engine.version()))
    with contextlib.closing(appender), Progress(*columns) as bar:
        missing = [
            (p, number) for p, number in work if (p.id, number) not in appender.recorded_samples
        ]
        task = bar.add_task(str(out), total=len(work), completed=len(work) - len(missing))

        def keep(trace: Trace) -> None:
            appender.add(trace)
            bar.advance(task)

        return await record_samples(recorder, missing, concurrency, keep)


@contextlib.contextmanager
def _require_lab_extra() -> Iterator[None]:
    """Imports in this block need the extra ``lab``: say how to install it if one fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "adjourn":
            raise
        _fail(f"{error.name} is not installed: run `pip install 'adjourn[lab]'`")


def _fail(message: str) -> NoReturn:
    typer.echo(f"adjourn: {message}", err=True)
    raise typer.Exit(2)
