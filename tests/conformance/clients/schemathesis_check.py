"""What schemathesis_fuzz.py adds to schemathesis: a check, and bodies that get in at the door."""

from __future__ import annotations

import os
from typing import Any

import schemathesis

__all__ = ["map_body", "no_5xx_of_our_own"]


@schemathesis.hook
def map_body(context: object, body: Any) -> Any:
    """The served model, or a policy never sees it; few tokens where none were asked for."""
    if isinstance(body, dict):
        body |= {"model": os.environ["MODEL"]} if isinstance(body.get("model"), str) else {}
        limit = "max_output_tokens" if "input" in body else "max_tokens"
        body.setdefault(limit, 64)
    return body


@schemathesis.check
def no_5xx_of_our_own(
    context: object, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """The engine answers the same request with a 5xx, too."""
    if response.status_code < 500:
        return
    direct = case.call(base_url=os.environ["DIRECT"])
    assert direct.status_code >= 500, (
        f"{response.status_code} from the gateway, {direct.status_code} from the engine"
    )
