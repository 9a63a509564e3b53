"""What can this engine do? Asked once, when it is first seen, of the engine itself.

Whatever is missing is said plainly, and what needs it is off; requests are then handed through.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from policies.dialect import Dialect, Marks, candidates
from policies.events import Probe
from policies.markers import Ids
from policies.uncertainty import TOP
from server.apis.learned import Learned, learn
from server.engine import BadReply, Engine, Model
from server.errors import GatewayError
from server.sse import EventSplitter, data_of
from server.wire import Chunk, decode_chunk, given

__all__ = ["Report", "examine", "served"]

log = logging.getLogger("adjourn.selftest")

_HEADERS = [(b"content-type", b"application/json")]
_MESSAGES = [{"role": "user", "content": "Hi"}]


@dataclass(frozen=True, slots=True)
class Report:
    """``models`` by id; ``missing`` maps what the engine can't do to what is off for it."""

    version: str
    models: Mapping[str, Model]
    missing: Mapping[str, str] = field(default_factory=dict)
    learned: Learned = field(default_factory=Learned)

    @property
    def can_probe(self) -> bool:
        return "token-id probes" not in self.missing

    @property
    def can_score_endings(self) -> bool:
        return "log-probabilities of chosen tokens" not in self.missing

    @property
    def can_tell_logprobs(self) -> bool:
        return "log-probabilities" not in self.missing

    @property
    def can_cut(self) -> bool:
        return not {"token ids", "resuming from token ids"} & set(self.missing)


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


async def served(engine: Engine) -> set[str]:
    """Ids of the models that the engine serves now. Raises GatewayError and BadReply."""
    return {card.id for card in await _cards(engine, _authorization(engine))}


async def _cards(engine: Engine, headers: Sequence[tuple[bytes, bytes]]) -> list[_Card]:
    status, content = await engine.get("/v1/models", headers)
    if status != 200:
        raise BadReply(f"/v1/models answered {status}")
    return msgspec.json.decode(content, type=_Cards).data


async def examine(engine: Engine, dialects: Mapping[str, Dialect], forced: str | None) -> Report:
    """Ask everything. Raises GatewayError where the engine is not there."""
    headers = [*_HEADERS, *_authorization(engine)]
    cards = await _cards(engine, headers)
    status, content = await engine.get("/version", headers)
    version = "unknown"
    if status == 200:
        with contextlib.suppress(msgspec.MsgspecError, AttributeError):
            version = str(msgspec.json.decode(content).get("version", version))
    missing: dict[str, str] = {}
    models = {}
    for card in cards:
        marks = await _marks(engine, card.id, dialects, forced, headers, missing)
        skeleton: dict[str, Any] = {}
        text: dict[str, Any] = {}
        if card is cards[0]:
            skeleton = await _talk(engine, card.id, marks, headers, missing)
            text = await _complete(engine, card.id, headers)
        models[card.id] = Model(card.id, card.max_model_len, marks, skeleton, text)
    for what, off in missing.items():
        log.warning("the engine lacks %s: %s", what, off)
    # Other models that an engine serves are adapters of the first.
    learned = Learned()
    if cards:
        learned = await learn(engine, cards[0].id, cards[0].max_model_len, headers)
    return Report(version, models, missing, learned)


def _authorization(engine: Engine) -> list[tuple[bytes, bytes]]:
    key = engine.settings.upstream_api_key
    return [(b"authorization", f"Bearer {key}".encode())] if key else []


async def _marks(
    engine: Engine,
    model: str,
    dialects: Mapping[str, Dialect],
    forced: str | None,
    headers: Sequence[tuple[bytes, bytes]],
    missing: dict[str, str],
) -> Marks | None:
    """The model's dialect: its tokens are tokens of this vocabulary; a name that matches goes
    before one that doesn't."""

    async def ids(text: str) -> Ids:
        return tuple(await engine.tokenize(model, text, headers))

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


async def _talk(
    engine: Engine,
    model: str,
    marks: Marks | None,
    headers: Sequence[tuple[bytes, bytes]],
    missing: dict[str, str],
) -> dict[str, Any]:
    """Try the three calls; returns the keys of an unstreamed reply."""
    request = {"model": model, "messages": _MESSAGES, "max_tokens": 2, "temperature": 0}
    skeleton: dict[str, Any] = {}
    try:
        content = await engine.post("/v1/chat/completions", msgspec.json.encode(request), headers)
        skeleton = msgspec.json.decode(content)
    except (GatewayError, BadReply, msgspec.MsgspecError) as error:
        missing["chat completions"] = f"nothing can be stopped ({error})"
        return {}
    streamed = {**request, "stream": True, "return_token_ids": True, "include_reasoning": True}
    chunks = await _stream(engine, streamed, headers)
    prompt = next((c.prompt_token_ids for c in chunks if c.prompt_token_ids), None)
    if prompt is None or not any(c.choices and c.choices[0].token_ids for c in chunks):
        missing["token ids"] = "nothing can be stopped (return_token_ids brings none)"
        return skeleton
    if marks is not None:
        resumed = [*prompt, *marks.start, *marks.closing]
        body = {**streamed, "kv_transfer_params": {"prompt_token_ids": resumed}}
        chunks = await _stream(engine, body, headers)
        echoed = next((c.prompt_token_ids for c in chunks if c.prompt_token_ids), None)
        if echoed != resumed:
            missing["resuming from token ids"] = "nothing can be stopped (they are not honoured)"
        elif any(c.choices and c.choices[0].delta.thought for c in chunks):
            missing["a reasoning parser"] = "answers behind a cut would be taken for reasoning"
    try:
        await engine.probe(model, prompt, Probe(max_tokens=1), headers, {})
    except (GatewayError, BadReply) as error:
        missing["token-id probes"] = f"policies that probe are off ({error})"
    if marks is not None:
        try:
            probe = Probe(inducer="", max_tokens=1, closing=False, ending=True)
            await engine.probe(model, prompt, probe, headers, {}, marks.closing[:1])
        except (GatewayError, BadReply) as error:
            missing["log-probabilities of chosen tokens"] = f"`margin` is off ({error})"
    chunks = await _stream(engine, {**streamed, "logprobs": True, "top_logprobs": TOP}, headers)
    if not any(c.choices and given(c.choices[0].logprobs) for c in chunks):
        missing["log-probabilities"] = "policies that need them with each token are off"
    return skeleton


async def _complete(
    engine: Engine, model: str, headers: Sequence[tuple[bytes, bytes]]
) -> dict[str, Any]:
    """The keys of an unstreamed raw completion."""
    request = {"model": model, "prompt": "Hi", "max_tokens": 1}
    with contextlib.suppress(GatewayError, BadReply, msgspec.MsgspecError):
        content = await engine.post("/v1/completions", msgspec.json.encode(request), headers)
        return msgspec.json.decode(content, type=dict[str, Any])
    return {}


async def _stream(
    engine: Engine, request: dict[str, Any], headers: Sequence[tuple[bytes, bytes]]
) -> list[Chunk]:
    try:
        content = await engine.post("/v1/chat/completions", msgspec.json.encode(request), headers)
    except (GatewayError, BadReply):
        return []
    chunks = []
    for event in EventSplitter().feed(content):
        data = data_of(event)
        if data and data != b"[DONE]":
            try:
                chunks.append(decode_chunk(data))
            except msgspec.MsgspecError:
                return []
    return chunks
