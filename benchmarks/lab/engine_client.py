"""The engine as the recorder speaks to it: stock vLLM, the same three calls as the gateway's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import msgspec

from adjourn.policies.events import Probe
from adjourn.policies.evidence.hidden_states import HiddenStates
from adjourn.policies.text.dialect import Dialect, TokenizedDialect, candidate_dialects
from adjourn.policies.text.markers import TokenIds

__all__ = ["ENGINE_ERRORS", "KEEPALIVE", "Chunk", "EngineClient", "EngineError", "ProbeResponse"]

# vLLM's server closes an idle connection after five seconds; we must be first.
KEEPALIVE = 3.0
_MAX_EVENT_BYTES = 2**24
"""Bytes of one event: the first one carries the prompt's ids."""
_READ_TIMEOUT = 600.0


class EngineError(Exception):
    """The engine is not there, refused, or cannot do what recording needs."""


ENGINE_ERRORS = (EngineError, aiohttp.ClientError, TimeoutError, msgspec.MsgspecError)
"""What a call may raise."""


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None

    @property
    def reasoning_text(self) -> str:
        return self.reasoning or self.reasoning_content or ""


class _TopLogprob(msgspec.Struct):
    logprob: float


class _TokenLogprobs(msgspec.Struct):
    top_logprobs: list[_TopLogprob] = []


class _Logprobs(msgspec.Struct):
    content: list[_TokenLogprobs] | None = None


class Choice(msgspec.Struct):
    delta: Delta
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None

    @property
    def sorted_logprobs(self) -> tuple[tuple[float, ...], ...]:
        """For each token the log-probabilities that were told, highest first, or none at all."""
        content = (self.logprobs.content if self.logprobs else None) or ()
        if len(content) != len(self.token_ids or ()):
            return ()
        tops = ((top.logprob for top in token.top_logprobs) for token in content)
        return tuple(tuple(sorted(top, reverse=True)) for top in tops)


class Chunk(msgspec.Struct):
    """A chunk of a chat stream, as far as it is recorded."""

    choices: list[Choice] = []
    prompt_token_ids: list[int] | None = None
    error: Any = None


@dataclass(frozen=True, slots=True)
class ProbeResponse:
    """What a probe brought. ``prefilled``: prompt tokens that the cache did not hold; ``decoded``:
    tokens that it took; ``top``, ``ending`` and ``hidden_states`` as in a ProbeResult."""

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    finished: bool
    prefilled_tokens: int
    decoded_tokens: int
    top_logprobs: tuple[tuple[float, ...], ...]
    end_logprob: float | None = None
    hidden_states: HiddenStates | None = None


_TOKENS_AS_IDS = {"return_tokens_as_token_ids": True}
_decode_chunk = msgspec.json.Decoder(Chunk).decode


