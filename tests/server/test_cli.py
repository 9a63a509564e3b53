"""The command line takes commands from other packages."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from adjourn.server import cli


def greet(name: str = "you") -> None:
    """Say hello."""
    typer.echo(f"hello {name}")


def with_points(monkeypatch: pytest.MonkeyPatch, **values: str) -> Callable[..., Any]:
    points = EntryPoints(
        EntryPoint(name, value, cli.COMMAND_GROUP) for name, value in values.items()
    )
    monkeypatch.setattr(cli, "entry_points", lambda group: points.select(group=group))
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))
    cli.add_commands()
    return lambda *words: CliRunner().invoke(cli.app, list(words))


def test_a_package_adds_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point; it is listed and called as our own are."""
    run = with_points(monkeypatch, greet=f"{__name__}:greet")
    assert "hello Ada" in run("greet", "--name", "Ada").output
    assert {"greet", "serve"} <= set(run("--help").output.split())


def test_a_command_that_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told of, and the others are there."""
    run = with_points(monkeypatch, broken="no.such.module:it")
    assert "no command 'broken'" in capsys.readouterr().err
    assert run("config", "--check").exit_code == 0


def test_the_laboratory_is_there() -> None:
    """As installed: recording and replaying are commands."""
    names = {point.name for point in cli.entry_points(group=cli.COMMAND_GROUP)}
    assert {"record", "replay"} <= names
