"""Hidden states of one token, after some of the model's layers."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["HiddenStates", "Layer"]

_BYTES_PER_VALUE = 2


class Layer(NamedTuple):
    """The ``number``-th layer, counted from 1; its output has ``width`` numbers."""

    number: int
    width: int


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """The states of one token.

    ``data``: ``width`` numbers for each of ``layers``, concatenated, as little-endian bfloat16,
    which needs half the bytes of float32 and has its range. Raises ValueError if the length of
    ``data`` does not fit.
    """

    layers: tuple[int, ...]
    width: int
    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) != _BYTES_PER_VALUE * self.width * len(self.layers):
            raise ValueError("hidden states: the data does not have the stated width")

    def at_layers(self, layers: Iterable[int]) -> Sequence[float]:
        """The states after these layers, concatenated. Raises ValueError if one is missing."""
        size = _BYTES_PER_VALUE * self.width
        places = [self.layers.index(layer) * size for layer in layers]
        low = b"".join(self.data[place : place + size] for place in places)
        # A bfloat16 is the upper half of a float32.
        wide = bytearray(2 * len(low))
        wide[2::4], wide[3::4] = low[0::2], low[1::2]
        return _to_floats(bytes(wide))


def _to_floats(data: bytes) -> Sequence[float]:
    read = array("f")
    read.frombytes(data)
    if _BIG_ENDIAN:
        read.byteswap()
    return read


_BIG_ENDIAN = array("H", [1]).tobytes() == b"\x00\x01"
