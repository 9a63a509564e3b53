"""Build the image's environment without Docker, from the steps of the Dockerfile, and run it.

Two things differ from Docker: the base image is a Python of this machine (of the same version if
installed), and all paths are below a temporary directory.
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
    """One build stage: its name, base image, and (instruction, arguments) pairs in order."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        """The arguments of the last such instruction."""
        return next(rest for name, rest in reversed(self.steps) if name == instruction)


def parse_stages() -> list[Stage]:
    """Parse the Dockerfile: drop comments, join continued lines, substitute global arguments."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    parsed: list[Stage] = []
    for line in text.replace("\\\n", "").splitlines():
        instruction, _, rest = line.partition(" ")
        if not line.strip():
            continue
        if instruction == "ARG" and not parsed:
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif instruction == "FROM":
            image, _, name = rest.partition(" AS ")
            for key, value in arguments.items():
                image = image.replace(f"${{{key}}}", value)
            parsed.append(Stage(name, image))
        else:
            parsed[-1].steps.append((instruction, rest.strip()))
    return parsed


def is_in_build_context(path: str) -> bool:
    """True if the .dockerignore lets this path through. The last matching line decides."""
    included = True
    for line in IGNORED.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            if any(fnmatch.fnmatch(p, pattern) for p in (path, *path.split("/"))):
                included = line.startswith("!")
    return included


class Builder:
    """Executes the steps of a build stage. An image path ``/…`` is ``root/…`` here. State: ``cwd``
    and ``env``, changed by WORKDIR and ENV as in Docker."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cwd = root
        base = root / "usr"  # in place of python:…-slim: an interpreter with pip
        subprocess.run([_python(), "-m", "venv", base], check=True)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("ADJOURN_", "PYTHON"))}
        self.env |= {"PATH": f"{base}/bin:/usr/bin:/bin", "HOME": str(root)}
        if cache := _pip_cache():
            self.env["PIP_CACHE_DIR"] = cache

    def path(self, text: str) -> str:
        """Replace absolute image paths within a text by paths of this machine."""
        return re.sub(r"(?<![\w./])/(?=(opt|src)\b)", f"{self.root}/", text)

    def build(self, stage: Stage) -> None:
        """Execute every step of the stage."""
        for instruction, rest in stage.steps:
            getattr(self, f"do_{instruction.lower()}")(rest)

    def do_workdir(self, rest: str) -> None:
        self.cwd = Path(self.path(rest))
        self.cwd.mkdir(parents=True)

    def do_env(self, rest: str) -> None:
        for name, value in (pair.split("=", 1) for pair in shlex.split(rest)):
            if name != "PIP_NO_CACHE_DIR":  # the image must stay small, the test should be fast
                self.env[name] = self.path(value).replace("$PATH", self.env["PATH"])

    def do_copy(self, rest: str) -> None:
        *sources, target = shlex.split(rest)
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source,
                    self.cwd / target,
                    symlinks=True,  # Docker keeps links within a copied folder
                    ignore=lambda folder, names: {
                        name
                        for name in names
                        if not is_in_build_context(str(Path(folder, name).relative_to(ROOT)))
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
    """The interpreter of the base image's version if installed, else the one that runs the
    tests."""
    version = parse_stages()[0].base.partition(":")[2].removesuffix("-slim")
    name = f"python{version}"
    if shutil.which(name) and not subprocess.run([name, "-V"], capture_output=True).returncode:
        return name
    return sys.executable


def _pip_cache() -> str | None:
    """pip's cache directory, or None if pip is not available."""
    process = subprocess.run(
        [sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True
    )
    return process.stdout.strip() or None


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """The build stage, executed, and the environment variables of the last stage."""
    build, last = parse_stages()
    builder = Builder(tmp_path_factory.mktemp("image"))
    builder.build(build)
    builder.env["PATH"] = "/usr/bin:/bin"  # the last stage starts from its own base image
    for instruction, rest in last.steps:
        if instruction == "ENV":
            builder.do_env(rest)
    return builder


def test_the_build_context_has_the_copied_files_only() -> None:
    """Every COPY source exists and is included; secrets, history and environments are excluded."""
    build, _ = parse_stages()
    sources = [s for i, rest in build.steps if i == "COPY" for s in shlex.split(rest)[:-1]]

    assert all((ROOT / source).exists() and is_in_build_context(source) for source in sources)
    for path in (".git", ".venv", ".engine", "tests", "docker", ".env", "server/__pycache__"):
        assert not is_in_build_context(path), path


def test_the_last_stage_copies_the_environment_and_is_not_root() -> None:
    """One COPY, to the path it was built for; no RUN; a numeric user other than 0."""
    build, last = parse_stages()
    copied = last.last("COPY").split()

    assert build.base == last.base
    assert copied == [f"--from={build.name}", "/opt/adjourn", "/opt/adjourn"]
    assert "RUN" not in {instruction for instruction, _ in last.steps}
    assert all(int(part) > 0 for part in last.last("USER").split(":"))


def test_the_exposed_port_is_the_gateways_default() -> None:
    """EXPOSE names the default of the setting ``port``."""
    _, last = parse_stages()

    assert last.last("EXPOSE") == str(Settings.model_fields["port"].default)


def test_the_environment_holds_the_gateway_and_no_installer(image: Builder) -> None:
    """`adjourn --version` runs from the installed package; pip is not installed."""
    venv = image.root / "opt" / "adjourn"
    version = subprocess.run(
        ["adjourn", "--version"], env=image.env, cwd="/", capture_output=True, text=True, check=True
    )
    distributions = {
        path.name.partition("-")[0] for path in venv.glob("lib/*/site-packages/*.dist-info")
    }

    assert version.stdout == f"adjourn {__version__}\n"
    assert "adjourn" in distributions
    assert not distributions & {"pip", "setuptools", "wheel", "hatchling", "pytest"}
    assert not (venv / "bin" / "pip").exists()


def test_the_image_serves_and_passes_its_health_check(image: Builder) -> None:
    """The image's command starts the gateway; its health check fails before and passes after; its
    stop signal ends the process."""
    _, last = parse_stages()
    command = [*json.loads(last.last("ENTRYPOINT")), *json.loads(last.last("CMD"))]
    options, _, check = last.last("HEALTHCHECK").partition("CMD ")
    env = {**image.env, "ADJOURN_PORT": str(free_port()), "ADJOURN_UPSTREAM": "http://127.0.0.1:9"}

    def is_healthy() -> bool:
        process = subprocess.run(json.loads(check), env=env, cwd="/", stderr=subprocess.DEVNULL)
        return process.returncode == 0

    assert "--start-period" in options
    assert command[:2] == ["adjourn", "serve"]
    assert not is_healthy()
    with running_process(command, env) as process:
        deadline = time.monotonic() + 30
        while not is_healthy():
            assert process.poll() is None, "the gateway exited"
            assert time.monotonic() < deadline, "the health check did not pass within 30 seconds"
            time.sleep(0.2)
        ready = httpx.get(f"http://127.0.0.1:{env['ADJOURN_PORT']}/ready", trust_env=False)
        assert ready.status_code == 503  # alive, but without an engine
        process.send_signal(getattr(signal, last.last("STOPSIGNAL")))
        assert process.wait(10) in (0, -signal.SIGTERM)


class running_process:
    """Context manager: a process that is killed at the end of the block."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        program = shutil.which(command[0], path=env["PATH"])
        assert program is not None
        self._process = subprocess.Popen(
            [program, *command[1:]], env=env, cwd="/", stdout=subprocess.DEVNULL
        )

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
