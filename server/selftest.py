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

from policies.dialect import Dialect, Marks, candidates
from policies.events import Probe
from policies.hidden_states import Layer
from policies.markers import Ids
from policies.uncertainty import TOP
from server.adapters.adapter import Adapter, Headers
from server.apis.habits import Habits, learn
from server.chat import ENDPOINT as CHAT
from server.completions import ENDPOINT as COMPLETIONS
from server.config import Settings
from server.engine import TRANSPORT_ERRORS, BadReply, Engine, Model
from server.errors import GatewayError
from server.sse import EventSplitter, data_of
from server.surface import Fields
from server.wire import Chunk, given

__all__ = ["Report", "authorization", "examine", "served"]

log = logging.getLogger("adjourn.selftest")

_HEADERS = [(b"content-type", b"application/json")]
_MESSAGES = [{"role": "user", "content": "Hi"}]
_CHAT_CUTS = {"token ids", "resuming from token ids", "ending a trace in place"}
_TEXT_CUTS = {"token ids of raw completions"}


@dataclass(frozen=True, slots=True)
class Report:
    """``engine``: its kind and version. ``models`` by id; ``missing`` maps what the engine can't do
    to what is off for it. ``layers``: those behind which it tells hidden states, where a policy may
    ask for them."""

    engine: str
    models: Mapping[str, Model]
    missing: Mapping[str, str] = field(default_factory=dict)
    habits: Habits = field(default_factory=Habits)
    layers: frozenset[Layer] = frozenset()

    @property
    def can_probe(self) -> bool:
        return "token-id probes" not in self.missing

    @property
    def can_score_endings(self) -> bool:
        return "log-probabilities of chosen tokens" not in self.missing

    @property
    def can_tell_logprobs(self) -> bool:
        return "log-probabilities" not in self.missing

    def can_cut(self, endpoint: str) -> bool:
        needed = _TEXT_CUTS if endpoint == COMPLETIONS else _CHAT_CUTS
        return not needed & set(self.missing)


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


async def served(engine: Engine) -> set[str]:
    """Ids of the models that the engine serves now. Raises GatewayError and BadReply."""
    return {card.id for card in await _cards(engine, authorization(engine.settings))}


async def _cards(engine: Engine, headers: Sequence[tuple[bytes, bytes]]) -> list[_Card]:
    status, content = await engine.get("/v1/models", headers)
    if status != 200:
        raise BadReply(f"/v1/models answered {status}")
    return msgspec.json.decode(content, type=_Cards).data


async def examine(
    adapter: Adapter, version: str, dialects: Mapping[str, Dialect], forced: str | None
) -> Report:
    """Ask everything. Raises GatewayError where the engine is not there."""
    headers = [*_HEADERS, *authorization(adapter.engine.settings)]
    missing: dict[str, str] = {}
    models: dict[str, Model] = {}
    layers: frozenset[Layer] = frozenset()
    for card in await _cards(adapter.engine, headers):
        marks = await _marks(adapter, card.id, dialects, forced, headers, missing)
        chat: dict[str, Any] = {}
        text: dict[str, Any] = {}
        if not models:
            talk = _Talk(adapter, card.id, marks, headers, missing)
            chat, text = await talk.hold()
            layers = talk.layers
        models[card.id] = Model(card.id, card.max_model_len, marks, chat, text)
    for what, off in missing.items():
        log.warning("the engine (%s) lacks %s: %s", adapter.name, what, off)
    habits = Habits()
    if models and adapter.retold:
        # Other models that an engine serves are adapters of the first.
        first = next(iter(models.values()))
        habits = await learn(adapter.engine, first.id, first.max_model_len, headers)
    return Report(f"{adapter.name} {version}", models, missing, habits, layers)


def authorization(settings: Settings) -> list[tuple[bytes, bytes]]:
    """The header that carries the gateway's own key."""
    key = settings.upstream_api_key
    return [(b"authorization", f"Bearer {key}".encode())] if key else []


