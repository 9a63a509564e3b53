"""What a client's script is made of: features, each a request and what became of its reply.

Standard library only: it runs in each client's own environment. One JSON line a feature is printed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["KEY", "MODEL", "QUESTION", "URL", "feature", "report"]

URL, MODEL = sys.argv[1], sys.argv[2]
KEY = "none"
QUESTION = "Start with 47. Add 38. Multiply by 3. Subtract 12. Add 59. What is the result?"

_features: list[tuple[str, str, Callable[[], Any]]] = []


def feature(name: str, kind: str = "thinks") -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """``kind``: `thinks`, `plain` where there is no trace to shorten, `error` where one is due."""

    def keep(ask: Callable[[], Any]) -> Callable[[], Any]:
        _features.append((name, kind, ask))
        return ask

    return keep


def report() -> None:
    """Ask everything, or what ``ONLY`` is found in."""
    for name, kind, ask in _features:
        if not re.search(os.environ.get("ONLY", ""), name):
            continue
        line: dict[str, Any] = {"feature": name, "kind": kind}
        try:
            line["reply"] = said(ask())
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            # Its text may hold ids, so only the kind and the status are compared.
            status = getattr(error, "status_code", None)
            line["error"] = {"type": type(error).__name__, "status": status}
        print(json.dumps(line, default=str), flush=True)


def said(reply: Any) -> Any:
    """JSON of what a client made of a reply; all of them make pydantic's models."""
    if hasattr(reply, "model_dump"):
        return reply.model_dump(mode="json", warnings=False)
    match reply:
        case dict():
            return {key: said(value) for key, value in reply.items()}
        case list() | tuple():
            return [said(item) for item in reply]
    return reply
