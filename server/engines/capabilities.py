"""What can this engine do? Asked once, when it is first seen, of the engine itself.

Whatever is missing is said plainly, and what needs it is off; requests are then handed through.
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
from adjourn.policies.text.dialect import Dialect, TokenizedDialect, candidate_dialects
from adjourn.policies.text.markers import TokenIds
from adjourn.server.api.chat import CHAT_PATH as CHAT
from adjourn.server.api.completions import COMPLETIONS_PATH as COMPLETIONS
from adjourn.server.api.endpoint import Fields
from adjourn.server.api.translated.engine_defaults import EngineDefaults, detect_engine_defaults
from adjourn.server.config import Settings
from adjourn.server.engines.adapter import Adapter, Headers
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
    """``engine``: its kind and version. ``models`` by id; ``missing`` maps what the engine can't do
    to what is off for it. ``layers``: those behind which it tells hidden states, where a policy may
    ask for them."""

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
        needed = _COMPLETION_CUT_REQUIREMENTS if endpoint == COMPLETIONS else _CHAT_CUT_REQUIREMENTS
        return not needed & set(self.missing)


class _ModelCard(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


async def list_model_ids(engine: EngineClient) -> set[str]:
    """Ids of the models that the engine serves now. Raises GatewayError and BadReply."""
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
    """Ask everything. Raises GatewayError where the engine is not there."""
    headers = [*_HEADERS, *authorization_headers(adapter.engine.settings)]
    missing: dict[str, str] = {}
    models: dict[str, Model] = {}
    layers: frozenset[Layer] = frozenset()
    for card in await _list_models(adapter.engine, headers):
        marks = await _detect_dialect(adapter, card.id, dialects, forced_dialect, headers, missing)
        chat: dict[str, Any] = {}
        text: dict[str, Any] = {}
        if not models:
            talk = _CapabilityCheck(adapter, card.id, marks, headers, missing)
            chat, text = await talk.run()
            layers = talk.hidden_state_layers
        models[card.id] = Model(card.id, card.max_model_len, marks, chat, text)
    for what, off in missing.items():
        log.warning("the engine (%s) lacks %s: %s", adapter.name, what, off)
    habits = EngineDefaults()
    if models and adapter.supports_translation:
        # Other models that an engine serves are adapters of the first.
        first = next(iter(models.values()))
        habits = await detect_engine_defaults(
            adapter.engine, first.id, first.max_model_len, headers
        )
    return Capabilities(f"{adapter.name} {version}", models, missing, habits, layers)


def authorization_headers(settings: Settings) -> list[tuple[bytes, bytes]]:
    """The header that carries the gateway's own key."""
    key = settings.upstream_api_key
    return [(b"authorization", f"Bearer {key}".encode())] if key else []


async def _detect_dialect(
    adapter: Adapter,
    model: str,
    dialects: Mapping[str, Dialect],
    forced_dialect: str | None,
    headers: Sequence[tuple[bytes, bytes]],
    missing: dict[str, str],
) -> TokenizedDialect | None:
    """The model's dialect: its tokens are tokens of this vocabulary; a name that matches goes
    before one that doesn't."""

    async def ids(text: str) -> TokenIds:
        return tuple(await adapter.tokenize(model, text, headers))

    try:
        known: dict[str, TokenIds] = {}
        for dialect in candidate_dialects(model, dialects, forced_dialect):
            for text in dialect.identifying_texts:
                if text not in known:
                    known[text] = await ids(text)
            if dialect.fits_vocabulary(known):
                return TokenizedDialect.from_ids(
                    dialect, {text: await ids(text) for text in dialect.texts_to_tokenize}
                )
    except (GatewayError, BadReply) as error:
        missing["/tokenize"] = f"no dialect can be told, so nothing is stopped ({error})"
        return None
    log.warning("model %s has the markers of no known dialect: it is handed through", model)
    return None