async def _marks(
    adapter: Adapter,
    model: str,
    dialects: Mapping[str, Dialect],
    forced: str | None,
    headers: Sequence[tuple[bytes, bytes]],
    missing: dict[str, str],
) -> Marks | None:
    """The model's dialect: its tokens are tokens of this vocabulary; a name that matches goes
    before one that doesn't."""

    async def ids(text: str) -> Ids:
        return tuple(await adapter.tokenize(model, text, headers))

    try:
        known: dict[str, Ids] = {}
        for dialect in candidates(model, dialects, forced):
            for text in dialect.telling:
                if text not in known:
                    known[text] = await ids(text)
            if dialect.spoken(known):
                return Marks.of(dialect, {text: await ids(text) for text in dialect.texts})
    except (GatewayError, BadReply) as error:
        missing["/tokenize"] = f"no dialect can be told, so nothing is stopped ({error})"
        return None
    log.warning("model %s has the markers of no known dialect: it is handed through", model)
    return None


class _Talk:
    """One conversation with a model, in which everything is tried once."""

    def __init__(
        self,
        adapter: Adapter,
        model: str,
        marks: Marks | None,
        headers: Headers,
        missing: dict[str, str],
    ) -> None:
        self.layers: frozenset[Layer] = frozenset()
        self._adapter = adapter
        self._model = model
        self._marks = marks
        self._headers = headers
        self._missing = missing
        self._chat = {"model": model, "messages": _MESSAGES, "max_tokens": 2, "temperature": 0}
        self._text = {"model": model, "prompt": "Hi", "max_tokens": 2, "temperature": 0}

    async def hold(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The keys of an unstreamed chat, and those of a raw completion."""
        missing = self._missing
        chat = await self._whole(CHAT, self._chat)
        text = await self._whole(COMPLETIONS, self._text)
        if not chat:
            missing["chat completions"] = "nothing can be stopped"
            return {}, text
        prompt = await self._try_chat()
        if (completions := self._adapter.completions) is not None:
            same = {} if prompt is None else completions.resuming(prompt)
            prompt = await self._try_text(same, prompt) or prompt
        if prompt is not None:
            await self._try_probes(prompt)
            await self._try_hidden_states(prompt)
        await self._try_logprobs(CHAT if _CHAT_CUTS.isdisjoint(missing) else COMPLETIONS)
        return chat, text

    async def _try_chat(self) -> list[int] | None:
        """Whether a chat can be cut; the ids of its prompt."""
        adapter, missing = self._adapter, self._missing
        chunks = await self._stream(CHAT, {})
        prompt = _echoed(chunks)
        if adapter.in_place:
            with contextlib.suppress(GatewayError, BadReply):
                fields = {key: Raw(msgspec.json.encode(value)) for key, value in self._chat.items()}
                prompt = await adapter.prompt(fields, self._headers)
        if prompt is None or not any(c.choices and c.choices[0].token_ids for c in chunks):
            missing["token ids"] = "no chat can be stopped: its stream brings none"
        elif adapter.in_place:
            await self._try_in_place()
        elif self._marks is not None:
            resumed = [*prompt, *self._marks.start, *self._marks.closing]
            chunks = await self._stream(CHAT, adapter.chat.resuming(resumed))
            if _echoed(chunks) != resumed:
                missing["resuming from token ids"] = "no chat can be stopped: they are not honoured"
            elif any(c.choices and c.choices[0].delta.thought for c in chunks):
                missing["a reasoning parser"] = "answers behind a cut would be taken for reasoning"
        return prompt

    async def _try_in_place(self) -> None:
        # One that lives until it is closed here.
        adapter = self._adapter
        stream = {**self._chat, "stream": True, "max_tokens": 2048, "ignore_eos": True}
        body = msgspec.json.encode(stream | adapter.chat.asking)
        try:
            response = await adapter.engine.send("POST", CHAT, self._headers, body)
            try:
                splitter = EventSplitter()
                async for data in response.stream:  # type: ignore[union-attr]
                    for chunk in _read(splitter.feed(data), adapter.chat.decode):
                        await adapter.end_trace(chunk.id, self._model, self._headers)
                        return
            finally:
                await response.aclose()
            error = "the stream is empty"
        except (GatewayError, BadReply, msgspec.MsgspecError, *TRANSPORT_ERRORS) as caught:
            error = str(caught)
        self._missing["ending a trace in place"] = f"no chat can be stopped ({error})"

    async def _try_text(self, same: Fields, prompt: list[int] | None) -> list[int] | None:
        """Whether a raw completion can be cut; the ids of its prompt."""
        chunks = await self._stream(COMPLETIONS, same)
        echoed = _echoed(chunks)
        told = any(c.choices and c.choices[0].token_ids for c in chunks)
        if not told or echoed is None or (prompt is not None and echoed != prompt):
            self._missing["token ids of raw completions"] = "no raw completion can be stopped"
        return echoed

    async def _try_probes(self, prompt: list[int]) -> None:
        adapter, missing, headers = self._adapter, self._missing, self._headers
        try:
            await adapter.probe(self._model, prompt, Probe(max_tokens=1), headers, {})
        except (GatewayError, BadReply) as error:
            missing["token-id probes"] = f"policies that probe are off ({error})"
        if self._marks is not None:
            try:
                await self._try_scores(prompt, self._marks)
            except (GatewayError, BadReply) as error:
                missing["log-probabilities of chosen tokens"] = f"`margin` is off ({error})"

    async def _try_hidden_states(self, prompt: list[int]) -> None:
        """Only where a probe may be asked for that reads them."""
        probes = self._adapter.engine.settings.probes.values()
        wanted = frozenset(layer for probe in probes for layer in probe.needs)
        if not wanted:
            return
        asked = Probe(inducer="", max_tokens=1, closing=False, hidden_states=True)
        with contextlib.suppress(GatewayError, BadReply):
            drawn = await self._adapter.probe(self._model, prompt, asked, self._headers, {})
            if (told := drawn.hidden_states) is not None:
                self.layers = frozenset(Layer(number, told.width) for number in told.layers)
        if not wanted - self.layers:
            return
        widths = {layer.width for layer in self.layers}
        if widths and {layer.width for layer in wanted} != widths:
            why = f"`lynx` is off: its probe is of another width than this model's {widths.pop()}"
        elif flags := self._adapter.flags({layer.number for layer in wanted}):
            why = f"`lynx` is off: start the engine with {flags}, see docs/engines.md"
        else:
            why = "`lynx` is off"
        self._missing["hidden states"] = why

    async def _try_scores(self, prompt: list[int], marks: Marks) -> None:
        """Raises BadReply where tokens are not scored, or each by what it is made by asking."""
        probe, scores = Probe(inducer="", max_tokens=1, closing=False, ending=True), []
        for token in list(dict.fromkeys((*marks.closing, *marks.start)))[:2]:
            drawn = await self._adapter.probe(
                self._model, prompt, probe, self._headers, {}, [token]
            )
            scores.append(drawn.ending or 0.0)
        if math.fsum(map(math.exp, scores)) > 1.01:
            raise BadReply("they are told as sampled from (--logprobs-mode), not as they are")

    async def _try_logprobs(self, endpoint: str) -> None:
        chat = {"logprobs": Raw(b"true"), "top_logprobs": Raw(b"%d" % TOP)}
        text = {"logprobs": Raw(b"%d" % TOP)}
        chunks = await self._stream(endpoint, chat if endpoint == CHAT else text)
        if not any(c.choices and given(c.choices[0].logprobs) for c in chunks):
            self._missing["log-probabilities"] = "policies that need them with each token are off"

    async def _whole(self, endpoint: str, request: Mapping[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(GatewayError, BadReply, msgspec.MsgspecError):
            body = msgspec.json.encode(request)
            content = await self._adapter.engine.post(endpoint, body, self._headers)
            return msgspec.json.decode(content, type=dict[str, Any])
        return {}

    async def _stream(self, endpoint: str, extra: Fields) -> list[Chunk]:
        """Nothing where it is refused or cannot be read."""
        adapter = self._adapter
        surface = adapter.chat if endpoint == CHAT else adapter.completions
        if surface is None:
            return []
        request = self._chat if endpoint == CHAT else self._text
        body = msgspec.json.encode({**request, "stream": True, **surface.asking, **extra})
        try:
            content = await adapter.engine.post(endpoint, body, self._headers)
            return list(_read(EventSplitter().feed(content), surface.decode))
        except (GatewayError, BadReply, msgspec.MsgspecError):
            return []


def _read(events: Iterable[bytes], decode: Callable[[bytes], Chunk]) -> Iterator[Chunk]:
    for event in events:
        data = data_of(event)
        if data and data != b"[DONE]":
            yield decode(data)


def _echoed(chunks: Iterable[Chunk]) -> list[int] | None:
    return next((chunk.prompt_token_ids for chunk in chunks if chunk.prompt_token_ids), None)
