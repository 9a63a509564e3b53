"""Prometheus, from the machine or, unpacked beside the project's other tools, from Debian."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNPACKED = Path(__file__).parents[2] / ".tools" / "prometheus"


@pytest.fixture(scope="session")
def prometheus() -> str:
    return _program("prometheus")


@pytest.fixture(scope="session")
def promtool() -> str:
    return _program("promtool")


def _program(name: str) -> str:
    """Nothing is installed on the machine: a package would leave a service running there."""
    unpacked = UNPACKED / "usr" / "bin" / name
    complaint = ""
    if (found := shutil.which(name)) is None and not unpacked.exists():
        complaint = _unpack()
    if found is None and not unpacked.exists():
        pytest.fail(
            f"{name} is missing, and Debian's package could not be had ({complaint}): get it from "
            "https://prometheus.io/download and put it on the PATH"
        )
    return found or str(unpacked)


def _unpack() -> str:
    """Download Debian's package and unpack it. What went wrong, if anything did."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get"
    UNPACKED.mkdir(parents=True, exist_ok=True)
    download = "apt-get download -qq prometheus"
    steps = f"({download} || {{ apt-get update -qq && {download}; }}) && dpkg-deb -x *.deb ."
    done = subprocess.run(["sh", "-c", steps], cwd=UNPACKED, capture_output=True, text=True)
    for package in UNPACKED.glob("*.deb"):
        package.unlink()
    return done.stderr.strip()