class _CapabilityCheck:
    """One conversation with a model, in which everything is tried once."""

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
        """The keys of an unstreamed chat, and those of a raw completion."""
        missing = self._missing
        chat = await self._fetch_response(CHAT, self._chat_request)
        text = await self._fetch_response(COMPLETIONS, self._completion_request)
        if not chat:
            missing["chat completions"] = "nothing can be stopped"
            return {}, text
        prompt = await self._check_chat()
        if (completions := self._adapter.completions_endpoint) is not None:
            same = {} if prompt is None else completions.prompt_fields(prompt)
            prompt = await self._check_completion(same, prompt) or prompt
        if prompt is not None:
            await self._check_probes(prompt)
            await self._check_hidden_states(prompt)
        await self._check_logprobs(
            CHAT if _CHAT_CUT_REQUIREMENTS.isdisjoint(missing) else COMPLETIONS
        )
        return chat, text

    async def _check_chat(self) -> list[int] | None:
        """Whether a chat can be cut; the ids of its prompt."""
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
            missing["token ids"] = "no chat can be stopped: its stream brings none"
        elif adapter.ends_in_place:
            await self._check_end_in_place()
        elif self._dialect is not None:
            resumed = [*prompt, *self._dialect.start, *self._dialect.closing]
            chunks = await self._fetch_chunks(CHAT, adapter.chat_endpoint.prompt_fields(resumed))
            if _prompt_ids(chunks) != resumed:
                missing["resuming from token ids"] = "no chat can be stopped: they are not honoured"
            elif any(c.choices and c.choices[0].delta.reasoning_text for c in chunks):
                missing["a reasoning parser"] = "answers behind a cut would be taken for reasoning"
        return prompt

    async def _check_end_in_place(self) -> None:
        # One that lives until it is closed here.
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
        """Whether a raw completion can be cut; the ids of its prompt."""
        chunks = await self._fetch_chunks(COMPLETIONS, extra)
        echoed = _prompt_ids(chunks)
        told = any(c.choices and c.choices[0].token_ids for c in chunks)
        if not told or echoed is None or (prompt is not None and echoed != prompt):
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
        """Only where a probe may be asked for that reads them."""
        probes = self._adapter.engine.settings.probes.values()
        wanted = frozenset(layer for probe in probes for layer in probe.required_layers)
        if not wanted:
            return
        asked = Probe(inducer="", max_tokens=1, close_trace=False, hidden_states=True)
        with contextlib.suppress(GatewayError, BadReply):
            drawn = await self._adapter.probe(self._model, prompt, asked, self._headers, {})
            if (told := drawn.hidden_states) is not None:
                self.hidden_state_layers = frozenset(
                    Layer(number, told.width) for number in told.layers
                )
        if not wanted - self.hidden_state_layers:
            return
        widths = {layer.width for layer in self.hidden_state_layers}
        if widths and {layer.width for layer in wanted} != widths:
            why = f"`lynx` is off: its probe is of another width than this model's {widths.pop()}"
        elif flags := self._adapter.hidden_state_flags({layer.number for layer in wanted}):
            why = f"`lynx` is off: start the engine with {flags}, see docs/engines.md"
        else:
            why = "`lynx` is off"
        self._missing["hidden states"] = why

    async def _check_token_scores(self, prompt: list[int], marks: TokenizedDialect) -> None:
        """Raises BadReply where tokens are not scored, or each by what it is made by asking."""
        probe, scores = Probe(inducer="", max_tokens=1, close_trace=False, score_end=True), []
        for token in list(dict.fromkeys((*marks.closing, *marks.start)))[:2]:
            drawn = await self._adapter.probe(
                self._model, prompt, probe, self._headers, {}, [token]
            )
            scores.append(drawn.end_logprob or 0.0)
        if math.fsum(map(math.exp, scores)) > 1.01:
            raise BadReply("they are told as sampled from (--logprobs-mode), not as they are")

    async def _check_logprobs(self, endpoint: str) -> None:
        chat = {"logprobs": Raw(b"true"), "top_logprobs": Raw(b"%d" % ENTROPY_TOP_LOGPROBS)}
        text = {"logprobs": Raw(b"%d" % ENTROPY_TOP_LOGPROBS)}
        chunks = await self._fetch_chunks(endpoint, chat if endpoint == CHAT else text)
        if not any(c.choices and has_value(c.choices[0].logprobs) for c in chunks):
            self._missing["log-probabilities"] = "policies that need them with each token are off"

    async def _fetch_response(self, endpoint: str, request: Mapping[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(GatewayError, BadReply, msgspec.MsgspecError):
            body = msgspec.json.encode(request)
            content = await self._adapter.engine.post(endpoint, body, self._headers)
            return msgspec.json.decode(content, type=dict[str, Any])
        return {}

    async def _fetch_chunks(self, endpoint: str, extra: Fields) -> list[Chunk]:
        """Nothing where it is refused or cannot be read."""
        adapter = self._adapter
        surface = adapter.chat_endpoint if endpoint == CHAT else adapter.completions_endpoint
        if surface is None:
            return []
        request = self._chat_request if endpoint == CHAT else self._completion_request
        body = msgspec.json.encode({**request, "stream": True, **surface.extra_fields, **extra})
        try:
            content = await adapter.engine.post(endpoint, body, self._headers)
            return list(_decode_events(EventSplitter().feed(content), surface.decode))
        except (GatewayError, BadReply, msgspec.MsgspecError):
            return []


def _decode_events(events: Iterable[bytes], decode: Callable[[bytes], Chunk]) -> Iterator[Chunk]:
    for event in events:
        data = event_data(event)
        if data and data != b"[DONE]":
            yield decode(data)


def _prompt_ids(chunks: Iterable[Chunk]) -> list[int] | None:
    return next((chunk.prompt_token_ids for chunk in chunks if chunk.prompt_token_ids), None)
