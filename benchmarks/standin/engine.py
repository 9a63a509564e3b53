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
from benchmarks.standin import wire_format as wire
from benchmarks.standin.chat import ChatRequest, RequestRefused
from benchmarks.standin.completion import CompletionRequest
from benchmarks.standin.connection import Connection, DelayedReply, StreamedReply, Ticker
from benchmarks.standin.pooling import embeddings_response, reward_response
from benchmarks.standin.scenario import BadScenario, Scenario
from benchmarks.standin.stream import stream_steps

__all__ = ["StandinEngine"]

HISTORY_LENGTH = 64  # requests to show, and prompts whose probes find their scenario


class StandinEngine:
    """What all connections share: the scenario, the counts, the timers."""

    def __init__(
        self, scenario: Scenario, model: str = "standin", max_model_len: int = 65_536
    ) -> None:
        self.scenario = scenario
        self.model = model
        self.max_model_len = max_model_len
        self.counts: Counter[str] = Counter()
        self.active = 0
        self.last_abort: tuple[float, str, int] | None = None
        self.recent_requests: deque[dict[str, Any]] = deque(maxlen=HISTORY_LENGTH)
        self.recent_chats: deque[tuple[list[int], Scenario, dict[int, int]]] = deque(
            maxlen=HISTORY_LENGTH
        )
        self._tickers: dict[float, Ticker] = {}

    async def serve(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(self), host, port, backlog=2048)
        bound = server.sockets[0].getsockname()
        print(f"stand-in ready on http://{bound[0]}:{bound[1]}", flush=True)
        async with server:
            await server.serve_forever()

    def ticker_for(self, rate: float) -> Ticker:
        if rate not in self._tickers:
            self._tickers[rate] = Ticker(1.0 / rate)
        return self._tickers[rate]

    # The life of whatever generates: begin, then one of finish, abort, break_off

    def record_start(self, kind: str) -> None:
        self.counts["started"] += 1
        self.counts[kind] += 1
        self.active += 1

    def record_finish(self) -> None:
        self.counts["finished"] += 1
        self.active -= 1

    def record_break(self) -> None:
        self.counts["broken"] += 1
        self.active -= 1

    def record_abort(self, phase: str, chunks: int) -> None:
        self.counts["aborted"] += 1
        self.active -= 1
        self.last_abort = (time.monotonic(), phase, chunks)

    def stats(self) -> dict[str, Any]:
        kinds = ["started", "finished", "aborted", "broken"]
        kinds += ["chats", "continuations", "probes", "poolings"]
        last = None
        if self.last_abort is not None:
            when, phase, chunks = self.last_abort
            ago = time.monotonic() - when
            last = {"seconds_ago": round(ago, 4), "phase": phase, "chunks": chunks}
        return {k: self.counts[k] for k in kinds} | {"active": self.active, "last_abort": last}

    def clear_history(self) -> None:
        self.counts.clear()
        self.recent_requests.clear()
        self.recent_chats.clear()
        self.last_abort = None

    # What a request gets

    def handle_request(self, connection: Connection, method: str, path: str, body: bytes) -> None:
        route = _ROUTES.get((method, path))
        if route is None:
            known = any(path == other for _, other in _ROUTES)
            status, what = (405, "Method Not Allowed") if known else (404, "Not Found")
            connection.reply(wire.http_response(status, wire.dump_json({"detail": what})))
            return
        try:
            route(self, connection, _parse_json(body) if method in ("POST", "PUT") else {})
        except RequestRefused as refusal:
            connection.reply(wire.http_response(refusal.status, refusal.body))
        except BadScenario as problem:
            connection.reply(
                wire.http_response(400, wire.error_body(400, str(problem), param="standin"))
            )

    def _check_model(self, body: dict[str, Any]) -> None:
        asked = body.get("model")
        if asked and asked != self.model:
            what = f"The model `{asked}` does not exist. Valid aliases: {self.model}."
            raise RequestRefused(404, what, param="model")

    def handle_chat(self, connection: Connection, body: dict[str, Any]) -> None:
        self._check_model(body)
        scenario = self.scenario.updated(body.get("standin") or {}).for_seed(body.get("seed"))
        name = f"chatcmpl-{connection.headers.get('x-request-id') or uuid4().hex[:16]}"
        chat = ChatRequest.parse(body, name, scenario, self.max_model_len)
        self.record_start("chats")
        self.counts["continuations"] += chat.has_prompt_ids
        if scenario.status is not None:
            self._reply_error(
                connection, scenario.status, scenario.delay_first, scenario.retry_after
            )
        elif body.get("stream"):
            if "standin" in body and not chat.has_prompt_ids:
                self.recent_chats.appendleft((chat.prompt_ids, scenario, {}))
            StreamedReply(connection, stream_steps(chat, self.model), scenario).start()
        else:
            self._reply_unstreamed(connection, chat)

    def _reply_unstreamed(self, connection: Connection, chat: ChatRequest) -> None:
        scenario = chat.scenario
        seconds = scenario.delay_first
        if scenario.rate:
            seconds += len(chat.output_ids) / scenario.rate
        if scenario.stall_after is not None:
            seconds = float("inf")
        body = wire.error_body(500, "Internal server error")
        status = 500
        if scenario.error_event_after is None:
            status, body = 200, chat.build_document(self.model)
        DelayedReply(connection, seconds, wire.http_response(status, body), "unstreamed").start(
            should_drop=scenario.die_after is not None
        )

    def _reply_error(
        self, connection: Connection, status: int, delay: float, retry_after: int | None = None
    ) -> None:
        extra = "" if retry_after is None else f"retry-after: {retry_after}\r\n"
        body = wire.error_body(status, "The stand-in was asked to fail.")
        DelayedReply(connection, delay, wire.http_response(status, body, extra), "refusing").start()

    def handle_completion(self, connection: Connection, body: dict[str, Any]) -> None:
        self._check_model(body)
        probe = CompletionRequest.parse(body, f"cmpl-{uuid4().hex[:16]}")
        found = [self._probe_scenario(prompt, body) for prompt in probe.prompts]
        self.record_start("probes")
        scenario = found[0][0]
        if scenario.probe_status is not None:
            self._reply_error(connection, scenario.probe_status, scenario.probe_delay)
            return
        stream = bool(body.get("stream"))
        trials = [s.trial_answer(turn) for s, turn in found]
        hidden = scenario.hidden_states(found[0][1])
        parts = probe.render_response(self.model, trials, hidden, stream=stream)
        data = wire.http_response(200, parts[0])
        if stream:
            chunks = b"".join(wire.http_chunk(part) for part in parts)
            data = wire.stream_head() + chunks + wire.LAST_HTTP_CHUNK
        DelayedReply(connection, scenario.probe_delay, data, "probe").start()

    def handle_pooling(self, connection: Connection, body: dict[str, Any]) -> None:
        self._check_model(body)
        scenario = self.scenario
        data = (embeddings_response if "input" in body else reward_response)(body, self.model)
        self.record_start("poolings")
        if scenario.pooling_status is not None:
            self._reply_error(connection, scenario.pooling_status, scenario.pooling_delay)
            return
        DelayedReply(
            connection, scenario.pooling_delay, wire.http_response(200, data), "pooling"
        ).start()

    def _probe_scenario(self, prompt: list[int], body: dict[str, Any]) -> tuple[Scenario, int]:
        """A probe's scenario, and how many places of its chat were probed before this one.

        Probes carry no `standin` field: their prompt begins with that of the chat that did.
        """
        if "standin" in body:
            return self.scenario.updated(body["standin"]), 0
        for known, scenario, turns in self.recent_chats:
            if prompt[: len(known)] == known:
                return scenario, turns.setdefault(len(prompt), len(turns))
        return self.scenario, 0

    def tokenize(self, connection: Connection, body: dict[str, Any]) -> None:
        self._check_model(body)
        if "messages" in body:
            tokens = ChatRequest.parse(body, "", self.scenario, self.max_model_len).prompt_ids
        elif isinstance(body.get("prompt"), str):
            tokens = v.encode(body["prompt"])
        else:
            raise RequestRefused(400, "1 validation error:\n  prompt", "Bad Request", "body.prompt")
        strings = [v.TOKEN_TEXTS[t] for t in tokens] if body.get("return_token_strs") else None
        whole = {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens}
        connection.reply(wire.http_response(200, wire.dump_json({**whole, "token_strs": strings})))

    def detokenize(self, connection: Connection, body: dict[str, Any]) -> None:
        text = v.decode(body.get("tokens") or [])
        connection.reply(wire.http_response(200, wire.dump_json({"prompt": text})))

    def set_scenario(self, connection: Connection, body: dict[str, Any]) -> None:
        self.scenario = self.scenario.updated(body)
        connection.reply(wire.http_response(200, b"{}"))

    def reset(self, connection: Connection, _: dict[str, Any]) -> None:
        self.clear_history()
        connection.reply(wire.http_response(200, b"{}"))


