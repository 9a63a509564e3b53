"""Parses chat requests with given fields, for the tests of parsing and of policy selection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adjourn.policies.stopping.deer import Deer
from adjourn.server.api.request import ParsedRequest, parse_chat
from adjourn.server.config import Settings

__all__ = ["DEFAULT_POLICY", "MODELS", "USER_MESSAGE", "parse_request"]

DEFAULT_POLICY = Deer(gap=7)
MODELS: Mapping[str, Any] = {"m": None, "qwen3:8b": None}
USER_MESSAGE = {"role": "user", "content": "How many?"}


def parse_request(
    headers: dict[str, str] | None = None,
    settings: Settings | None = None,
    **fields: Any,
) -> ParsedRequest:
    """A chat request with these fields, in addition to a model and a user message."""
    body = json.dumps({"model": "m", "messages": [USER_MESSAGE], **fields}).encode()
    return parse_chat(body, headers or {}, settings or Settings(), DEFAULT_POLICY, MODELS)
