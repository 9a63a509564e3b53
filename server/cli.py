"""The command ``adjourn``."""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from adjourn import __version__
from adjourn.server.access.limits import raise_open_files
from adjourn.server.config import BadConfig, Settings, list_settings, load, variable

__all__ = ["COMMAND_GROUP", "add_commands", "app", "main"]

COMMAND_GROUP = "adjourn.commands"
"""Group of entry points with which other packages add commands, as functions for typer."""

app = typer.Typer(
    help="A gateway in front of vLLM that ends a reasoning trace once the answer is known.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they may contain prompts and keys
)

_ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file.")]


def _should_log(record: logging.LogRecord) -> bool:
    """False for uvicorn's message about an unfinished response: the gateway leaves a response
    unfinished when the engine broke the stream, so that the client sees it, and counts that."""
    return record.getMessage() != "ASGI callable returned without completing response."


class _JsonFormatter(logging.Formatter):
    """One JSON object per line. No field contains text of a prompt or an answer."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"adjourn {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: _ConfigOption = None,
    upstream: Annotated[
        str | None, typer.Option(help="Base URL of the engine, without /v1.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    policy: Annotated[str | None, typer.Option(help="Default policy, or `off`.")] = None,
    mode: Annotated[str | None, typer.Option(help="`enforce` or `observe`.")] = None,
    hold_out: Annotated[
        float | None, typer.Option(help="Share of conversations that are never cut, to measure.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Start the gateway."""
    import uvicorn

    from adjourn.server.app import create_app
    from adjourn.server.responses.passthrough import RawSendMiddleware

    settings = _load_or_exit(
        config,
        upstream=upstream,
        host=host,
        port=port,
        policy=policy,
        mode=mode,
        hold_out=hold_out,
        log_level=log_level,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").addFilter(_should_log)
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    raise_open_files(settings.limits.open_files)
    application = create_app(settings)
    # Everything loaded by now is permanent, and streams create no reference cycles, so the garbage
    # collector may run rarely. A full run would delay every stream.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    uvicorn.run(
        RawSendMiddleware(application),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than clients keep idle connections
        timeout_graceful_shutdown=settings.drain,
    )


@app.command("config")
def show_config(
    config: _ConfigOption = None,
    check: Annotated[bool, typer.Option("--check", help="Only check the configuration.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List all settings.")] = False,
) -> None:
    """Print the settings in force, check them, or list all settings and their meaning."""
    if list_:
        for name, field in list_settings():
            default = field.get_default(call_default_factory=True, validated_data={})
            typer.echo(f"{name}  [{variable(name)}]  default {default!s}")
            typer.echo(f"    {field.description}")
        return
    settings = _load_or_exit(config)
    if check:
        typer.echo("the configuration is right")
        return
    shown = settings.model_dump(mode="json")
    shown |= {name: "***" for name, value in shown.items() if value and name.endswith("_api_key")}
    typer.echo(json.dumps(shown, indent=2))


@app.command()
def policies() -> None:
    """List the installed policies and their options."""
    from dataclasses import MISSING, fields

    from adjourn.policies.registry import available

    for name, kind in available().items():
        options = ", ".join(
            f.name if f.default is MISSING else f"{f.name}={f.default!r}"
            for f in fields(kind)
            if f.name != "policies"
        )
        members = any(f.name == "policies" for f in fields(kind))
        typer.echo(f"{name}({'policy, …' if members else options})")
        first = (sys.modules[kind.__module__].__doc__ or "").strip().split("\n")[0]
        typer.echo(f"    {first}")


def _load_or_exit(path: Path | None, **overrides: Any) -> Settings:
    try:
        return load(path, **overrides)
    except BadConfig as error:
        typer.echo(f"adjourn: {error}", err=True)
        raise typer.Exit(2) from None


def add_commands() -> None:
    """Add the commands of other packages. One that cannot be loaded is reported and left out."""
    for point in sorted(entry_points(group=COMMAND_GROUP)):
        try:
            app.command(point.name)(point.load())
        except Exception as error:
            typer.echo(f"adjourn: cannot load command {point.name!r}: {error!r}", err=True)


def main() -> None:
    """The entry point of the command ``adjourn``."""
    add_commands()
    app()