_ROUTES: dict[tuple[str, str], Callable[[StandinEngine, Connection, dict[str, Any]], None]] = {
    ("GET", "/health"): lambda e, c, b: c.reply(wire.http_response(200)),
    ("GET", "/version"): lambda e, c, b: c.reply(wire.http_response(200, b'{"version":"0.32.0"}')),
    ("GET", "/v1/models"): lambda e, c, b: c.reply(
        wire.http_response(200, wire.models_body(e.model, e.max_model_len))
    ),
    ("POST", "/v1/chat/completions"): StandinEngine.handle_chat,
    ("POST", "/v1/completions"): StandinEngine.handle_completion,
    ("POST", "/v1/embeddings"): StandinEngine.handle_pooling,
    ("POST", "/pooling"): StandinEngine.handle_pooling,
    ("POST", "/tokenize"): StandinEngine.tokenize,
    ("POST", "/detokenize"): StandinEngine.detokenize,
    ("GET", "/standin/stats"): lambda e, c, b: c.reply(
        wire.http_response(200, wire.dump_json(e.stats()))
    ),
    ("DELETE", "/standin/stats"): StandinEngine.reset,
    ("GET", "/standin/requests"): lambda e, c, b: c.reply(
        wire.http_response(200, wire.dump_json(list(e.recent_requests)))
    ),
    ("PUT", "/standin/scenario"): StandinEngine.set_scenario,
}


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        read = json.loads(body)
    except ValueError as problem:
        broken = {"type": "json_invalid", "loc": "body", "msg": "JSON decode error"}
        what = f"1 validation error:\n  {broken | {'ctx': {'error': str(problem)}}}"
        raise RequestRefused(400, what, "Bad Request", "body") from None
    if not isinstance(read, dict):
        raise RequestRefused(400, "1 validation error:\n  not an object", "Bad Request", "body")
    return read
