"""Read what a request asks for: the few fields that matter here, and which policy is to judge it.

Everything else stays as the bytes that the client wrote, and goes on to the engine as such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Raw

from policies.policy import Policy
from policies.registry import LONGEST, BadPolicy, parse
from server.config import Settings
from server.errors import BadRequest

__all__ = ["ChatRequest", "read_chat"]

_cached_parse = lru_cache(maxsize=256)(parse)


@dataclass(slots=True)
class ChatRequest:
    """A chat request. ``fields`` are its top-level values as they came, less ``adjourn``.

    ``policy`` is None where it is off. ``explicit``: the client chose it, and so is told what
    was done even where nothing was. ``untouchable`` names why no policy may act on it.
    """

    fields: dict[str, Raw]
    model: str
    stream: bool
    policy: Policy | None
    explicit: bool
    untouchable: str | None
    conversation: str
    include_usage: bool
    include_reasoning: bool
    return_token_ids: bool
    limit: int | None

    @property
    def silence(self) -> str | None:
        """vLLM's word for no content in a whole reply: "" beside a tool that had to be called."""
        asked = bytes(self.fields.get("tool_choice", b"null"))
        return None if asked in (b"null", b'"auto"', b'"none"') else ""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Message(msgspec.Struct):
    role: str
    content: Any = None


class _Known(msgspec.Struct):
    """The fields that are read, with their types. A wrong one is the client's error."""

    messages: list[_Message]
    model: str | None = None
    stream: bool | None = None
    n: int | float | None = None
    max_tokens: int | float | None = None
    max_completion_tokens: int | float | None = None
    stream_options: _StreamOptions | None = None
    include_reasoning: bool | None = None
    return_token_ids: bool | None = None
    echo: bool | None = None
    use_beam_search: bool | None = None
    kv_transfer_params: dict[str, Any] | None = None
    adjourn: dict[str, Any] | None = None


_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_known = msgspec.json.Decoder(_Known).decode


def read_chat(
    body: bytes,
    headers: Mapping[str, str],
    settings: Settings,
    default: Policy | None,
    models: Mapping[str, Any],
) -> ChatRequest:
    """``models``: ids that the engine serves, to tell an alias from a name with a colon.

    Raises BadRequest.
    """
    try:
        fields = _decode_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not a JSON object: {error}") from None
    try:
        known = _decode_known(body)
    except (UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body cannot be read: {error}") from None
    except msgspec.DecodeError as error:
        message, _, path = str(error).partition(" - at `$.")
        where = path.rstrip("`")
        if missing := message.partition("missing required field `")[2].rstrip("`"):
            message = f"{missing!r} is required"
        if where:
            message += f" at {where!r}"
        raise BadRequest(message, param=where or missing or None) from None
    if not known.messages:
        raise BadRequest("messages must not be empty", param="messages")
    options = dict(known.adjourn or {})
    fields.pop("adjourn", None)
    model, aliased = _model(known.model or "", settings, models)
    if known.model and model != known.model:
        fields["model"] = Raw(msgspec.json.encode(model))
    asked = options.pop("policy", None)
    if asked is not None and not isinstance(asked, str):
        raise BadRequest("adjourn.policy must be a text", param="adjourn.policy")
    named = asked or headers.get("x-adjourn-policy") or aliased
    policy = _policy(named, options, settings, default)
    usage = known.stream_options
    return ChatRequest(
        fields=fields,
        model=model,
        stream=bool(known.stream),
        policy=policy,
        explicit=known.adjourn is not None or named is not None,
        untouchable=_untouchable(known),
        conversation=_conversation(headers, body, known),
        include_usage=bool(usage and usage.include_usage),
        include_reasoning=known.include_reasoning is not False,
        return_token_ids=bool(known.return_token_ids),
        limit=_whole(known.max_completion_tokens or known.max_tokens),
    )


def _whole(number: float | None) -> int | None:
    """A limit as the engine will read it; what is no whole number is the engine's to refuse."""
    return None if number is None else int(number)


def _model(name: str, settings: Settings, models: Mapping[str, Any]) -> tuple[str, str | None]:
    """(the engine's name, the policy that an alias names or None). No name at all is the
    engine's only model."""
    if not name:
        return next(iter(models)) if len(models) == 1 else "", None
    name = settings.aliases.get(name, name)
    # A model's own name may hold a colon, a policy's never does.
    base, colon, policy = name.rpartition(":")
    base = settings.aliases.get(base, base)
    if colon and name not in models and (base in models or not models):
        return base, policy
    return name, None


def _policy(
    named: str | None, options: dict[str, Any], settings: Settings, default: Policy | None
) -> Policy | None:
    if named == "off":
        return None
    if named is None and not options:
        return default
    if named is None and settings.policy == "off":
        raise BadRequest("adjourn has options but names no policy", param="adjourn.policy")
    try:
        if options:
            return parse(named or settings.policy, options)
        named = named or settings.policy
        return _cached_parse(named) if len(named) < LONGEST else parse(named)
    except BadPolicy as error:
        raise BadRequest(str(error), param="adjourn", code="bad_policy") from None


def _untouchable(known: _Known) -> str | None:
    if (known.n or 1) > 1:
        return "several-choices"
    if known.use_beam_search:
        return "beam-search"
    if known.echo:
        return "echo"
    if known.kv_transfer_params is not None:
        return "kv-transfer"
    if known.stream_options and known.stream_options.continuous_usage_stats:
        return "continuous-usage"
    for message in known.messages:
        if isinstance(message.content, list) and any(
            not isinstance(part, dict) or part.get("type", "text") not in ("text", "refusal")
            for part in message.content
        ):
            return "not-text"
    return None


def _conversation(headers: Mapping[str, str], body: bytes, known: _Known) -> str:
    """What stays the same over a conversation's requests: an id, else its first user message."""
    if session := headers.get("x-session-id"):
        return session
    first = next((m.content for m in known.messages if m.role == "user"), None)
    return hashlib.blake2b(msgspec.json.encode(first), digest_size=16).hexdigest()
