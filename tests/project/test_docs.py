"""Documents that are made from code stay true to it."""

from __future__ import annotations

from pathlib import Path

from adjourn.policies.session.states import TRANSITIONS, Input
from adjourn.policies.text.dialect import builtin_dialects

ROOT = Path(__file__).parents[2]


def test_the_diagram_is_the_table() -> None:
    """Every transition but `end` is drawn, and nothing else."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    block = text.split("```mermaid\n")[1].split("```")[0]
    drawn = {line.strip() for line in block.splitlines() if "-->" in line and "[*]" not in line}
    table = {
        f"{state.value} --> {after.value}: {signal.value}"
        for state, row in TRANSITIONS.items()
        for signal, after in row.items()
        if signal is not Input.END
    }
    assert table == drawn


def test_every_dialect_is_in_the_table() -> None:
    """In the order in which they are tried, each with the closing text that it has."""
    text = (ROOT / "docs" / "dialects.md").read_text().replace("\\|", "|")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(builtin_dialects())
    for row, dialect in zip(rows, builtin_dialects().values(), strict=True):
        closing = dialect.closing.replace("\n", "\\n")
        assert f"`{closing}`" in row
        assert all(f"`{marker}`" in row for marker in dialect.breaks[:1])
