"""Serve a tiny model with a real vLLM and its family's parser."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.services import ROOT, free_port, start_vllm
from tests.engine.tiny_model import QWEN3_VARIANTS, SERVED_FAMILIES

__all__ = ["serve_tiny_model"]


@contextlib.contextmanager
def serve_tiny_model(name: str, folder: Path, *arguments: str) -> Iterator[str]:
    """Build the tiny model ``name`` in ``folder`` and serve it as ``NAME-tiny``. Gives the base
    URL."""
    python = ROOT / ".engine" / "bin" / "python"
    command = [str(python), "-m", "tests.engine.tiny_model", name, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    options = (
        f"--served-model-name={name}-tiny",
        "--max-model-len=1024",
        "--dtype=float32",
        "--enforce-eager",
        "--block-size=32",
        f"--reasoning-parser={({**SERVED_FAMILIES, **QWEN3_VARIANTS})[name].parser}",
    )
    with start_vllm(free_port(), folder, *options, *arguments) as url:
        yield url
