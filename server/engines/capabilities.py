"""Detects what an engine can do, by sending it a few short requests.

Each missing capability is logged and shown by `/ready`. Requests that need it are passed through.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Raw

from adjourn.policies.events import Probe
from adjourn.policies.evidence.hidden_states import Layer
from adjourn.policies.evidence.uncertainty import ENTROPY_TOP_LOGPROBS
from adjourn.policies.text.dialect import Dialect, TokenizedDialect
from adjourn.server.api.chat import CHAT_PATH as CHAT
from adjourn.server.api.completions import COMPLETIONS_PATH as COMPLETIONS
from adjourn.server.api.endpoint import Fields
from adjourn.server.api.translated.engine_defaults import EngineDefaults, detect_engine_defaults
from adjourn.server.config import Settings
from adjourn.server.engines.adapter import Adapter, Headers
from adjourn.server.engines.detect_dialect import detect_dialect
from adjourn.server.errors import GatewayError
from adjourn.server.stream.chunk import Chunk, has_value
from adjourn.server.stream.sse import EventSplitter, event_data
from adjourn.server.upstream.client import TRANSPORT_ERRORS, BadReply, EngineClient, Model

__all__ = ["Capabilities", "authorization_headers", "detect_capabilities", "list_model_ids"]

log = logging.getLogger("adjourn.selftest")

_HEADERS = [(b"content-type", b"application/json")]
_MESSAGES = [{"role": "user", "content": "Hi"}]
_CHAT_CUT_REQUIREMENTS = {"token ids", "resuming from token ids", "ending a trace in place"}
_COMPLETION_CUT_REQUIREMENTS = {"token ids of raw completions"}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do.

    ``engine_version``: kind and version. ``models``: by id. ``missing`` maps each missing
    capability to its consequence, both as text for people. ``hidden_state_layers``: the layers
    after which the engine reports hidden states; empty if no configured classifier reads them.
    """

    engine_version: str
    models: Mapping[str, Model]
    missing: Mapping[str, str] = field(default_factory=dict)
    engine_defaults: EngineDefaults = field(default_factory=EngineDefaults)
    hidden_state_layers: frozenset[Layer] = frozenset()

    @property
    def can_probe(self) -> bool:
        return "token-id probes" not in self.missing

    @property
    def can_score_endings(self) -> bool:
        return "log-probabilities of chosen tokens" not in self.missing

    @property
    def can_return_logprobs(self) -> bool:
        return "log-probabilities" not in self.missing

    def can_cut(self, endpoint: str) -> bool:
        """True if a trace can be ended early in responses of this endpoint. A translated API is
        served by the engine's chat endpoint."""
        needed = _COMPLETION_CUT_REQUIREMENTS if endpoint == COMPLETIONS else _CHAT_CUT_REQUIREMENTS
        return not needed & set(self.missing)


