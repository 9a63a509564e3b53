"""Translated requests and responses for the tests: through a relay, or through the translation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
from starlette.types import Message

from adjourn.policies.never import Never
from adjourn.policies.policy import Policy
from adjourn.policies.session.session import Session
from adjourn.server.api.chat import ChatEndpoint
from adjourn.server.api.request import ParsedRequest, parse_translated
from adjourn.server.api.translated.engine_defaults import EngineDefaults
from adjourn.server.api.translated.messages import MessagesTranslation
from adjourn.server.api.translated.responses import ResponsesTranslation
from adjourn.server.api.translated.sinks import (
    OriginalRequest,
    TranslatedDocument,
    TranslatedStream,
)
from adjourn.server.api.translated.translation import Translation
from adjourn.server.config import Settings
from adjourn.server.engines.vllm import VLLM
from adjourn.server.errors import GatewayError
from adjourn.server.metrics import Metrics
from adjourn.server.relay.relay import Relay
from adjourn.server.upstream.client import EngineClient
from tests.gateway_client import events
from tests.policies.session_helpers import DIALECT, AlwaysProbe
from tests.server.relay.relay_helpers import DONE, ScriptedEngine, make_chunk

__all__ = [
    "APIS",
    "EXAMPLE_RESPONSE",
    "MESSAGES_REQUEST",
    "RESPONSES_REQUEST",
    "USAGE",
    "Client",
    "make_chat_stream",
    "parse_request",
    "respond",
    "translate_stream",
    "usage_event",
]

MESSAGES_REQUEST = {"max_tokens": 500, "messages": [{"role": "user", "content": "x"}]}
RESPONSES_REQUEST = {"input": "x"}
EXAMPLE_RESPONSE = {
    "temperature": 1.0,
    "top_p": 1.0,
    "tools": [{"name": "f", "type": "function", "strict": None}],
    "reasoning": {"effort": "low", "summary": None},
    "text": {"format": {"type": "json_schema", "strict": None}, "verbosity": None},
    "error": None,
}
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 4, "created_cache_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
_ENGINE_DEFAULTS = EngineDefaults(False, EXAMPLE_RESPONSE, False, 100, None)
APIS: dict[str, tuple[dict[str, Any], Callable[[Any], Translation]]] = {
    "messages": (MESSAGES_REQUEST, lambda fields: MessagesTranslation(fields, _ENGINE_DEFAULTS)),
    "responses": (RESPONSES_REQUEST, lambda fields: ResponsesTranslation(fields, _ENGINE_DEFAULTS)),
}


def parse_request(api: str, **fields: Any) -> ParsedRequest:
    """A minimal request of this API with these fields."""
    request, translate = APIS[api]
    body = json.dumps({"model": "m", **request, **fields}).encode()
    return parse_translated(body, {}, Settings(rescue_tokens=0), None, {"m": None}, translate)


def usage_event(chat_id: str = "chatcmpl-1") -> bytes:
    """The last chunk of a chat stream, which has the usage."""
    data = {"id": chat_id, "choices": [], "usage": USAGE}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def make_chat_stream(deltas: list[dict[str, Any]], finish_reason: str) -> list[bytes]:
    """The events of a chat stream with one chunk for each delta."""
    first = make_chunk({"role": "assistant", "content": ""}, None, prompt=[1] * 9)
    last = make_chunk({}, [2], finish_reason, stop_reason=None)
    return [first, *(make_chunk(delta, [3]) for delta in deltas), last, usage_event(), DONE]


def translate_stream(api: str, chat_events: list[bytes]) -> list[dict[str, Any]]:
    """The decoded events that the translation renders for a chat stream."""
    translation = parse_request(api, stream=True).translation
    assert translation is not None
    rendered = [new for event in chat_events for new in translation.translate_event(event)]
    return events(b"".join(rendered))


class Client:
    """Keeps what the server would send to the client. ``complete``: the response has ended."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message["body"]
            self.complete = not message.get("more_body", False)

    @property
    def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = events(self.body)
        return found


def respond(
    api: str,
    main: list[bytes],
    answer: list[bytes] | None = None,
    policy: Policy | None = None,
    streamed: bool = True,
    engine: httpx.AsyncBaseTransport | None = None,
    **fields: Any,
) -> Client:
    """One response, from the reads of the engine's streams to what the client gets."""
    request, client = parse_request(api, stream=streamed, **fields), Client()
    assert request.translation is not None
    transport = engine or ScriptedEngine(main, answer or [])
    session = Session(policy or Never(), DIALECT, AlwaysProbe())

    async def run_relay() -> None:
        adapter, metrics = VLLM(EngineClient(Settings(), transport)), Metrics()
        assert request.passthrough_body is not None
        extra = [(b"x-adjourn-policy", b"never")]
        translated = (
            request.translation,
            OriginalRequest(adapter.engine, "/own", [], request.passthrough_body),
        )
        sink = (
            TranslatedStream(client.send, extra, *translated)
            if streamed
            else TranslatedDocument(client.send, extra, {}, None, *translated)
        )
        chat = ChatEndpoint(request)
        relay = Relay(adapter, chat, [], "r", session, sink, metrics, ("m", "p"), False, 0.0)
        try:
            await relay.run()
        except GatewayError as error:
            client.status = error.status

    asyncio.run(run_relay())
    return client
