"""The documentation agrees with the code: tables, diagrams, links, paths, commands and examples."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
import yaml

from adjourn.lab.cli import learn, record, replay
from adjourn.policies.session.states import TRANSITIONS, Input
from adjourn.policies.text.dialect import builtin_dialects
from adjourn.server.cli import app
from adjourn.server.config import load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")),
        ROOT / "docker" / "README.md",
        *(ROOT / "benchmarks" / "pocket").glob("*.md"),
        *DOCS.rglob("*.md"),
    ]
)
# The changelog names modules and commands that were renamed.
CURRENT_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
FOLDERS = ("adjourn", "policies", "server", "benchmarks", "engine", "docker", "tests", "scripts")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}\S.*\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^()\s]+)\)")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    """Targets of the page's links and images that lie in the repository."""
    found = LINK.findall(INLINE.sub("", prose(page)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found
        )
        found.add(f"{slug}-{number}" if number else slug)
    return found


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each shell command of the page: in ``sh`` and indented blocks, and inline."""
    text = page.read_text("utf-8")
    shell = [body for _, language, body in FENCE.findall(text) if language == "sh"]
    shell += INDENTED.findall(FENCE.sub("", text))
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    for line in [*lines, *INLINE.findall(prose(page))]:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # a quotation over several lines, or code of another language
        if words:
            yield words


def options(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}


def adjourn_commands() -> dict[str, set[str]]:
    """Each subcommand of ``adjourn`` with its options; ``""`` has those of ``adjourn`` itself."""
    laboratory = typer.Typer()
    for function in (learn, record, replay):
        laboratory.command(function.__name__)(function)
    found = {}
    for group in map(typer.main.get_command, (app, laboratory)):
        found |= dict(group.commands)
    found[""] = typer.main.get_command(app)
    return {
        name: {"--help", *(opt for param in command.params for opt in param.opts)}
        for name, command in found.items()
    }


ADJOURN = adjourn_commands()
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def test_the_diagram_is_the_table() -> None:
    """The diagram has every transition but `end`, and no other."""
    text = (DOCS / "architecture.md").read_text("utf-8")
    block = text.split("```mermaid\n")[1].split("```")[0]
    shown = {line.strip() for line in block.splitlines() if "-->" in line and "[*]" not in line}
    table = {
        f"{state.value} --> {after.value}: {signal.value}"
        for state, row in TRANSITIONS.items()
        for signal, after in row.items()
        if signal is not Input.END
    }
    assert table == shown


def test_every_dialect_is_in_the_table() -> None:
    """The rows are in the order in which dialects are tried, each with its closing sequence."""
    text = (DOCS / "dialects.md").read_text("utf-8").replace("\\|", "|")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(builtin_dialects())
    for row, dialect in zip(rows, builtin_dialects().values(), strict=True):
        closing = dialect.closing.replace("\n", "\\n")
        assert f"`{closing}`" in row
        assert all(f"`{marker}`" in row for marker in dialect.breaks[:1])


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_resolves(page: Path) -> None:
    """Each relative link names a file of the repository, and each anchor a heading of its page."""
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        found = file.is_file() and file.is_relative_to(ROOT.resolve())
        if not found or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=relative)
def test_every_path_exists(page: Path) -> None:
    """A file or folder of the repository that is named in backticks is there."""
    pattern = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]+")
    named = {code for code in INLINE.findall(prose(page)) if pattern.fullmatch(code)}
    written_by_users = {"docker/.env"}
    assert [name for name in sorted(named - written_by_users) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=relative)
def test_every_make_target_and_script_exists(page: Path) -> None:
    for words in commands(page):
        if words[0] == "make" and len(words) > 1:
            assert words[1] in TARGETS, words
        if words[0].startswith("scripts/"):
            assert (ROOT / words[0]).is_file(), words


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=relative)
def test_every_adjourn_command_exists(page: Path) -> None:
    """Its subcommand is known, and so are the options that follow."""
    for words in commands(page):
        places = [n for n, word in enumerate(words) if Path(word).name == "adjourn"]
        for place in places[-1:]:
            rest = words[place + 1 :]
            is_option = bool(rest) and rest[0].startswith("--")
            name = "" if is_option or not rest else rest[0]
            if re.fullmatch(r"[a-z]+", name) or is_option:
                assert name in ADJOURN, words
                assert options(rest) - ADJOURN[name] == set(), words


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=relative)
def test_every_module_that_is_run_exists(page: Path) -> None:
    """`python -m NAME` finds NAME, and a module of ours knows the options that are shown."""
    for words in commands(page):
        if "-m" not in words or not Path(words[0]).name.startswith("python"):
            continue
        name, rest = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
        spec = find_spec(name)
        assert spec is not None, words
        if name.startswith(("benchmarks.", "tests.")) and spec.origin is not None:
            package = Path(spec.origin)
            module = (
                package.with_name("__main__.py") if spec.submodule_search_locations else package
            )
            source = module.read_text("utf-8")
            assert [option for option in options(rest) if f'"{option}"' not in source] == [], words


def test_the_options_of_the_laboratory_exist() -> None:
    """Each option in a table of docs/laboratory.md is one of its commands'."""
    text = (DOCS / "laboratory.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `--")]
    named = {option for row in rows for option in re.findall(r"`(--[a-z-]+)", row)}
    known = set().union(*(ADJOURN[name] for name in ("record", "replay", "learn")))
    assert named
    assert named - known == set()


@pytest.mark.parametrize("name", ["configuration.md", "dialects.md"])
def test_example_configurations_load(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The YAML of a page is a configuration that the gateway accepts."""
    monkeypatch.delenv("ADJOURN_CONFIG", raising=False)
    text = (DOCS / name).read_text("utf-8")
    blocks = [body for _, language, body in FENCE.findall(text) if language == "yaml"]
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, "utf-8")
        assert set(yaml.safe_load(block)) <= load(path).model_fields_set


def test_the_site_has_every_page() -> None:
    """The navigation of mkdocs.yml names each page once."""
    named = re.findall(
        r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE
    )
    assert sorted(named) == sorted(map(relative, PAGES))
