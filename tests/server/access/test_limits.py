"""Limits of the process and of what clients may use."""

from __future__ import annotations

import resource

import pytest

from adjourn.server.access.limits import raise_open_files


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "expected"),
    [
        (1024, 4096, 2048, 2048),
        (1024, 4096, 65536, 4096),
        (1024, resource.RLIM_INFINITY, 65536, 65536),
        (4096, 4096, 1024, 4096),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1024, resource.RLIM_INFINITY),
    ],
)
def test_the_limit_of_open_files_is_raised_never_lowered(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, expected: int
) -> None:
    """As far as the hard limit allows."""
    in_force = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: in_force[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: in_force.append(both))
    assert raise_open_files(wanted) == expected
    assert in_force[-1] == (expected, hard)
