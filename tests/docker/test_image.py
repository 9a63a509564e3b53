"""The Dockerfile's own steps, carried out without Docker in a clean environment.

The steps are read from the Dockerfile, so they are those that Docker would carry out; only the
base image is a Python of this machine (the same version where there is one), and the paths lie
under a temporary directory.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from adjourn import __version__
from adjourn.server.config import Settings
from benchmarks.services import free_port

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
IGNORED = ROOT / "docker" / "Dockerfile.dockerignore"


@dataclass
class Stage:
    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        return next(rest for name, rest in reversed(self.steps) if name == instruction)


def stages() -> list[Stage]:
    """The Dockerfile, read: no comments, continued lines joined, global arguments put in."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for line in text.replace("\\\n", "").splitlines():
        instruction, _, rest = line.partition(" ")
        if not line.strip():
            continue
        if instruction == "ARG" and not found:
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif instruction == "FROM":
            image, _, name = rest.partition(" AS ")
            for key, value in arguments.items():
                image = image.replace(f"${{{key}}}", value)
            found.append(Stage(name, image))
        else:
            found[-1].steps.append((instruction, rest.strip()))
    return found


def reaches_the_builder(path: str) -> bool:
    """Whether the .dockerignore lets a path of the repository through: the last match decides."""
    kept = True
    for line in IGNORED.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            if any(fnmatch.fnmatch(p, pattern) for p in (path, *path.split("/"))):
                kept = line.startswith("!")
    return kept


class Builder:
    """Carries a build stage's steps out; ``/…`` in the image is ``root/…`` here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cwd = root
        base = root / "usr"  # what python:…-slim brings: an interpreter with pip
        subprocess.run([_python(), "-m", "venv", base], check=True)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("ADJOURN_", "PYTHON"))}
        self.env |= {"PATH": f"{base}/bin:/usr/bin:/bin", "HOME": str(root)}
        if cache := _pip_cache():
            self.env["PIP_CACHE_DIR"] = cache

    def path(self, text: str) -> str:
        """Absolute paths of the image within a text, as paths of this machine."""
        return re.sub(r"(?<![\w./])/(?=(opt|src)\b)", f"{self.root}/", text)

    def carry_out(self, stage: Stage) -> None:
        for instruction, rest in stage.steps:
            getattr(self, f"do_{instruction.lower()}")(rest)

    def do_workdir(self, rest: str) -> None:
        self.cwd = Path(self.path(rest))
        self.cwd.mkdir(parents=True)

    def do_env(self, rest: str) -> None:
        for name, value in (pair.split("=", 1) for pair in shlex.split(rest)):
            if name != "PIP_NO_CACHE_DIR":  # an image must stay small, this test need not
                self.env[name] = self.path(value).replace("$PATH", self.env["PATH"])

    def do_copy(self, rest: str) -> None:
        *sources, target = shlex.split(rest)
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source,
                    self.cwd / target,
                    ignore=lambda folder, names: {
                        name
                        for name in names
                        if not reaches_the_builder(str(Path(folder, name).relative_to(ROOT)))
                    },
                )
            else:
                shutil.copy(ROOT / source, self.cwd / target)

    def do_run(self, rest: str) -> None:
        done = subprocess.run(
            ["sh", "-c", self.path(rest)],
            cwd=self.cwd,
            env=self.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"RUN {rest}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def _python() -> str:
    """The version that the base image has, else the one that runs the tests."""
    version = stages()[0].base.partition(":")[2].removesuffix("-slim")
    name = f"python{version}"
    if shutil.which(name) and not subprocess.run([name, "-V"], capture_output=True).returncode:
        return name
    return sys.executable


def _pip_cache() -> str | None:
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True
    )
    return asked.stdout.strip() or None


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """The build stage, built, and the last stage's environment."""
    build, last = stages()
    builder = Builder(tmp_path_factory.mktemp("image"))
    builder.carry_out(build)
    builder.env["PATH"] = "/usr/bin:/bin"  # the last stage begins anew
    for instruction, rest in last.steps:
        if instruction == "ENV":
            builder.do_env(rest)
    return builder


def test_only_what_is_copied_reaches_the_builder() -> None:
    """Every COPY finds its source; secrets, history and environments stay here."""
    build, _ = stages()
    sources = [s for i, rest in build.steps if i == "COPY" for s in shlex.split(rest)[:-1]]

    assert all((ROOT / source).exists() and reaches_the_builder(source) for source in sources)
    for path in (".git", ".venv", ".engine", "tests", "docker", ".env", "server/__pycache__"):
        assert not reaches_the_builder(path), path


def test_the_last_stage_takes_the_environment_and_runs_nothing_as_root() -> None:
    """One COPY, at the path it was built for; no RUN; a user that is a number and not 0."""
    build, last = stages()
    copied = last.last("COPY").split()

    assert build.base == last.base
    assert copied == [f"--from={build.name}", "/opt/adjourn", "/opt/adjourn"]
    assert "RUN" not in {instruction for instruction, _ in last.steps}
    assert all(int(part) > 0 for part in last.last("USER").split(":"))


def test_the_port_is_the_gateways_own() -> None:
    """EXPOSE names the port that the gateway listens on by default."""
    _, last = stages()

    assert last.last("EXPOSE") == str(Settings.model_fields["port"].default)


def test_the_environment_holds_the_gateway_and_no_installer(image: Builder) -> None:
    """`adjourn --version` works, from the installed package; pip is not there."""
    venv = image.root / "opt" / "adjourn"
    told = subprocess.run(
        ["adjourn", "--version"], env=image.env, cwd="/", capture_output=True, text=True, check=True
    )
    listed = {path.name.partition("-")[0] for path in venv.glob("lib/*/site-packages/*.dist-info")}

    assert told.stdout == f"adjourn {__version__}\n"
    assert "adjourn" in listed
    assert not listed & {"pip", "setuptools", "wheel", "hatchling", "pytest"}
    assert not (venv / "bin" / "pip").exists()


def test_it_serves_and_is_found_healthy(image: Builder) -> None:
    """The image's own command serves; its health check fails before and passes then; its stop
    signal ends it."""
    _, last = stages()
    command = [*json.loads(last.last("ENTRYPOINT")), *json.loads(last.last("CMD"))]
    options, _, check = last.last("HEALTHCHECK").partition("CMD ")
    env = {**image.env, "ADJOURN_PORT": str(free_port()), "ADJOURN_UPSTREAM": "http://127.0.0.1:9"}

    def healthy() -> bool:
        asked = subprocess.run(json.loads(check), env=env, cwd="/", stderr=subprocess.DEVNULL)
        return asked.returncode == 0

    assert "--start-period" in options
    assert command[:2] == ["adjourn", "serve"]
    assert not healthy()
    with started(command, env) as process:
        deadline = time.monotonic() + 30
        while not healthy():
            assert process.poll() is None, "the gateway ended"
            assert time.monotonic() < deadline, "never healthy"
            time.sleep(0.2)
        ready = httpx.get(f"http://127.0.0.1:{env['ADJOURN_PORT']}/ready", trust_env=False)
        assert ready.status_code == 503  # alive, but there is no engine
        process.send_signal(getattr(signal, last.last("STOPSIGNAL")))
        assert process.wait(10) in (0, -signal.SIGTERM)


class started:
    """A process that is ended with the block."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        found = shutil.which(command[0], path=env["PATH"])
        assert found is not None
        self._process = subprocess.Popen(
            [found, *command[1:]], env=env, cwd="/", stdout=subprocess.DEVNULL
        )

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
