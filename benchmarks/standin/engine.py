"""The endpoints of the stand-in, and the state that its connections share."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from benchmarks.standin import vocabulary as v
from benchmarks.standin import wire_format as wire
from benchmarks.standin.chat import ChatRequest, RequestRefused
from benchmarks.standin.completion import CompletionRequest
from benchmarks.standin.connection import Connection, DelayedReply, StreamedReply, Ticker
from benchmarks.standin.counts import RequestCounts
from benchmarks.standin.pooling import embeddings_response, reward_response
from benchmarks.standin.scenario import BadScenario, Scenario
from benchmarks.standin.stream import stream_steps

__all__ = ["StandinEngine"]

HISTORY_LENGTH = 64  # of recent_requests, and of recent_chats by which probes find a scenario


class StandinEngine:
    """Handles the requests of all connections.

    State: the default scenario (`PUT /standin/scenario` replaces it), the counts, the recent
    requests and chats (newest chat first), and one ticker for each rate.
    """

    def __init__(
        self, scenario: Scenario, model: str = "standin", max_model_len: int = 65_536
    ) -> None:
        self.scenario = scenario
        self.model = model
        self.max_model_len = max_model_len
        self.counts = RequestCounts()
        self.recent_requests: deque[dict[str, Any]] = deque(maxlen=HISTORY_LENGTH)
        self.recent_chats: deque[tuple[list[int], Scenario, dict[int, int]]] = deque(
            maxlen=HISTORY_LENGTH
        )
        self._tickers: dict[float, Ticker] = {}

    async def serve(self, host: str, port: int) -> None:
        """Print the address, and serve until cancelled."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Connection(self.counts, self.handle_request), host, port, backlog=2048
        )
        bound = server.sockets[0].getsockname()
        print(f"stand-in ready on http://{bound[0]}:{bound[1]}", flush=True)
        async with server:
            await server.serve_forever()

    def ticker_for(self, rate: float) -> Ticker | None:
        """The ticker of all streams with this rate in chunks per second; None if unpaced."""
        if rate <= 0:
            return None
        if rate not in self._tickers:
            self._tickers[rate] = Ticker(1.0 / rate)
        return self._tickers[rate]

    def clear_history(self) -> None:
        """Reset the counts, and forget the recent requests and chats."""
        self.counts.clear()
        self.recent_requests.clear()
        self.recent_chats.clear()

    def handle_request(self, connection: Connection, method: str, target: str, body: bytes) -> None:
        """Record the request unless it is for the stand-in itself, and route it."""
        path = urlsplit(target).path
        if not path.startswith("/standin/"):
            request = {"method": method, "path": target, "headers": connection.headers}
            self.recent_requests.append({**request, "body": body.decode("utf-8", "replace")})
        route = _ROUTES.get((method, path))
        if route is None:
            known = any(path == other for _, other in _ROUTES)
            status, detail = (405, "Method Not Allowed") if known else (404, "Not Found")
            connection.reply(wire.http_response(status, wire.dump_json({"detail": detail})))
            return
        try:
            route(self, connection, _parse_json(body) if method in ("POST", "PUT") else {})
        except RequestRefused as refusal:
            connection.reply(wire.http_response(refusal.status, refusal.body))
        except BadScenario as error:
            connection.reply(
                wire.http_response(400, wire.error_body(400, str(error), param="standin"))
            )

    def _check_model(self, body: dict[str, Any]) -> None:
        model = body.get("model")
        if model and model != self.model:
            message = f"The model `{model}` does not exist. Valid aliases: {self.model}."
            raise RequestRefused(404, message, param="model")

    def handle_chat(self, connection: Connection, body: dict[str, Any]) -> None:
        self._check_model(body)
        scenario = self.scenario.updated(body.get("standin") or {}).for_seed(body.get("seed"))
        response_id = f"chatcmpl-{connection.headers.get('x-request-id') or uuid4().hex[:16]}"
        chat = ChatRequest.parse(body, response_id, scenario, self.max_model_len)
        self.counts.record_start("chats")
        self.counts.by_kind["continuations"] += chat.has_prompt_ids
        if scenario.status is not None:
            self._reply_error(
                connection, scenario.status, scenario.delay_first, scenario.retry_after
            )
        elif body.get("stream"):
            if "standin" in body and not chat.has_prompt_ids:
                self.recent_chats.appendleft((chat.prompt_ids, scenario, {}))
            steps = stream_steps(chat, self.model)
            StreamedReply(connection, steps, scenario, self.ticker_for(scenario.rate)).start()
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
        body = wire.error_body(status, "The scenario asked for this error.")
        DelayedReply(connection, delay, wire.http_response(status, body, extra), "refusing").start()

    def handle_completion(self, connection: Connection, body: dict[str, Any]) -> None:
        self._check_model(body)
        probe = CompletionRequest.parse(body, f"cmpl-{uuid4().hex[:16]}")
        scenarios = [self._probe_scenario(prompt, body) for prompt in probe.prompts]
        self.counts.record_start("probes")
        scenario = scenarios[0][0]
        if scenario.probe_status is not None:
            self._reply_error(connection, scenario.probe_status, scenario.probe_delay)
            return
        stream = bool(body.get("stream"))
        trials = [s.trial_answer(probe_index) for s, probe_index in scenarios]
        hidden = scenario.hidden_states(scenarios[0][1])
        events = probe.render_response(self.model, trials, hidden, stream=stream)
        data = wire.http_response(200, events[0])
        if stream:
            chunks = b"".join(wire.http_chunk(event) for event in events)
            data = wire.stream_head() + chunks + wire.LAST_HTTP_CHUNK
        DelayedReply(connection, scenario.probe_delay, data, "probe").start()

    def handle_pooling(self, connection: Connection, body: dict[str, Any]) -> None:
        self._check_model(body)
        scenario = self.scenario
        data = (embeddings_response if "input" in body else reward_response)(body, self.model)
        self.counts.record_start("poolings")
        if scenario.pooling_status is not None:
            self._reply_error(connection, scenario.pooling_status, scenario.pooling_delay)
            return
        DelayedReply(
            connection, scenario.pooling_delay, wire.http_response(200, data), "pooling"
        ).start()

    def _probe_scenario(self, prompt: list[int], body: dict[str, Any]) -> tuple[Scenario, int]:
        """A probe's scenario, and at how many other positions its chat was probed before.

        Probes carry no `standin` field: a recent chat whose prompt is a prefix of the probe's
        prompt gives the scenario.
        """
        if "standin" in body:
            return self.scenario.updated(body["standin"]), 0
        for chat_prompt, scenario, probe_indices in self.recent_chats:
            if prompt[: len(chat_prompt)] == chat_prompt:
                return scenario, probe_indices.setdefault(len(prompt), len(probe_indices))
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
        fields = {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens}
        connection.reply(wire.http_response(200, wire.dump_json({**fields, "token_strs": strings})))

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
        wire.http_response(200, wire.dump_json(e.counts.stats()))
    ),
    ("DELETE", "/standin/stats"): StandinEngine.reset,
    ("GET", "/standin/requests"): lambda e, c, b: c.reply(
        wire.http_response(200, wire.dump_json(list(e.recent_requests)))
    ),
    ("PUT", "/standin/scenario"): StandinEngine.set_scenario,
}


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        detail = {"type": "json_invalid", "loc": "body", "msg": "JSON decode error"}
        message = f"1 validation error:\n  {detail | {'ctx': {'error': str(error)}}}"
        raise RequestRefused(400, message, "Bad Request", "body") from None
    if not isinstance(value, dict):
        raise RequestRefused(400, "1 validation error:\n  not an object", "Bad Request", "body")
    return value
