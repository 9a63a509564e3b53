"""Expansion of policy grids."""

from __future__ import annotations

import pytest

from adjourn.lab.grid import expand
from adjourn.policies.registry import BadPolicy


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("never", ["never"]),
        ("deer(gap={1,20})", ["deer(gap=1)", "deer(gap=20)"]),
        ("{deer,never}", ["deer", "never"]),
        ("convergence(window=2..4)", [f"convergence(window={n})" for n in (2, 3, 4)]),
        ("deer(threshold=0.9..0.9)", ["deer(threshold=0.9)"]),
        (
            "any_of(deer(threshold={.9,.95}), budget(max={5,6}))",
            [
                f"any_of(deer(threshold={t}), budget(max={b}))"
                for t in (".9", ".95")
                for b in (5, 6)
            ],
        ),
        ("budget(max={10,20..22})", [f"budget(max={n})" for n in (10, 20, 21, 22)]),
    ],
)
def test_a_grid_expands_to_all_combinations(line: str, expected: list[str]) -> None:
    """Of alternatives and ranges, in the order of the grid."""
    assert expected == expand(line)


def test_a_range_has_at_most_ten_numbers() -> None:
    """Evenly spaced, including both ends, without trailing zeros."""
    assert expand("deer(threshold=0.9..0.99)") == [
        f"deer(threshold=0.9{n or ''})" for n in range(10)
    ]
    wide = expand("budget(max=100..1000)")
    assert len(wide) == 10
    assert (wide[0], wide[-1]) == ("budget(max=100)", "budget(max=1000)")


@pytest.mark.parametrize("line", ["deer(threshold=0.9..0.1)", "deer(a={1,2,3,4}" + ",b=0..9" * 5])
def test_a_bad_grid_is_refused(line: str) -> None:
    """A descending range, and more than MAX_POLICIES policies."""
    with pytest.raises(BadPolicy):
        expand(line)
