"""The house stands as HOUSE.md says: who may import whom, what is exported, what is documented."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from policies.registry import available
from server.config import ENV_PREFIX, Settings
from server.metrics import Metrics

ROOT = Path(__file__).parent.parent
ROOMS = ("policies", "server", "benchmarks", "engine")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
# What a pure decision has no use for: clocks, chance, the world outside.
IMPURE = {
    *("asyncio", "http", "multiprocessing", "os", "random", "secrets", "select", "selectors"),
    *("shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time"),
    *("datetime", "urllib", "uuid", "logging", "sqlite3", "concurrent"),
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                found |= {alias.name.partition(".")[0] for alias in names}
            case ast.ImportFrom(module=module, level=0):
                found.add((module or "").partition(".")[0])
            case ast.ImportFrom():
                found.add(path.relative_to(ROOT).parts[0])
    return found


def defined(tree: ast.Module) -> Iterator[str]:
    """The public functions and classes that a module makes."""
    for node in tree.body:
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node.name


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                names: list[str] = ast.literal_eval(value)
                return names
    return None


def bound(tree: ast.Module) -> set[str]:
    """Every name that a module's top level binds."""
    found = set(defined(tree))
    for node in ast.walk(tree):
        match node:
            case ast.alias(name=name, asname=asname):
                found.add(asname or name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
    return found


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def test_there_is_something_to_look_at() -> None:
    """The rooms are found, or nothing below would mean anything."""
    assert {named(path).partition("/")[0] for path in MODULES} == set(ROOMS)
    assert ROOT / "policies" / "session.py" in MODULES


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_imports_go_one_way(path: Path) -> None:
    """Policies import themselves alone; server and benchmarks import policies, never each other;
    what runs in the engine imports nothing of ours."""
    room = path.relative_to(ROOT).parts[0]
    others = {
        "policies": {"server", "benchmarks"},
        "server": {"benchmarks"},
        "engine": {"policies", "server", "benchmarks"},
    }
    forbidden = others.get(room, {"server"}) | {"tests", "engine"}
    assert imported(path) & forbidden == set()


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.is_relative_to(ROOT / "policies")], ids=named
)
def test_the_core_is_pure(path: Path) -> None:
    """Standard library only, and of it nothing that reads a clock, rolls dice or does I/O; but
    equality by algebra is a library's."""
    extra = {"math_verify"} if path.name == "mathematics.py" else set()
    outside = imported(path) - {"policies"} - extra
    assert outside - set(sys.stdlib_module_names) == set()
    assert outside & IMPURE == set()


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_says_what_it_exports(path: Path) -> None:
    """Who makes something public names it in ``__all__``, and names nothing that is not there.

    A script that is run exports nothing.
    """
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    names = exported(tree)
    if names is None:
        script = path.name == "__main__.py" or '\nif __name__ == "__main__":' in source
        assert script or list(defined(tree)) == []
        return
    assert sorted(set(names)) == sorted(names)
    assert set(names) - bound(tree) == set()


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_says_what_it_is(path: Path) -> None:
    """A sentence at the head of each module."""
    tree = ast.parse(path.read_text("utf-8"))
    assert tree.body == [] or ast.get_docstring(tree)


@pytest.mark.parametrize("name", sorted(available()))
def test_a_policy_is_documented(name: str) -> None:
    """Each installed policy stands in docs/policies.md, in backticks, alone or as a call."""
    assert re.search(rf"`{name}[`(]", text("policies.md"))


@pytest.mark.parametrize("name", sorted(available()))
def test_a_policys_options_are_documented(name: str) -> None:
    """Each option that a request may set stands there too."""
    options = [field.name for field in fields(available()[name]) if field.name != "policies"]
    assert [option for option in options if f"`{option}`" not in text("policies.md")] == []


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_a_setting_is_documented(name: str) -> None:
    """Each key and its variable stand in docs/configuration.md, in backticks."""
    words = (name, f"{ENV_PREFIX}{name.upper()}")
    assert [word for word in words if f"`{word}`" not in text("configuration.md")] == []


def metrics() -> list[str]:
    """Every family by the name it is scraped under, less those of the process itself."""
    families = list(Metrics().registry.collect())
    names = [f"{f.name}_total" if f.type == "counter" else f.name for f in families]
    return [name for name in names if not name.startswith("adjourn_process_")]


@pytest.mark.parametrize("name", metrics())
def test_a_metric_is_documented(name: str) -> None:
    """Each metric stands in docs/metrics.md, in backticks, as it is scraped."""
    assert f"`{name}`" in text("metrics.md")


@pytest.mark.parametrize(
    ("page", "pattern", "known"),
    [
        ("metrics.md", r"^\| `(adjourn_\w+)`", metrics()),
        ("configuration.md", r"^\| `(\w+)` \| `ADJOURN_", list(Settings.model_fields)),
    ],
)
def test_nothing_is_documented_that_is_not_there(page: str, pattern: str, known: list[str]) -> None:
    """A name that is gone is gone from its table too."""
    documented = re.findall(pattern, text(page), re.MULTILINE)
    assert documented
    assert set(documented) - set(known) == set()
