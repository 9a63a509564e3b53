"""The package as a stranger gets it: wheel and sdist, built here and installed elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest

import adjourn
from benchmarks.services import ROOT, free_port, start_process

UV = str(ROOT / "scripts" / "uv")
LINKED = ("policies", "server", "lab")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([UV, "build", "--quiet", "--out-dir", str(out), str(ROOT)], check=True)
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel, its extra ``math`` and the locked dependencies."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    (wheel,) = built.glob("*.whl")
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(home)], check=True)
    install = [UV, "pip", "install", "--quiet", "--python", str(home)]
    lock = ["--constraint", str(ROOT / "requirements-dev.lock")]
    subprocess.run([*install, *lock, f"{wheel}[math]"], check=True, cwd=built)
    return home


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which a user has packages with the names of our folders."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("policies", "server", "benchmarks", "adjourn"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise ImportError('the user\\'s {name}')\n")
    return folder


def clean_environment() -> dict[str, str]:
    """This process's environment without what points at the checkout."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ADJOURN_"))}


def sources() -> set[str]:
    """Every file of the package by its path in the wheel."""
    found = {"adjourn/__init__.py", "adjourn/py.typed"}
    for name in LINKED:
        folder = (ROOT / "adjourn" / name).resolve()
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"adjourn/{name}/{path.relative_to(folder)}")
    return found


def test_the_wheel_holds_one_package_whole(built: Path) -> None:
    """Nothing but ``adjourn``, and every module and data file of it."""
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"adjourn"}
    assert names == sources()


def test_the_sdist_builds_the_same_package(built: Path) -> None:
    """It holds real files in place of links, and the licence."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert sources() <= members.keys()
    assert not any(member.issym() or member.islnk() for member in members.values())
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml"} <= members.keys()


def test_the_metadata(built: Path) -> None:
    """Version, licence and description are in the wheel; type checkers see the types."""
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = archive.read(name).decode()
    assert f"\nVersion: {adjourn.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "Typing :: Typed" in metadata
    assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())


def test_the_command_says_its_version(installed: Path, users_folder: Path) -> None:
    """From a folder with a user's own ``policies`` and ``server``."""
    shown = subprocess.run(
        [str(installed / "bin" / "adjourn"), "--version"],
        cwd=users_folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"adjourn {adjourn.__version__}\n"


def test_it_serves_from_a_users_folder(installed: Path, users_folder: Path, standin: str) -> None:
    """A request through the installed gateway is cut by the policy."""
    url = f"http://127.0.0.1:{free_port()}"
    environment = {"PYTHONPATH": "", "PYTHONSAFEPATH": ""}
    command = [
        shutil.which("env") or "env",
        f"--chdir={users_folder}",
        str(installed / "bin" / "adjourn"),
        *("serve", "--upstream", standin, "--port", url.rpartition(":")[2]),
        *("--policy", "deer", "--hold-out", "0"),
    ]
    with start_process(command, f"{url}/ready", timeout=60.0, env=environment):
        body = {"model": "standin", "messages": [{"role": "user", "content": "2+2?"}]}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
    assert reply.status_code == 200
    assert reply.headers["x-adjourn-policy"] == "deer"


EQUALITY = """
import asyncio
from adjourn.policies.evidence.answers import AnswerClasses
from adjourn.server.upstream.equality import EqualityChecker

async def main():
    checker, classes = EqualityChecker(), AnswerClasses()
    try:
        return [await checker.label_answer(classes, a) for a in ("(x+1)^2", "x^2+2x+1", "x^2")]
    finally:
        await checker.aclose()

print(asyncio.run(main()))
"""


def test_answers_equal_by_algebra_are_equal(installed: Path, users_folder: Path) -> None:
    """The helper process that decides it imports the installed package, not the user's folders."""
    script = users_folder / "compare.py"
    script.write_text(EQUALITY)
    shown = subprocess.run(
        [str(installed / "bin" / "python"), "-P", str(script)],
        cwd=users_folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (shown.stdout, shown.returncode) == ("[0, 0, 1]\n", 0), shown.stderr[-2000:]


def test_a_checkout_needs_no_installation(tmp_path: Path) -> None:
    """The links in ``adjourn/`` are relative, so a clone is importable wherever it lies."""
    for folder in ("adjourn", "policies", "server", "benchmarks/lab"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    names = "adjourn.policies.registry", "adjourn.server.app", "adjourn.lab.serialization"
    program = f"import {', '.join(names)}; print(adjourn.lab.serialization.__file__)"
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == str(tmp_path / "adjourn" / "lab" / "serialization.py")
