"""A *dialect*: how one family of models opens, paces and closes its reasoning. Data, not code.

``dialects.toml`` has the built-in ones; a user's configuration adds to them or overrides them.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from adjourn.policies.text.markers import MarkerKind, MarkerMatcher, TokenIds

__all__ = [
    "Dialect",
    "TokenizedDialect",
    "builtin_dialects",
    "candidate_dialects",
    "override_dialects",
]


@dataclass(frozen=True, slots=True)
class Dialect:
    """The texts of one model family.

    - ``start``, ``end``: the markers that open and close a trace, each in all its spellings.
    - ``breaks``: markers that end a trace and belong to what follows, e.g. the start of a tool
      call, which the engine's parser takes for the end of the reasoning.
    - ``closing``: the closing sequence, as the model would write it and the engine's parser allows
      it to be forced. ``header``: what the model writes between it and the answer; only probes
      force it. ``inducers``: texts that a probe appends to both to get an answer, by name.
    - ``tokens``: the dialect fits a model only if each of these texts is one token of its
      vocabulary; the markers by default. ``models``: ``fnmatch`` patterns of model names in lower
      case; among the dialects that fit, one that names the model is preferred. A dialect without
      tokens, whose markers are plain text, is used only for the models that it names.
    - ``warnings``: what users of this family should know about a policy, by the policy's name.
    """

    name: str
    start: tuple[str, ...]
    end: tuple[str, ...]
    closing: str
    cues: tuple[str, ...]
    inducers: Mapping[str, str]
    header: str = ""
    breaks: tuple[str, ...] = ()
    tokens: tuple[str, ...] | None = None
    models: tuple[str, ...] = ()
    warnings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str, data: Mapping[str, Any]) -> Dialect:
        """Read a dialect from configuration. Raises ValueError, which names the wrong key."""
        try:
            dialect = cls(name=name, **{key: _parse_value(key, data[key]) for key in data})
        except (TypeError, ValueError) as error:
            raise ValueError(f"dialect {name!r}: {error}") from None
        if not dialect.start or not dialect.end:
            raise ValueError(f"dialect {name!r}: start and end must not be empty")
        if not any(marker in dialect.closing + dialect.header for marker in dialect.end):
            raise ValueError(f"dialect {name!r}: the closing text must contain {dialect.end[0]!r}")
        return dialect

    @property
    def identifying_texts(self) -> tuple[str, ...]:
        """The texts that must each be one token of a model's vocabulary."""
        return (*self.start, *self.end) if self.tokens is None else self.tokens

    def fits_vocabulary(self, ids: Mapping[str, TokenIds]) -> bool:
        """Whether each of ``identifying_texts``, whose ids these are, is one token of its own."""
        tokens = {ids[text] for text in self.identifying_texts}
        is_distinct = len(tokens) == len(self.identifying_texts)
        return is_distinct and all(len(token) == 1 for token in tokens)

    @property
    def texts_to_tokenize(self) -> set[str]:
        """Every text whose ids ``TokenizedDialect.from_ids`` needs."""
        markers = (*self.start, *self.end)
        spaced = (f" {marker}" for marker in markers)
        closings = (self.closing, self.closing.removeprefix("\n"), self.header)
        return {*markers, *spaced, *self.breaks, *closings, *self.inducers.values()} - {""}


@dataclass(frozen=True, slots=True)
class TokenizedDialect:
    """A dialect in one model's token ids.

    ``start`` and ``end``: the first spelling of each marker. ``closing`` follows a trace that ends
    within a line, ``closing_on_newline`` one that ends with a newline: the model would not write a
    second one there. ``header`` and ``inducers`` as in ``Dialect``.
    """

    definition: Dialect
    matcher: MarkerMatcher
    start: TokenIds
    end: TokenIds
    closing: TokenIds
    closing_on_newline: TokenIds
    inducers: Mapping[str, TokenIds]
    header: TokenIds = ()

    @classmethod
    def from_ids(cls, dialect: Dialect, ids: Mapping[str, TokenIds]) -> TokenizedDialect:
        """``ids``: the token ids of each of the dialect's ``texts_to_tokenize``."""
        return cls(
            definition=dialect,
            matcher=MarkerMatcher(_marker_kinds(dialect, ids)),
            start=ids[dialect.start[0]],
            end=ids[dialect.end[0]],
            closing=ids[dialect.closing],
            closing_on_newline=ids[dialect.closing.removeprefix("\n")],
            inducers={name: ids[text] for name, text in dialect.inducers.items()},
            header=ids.get(dialect.header, ()),
        )


