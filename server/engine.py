"""The engine behind the gateway: the calls that a request makes there.

Three of them (the main stream, a probe, the answer behind a cut) are stock vLLM, with no flag of
the operator's; the chat calls stream, whatever the client asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from policies.dialect import Marks
from policies.events import Probe
from server.config import Settings
from server.errors import UpstreamDown, UpstreamTimeout
from server.transport import Transport

__all__ = ["TRANSPORT_ERRORS", "BadReply", "Drawn", "Engine", "Model", "forwarded_headers"]

log = logging.getLogger("adjourn.engine")

TRANSPORT_ERRORS = (httpx.TransportError,)
"""What reading from an engine may raise."""

_HOP_BY_HOP = {
    b"connection",
    b"content-length",
    b"expect",
    b"host",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
_OURS = b"x-adjourn-"
# vLLM's server closes an idle connection after five seconds; we must be first.
_KEEPALIVE = 3.0
# Bytes of a stream that wait here at most: what a slow client makes each stream cost.
_HIGH_WATER = 2**16


class BadReply(Exception):
    """The engine answered, but not with what was asked for."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model that the engine serves. ``marks`` is None where no dialect fits it."""

    id: str
    max_model_len: int | None
    marks: Marks | None
    skeleton: Mapping[str, Any] = field(default_factory=dict)
    """An unstreamed reply's keys, with null for what a stream does not bring."""
    text_skeleton: Mapping[str, Any] = field(default_factory=dict)
    """The same of a raw completion."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a probe brought. ``prefilled``: prompt tokens that the cache did not hold. ``decoded``:
    tokens that it took. ``top`` and ``ending`` as in a ProbeResult."""

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    finished: bool
    prefilled: int
    decoded: int
    top: tuple[tuple[float, ...], ...] = ()
    ending: float | None = None


class _Logprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] = []


class _Drawn(msgspec.Struct):
    text: str
    index: int = 0
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Completion(msgspec.Struct):
    choices: list[_Drawn]
    usage: _Usage = msgspec.field(default_factory=_Usage)


_decode_completion = msgspec.json.Decoder(_Completion).decode


