"""Embedding vectors as the log stores them: normalised, as half-precision floats."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

__all__ = ["pack_vector", "unpack_vector"]

_FLOAT16_BYTES = 2
"""Bytes of a component. The cosine of two such vectors is accurate to three digits."""


def pack_vector(vector: Sequence[float]) -> bytes:
    """The vector divided by its largest absolute component, as little-endian half-precision
    floats; empty for a vector without a direction."""
    largest = max(map(abs, vector), default=0.0)
    if not 0.0 < largest < math.inf:
        return b""
    return struct.pack(f"<{len(vector)}e", *(x / largest for x in vector))


def unpack_vector(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // _FLOAT16_BYTES}e", data)