def builtin_dialects() -> dict[str, Dialect]:
    """The dialects of ``dialects.toml``, in the order in which they are tried."""
    data = tomllib.loads(
        files("adjourn.policies.text").joinpath("dialects.toml").read_text("utf-8")
    )
    shared = data.pop("shared")
    return {name: Dialect.load(name, {**shared, **values}) for name, values in data.items()}


def candidate_dialects(
    model: str, dialects: Mapping[str, Dialect], forced: str | None = None
) -> Iterator[Dialect]:
    """The dialects to try for a model of this name, those that name it first.

    The first that ``fits_vocabulary`` is the model's. ``forced`` names the only one to try.
    """
    if forced:
        yield dialects[forced]
        return
    name, others = model.lower(), []
    for dialect in dialects.values():
        if any(fnmatch.fnmatch(name, pattern) for pattern in dialect.models):
            yield dialect
        elif dialect.identifying_texts:
            others.append(dialect)
    yield from others


def override_dialects(
    dialects: Mapping[str, Dialect], changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Dialect]:
    """``dialects`` with a user's changes: known dialects get new values, new ones come first."""
    new, known = {}, dict(dialects)
    for name, values in changes.items():
        if name in known:
            known[name] = Dialect.load(name, {**_fields(known[name]), **values})
        else:
            new[name] = Dialect.load(
                name, {**_shared_fields(next(iter(dialects.values()))), **values}
            )
    return new | known


def _marker_kinds(dialect: Dialect, ids: Mapping[str, TokenIds]) -> dict[TokenIds, MarkerKind]:
    # A break of several tokens is plain text, which no parser takes for a break.
    markers = {ids[text]: MarkerKind.BREAK for text in dialect.breaks if len(ids[text]) == 1}
    for kind, texts in ((MarkerKind.START, dialect.start), (MarkerKind.END, dialect.end)):
        for text in texts:
            markers[marker := ids[text]] = kind
            # A marker of plain text has other tokens after a space.
            if (spaced := ids[f" {text}"])[-len(marker) :] != marker:
                markers[spaced] = kind
    return markers


def _parse_value(key: str, value: Any) -> Any:
    """The value of one key. Raises ValueError if it has the wrong type or is empty."""
    if (key == "header" and value == "") or (key == "tokens" and value is None):
        return value  # as if it were not given
    if key in ("closing", "header"):
        if not _is_text(value):
            raise ValueError(f"{key} must be a non-empty string")
        return value
    if key in ("inducers", "warnings"):
        if not isinstance(value, Mapping) or not all(map(_is_text, value.values())):
            raise ValueError(f"{key} must map names to non-empty strings")
        return value
    if key in ("start", "end") and _is_text(value):
        return (value,)
    if not isinstance(value, list | tuple) or not all(map(_is_text, value)):
        raise ValueError(f"{key} must be a list of non-empty strings")
    return tuple(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _shared_fields(dialect: Dialect) -> dict[str, Any]:
    """What a new dialect takes from the first built-in one: what is not specific to a family."""
    keys = ("start", "end", "closing", "cues", "inducers")
    return {key: getattr(dialect, key) for key in keys}


def _fields(dialect: Dialect) -> dict[str, Any]:
    return {name: getattr(dialect, name) for name in Dialect.__dataclass_fields__ if name != "name"}
