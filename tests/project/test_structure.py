"""The structure of the code: import directions, exports, file and class sizes, documentation."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import adjourn
from adjourn.policies.registry import available
from adjourn.server.config import list_settings, variable
from adjourn.server.metrics import Metrics

ROOT = Path(__file__).parents[2]
FOLDERS = ("policies", "server", "benchmarks", "engine")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_LINES = 400
MAX_ATTRIBUTES = 20
# What a pure decision has no use for: clocks, randomness, the outside world.
IMPURE = {
    *("asyncio", "http", "multiprocessing", "os", "random", "secrets", "select", "selectors"),
    *("shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time"),
    *("datetime", "urllib", "uuid", "logging", "sqlite3", "concurrent"),
}
# The laboratory speaks to engines as the gateway does; of the gateway it may use these alone.
SHARED_WITH_LAB = ("adjourn.server.engines", "adjourn.server.upstream", "adjourn.server.stream")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    """The modules that a module imports, anywhere in it, by their full dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=module, level=0, names=names):
                found |= {f"{module}.{alias.name}" for alias in names}
            case ast.ImportFrom():
                found.add("a relative import")
    return found


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def defined(tree: ast.Module) -> Iterator[str]:
    """The public functions and classes that a module defines."""
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


def test_the_modules_are_found() -> None:
    """Every folder has modules, or nothing below would test anything."""
    assert {relative(path).partition("/")[0] for path in MODULES} == set(FOLDERS)
    assert ROOT / "policies" / "session" / "session.py" in MODULES


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=relative)
def test_modules_are_imported_under_one_name(path: Path) -> None:
    """Only ``adjourn.policies…``, never ``policies…``: under two names a class exists twice."""
    names = imported(path)
    aliases = ("policies", "server", "benchmarks.lab")
    assert [name for name in names if is_within(name, *aliases)] == []
    assert "a relative import" not in names


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    """Policies import policies only; the gateway also imports the gateway. The laboratory imports
    policies and, of the gateway, what speaks to engines. Engine code imports nothing of ours."""
    own = {name for name in imported(path) if is_within(name, "adjourn", *FOLDERS, "tests")}
    allowed = {
        "policies": ("adjourn.policies",),
        "server": ("adjourn.policies", "adjourn.server", "adjourn.__version__"),
        "benchmarks": ("adjourn.policies", "adjourn.lab", "benchmarks", *SHARED_WITH_LAB),
        "engine": (),
    }
    assert [n for n in own if not is_within(n, *allowed[relative(path).partition("/")[0]])] == []


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.is_relative_to(ROOT / "benchmarks" / "lab")], ids=relative
)
def test_the_laboratory_is_installable(path: Path) -> None:
    """It imports no other benchmarks, which are not installed."""
    assert [name for name in imported(path) if is_within(name, "benchmarks")] == []


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.is_relative_to(ROOT / "policies")], ids=relative
)
def test_policies_are_pure(path: Path) -> None:
    """Standard library only, and of it nothing that reads a clock, is random or does I/O. The one
    exception: equality by algebra is a library's."""
    extra = {"math_verify"} if path.name == "mathematics.py" else set()
    outside = {name.partition(".")[0] for name in imported(path)} - {"adjourn"} - extra
    assert outside - set(sys.stdlib_module_names) == set()
    assert outside & IMPURE == set()


def test_there_is_no_import_cycle() -> None:
    """Modules can be sorted so that each imports only earlier ones."""
    names = {}
    for path in MODULES:
        dotted = relative(path)[:-3].replace("/", ".").removesuffix(".__init__")
        prefix = "adjourn." if dotted.split(".")[0] in ("policies", "server") else ""
        dotted = re.sub(r"^benchmarks\.lab\b", "adjourn.lab", f"{prefix}{dotted}")
        names[dotted] = path
    graph = {
        name: {
            target
            for full in imported(path)
            for target in (full, full.rpartition(".")[0])
            if target in names and target != name
        }
        for name, path in names.items()
    }
    while ready := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in ready:
            del graph[name]
    assert graph == {}


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=relative)
def test_files_stay_small(path: Path) -> None:
    """No file over 400 lines, and no section rulers: a file that needs them is two files."""
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert [line for line in lines if re.match(r"\s*# ?[-=]{2,}", line)] == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_classes_stay_small(path: Path) -> None:
    """No class assigns more than 20 attributes of its own."""
    large = {}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            names = {
                part.attr
                for part in ast.walk(node)
                if isinstance(part, ast.Attribute)
                and isinstance(part.ctx, ast.Store)
                and isinstance(part.value, ast.Name)
                and part.value.id == "self"
            }
            if len(names) > MAX_ATTRIBUTES:
                large[node.name] = len(names)
    assert large == {}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_names_its_exports(path: Path) -> None:
    """A module with public names lists them in ``__all__``, and lists nothing else.

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


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=relative)
def test_a_module_has_a_docstring(path: Path) -> None:
    """The first line of each module says what it is for."""
    tree = ast.parse(path.read_text("utf-8"))
    assert tree.body == [] or ast.get_docstring(tree)


def test_the_plugin_api_is_complete() -> None:
    """Every event, command and contract of a policy can be imported from ``adjourn``."""
    contract = ("events", "policy", "sampling")
    names = {
        name
        for module in contract
        for name in exported(ast.parse((ROOT / "policies" / f"{module}.py").read_text("utf-8")))
        or ()
    }
    assert names - set(adjourn.__all__) == set()
    assert [name for name in adjourn.__all__ if not hasattr(adjourn, name)] == []


SETTINGS = sorted(name for name, _ in list_settings())
POLICY_PAGES = "".join(text(f"policies/{name}.md") for name in ("choosing", "reference"))


@pytest.mark.parametrize("name", sorted(available()))
def test_a_policy_is_documented(name: str) -> None:
    """Each installed policy is in docs/policies/, in backticks, alone or as a call."""
    assert re.search(rf"`{name}[`(]", POLICY_PAGES)


@pytest.mark.parametrize("name", sorted(available()))
def test_a_policys_options_are_documented(name: str) -> None:
    """Each option that a request may set stands there too."""
    options = [field.name for field in fields(available()[name]) if field.name != "policies"]
    assert [option for option in options if f"`{option}`" not in POLICY_PAGES] == []


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_documented(name: str) -> None:
    """Each key and its variable stand in docs/configuration.md, in backticks."""
    words = (name, variable(name))
    assert [word for word in words if f"`{word}`" not in text("configuration.md")] == []


def metrics() -> list[str]:
    """Every metric family by the name it is scraped under, but for those of the process."""
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
        ("configuration.md", r"^\| `([\w.]+)` \| `ADJOURN_", SETTINGS),
    ],
)
def test_nothing_is_documented_that_does_not_exist(
    page: str, pattern: str, known: list[str]
) -> None:
    """A name that was removed is removed from its table too."""
    documented = re.findall(pattern, text(page), re.MULTILINE)
    assert documented
    assert set(documented) - set(known) == set()
