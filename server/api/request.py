"""Parse a request: decode the few fields that the gateway needs.

All other fields stay the bytes that the client wrote, and are forwarded to the engine as such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from adjourn.policies.policy import Policy
from adjourn.server.api.selection import select_policy
from adjourn.server.api.translated.translation import Translation, Untranslatable
from adjourn.server.config import Settings
from adjourn.server.errors import BadRequest

__all__ = ["ParsedRequest", "parse_chat", "parse_completion", "parse_translated"]

_MAX_CHOICES = 128
_MAX_STOP_STRINGS = 4
_DEFAULT_COMPLETION_TOKENS = 16  # max_tokens of a raw completion that sets none
_SESSION_HEADERS = ("x-session-id", "x-conversation-id", "x-claude-code-session-id")
_SESSION_KEYS = ("conversation_id", "session_id", "thread_id")


@dataclass(slots=True)
class ParsedRequest:
    """A parsed request. ``fields`` are its top-level values as received, without ``adjourn``.

    ``policy`` is None if it is off. ``always_summarize``: the client chose the policy, so it gets
    a summary even if the policy did nothing. ``ineligible_reason`` names why no policy may act on
    the request, or is None. ``conversation_id`` is the same for all requests of a conversation.
    ``token_limit``: most tokens of the response. ``greedy``: the temperature is 0, so all traces
    would be the same.
    """

    fields: dict[str, Raw]
    model: str
    stream: bool
    policy: Policy | None
    always_summarize: bool
    ineligible_reason: str | None
    conversation_id: str
    include_usage: bool
    include_reasoning: bool
    return_token_ids: bool
    token_limit: int | None
    num_choices: int
    seed: int | None
    greedy: bool
    has_stop_strings: bool
    prompt: Any = None
    """The prompt of a raw completion: a string or token ids."""
    translation: Translation | None = None
    passthrough_body: bytes | None = None
    """For a request of another API: the body for the engine's own endpoint of that API.
    ``fields`` are then those of the chat request that it is translated to."""

    @property
    def empty_content(self) -> str | None:
        """How vLLM writes missing content in a JSON reply: "" if a tool call was required."""
        tool_choice = bytes(self.fields.get("tool_choice", b"null"))
        return None if tool_choice in (b"null", b'"auto"', b'"none"') else ""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Message(msgspec.Struct):
    role: str
    content: Any = None


class _KnownFields(msgspec.Struct):
    """The fields that the gateway decodes. A value of another type is answered with status 400."""

    model: str | None = None
    stream: bool | None = None
    n: int | float | None = None
    seed: int | float | None = None
    temperature: int | float | None = None
    max_tokens: int | float | None = None
    stop: str | list[str] | None = None
    stream_options: _StreamOptions | None = None
    include_reasoning: bool | None = None
    return_token_ids: bool | None = None
    echo: bool | None = None
    prompt_logprobs: int | float | None = None
    use_beam_search: bool | None = None
    kv_transfer_params: dict[str, Any] | None = None
    # The effort and the id of the conversation. A value of an unexpected type is ignored here,
    # and left for the engine to refuse.
    reasoning_effort: Any = None
    reasoning: Any = None
    thinking: Any = None
    thinking_token_budget: Any = None
    output_config: Any = None
    session_id: Any = None
    conversation: Any = None
    prompt_cache_key: Any = None
    metadata: Any = None
    previous_response_id: Any = None
    user: Any = None
    adjourn: dict[str, Any] | None = None


class _ChatBody(_KnownFields, kw_only=True):
    messages: list[_Message]
    max_completion_tokens: int | float | None = None

    @property
    def token_limit(self) -> float | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def first_content(self) -> Any:
        """The first content of the conversation."""
        return next((m.content for m in self.messages if m.role == "user"), None)


class _CompletionBody(_KnownFields):
    prompt: Any = None
    prompt_embeds: Any = None

    @property
    def token_limit(self) -> float | None:
        return _DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def first_content(self) -> Any:
        return self.prompt


class _OtherApiBody(_KnownFields):
    """The body of a translated API, whose other fields have the same names and types."""

    messages: Any = None
    input: Any = None

    @property
    def token_limit(self) -> float | None:
        return self.max_tokens

    @property
    def first_content(self) -> Any:
        turns = self.messages if isinstance(self.messages, list) else self.input
        if not isinstance(turns, list):
            return turns
        return next((t["content"] for t in turns if isinstance(t, dict) and "content" in t), None)


_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_chat = msgspec.json.Decoder(_ChatBody).decode
_decode_completion = msgspec.json.Decoder(_CompletionBody).decode
_decode_other_api = msgspec.json.Decoder(_OtherApiBody).decode
_Body = TypeVar("_Body", _ChatBody, _CompletionBody, _OtherApiBody)


def parse_chat(
    body: bytes,
    headers: Mapping[str, str],
    settings: Settings,
    default_policy: Policy | None,
    models: Mapping[str, Any],
) -> ParsedRequest:
    """Parse a body of /v1/chat/completions. Raises BadRequest.

    ``models``: ids that the engine serves, to distinguish an alias from an id with a colon.
    """
    fields, known = _decode_body(body, _decode_chat)
    if not known.messages:
        raise BadRequest("messages must not be empty", param="messages")
    request = _build_request(fields, known, headers, settings, default_policy, models)
    request.ineligible_reason = request.ineligible_reason or _find_non_text(known.messages)
    return request


def parse_completion(
    body: bytes,
    headers: Mapping[str, str],
    settings: Settings,
    default_policy: Policy | None,
    models: Mapping[str, Any],
) -> ParsedRequest:
    """Parse a body of /v1/completions. Raises BadRequest. ``models`` as for ``parse_chat``."""
    fields, known = _decode_body(body, _decode_completion)
    request = _build_request(fields, known, headers, settings, default_policy, models)
    prompt = known.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and type(prompt[0]) is not int:
        prompt = prompt[0]  # a list of one prompt is the same as that prompt
    if known.prompt_embeds is not None:
        request.ineligible_reason = "not-text"
    elif isinstance(prompt, list) and not all(type(x) is int for x in prompt):
        request.ineligible_reason = "several-prompts"
    request.prompt = prompt
    return request


def parse_translated(
    body: bytes,
    headers: Mapping[str, str],
    settings: Settings,
    default_policy: Policy | None,
    models: Mapping[str, Any],
    translate: Callable[[dict[str, Raw]], Translation],
) -> ParsedRequest:
    """Parse a body of /v1/messages or /v1/responses. Raises BadRequest.

    ``translate`` turns its fields into those of a chat request, or raises Untranslatable.
    ``models`` as for ``parse_chat``.
    """
    own, own_known = _decode_body(body, _decode_other_api)
    known: _OtherApiBody | _ChatBody = own_known
    translation, reason, fields = None, None, dict(own)
    try:
        translation = translate(own)
    except Untranslatable as error:
        reason = error.reason
    else:
        fields = translation.chat_request
        known = _decode_body(msgspec.json.encode(own | fields), _decode_chat)[1]
    request = _build_request(fields, known, headers, settings, default_policy, models)
    if isinstance(known, _ChatBody):
        reason = request.ineligible_reason or _find_non_text(known.messages)
    request.ineligible_reason, request.translation = reason, translation
    request.passthrough_body = body
    if "adjourn" in own or own.get("model") != fields.get("model"):
        kept = {n: fields[n] if n == "model" else v for n, v in own.items() if n != "adjourn"}
        request.passthrough_body = msgspec.json.encode(kept)
    return request


def _decode_body(body: bytes, decode: Callable[[bytes], _Body]) -> tuple[dict[str, Raw], _Body]:
    """All top-level fields as bytes, and the known ones decoded. Raises BadRequest."""
    try:
        fields = _decode_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not a JSON object: {error}") from None
    try:
        return fields, decode(body)
    except (UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body cannot be decoded: {error}") from None
    except msgspec.DecodeError as error:
        message, _, rest = str(error).partition(" - at `$.")
        path = rest.rstrip("`")
        if missing := message.partition("missing required field `")[2].rstrip("`"):
            message = f"{missing!r} is required"
        if path:
            message += f" at {path!r}"
        raise BadRequest(message, param=path or missing or None) from None


def _build_request(
    fields: dict[str, Raw],
    known: _ChatBody | _CompletionBody | _OtherApiBody,
    headers: Mapping[str, str],
    settings: Settings,
    default_policy: Policy | None,
    models: Mapping[str, Any],
) -> ParsedRequest:
    decoded = msgspec.structs.asdict(known)
    selection = select_policy(decoded, headers, settings, default_policy, models)
    fields.pop("adjourn", None)
    if known.model and selection.model != known.model:
        fields["model"] = Raw(msgspec.json.encode(selection.model))
    stream_options = known.stream_options
    return ParsedRequest(
        fields=fields,
        model=selection.model,
        stream=bool(known.stream),
        policy=selection.policy,
        always_summarize=selection.is_explicit,
        ineligible_reason=_find_ineligible_reason(known, settings),
        conversation_id=_derive_conversation_id(headers, known),
        include_usage=bool(stream_options and stream_options.include_usage),
        include_reasoning=known.include_reasoning is not False,
        return_token_ids=bool(known.return_token_ids),
        token_limit=_to_int(known.token_limit),
        num_choices=int(known.n or 1),
        seed=_to_int(known.seed),
        greedy=known.temperature == 0,
        has_stop_strings=bool(known.stop),
    )


def _to_int(number: float | None) -> int | None:
    """The number as the engine reads it. The engine itself refuses a fraction."""
    return None if number is None else int(number)


def _find_ineligible_reason(
    known: _ChatBody | _CompletionBody | _OtherApiBody, settings: Settings
) -> str | None:
    choices = known.n or 1
    if not 1 <= choices <= _MAX_CHOICES or (choices > 1 and known.temperature == 0):
        return "several-choices"  # left to the engine, which refuses most of these
    if known.use_beam_search:
        return "beam-search"
    if known.echo:
        return "echo"
    if known.kv_transfer_params is not None:
        return "kv-transfer"
    if _needs_engine_stops(known.stop, settings):
        return "stop-strings"
    if known.prompt_logprobs is not None:
        return "prompt-logprobs"  # streams do not carry them
    return None


def _needs_engine_stops(stop: str | list[str] | None, settings: Settings) -> bool:
    """True if the engine must apply the stop strings to the reasoning trace too, or refuse them.

    While it matches stop strings the engine delays text behind its tokens, so that a trace cannot
    be cut at an exact place.
    """
    stops = [stop] if isinstance(stop, str) else stop or []
    answer_only = settings.stop_in_answer or settings.mode != "enforce"
    return bool(stops) and (not answer_only or not all(stops) or len(stops) > _MAX_STOP_STRINGS)


def _find_non_text(messages: Sequence[_Message]) -> str | None:
    for message in messages:
        if isinstance(message.content, list) and any(
            not isinstance(part, dict) or part.get("type", "text") not in ("text", "refusal")
            for part in message.content
        ):
            return "not-text"
    return None


def _derive_conversation_id(
    headers: Mapping[str, str], known: _ChatBody | _CompletionBody | _OtherApiBody
) -> str:
    """An id that is the same for all requests of a conversation and is valid in a header.

    It is the client's session header, else a hash of the id in the body, else a hash of the
    user and the first user message.
    """
    for name in _SESSION_HEADERS:
        if session := headers.get(name):
            return session
    metadata = known.metadata if isinstance(known.metadata, dict) else {}
    ids = (known.session_id, known.conversation, *(metadata.get(key) for key in _SESSION_KEYS))
    weaker_ids = (known.prompt_cache_key, known.previous_response_id)
    key = next((value for value in (*ids, *weaker_ids) if value), None)
    if key is None:
        key = [known.user or metadata.get("user_id"), known.first_content]
    return hashlib.blake2b(msgspec.json.encode(key), digest_size=16).hexdigest()