class _ModelCard(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


async def list_model_ids(engine: EngineClient) -> set[str]:
    """Ids of the models that the engine serves now.

    Raises GatewayError, BadReply or MsgspecError.
    """
    return {card.id for card in await _list_models(engine, authorization_headers(engine.settings))}


async def _list_models(
    engine: EngineClient, headers: Sequence[tuple[bytes, bytes]]
) -> list[_ModelCard]:
    status, content = await engine.get("/v1/models", headers)
    if status != 200:
        raise BadReply(f"/v1/models answered {status}")
    return msgspec.json.decode(content, type=_ModelList).data


async def detect_capabilities(
    adapter: Adapter, version: str, dialects: Mapping[str, Dialect], forced_dialect: str | None
) -> Capabilities:
    """Detect the dialect of each model, and everything else with the first model.

    Raises GatewayError, BadReply or MsgspecError if the engine does not list its models.
    """
    headers = [*_HEADERS, *authorization_headers(adapter.engine.settings)]
    missing: dict[str, str] = {}
    models: dict[str, Model] = {}
    layers: frozenset[Layer] = frozenset()
    for card in await _list_models(adapter.engine, headers):
        dialect = await detect_dialect(adapter, card.id, dialects, forced_dialect, headers, missing)
        chat: dict[str, Any] = {}
        text: dict[str, Any] = {}
        if not models:
            check = _CapabilityCheck(adapter, card.id, dialect, headers, missing)
            chat, text = await check.run()
            layers = check.hidden_state_layers
        models[card.id] = Model(card.id, card.max_model_len, dialect, chat, text)
    for capability, consequence in missing.items():
        log.warning("the engine (%s) lacks %s: %s", adapter.name, capability, consequence)
    defaults = EngineDefaults()
    if models and adapter.supports_translation:
        # The other models of an engine are LoRA adapters of the first, with the same defaults.
        first = next(iter(models.values()))
        defaults = await detect_engine_defaults(
            adapter.engine, first.id, first.max_model_len, headers
        )
    return Capabilities(f"{adapter.name} {version}", models, missing, defaults, layers)


def authorization_headers(settings: Settings) -> list[tuple[bytes, bytes]]:
    """The header with the key of the setting ``upstream_api_key``; none if it is not set."""
    key = settings.upstream_api_key
    return [(b"authorization", f"Bearer {key}".encode())] if key else []


class _CapabilityCheck:
    """Tries each capability once, with a short prompt and one model.

    State: ``missing``, shared with the caller, gets an entry for each capability that failed;
    ``hidden_state_layers`` is set by ``run``.
    """

    def __init__(
        self,
        adapter: Adapter,
        model: str,
        dialect: TokenizedDialect | None,
        headers: Headers,
        missing: dict[str, str],
    ) -> None:
        self.hidden_state_layers: frozenset[Layer] = frozenset()
        self._adapter = adapter
        self._model = model
        self._dialect = dialect
        self._headers = headers
        self._missing = missing
        self._chat_request = {
            "model": model,
            "messages": _MESSAGES,
            "max_tokens": 2,
            "temperature": 0,
        }
        self._completion_request = {
            "model": model,
            "prompt": "Hi",
            "max_tokens": 2,
            "temperature": 0,
        }

    async def run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Check everything. Returns an unstreamed chat response and a raw completion; empty if the
        engine has none."""
        missing = self._missing
        chat = await self._fetch_response(CHAT, self._chat_request)
        text = await self._fetch_response(COMPLETIONS, self._completion_request)
        if not chat:
            missing["chat completions"] = "nothing can be stopped"
            return {}, text
        prompt = await self._check_chat()
        if (completions := self._adapter.completions_endpoint) is not None:
            fields = {} if prompt is None else completions.prompt_fields(prompt)
            prompt = await self._check_completion(fields, prompt) or prompt
        if prompt is not None:
            await self._check_probes(prompt)
            await self._check_hidden_states(prompt)
        await self._check_logprobs(
            CHAT if _CHAT_CUT_REQUIREMENTS.isdisjoint(missing) else COMPLETIONS
        )
        return chat, text

    async def _check_chat(self) -> list[int] | None:
        """Check whether a chat can be cut. Returns the ids of its prompt, if known."""
        adapter, missing = self._adapter, self._missing
        chunks = await self._fetch_chunks(CHAT, {})
        prompt = _prompt_ids(chunks)
        if adapter.ends_in_place:
            with contextlib.suppress(GatewayError, BadReply):
                fields = {
                    key: Raw(msgspec.json.encode(value))
                    for key, value in self._chat_request.items()
                }
                prompt = await adapter.tokenize_chat(fields, self._headers)
        if prompt is None or not any(c.choices and c.choices[0].token_ids for c in chunks):
            missing["token ids"] = "no chat can be stopped: its stream contains none"
        elif adapter.ends_in_place:
            await self._check_end_in_place()
        elif self._dialect is not None:
            resumed = [*prompt, *self._dialect.start, *self._dialect.closing]
            chunks = await self._fetch_chunks(CHAT, adapter.chat_endpoint.prompt_fields(resumed))
            if _prompt_ids(chunks) != resumed:
                missing["resuming from token ids"] = (
                    "no chat can be stopped: the engine ignores them"
                )
            elif any(c.choices and c.choices[0].delta.reasoning_text for c in chunks):
                missing["a reasoning parser"] = "answers after a cut would be parsed as reasoning"
        return prompt

    async def _check_end_in_place(self) -> None:
        # The stream must still run when the request to end its trace arrives, so it is long. It is
        # closed after that.
        adapter = self._adapter
        stream = {**self._chat_request, "stream": True, "max_tokens": 2048, "ignore_eos": True}
        body = msgspec.json.encode(stream | adapter.chat_endpoint.extra_fields)
        try:
            response = await adapter.engine.send("POST", CHAT, self._headers, body)
            try:
                splitter = EventSplitter()
                async for data in response.stream:  # type: ignore[union-attr]
                    for chunk in _decode_events(splitter.feed(data), adapter.chat_endpoint.decode):
                        await adapter.end_trace(chunk.id, self._model, self._headers)
                        return
            finally:
                await response.aclose()
            error = "the stream is empty"
        except (GatewayError, BadReply, msgspec.MsgspecError, *TRANSPORT_ERRORS) as caught:
            error = str(caught)
        self._missing["ending a trace in place"] = f"no chat can be stopped ({error})"

    async def _check_completion(self, extra: Fields, prompt: list[int] | None) -> list[int] | None:
        """Check whether a raw completion can be cut. Returns the ids of its prompt, if known.

        ``extra`` requests the ids ``prompt``, or nothing if those are unknown.
        """
        chunks = await self._fetch_chunks(COMPLETIONS, extra)
        echoed = _prompt_ids(chunks)
        has_ids = any(c.choices and c.choices[0].token_ids for c in chunks)
        if not has_ids or echoed is None or (prompt is not None and echoed != prompt):
            self._missing["token ids of raw completions"] = "no raw completion can be stopped"
        return echoed

    async def _check_probes(self, prompt: list[int]) -> None:
        adapter, missing, headers = self._adapter, self._missing, self._headers
        try:
            await adapter.probe(self._model, prompt, Probe(max_tokens=1), headers, {})
        except (GatewayError, BadReply) as error:
            missing["token-id probes"] = f"policies that probe are off ({error})"
        if self._dialect is not None:
            try:
                await self._check_token_scores(prompt, self._dialect)
            except (GatewayError, BadReply) as error:
                missing["log-probabilities of chosen tokens"] = f"`margin` is off ({error})"

    async def _check_hidden_states(self, prompt: list[int]) -> None:
        """Check the layers that the configured classifiers read, if there are any."""
        classifiers = self._adapter.engine.settings.probes.values()
        needed = frozenset(layer for probe in classifiers for layer in probe.required_layers)
        if not needed:
            return
        probe = Probe(inducer="", max_tokens=1, close_trace=False, hidden_states=True)
        with contextlib.suppress(GatewayError, BadReply):
            response = await self._adapter.probe(self._model, prompt, probe, self._headers, {})
            if (states := response.hidden_states) is not None:
                self.hidden_state_layers = frozenset(
                    Layer(number, states.width) for number in states.layers
                )
        if not needed - self.hidden_state_layers:
            return
        widths = {layer.width for layer in self.hidden_state_layers}
        if widths and {layer.width for layer in needed} != widths:
            width = widths.pop()
            why = f"`lynx` is off: its classifier is of another width than this model's {width}"
        elif flags := self._adapter.hidden_state_flags({layer.number for layer in needed}):
            why = f"`lynx` is off: start the engine with {flags}, see docs/engines.md"
        else:
            why = "`lynx` is off"
        self._missing["hidden states"] = why

    async def _check_token_scores(self, prompt: list[int], dialect: TokenizedDialect) -> None:
        """Raises BadReply if given tokens are not scored, or not by the model's probabilities.

        A score request allows one token only. An engine that reports log-probabilities after that
        restriction reports certainty for each token. Two different tokens at the same position
        cannot both be certain, so the sum of their probabilities shows it.
        """
        probe, scores = Probe(inducer="", max_tokens=1, close_trace=False, score_end=True), []
        for token in list(dict.fromkeys((*dialect.closing, *dialect.start)))[:2]:
            response = await self._adapter.probe(
                self._model, prompt, probe, self._headers, {}, [token]
            )
            scores.append(response.end_logprob or 0.0)
        if math.fsum(map(math.exp, scores)) > 1.01:
            raise BadReply("the engine reports them after sampling filters: see --logprobs-mode")

    async def _check_logprobs(self, endpoint: str) -> None:
        chat = {"logprobs": Raw(b"true"), "top_logprobs": Raw(b"%d" % ENTROPY_TOP_LOGPROBS)}
        text = {"logprobs": Raw(b"%d" % ENTROPY_TOP_LOGPROBS)}
        chunks = await self._fetch_chunks(endpoint, chat if endpoint == CHAT else text)
        if not any(c.choices and has_value(c.choices[0].logprobs) for c in chunks):
            self._missing["log-probabilities"] = "policies that need them with each token are off"

    async def _fetch_response(self, endpoint: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The response object; empty if the engine refuses the request."""
        with contextlib.suppress(GatewayError, BadReply, msgspec.MsgspecError):
            body = msgspec.json.encode(request)
            content = await self._adapter.engine.post(endpoint, body, self._headers)
            return msgspec.json.decode(content, type=dict[str, Any])
        return {}

    async def _fetch_chunks(self, endpoint: str, extra: Fields) -> list[Chunk]:
        """The chunks of a stream; empty if it is refused or cannot be read."""
        adapter = self._adapter
        api = adapter.chat_endpoint if endpoint == CHAT else adapter.completions_endpoint
        if api is None:
            return []
        request = self._chat_request if endpoint == CHAT else self._completion_request
        body = msgspec.json.encode({**request, "stream": True, **api.extra_fields, **extra})
        try:
            content = await adapter.engine.post(endpoint, body, self._headers)
            return list(_decode_events(EventSplitter().feed(content), api.decode))
        except (GatewayError, BadReply, msgspec.MsgspecError):
            return []


def _decode_events(events: Iterable[bytes], decode: Callable[[bytes], Chunk]) -> Iterator[Chunk]:
    for event in events:
        data = event_data(event)
        if data and data != b"[DONE]":
            yield decode(data)


def _prompt_ids(chunks: Iterable[Chunk]) -> list[int] | None:
    return next((chunk.prompt_token_ids for chunk in chunks if chunk.prompt_token_ids), None)