class EngineClient:
    """One model of one engine. Raises what TROUBLE names."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self._session = session
        self._url = url
        self.model = model

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, url: str, model: str | None, key: str | None
    ) -> AsyncIterator[EngineClient]:
        """The engine at ``url``; ``model`` may be left out where it serves only one."""
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE),
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=aiohttp.ClientTimeout(total=None, sock_read=_READ_TIMEOUT),
            read_bufsize=_MAX_EVENT_BYTES,
        )
        async with session:
            engine = cls(session, url.rstrip("/"), model or "")
            served = [card["id"] for card in (await engine._get("/v1/models"))["data"]]
            if model is None and len(served) == 1:
                engine.model = served[0]
            if engine.model not in served:
                raise EngineError(f"choose a model that is served: {', '.join(served)}")
            yield engine

    async def version(self) -> str:
        with contextlib.suppress(*ENGINE_ERRORS):
            return str((await self._get("/version")).get("version", ""))
        return ""

    async def resolve_dialect(
        self, dialects: Mapping[str, Dialect], forced: str | None
    ) -> TokenizedDialect:
        """The model's dialect in its ids, chosen as the gateway chooses it."""
        for dialect in candidate_dialects(self.model, dialects, forced):
            if dialect.fits_vocabulary(
                {text: await self._tokenize(text) for text in dialect.identifying_texts}
            ):
                return TokenizedDialect.from_ids(
                    dialect,
                    {text: await self._tokenize(text) for text in dialect.texts_to_tokenize},
                )
        raise EngineError(f"{self.model} has the markers of no known dialect")

    async def _tokenize(self, text: str) -> TokenIds:
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return tuple((await self._post("/tokenize", body))["tokens"])

    async def chat(self, body: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """The stream's chunks, as they come; closing the iterator ends the work at the engine."""
        asked = {"model": self.model, **body, "stream": True, "return_token_ids": True}
        asked["include_reasoning"] = True
        async with self._session.post(f"{self._url}/v1/chat/completions", json=asked) as reply:
            await _raise_for_status(reply)
            async for line in reply.content:
                if line.startswith(b"data: {"):
                    chunk = _decode_chunk(line[6:])
                    if chunk.error is not None:
                        raise EngineError(f"the engine broke off: {chunk.error}")
                    yield chunk

    async def run_probe(
        self, prompt: Sequence[int], probe: Probe, ending_ids: Sequence[int] = ()
    ) -> ProbeResponse:
        """Draw greedily from these ids, or score those of ``ending`` behind them, each in a request
        of its own. BadEngine where log-probabilities are missing."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": probe.max_tokens,
            "temperature": 0,
            "logprobs": probe.top_logprobs,
        }
        if ending_ids:
            scores = (
                self._score_token(body, [*prompt, *ending_ids[:n]], token)
                for n, token in enumerate(ending_ids)
            )
            return _merge_scores(await asyncio.gather(*scores))
        if probe.top_logprobs > 1 and probe.max_tokens == 1:
            body |= _TOKENS_AS_IDS
        if probe.hidden_states:
            body["kv_transfer_params"] = {"hidden_states": True}
        reply = await self._post("/v1/completions", body)
        return replace(
            _parse_probe_response(reply), hidden_states=_parse_hidden_states(reply, probe)
        )

    async def _score_token(
        self, body: Mapping[str, Any], prompt: Sequence[int], token: int
    ) -> ProbeResponse:
        """The only choice, whose raw log-probability is told, beside the most probable one's."""
        only = {"prompt": prompt, "max_tokens": 1, "allowed_token_ids": [token]}
        drawn = _parse_probe_response(
            await self._post("/v1/completions", {**body, **_TOKENS_AS_IDS, **only})
        )
        if (
            drawn.tokens != (f"token_id:{token}",)
            or not drawn.top_logprobs
            or not drawn.top_logprobs[0]
        ):
            raise EngineError("a probe's reply does not score the end of the trace")
        return replace(drawn, logprobs=drawn.top_logprobs[0][:1], end_logprob=drawn.logprobs[0])

    async def _get(self, path: str) -> Any:
        async with self._session.get(self._url + path) as reply:
            await _raise_for_status(reply)
            return msgspec.json.decode(await reply.read())

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        async with self._session.post(self._url + path, json=body) as reply:
            await _raise_for_status(reply)
            return msgspec.json.decode(await reply.read())


def _parse_probe_response(reply: Any) -> ProbeResponse:
    choice, usage = reply["choices"][0], reply["usage"]
    drawn = choice["logprobs"] or {"tokens": (), "token_logprobs": (None,)}
    logprobs = tuple(drawn["token_logprobs"])
    if not all(p is not None and math.isfinite(p) for p in logprobs):
        raise EngineError("a probe's reply has no log-probabilities")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    tops = drawn.get("top_logprobs") or ()
    return ProbeResponse(
        text=choice["text"],
        tokens=tuple(drawn["tokens"]),
        logprobs=logprobs,
        finished=choice["finish_reason"] == "stop",
        prefilled_tokens=usage["prompt_tokens"] - cached,
        decoded_tokens=len(drawn["tokens"]),
        top_logprobs=tuple(tuple(sorted((top or {}).values(), reverse=True)) for top in tops),
    )


def _parse_hidden_states(reply: Any, probe: Probe) -> HiddenStates | None:
    if not probe.hidden_states:
        return None
    try:
        told = reply["kv_transfer_params"]["hidden_states"]
        data = base64.b64decode(told["data"], validate=True)
        return HiddenStates(tuple(told["layers"]), told["width"], data)
    except (TypeError, LookupError, ValueError):
        raise EngineError("a probe's reply tells no hidden states: see docs/engines.md") from None


def _merge_scores(scored: Sequence[ProbeResponse]) -> ProbeResponse:
    """Tokens that were scored behind one another, as one."""
    return replace(
        scored[0],
        prefilled_tokens=sum(one.prefilled_tokens for one in scored),
        decoded_tokens=len(scored),
        end_logprob=math.fsum(one.end_logprob or 0.0 for one in scored),
    )


async def _raise_for_status(reply: aiohttp.ClientResponse) -> None:
    if reply.status != 200:
        said = (await reply.text())[:300]
        raise EngineError(f"{reply.url.path} answered {reply.status}: {said}")
