"""The command line accepts commands of other packages."""

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


def add_entry_points(monkeypatch: pytest.MonkeyPatch, **values: str) -> Callable[..., Any]:
    """Install these entry points, and return a function that runs the command line."""
    points = EntryPoints(
        EntryPoint(name, value, cli.COMMAND_GROUP) for name, value in values.items()
    )
    monkeypatch.setattr(cli, "entry_points", lambda group: points.select(group=group))
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))
    cli.add_commands()
    return lambda *words: CliRunner().invoke(cli.app, list(words))


def test_an_entry_point_adds_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed and runs like the built-in ones."""
    run = add_entry_points(monkeypatch, greet=f"{__name__}:greet")
    assert "hello Ada" in run("greet", "--name", "Ada").output
    assert {"greet", "serve"} <= set(run("--help").output.split())


def test_a_command_that_cannot_be_loaded_is_reported_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other commands still run."""
    run = add_entry_points(monkeypatch, broken="no.such.module:it")
    assert "cannot load command 'broken'" in capsys.readouterr().err
    assert run("config", "--check").exit_code == 0


def test_the_commands_of_the_laboratory_are_installed() -> None:
    """Recording and replaying."""
    names = {point.name for point in cli.entry_points(group=cli.COMMAND_GROUP)}
    assert {"record", "replay"} <= names
