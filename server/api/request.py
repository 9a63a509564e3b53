"""Read what a request asks for: the few fields that matter here, and which policy is to judge it.

Everything else stays as the bytes that the client wrote, and goes on to the engine as such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from adjourn.policies.evidence.readiness import ReadinessClassifier
from adjourn.policies.policy import Policy
from adjourn.policies.registry import MAX_SPECIFICATION_LENGTH, BadPolicy, parse
from adjourn.server.api.effort import apply_effort, read_effort
from adjourn.server.api.translated.translation import Translation, Untranslatable
from adjourn.server.config import Settings
from adjourn.server.errors import BadRequest

__all__ = ["ParsedRequest", "parse_chat", "parse_completion", "parse_translated"]

_MAX_CHOICES = 128
_MAX_STOP_STRINGS = 4
_DEFAULT_COMPLETION_TOKENS = 16  # tokens of a raw completion that sets none
_SESSION_HEADERS = ("x-session-id", "x-conversation-id", "x-claude-code-session-id")
_SESSION_KEYS = ("conversation_id", "session_id", "thread_id")


@dataclass(slots=True)
class ParsedRequest:
    """A request that was read. ``fields`` are its top-level values as they came, less ``adjourn``.

    ``policy`` is None where it is off. ``explicit``: the client chose it, and so is told what
    was done even where nothing was. ``greedy``: every trace of it would be the same.
    ``untouchable`` names why no policy may act on it.
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
    """A raw completion's: a text or ids."""
    translation: Translation | None = None
    passthrough_body: bytes | None = None
    """What another API's request is handed through as; ``fields`` are a chat's then."""

    @property
    def empty_content(self) -> str | None:
        """vLLM's word for no content in a whole reply: "" beside a tool that had to be called."""
        asked = bytes(self.fields.get("tool_choice", b"null"))
        return None if asked in (b"null", b'"auto"', b'"none"') else ""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Message(msgspec.Struct):
    role: str
    content: Any = None


class _KnownFields(msgspec.Struct):
    """The fields that are read, with their types. A wrong one is the client's error."""

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
    # Where a client says how long to think, and which conversation this is. What is none of our
    # business is the engine's to refuse.
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
        """What the conversation begins with."""
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
    """Of another API, as far as it has names in common."""

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
    """``models``: ids that the engine serves, to tell an alias from a name with a colon.

    Raises BadRequest.
    """
    fields, known = _decode_body(body, _decode_chat)
    if not known.messages:
        raise BadRequest("messages must not be empty", param="messages")
    asked = _build_request(fields, known, headers, settings, default_policy, models)
    asked.ineligible_reason = asked.ineligible_reason or _find_non_text(known.messages)
    return asked


def parse_completion(
    body: bytes,
    headers: Mapping[str, str],
    settings: Settings,
    default_policy: Policy | None,
    models: Mapping[str, Any],
) -> ParsedRequest:
    """The same of a raw completion."""
    fields, known = _decode_body(body, _decode_completion)
    asked = _build_request(fields, known, headers, settings, default_policy, models)
    prompt = known.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and type(prompt[0]) is not int:
        prompt = prompt[0]  # one that is alone in a list is one
    if known.prompt_embeds is not None:
        asked.ineligible_reason = "not-text"
    elif isinstance(prompt, list) and not all(type(x) is int for x in prompt):
        asked.ineligible_reason = "several-prompts"
    asked.prompt = prompt
    return asked


def parse_translated(
    body: bytes,
    headers: Mapping[str, str],
    settings: Settings,
    default_policy: Policy | None,
    models: Mapping[str, Any],
    translate: Callable[[dict[str, Raw]], Translation],
) -> ParsedRequest:
    """The same of a request of another API, which ``translate`` makes a chat's or refuses with
    Untranslatable."""
    own, read = _decode_body(body, _decode_other_api)
    known: _OtherApiBody | _ChatBody = read
    translation, untouchable, fields = None, None, dict(own)
    try:
        translation = translate(own)
    except Untranslatable as refused:
        untouchable = refused.reason
    else:
        fields = translation.chat_request
        known = _decode_body(msgspec.json.encode(own | fields), _decode_chat)[1]
    asked = _build_request(fields, known, headers, settings, default_policy, models)
    if isinstance(known, _ChatBody):
        untouchable = asked.ineligible_reason or _find_non_text(known.messages)
    asked.ineligible_reason, asked.translation = untouchable, translation
    asked.passthrough_body = body
    if "adjourn" in own or own.get("model") != fields.get("model"):
        kept = {n: fields[n] if n == "model" else v for n, v in own.items() if n != "adjourn"}
        asked.passthrough_body = msgspec.json.encode(kept)
    return asked


