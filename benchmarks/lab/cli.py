"""``adjourn record``, ``replay`` and ``learn``: what the laboratory adds to the command line."""

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
"""Failed traces that are named; the others likely failed for the same reason."""


def record(
    prompts: Annotated[
        str, typer.Argument(help="A JSONL, CSV or Parquet file, or `hf:OWNER/DATASET`.")
    ],
    upstream: Annotated[str, typer.Option(help="The engine's base URL, without /v1.")],
    out: Annotated[Path, typer.Option(help="Where traces are added.")] = Path("traces.jsonl"),
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--for", metavar="POLICY", help="Record what this policy looks at and asks; repeatable."
        ),
    ] = None,
    at: Annotated[
        list[str] | None, typer.Option(help="Look here too: `cues`, `interval=32`; repeatable.")
    ] = None,
    probe: Annotated[
        list[str] | None, typer.Option(help="Ask this too: `probe(max_tokens=20)`; repeatable.")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Of a dataset that has several.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a dataset, else `test`, `validation` or `train`.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Else a known name: `question`, `problem`.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Else a known name: `answer`, `solution`.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take so many prompts.")] = None,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="Put prompts in a random order first.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Traces a prompt.")] = 1,
    model: Annotated[str | None, typer.Option(help="Where the engine serves several.")] = None,
    dialect: Annotated[str | None, typer.Option(help="Use this dialect.")] = None,
    temperature: Annotated[float, typer.Option(min=0)] = 0.6,
    max_tokens: Annotated[int, typer.Option(min=1, help="Limit of a whole response.")] = 16384,
    seed: Annotated[int, typer.Option(help="Of a prompt's first sample.")] = 0,
    body: Annotated[str, typer.Option(help="Further fields of the request, as JSON.")] = "{}",
    serve: Annotated[
        float, typer.Option(min=0, max=1, help="Share of places where a cut is tried for real.")
    ] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Traces at a time.")] = 8,
    api_key: Annotated[str | None, typer.Option(envvar="ADJOURN_UPSTREAM_API_KEY")] = None,
    embeddings_url: Annotated[
        str | None,
        typer.Option(
            envvar="ADJOURN_EMBEDDINGS_URL", help="Where steps are embedded, without /v1."
        ),
    ] = None,
    embeddings_model: Annotated[
        str | None, typer.Option(envvar="ADJOURN_EMBEDDINGS_MODEL", help="The model there.")
    ] = None,
    embeddings_api_key: Annotated[
        str | None, typer.Option(envvar="ADJOURN_EMBEDDINGS_API_KEY")
    ] = None,
) -> None:
    """Let a model think to the end, and ask it at every checkpoint on the way.

    Killed or interrupted, it goes on where it was when it is called again.
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
        _fail("steps are to be embedded: say where by --embeddings-url")
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
        _fail(f"{len(failures)} traces are missing: call it again to take them")


def replay(
    traces: Annotated[Path, typer.Argument(help="What `adjourn record` wrote.")],
    policies: Annotated[
        list[str],
        typer.Option(help="A policy, or many: `deer(threshold=0.9..0.99)`, `{deer,never}`."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for plot, page and numbers, else beside the traces.")
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Points of accuracy that may be lost, for the best setting."),
    ] = 1.0,
    instant: Annotated[bool, typer.Option("--instant", help="Probes come at once.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.")] = None,
) -> None:
    """Play policies over recorded traces and compare them; no engine is needed."""
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
        Path, typer.Argument(help="What `adjourn record` wrote, with --for this policy.")
    ],
    policy: Annotated[_LearnablePolicy, typer.Option(help="Which one.")] = "learned",
    out: Annotated[
        Path | None, typer.Option(help="Where what was learned is written, else POLICY.json.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Points of accuracy that may be lost, for `learned`.")
    ] = 1.0,
) -> None:
    """Learn `learned`, or the probe of `lynx`, from recorded traces, and try it on prompts it has
    not seen."""
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
    """Take what ``out`` does not hold yet, with a bar that tells how far it is."""
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
        left = [
            (p, number) for p, number in work if (p.id, number) not in appender.recorded_samples
        ]
        task = bar.add_task(str(out), total=len(work), completed=len(work) - len(left))

        def keep(trace: Trace) -> None:
            appender.add(trace)
            bar.advance(task)

        return await record_samples(recorder, left, concurrency, keep)


@contextlib.contextmanager
def _require_lab_extra() -> Iterator[None]:
    """What is imported within may not be installed: say what would bring it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("benchmarks", "policies"):
            raise
        _fail(f"{error.name} is not installed: `pip install 'adjourn[lab]'` brings it")


def _fail(message: str) -> NoReturn:
    typer.echo(f"adjourn: {message}", err=True)
    raise typer.Exit(2)
