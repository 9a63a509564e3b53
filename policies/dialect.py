"""A *dialect*: how one family of models opens, paces and closes its thinking. Data, not code.

The built-in ones are in ``dialects.toml``; a user's configuration adds to them or overrides them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

__all__ = ["Dialect", "Marks", "builtin", "override"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """Texts of one family.

    ``start`` and ``end`` are the markers, each one token of the model's vocabulary. ``closing``
    is the text that ends a trace as the model itself would; ``inducers`` draw an answer out of a
    probe, behind the closing text. ``models`` are patterns (``fnmatch``, lower case) of the names
    that this dialect is meant for; among dialects whose markers the model has, a match decides.
    ``warnings`` maps a policy's name to what a user of this family should know.
    """

    name: str
    start: str
    end: str
    closing: str
    cues: tuple[str, ...]
    inducers: Mapping[str, str]
    models: tuple[str, ...] = ()
    warnings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str, data: Mapping[str, Any]) -> Dialect:
        """From configuration. Raises ValueError that names a wrong or missing key."""
        values = dict(data)
        for key in ("cues", "models"):
            if key in values and not isinstance(values[key], list | tuple):
                raise ValueError(f"dialect {name!r}: {key} must be a list of texts, none empty")
            if key in values:
                values[key] = tuple(values[key])
        try:
            dialect = cls(name=name, **values)
        except TypeError as error:
            raise ValueError(f"dialect {name!r}: {error}") from None
        for key in ("start", "end", "closing"):
            if not _is_text(getattr(dialect, key)):
                raise ValueError(f"dialect {name!r}: {key} must be a text that is not empty")
        for key in ("cues", "models"):
            if not all(map(_is_text, getattr(dialect, key))):
                raise ValueError(f"dialect {name!r}: {key} must be a list of texts, none empty")
        for key in ("inducers", "warnings"):
            texts = getattr(dialect, key)
            if not isinstance(texts, Mapping) or not all(map(_is_text, texts.values())):
                raise ValueError(f"dialect {name!r}: {key} must map names to texts")
        if dialect.end not in dialect.closing:
            raise ValueError(f"dialect {name!r}: the closing text must contain {dialect.end!r}")
        return dialect


@dataclass(frozen=True, slots=True)
class Marks:
    """A dialect in one model's token ids.

    ``closing`` follows a trace whose text ends in the middle of a line, ``closing_on_newline`` one
    that has just ended a line (a second newline there is not what the model would write).
    ``inducers`` by name.
    """

    dialect: Dialect
    start: int
    end: int
    closing: tuple[int, ...]
    closing_on_newline: tuple[int, ...]
    inducers: Mapping[str, tuple[int, ...]]


def builtin() -> dict[str, Dialect]:
    """The dialects that come with the project, in the order in which they are tried."""
    data = tomllib.loads(files("policies").joinpath("dialects.toml").read_text("utf-8"))
    shared = data.pop("shared")
    return {name: Dialect.load(name, {**shared, **values}) for name, values in data.items()}


def override(
    dialects: Mapping[str, Dialect], changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Dialect]:
    """``dialects`` with a user's changes: keys of a known dialect replaced, new ones first."""
    new, known = {}, dict(dialects)
    for name, values in changes.items():
        if name in known:
            known[name] = Dialect.load(name, {**_fields(known[name]), **values})
        else:
            # Models and warnings are the first family's own.
            base = {**_fields(next(iter(dialects.values()))), "models": (), "warnings": {}}
            new[name] = Dialect.load(name, {**base, **values})
    return new | known


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _fields(dialect: Dialect) -> dict[str, Any]:
    return {name: getattr(dialect, name) for name in Dialect.__dataclass_fields__ if name != "name"}
