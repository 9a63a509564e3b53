"""What every path answers, and the counts of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from benchmarks.standin import vocabulary as v
from benchmarks.standin import wire
from benchmarks.standin.chat import Chat, Refused
from benchmarks.standin.connection import Connection, Later, Stream, Ticker
from benchmarks.standin.pooling import embeddings, pooling
from benchmarks.standin.probe import Probe
from benchmarks.standin.scenario import BadScenario, Scenario
from benchmarks.standin.stream import steps

__all__ = ["Engine"]

REMEMBERED = 64  # requests to show, and prompts whose probes find their scenario


class Engine:
    """What all connections share: the scenario, the counts, the timers."""

    def __init__(
        self, scenario: Scenario, model: str = "standin", max_model_len: int = 65_536
    ) -> None:
        self.scenario = scenario
        self.model = model
        self.max_model_len = max_model_len
        self.counts: Counter[str] = Counter()
        self.active = 0
        self.aborted: tuple[float, str, int] | None = None
        self.requests: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self.prompts: deque[tuple[list[int], Scenario, dict[int, int]]] = deque(maxlen=REMEMBERED)
        self._tickers: dict[float, Ticker] = {}

    async def serve(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(self), host, port, backlog=2048)
        bound = server.sockets[0].getsockname()
        print(f"stand-in ready on http://{bound[0]}:{bound[1]}", flush=True)
        async with server:
            await server.serve_forever()

    def ticker(self, rate: float) -> Ticker:
        if rate not in self._tickers:
            self._tickers[rate] = Ticker(1.0 / rate)
        return self._tickers[rate]

    # The life of whatever generates: begin, then one of finish, abort, break_off

    def begin(self, kind: str) -> None:
        self.counts["started"] += 1
        self.counts[kind] += 1
        self.active += 1

    def finish(self) -> None:
        self.counts["finished"] += 1
        self.active -= 1

    def break_off(self) -> None:
        self.counts["broken"] += 1
        self.active -= 1

    def abort(self, phase: str, chunks: int) -> None:
        self.counts["aborted"] += 1
        self.active -= 1
        self.aborted = (time.monotonic(), phase, chunks)

    def stats(self) -> dict[str, Any]:
        kinds = ["started", "finished", "aborted", "broken"]
        kinds += ["chats", "continuations", "probes", "poolings"]
        last = None
        if self.aborted is not None:
            when, phase, chunks = self.aborted
            ago = time.monotonic() - when
            last = {"seconds_ago": round(ago, 4), "phase": phase, "chunks": chunks}
        return {k: self.counts[k] for k in kinds} | {"active": self.active, "last_abort": last}

    def forget(self) -> None:
        self.counts.clear()
        self.requests.clear()
        self.prompts.clear()
        self.aborted = None

    # What a request gets

    def answer(self, connection: Connection, method: str, path: str, body: bytes) -> None:
        route = _ROUTES.get((method, path))
        if route is None:
            known = any(path == other for _, other in _ROUTES)
            status, what = (405, "Method Not Allowed") if known else (404, "Not Found")
            connection.reply(wire.http(status, wire.dump({"detail": what})))
            return
        try:
            route(self, connection, _read(body) if method in ("POST", "PUT") else {})
        except Refused as refusal:
            connection.reply(wire.http(refusal.status, refusal.body))
        except BadScenario as problem:
            connection.reply(wire.http(400, wire.error(400, str(problem), param="standin")))

    def _check_model(self, body: dict[str, Any]) -> None:
        asked = body.get("model")
        if asked and asked != self.model:
            what = f"The model `{asked}` does not exist. Valid aliases: {self.model}."
            raise Refused(404, what, param="model")

    def chat(self, connection: Connection, body: dict[str, Any]) -> None:
        self._check_model(body)
        scenario = self.scenario.updated(body.get("standin") or {}).seeded(body.get("seed"))
        name = f"chatcmpl-{connection.headers.get('x-request-id') or uuid4().hex[:16]}"
        chat = Chat.read(body, name, scenario, self.max_model_len)
        self.begin("chats")
        self.counts["continuations"] += chat.continued
        if scenario.status is not None:
            self._fail(connection, scenario.status, scenario.delay_first, scenario.retry_after)
        elif body.get("stream"):
            if "standin" in body and not chat.continued:
                self.prompts.appendleft((chat.prompt, scenario, {}))
            Stream(connection, steps(chat, self.model), scenario).start()
        else:
            self._unstreamed(connection, chat)

    def _unstreamed(self, connection: Connection, chat: Chat) -> None:
        scenario = chat.scenario
        seconds = scenario.delay_first
        if scenario.rate:
            seconds += len(chat.output) / scenario.rate
        if scenario.stall_after is not None:
            seconds = float("inf")
        body = wire.error(500, "Internal server error")
        status = 500
        if scenario.error_event_after is None:
            status, body = 200, chat.whole(self.model)
        Later(connection, seconds, wire.http(status, body), "unstreamed").start(
            die=scenario.die_after is not None
        )

    def _fail(
        self, connection: Connection, status: int, delay: float, retry_after: int | None = None
    ) -> None:
        extra = "" if retry_after is None else f"retry-after: {retry_after}\r\n"
        body = wire.error(status, "The stand-in was asked to fail.")
        Later(connection, delay, wire.http(status, body, extra), "refusing").start()

    def complete(self, connection: Connection, body: dict[str, Any]) -> None:
        self._check_model(body)
        probe = Probe.read(body, f"cmpl-{uuid4().hex[:16]}")
        found = [self._scenario_of(prompt, body) for prompt in probe.prompts]
        self.begin("probes")
        scenario = found[0][0]
        if scenario.probe_status is not None:
            self._fail(connection, scenario.probe_status, scenario.probe_delay)
            return
        stream = bool(body.get("stream"))
        trials = [s.probe(turn) for s, turn in found]
        hidden = scenario.hidden_states(found[0][1])
        parts = probe.answer(self.model, trials, hidden, stream=stream)
        data = wire.http(200, parts[0])
        if stream:
            chunks = b"".join(wire.chunk(part) for part in parts)
            data = wire.stream_head() + chunks + wire.LAST_CHUNK
        Later(connection, scenario.probe_delay, data, "probe").start()

    def pool(self, connection: Connection, body: dict[str, Any]) -> None:
        self._check_model(body)
        scenario = self.scenario
        data = (embeddings if "input" in body else pooling)(body, self.model)
        self.begin("poolings")
        if scenario.pooling_status is not None:
            self._fail(connection, scenario.pooling_status, scenario.pooling_delay)
            return
        Later(connection, scenario.pooling_delay, wire.http(200, data), "pooling").start()

    def _scenario_of(self, prompt: list[int], body: dict[str, Any]) -> tuple[Scenario, int]:
        """A probe's scenario, and how many places of its chat were probed before this one.

        Probes carry no `standin` field: their prompt begins with that of the chat that did.
        """
        if "standin" in body:
            return self.scenario.updated(body["standin"]), 0
        for known, scenario, turns in self.prompts:
            if prompt[: len(known)] == known:
                return scenario, turns.setdefault(len(prompt), len(turns))
        return self.scenario, 0

    def tokenize(self, connection: Connection, body: dict[str, Any]) -> None:
        self._check_model(body)
        if "messages" in body:
            tokens = Chat.read(body, "", self.scenario, self.max_model_len).prompt
        elif isinstance(body.get("prompt"), str):
            tokens = v.encode(body["prompt"])
        else:
            raise Refused(400, "1 validation error:\n  prompt", "Bad Request", "body.prompt")
        strings = [v.PIECES[t] for t in tokens] if body.get("return_token_strs") else None
        whole = {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens}
        connection.reply(wire.http(200, wire.dump({**whole, "token_strs": strings})))

    def detokenize(self, connection: Connection, body: dict[str, Any]) -> None:
        text = v.decode(body.get("tokens") or [])
        connection.reply(wire.http(200, wire.dump({"prompt": text})))

    def set_scenario(self, connection: Connection, body: dict[str, Any]) -> None:
        self.scenario = self.scenario.updated(body)
        connection.reply(wire.http(200, b"{}"))

    def reset(self, connection: Connection, _: dict[str, Any]) -> None:
        self.forget()
        connection.reply(wire.http(200, b"{}"))


_ROUTES: dict[tuple[str, str], Callable[[Engine, Connection, dict[str, Any]], None]] = {
    ("GET", "/health"): lambda e, c, b: c.reply(wire.http(200)),
    ("GET", "/version"): lambda e, c, b: c.reply(wire.http(200, b'{"version":"0.32.0"}')),
    ("GET", "/v1/models"): lambda e, c, b: c.reply(
        wire.http(200, wire.models(e.model, e.max_model_len))
    ),
    ("POST", "/v1/chat/completions"): Engine.chat,
    ("POST", "/v1/completions"): Engine.complete,
    ("POST", "/v1/embeddings"): Engine.pool,
    ("POST", "/pooling"): Engine.pool,
    ("POST", "/tokenize"): Engine.tokenize,
    ("POST", "/detokenize"): Engine.detokenize,
    ("GET", "/standin/stats"): lambda e, c, b: c.reply(wire.http(200, wire.dump(e.stats()))),
    ("DELETE", "/standin/stats"): Engine.reset,
    ("GET", "/standin/requests"): lambda e, c, b: c.reply(
        wire.http(200, wire.dump(list(e.requests)))
    ),
    ("PUT", "/standin/scenario"): Engine.set_scenario,
}


def _read(body: bytes) -> dict[str, Any]:
    try:
        read = json.loads(body)
    except ValueError as problem:
        broken = {"type": "json_invalid", "loc": "body", "msg": "JSON decode error"}
        what = f"1 validation error:\n  {broken | {'ctx': {'error': str(problem)}}}"
        raise Refused(400, what, "Bad Request", "body") from None
    if not isinstance(read, dict):
        raise Refused(400, "1 validation error:\n  not an object", "Bad Request", "body")
    return read
