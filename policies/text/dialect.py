"""A *dialect*: how one family of models opens, paces and closes its thinking. Data, not code.

The built-in ones are in ``dialects.toml``; a user's configuration adds to them or overrides them.
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
    """Texts of one family.

    ``start`` and ``end`` are the markers that open a trace and close it, each in all its spellings.
    ``breaks`` end a trace too and belong to what follows: a tool call that the engine's parser
    takes for the end of thinking. ``closing`` is the text that ends a trace as the model itself
    would, as far as the engine's parser lets it be forced; ``header`` is what the model writes
    between it and the answer, which only a probe forces. ``inducers`` draw an answer out of a
    probe, behind both.

    A dialect is told by its ``tokens``, texts that are each one token of the model's vocabulary
    (by default the markers), and by ``models``, patterns (``fnmatch``, lower case) of the names
    that it is meant for: among dialects whose tokens the model has, a match decides. One without
    tokens, whose markers are plain text, is for the models that it names alone.
    ``warnings`` maps a policy's name to what a user of this family should know.
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
        """From configuration. Raises ValueError that names a wrong or missing key."""
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
        """Whether the ``telling`` texts, which have these ids, are each a token of its own."""
        told = {ids[text] for text in self.identifying_texts}
        return len(told) == len(self.identifying_texts) and all(len(token) == 1 for token in told)

    @property
    def texts_to_tokenize(self) -> set[str]:
        """Every text of which ``Marks.of`` needs the ids."""
        markers = (*self.start, *self.end)
        spaced = (f" {marker}" for marker in markers)
        closings = (self.closing, self.closing.removeprefix("\n"), self.header)
        return {*markers, *spaced, *self.breaks, *closings, *self.inducers.values()} - {""}


@dataclass(frozen=True, slots=True)
class TokenizedDialect:
    """A dialect in one model's token ids.

    ``start`` opens a trace, ``end`` closes it. ``closing`` follows a trace whose text ends in the
    middle of a line, ``closing_on_newline`` one that has just ended a line (a second newline there
    is not what the model would write); a probe puts ``header`` behind it. ``inducers`` by name.
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
        """``ids``: what each of the dialect's ``texts`` is in the model's vocabulary."""
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
    """The dialects that come with the project, in the order in which they are tried."""
    data = tomllib.loads(
        files("adjourn.policies.text").joinpath("dialects.toml").read_text("utf-8")
    )
    shared = data.pop("shared")
    return {name: Dialect.load(name, {**shared, **values}) for name, values in data.items()}


def candidate_dialects(
    model: str, dialects: Mapping[str, Dialect], forced: str | None = None
) -> Iterator[Dialect]:
    """The dialects that a model of this name may speak, those that name it first; the first that
    is ``spoken`` is the model's. ``forced`` names the only one."""
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
    """``dialects`` with a user's changes: keys of a known dialect replaced, new ones first."""
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
    # Where a break is several tokens, it is plain text: no parser waits for it.
    markers = {ids[text]: MarkerKind.BREAK for text in dialect.breaks if len(ids[text]) == 1}
    for mark, texts in ((MarkerKind.START, dialect.start), (MarkerKind.END, dialect.end)):
        for text in texts:
            markers[marker := ids[text]] = mark
            # Plain text is other tokens behind a space.
            if (spaced := ids[f" {text}"])[-len(marker) :] != marker:
                markers[spaced] = mark
    return markers


def _parse_value(key: str, value: Any) -> Any:
    """One key as it is kept. Raises ValueError where it is something else."""
    if (key == "header" and value == "") or (key == "tokens" and value is None):
        return value  # as where it is not given
    if key in ("closing", "header"):
        if not _is_text(value):
            raise ValueError(f"{key} must be a text that is not empty")
        return value
    if key in ("inducers", "warnings"):
        if not isinstance(value, Mapping) or not all(map(_is_text, value.values())):
            raise ValueError(f"{key} must map names to texts")
        return value
    if key in ("start", "end") and _is_text(value):
        return (value,)
    if not isinstance(value, list | tuple) or not all(map(_is_text, value)):
        raise ValueError(f"{key} must be a list of texts, none empty")
    return tuple(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _shared_fields(dialect: Dialect) -> dict[str, Any]:
    """What a new dialect takes from the first known one: nothing that is that family's alone."""
    keys = ("start", "end", "closing", "cues", "inducers")
    return {key: getattr(dialect, key) for key in keys}


def _fields(dialect: Dialect) -> dict[str, Any]:
    return {name: getattr(dialect, name) for name in Dialect.__dataclass_fields__ if name != "name"}