class Engine:
    """A client of one engine. Raises UpstreamDown and UpstreamTimeout where it is not there."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None):
        self.settings = settings
        self.url = str(settings.upstream).rstrip("/")
        # The transport alone: what httpx's client adds (cookies, redirects, hooks) is not ours to
        # add to somebody's request, and it costs more than the transport does.
        self._transport = transport or Transport(_KEEPALIVE, _HIGH_WATER)
        self._timeout = {
            "connect": settings.connect_timeout,
            "read": settings.idle_timeout,
        }

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def send(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        content: Any = None,
    ) -> httpx.Response:
        """Open a response; its body is not read. The caller closes it."""
        request = httpx.Request(
            method,
            self.url + path,
            headers=list(headers),
            content=content,
            extensions={"timeout": self._timeout},
        )
        try:
            try:
                return await self._transport.handle_async_request(request)
            except httpx.ConnectTimeout:
                # Once more: nothing was begun. An engine that refuses connections is down, and
                # waiting for it is the client's choice.
                return await self._transport.handle_async_request(request)
        except httpx.ReadTimeout as error:
            raise UpstreamTimeout("the engine did not answer in time") from error
        except TRANSPORT_ERRORS as error:
            # Addresses are for the log, not for clients.
            log.warning("%s %s: %s", method, path.partition("?")[0], error)
            raise UpstreamDown("the engine cannot be reached") from error

    async def post(self, path: str, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """A whole reply. Raises BadReply unless the status is 200."""
        response = await self.send("POST", path, headers, body)
        try:
            content = await response.aread()
        except TRANSPORT_ERRORS as error:
            raise UpstreamDown("the engine broke the connection") from error
        finally:
            await response.aclose()
        if response.status_code != 200:
            raise BadReply(f"{path} answered {response.status_code}")
        return content

    async def probe(
        self,
        model: str,
        prompt: Sequence[int],
        probe: Probe,
        headers: Sequence[tuple[bytes, bytes]],
        extra: Mapping[str, Any],
        ending: Sequence[int] = (),
    ) -> Drawn:
        """Draw greedily from these ids. ``ending``: ids that are scored behind them, for a probe
        that asks for it; each is a prompt more in the same request.

        Raises BadReply where log-probabilities are missing.
        """
        fields = {
            **extra,
            "model": model,
            "prompt": [[*prompt, *ending[:n]] for n in range(len(ending))] or prompt,
            "max_tokens": probe.max_tokens,
            "temperature": 0,
            "logprobs": probe.top,
        }
        if ending:
            fields["logprob_token_ids"] = list(ending)
        if ending or (probe.top > 1 and probe.max_tokens == 1):
            # By their text, tokens that look alike would be one; an answer is read from its text.
            fields["return_tokens_as_token_ids"] = True
        content = await self.post("/v1/completions", msgspec.json.encode(fields), headers)
        return _read_drawn(content, ending)

    async def tokenize(
        self, model: str, text: str, headers: Sequence[tuple[bytes, bytes]]
    ) -> list[int]:
        """Ids of a fixed text, without the special tokens that a prompt begins with."""
        body = msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})
        content = await self.post("/tokenize", body, headers)
        try:
            return msgspec.json.decode(content, type=_Tokens).tokens
        except msgspec.MsgspecError as error:
            raise BadReply(f"/tokenize answered with something else: {error}") from None

    async def get(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, bytes]:
        """Status and content, within the connect timeout: it is asked whether it is there."""
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                response = await self.send("GET", path, headers)
                try:
                    return response.status_code, await response.aread()
                finally:
                    await response.aclose()
        except (TimeoutError, *TRANSPORT_ERRORS) as error:
            raise UpstreamDown(f"the engine did not answer {path}") from error


def _read_drawn(content: bytes, ending: Sequence[int]) -> Drawn:
    try:
        reply = _decode_completion(content)
        choices = sorted(reply.choices, key=lambda choice: choice.index)
        choice = choices[0]
    except (msgspec.MsgspecError, IndexError) as error:
        raise BadReply(f"a probe's reply could not be read: {error}") from None
    drawn = choice.logprobs
    if (
        drawn is None
        or None in drawn.token_logprobs
        or len(drawn.tokens) != len(drawn.token_logprobs)
    ):
        raise BadReply("a probe's reply has no log-probabilities")
    details = reply.usage.prompt_tokens_details
    cached = (details.cached_tokens if details else None) or 0  # of one prompt, told once
    return Drawn(
        text=choice.text,
        tokens=tuple(drawn.tokens),
        logprobs=tuple(p for p in drawn.token_logprobs if p is not None),
        finished=choice.finish_reason == "stop",
        prefilled=reply.usage.prompt_tokens - cached * len(choices),
        decoded=max(len(drawn.tokens), len(choices)),
        top=tuple(tuple(sorted((t or {}).values(), reverse=True)) for t in drawn.top_logprobs),
        ending=_scored(choices, ending) if ending else None,
    )


def _scored(choices: Sequence[_Drawn], ids: Sequence[int]) -> float:
    """The log-probability of ``ids`` in a row: each is told by the choice whose prompt ends before
    it. Raises BadReply."""
    total = 0.0
    try:
        for choice, token in zip(choices, ids, strict=True):
            assert choice.logprobs is not None
            total += (choice.logprobs.top_logprobs[0] or {})[f"token_id:{token}"]
    except (AssertionError, LookupError, ValueError):
        raise BadReply("a probe's reply does not score the tokens it was asked about") from None
    return total


class _Tokens(msgspec.Struct):
    tokens: list[int]


def forwarded_headers(
    headers: Sequence[tuple[bytes, bytes]], *, ours: bool = True
) -> list[tuple[bytes, bytes]]:
    """A client's headers less those of the connection, and, unless ``ours`` is False, less those
    that are for the gateway."""
    return [
        (name, value)
        for name, value in headers
        if name not in _HOP_BY_HOP and not (ours and name.startswith(_OURS))
    ]
