"""The settings of the group ``limits``, and the limits of the process."""

from __future__ import annotations

import resource

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LimitSettings", "raise_open_files"]


class LimitSettings(BaseModel):
    """What one client or all clients together may use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    open_files: int = Field(
        65536,
        ge=64,
        description="Open files and connections of the process, raised at start as far as the "
        "system allows.",
    )


def raise_open_files(wanted: int) -> int:
    """Raise the soft limit of open files to ``wanted``, at most to the hard limit; never lower it.

    Returns the soft limit in force.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < reachable:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
        return reachable
    return soft
