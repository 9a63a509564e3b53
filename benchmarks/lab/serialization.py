"""Serialize the dataclasses of ``adjourn.policies`` as JSON values, and read them back.

A dataclass is an object of its fields with its class name in ``type``, so a new kind of probe,
checkpoint or result needs no code here.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from adjourn.policies import events, policy
from adjourn.policies.evidence import hidden_states
from adjourn.policies.text import dialect
from adjourn.policies.text.markers import MarkerKind, MarkerMatcher

__all__ = ["BadValue", "from_json_value", "to_json_value"]


class BadValue(ValueError):
    """A document with an unknown class or field; the message names it."""


def _dataclasses_in(*modules: ModuleType) -> dict[str, type]:
    return {
        name: kind
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type) and is_dataclass(kind)
    }


_KNOWN_CLASSES = _dataclasses_in(events, dialect, hidden_states, policy)


def to_json_value(value: Any) -> Any:
    """``value`` in types that JSON has."""
    if is_dataclass(value):
        parts = {field.name: to_json_value(getattr(value, field.name)) for field in fields(value)}
        return {"type": type(value).__name__, **parts}
    if isinstance(value, MarkerMatcher):
        return {"markers": [[list(ids), kind.value] for ids, kind in value.markers.items()]}
    if isinstance(value, Mapping):
        return {key: to_json_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(part) for part in value]
    if isinstance(value, frozenset):
        return {"set": sorted(value)}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    return value


def from_json_value(document: Any) -> Any:
    """The value that ``to_json_value`` serialized; missing fields get their defaults. Raises
    BadValue."""
    if isinstance(document, list):
        return tuple(map(from_json_value, document))
    if not isinstance(document, dict):
        return document
    parts = {key: from_json_value(part) for key, part in document.items()}
    if parts.keys() == {"set"}:
        return frozenset(parts["set"])
    if parts.keys() == {"bytes"}:
        return base64.b64decode(parts["bytes"])
    if parts.keys() == {"markers"}:
        return MarkerMatcher({ids: MarkerKind(kind) for ids, kind in parts["markers"]})
    if "type" not in parts:
        return parts
    value_class = _KNOWN_CLASSES.get(name := str(parts.pop("type")))
    if value_class is None:
        raise BadValue(f"this version of adjourn has no class {name!r}")
    try:
        return value_class(**parts)
    except TypeError as error:
        raise BadValue(f"{name}: {error}") from None
