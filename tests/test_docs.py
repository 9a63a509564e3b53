"""Documents that are made from code stay true to it."""

from __future__ import annotations

from pathlib import Path

from policies.session import TABLE, Input

ROOT = Path(__file__).parent.parent


def test_the_diagram_is_the_table() -> None:
    """Every transition but `end` is drawn, and nothing else."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    block = text.split("```mermaid\n")[1].split("```")[0]
    drawn = {line.strip() for line in block.splitlines() if "-->" in line and "[*]" not in line}
    table = {
        f"{state.value} --> {after.value}: {signal.value}"
        for state, row in TABLE.items()
        for signal, after in row.items()
        if signal is not Input.END
    }
    assert table == drawn
