"""Prometheus and promtool: from the PATH or, without installing it, from Debian's package."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNPACKED = Path(__file__).parents[2] / ".tools" / "prometheus"


@pytest.fixture(scope="session")
def prometheus() -> str:
    """The path of Prometheus."""
    return _program("prometheus")


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool."""
    return _program("promtool")


def _program(name: str) -> str:
    """Unpacked only, because installing the package would leave a service running on the
    machine."""
    unpacked = UNPACKED / "usr" / "bin" / name
    reason = ""
    if (found := shutil.which(name)) is None and not unpacked.exists():
        reason = _unpack()
    if found is None and not unpacked.exists():
        pytest.fail(
            f"{name} is missing, and Debian's package failed to download ({reason}): get it from "
            "https://prometheus.io/download and put it on the PATH"
        )
    return found or str(unpacked)


def _unpack() -> str:
    """Download Debian's package and unpack it. Returns the error output, empty on success."""
    if shutil.which("apt-get") is None:
        return "apt-get is not installed"
    UNPACKED.mkdir(parents=True, exist_ok=True)
    download = "apt-get download -qq prometheus"
    steps = f"({download} || {{ apt-get update -qq && {download}; }}) && dpkg-deb -x *.deb ."
    done = subprocess.run(["sh", "-c", steps], cwd=UNPACKED, capture_output=True, text=True)
    for package in UNPACKED.glob("*.deb"):
        package.unlink()
    return done.stderr.strip()