def _decode_body(body: bytes, decode: Callable[[bytes], _Body]) -> tuple[dict[str, Raw], _Body]:
    """The top-level fields, and those of them that are known. Raises BadRequest."""
    try:
        fields = _decode_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not a JSON object: {error}") from None
    try:
        return fields, decode(body)
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


def _build_request(
    fields: dict[str, Raw],
    known: _ChatBody | _CompletionBody | _OtherApiBody,
    headers: Mapping[str, str],
    settings: Settings,
    default: Policy | None,
    models: Mapping[str, Any],
) -> ParsedRequest:
    options = dict(known.adjourn or {})
    fields.pop("adjourn", None)
    model, aliased = _resolve_model(known.model or "", settings, models)
    if known.model and model != known.model:
        fields["model"] = Raw(msgspec.json.encode(model))
    asked = options.pop("policy", None)
    if asked is not None and not isinstance(asked, str):
        raise BadRequest("adjourn.policy must be a text", param="adjourn.policy")
    named = asked or headers.get("x-adjourn-policy") or aliased
    policy = _select_policy(named, options, settings, default)
    explicit = known.adjourn is not None or named is not None
    if policy is not None and settings.dial and not explicit:
        policy = apply_effort(policy, *read_effort(msgspec.structs.asdict(known)))
    usage = known.stream_options
    return ParsedRequest(
        fields=fields,
        model=model,
        stream=bool(known.stream),
        policy=policy,
        always_summarize=explicit,
        ineligible_reason=_find_ineligible_reason(known, settings),
        conversation_id=_derive_conversation_id(headers, known),
        include_usage=bool(usage and usage.include_usage),
        include_reasoning=known.include_reasoning is not False,
        return_token_ids=bool(known.return_token_ids),
        token_limit=_to_int(known.token_limit),
        num_choices=int(known.n or 1),
        seed=_to_int(known.seed),
        greedy=known.temperature == 0,
        has_stop_strings=bool(known.stop),
    )


def _to_int(number: float | None) -> int | None:
    """A limit as the engine will read it; what is no whole number is the engine's to refuse."""
    return None if number is None else int(number)


def _resolve_model(
    name: str, settings: Settings, models: Mapping[str, Any]
) -> tuple[str, str | None]:
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


def _select_policy(
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
            return parse(named or settings.policy, options, settings.probes)
        return _parse_policy(named or settings.policy, tuple(settings.probes.items()))
    except BadPolicy as error:
        raise BadRequest(str(error), param="adjourn", code="bad_policy") from None


def _parse_policy(named: str, probes: tuple[tuple[str, ReadinessClassifier], ...]) -> Policy:
    if len(named) >= MAX_SPECIFICATION_LENGTH:
        return parse(named, readiness_probes=dict(probes))  # which says what is wrong with it
    return _parse_policy_cached(named, probes)


@lru_cache(maxsize=256)
def _parse_policy_cached(named: str, probes: tuple[tuple[str, ReadinessClassifier], ...]) -> Policy:
    return parse(named, readiness_probes=dict(probes))


def _find_ineligible_reason(
    known: _ChatBody | _CompletionBody | _OtherApiBody, settings: Settings
) -> str | None:
    choices = known.n or 1
    if not 1 <= choices <= _MAX_CHOICES or (choices > 1 and known.temperature == 0):
        return "several-choices"  # the engine refuses them, or they are its own affair
    if known.use_beam_search:
        return "beam-search"
    if known.echo:
        return "echo"
    if known.kv_transfer_params is not None:
        return "kv-transfer"
    if _needs_engine_stops(known.stop, settings):
        return "stop-strings"
    if known.prompt_logprobs is not None:
        return "prompt-logprobs"  # no stream brings them
    return None


def _needs_engine_stops(stop: str | list[str] | None, settings: Settings) -> bool:
    """Whether stop strings are for the engine to look for, in the trace too, where it holds text
    back that may be one: no exact place to cut; or for it to refuse."""
    stops = [stop] if isinstance(stop, str) else stop or []
    apart = settings.stop_in_answer or settings.mode != "enforce"
    return bool(stops) and (not apart or not all(stops) or len(stops) > _MAX_STOP_STRINGS)


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
    """What stays the same over a conversation's requests, and fit for a header: the client's own
    id, else its user and first user message."""
    for name in _SESSION_HEADERS:
        if session := headers.get(name):
            return session
    metadata = known.metadata if isinstance(known.metadata, dict) else {}
    named = (known.session_id, known.conversation, *(metadata.get(key) for key in _SESSION_KEYS))
    latest = (known.prompt_cache_key, known.previous_response_id)
    own = next((name for name in (*named, *latest) if name), None)
    if own is None:
        own = [known.user or metadata.get("user_id"), known.first_content]
    return hashlib.blake2b(msgspec.json.encode(own), digest_size=16).hexdigest()
