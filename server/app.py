"""The routes. Chat completions are judged; every path that is not ours is handed through."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from adjourn import __version__
from adjourn.policies.never import Never
from adjourn.server.api.chat import CHAT_PATH as CHAT
from adjourn.server.api.completions import COMPLETIONS_PATH as COMPLETIONS
from adjourn.server.api.request import ParsedRequest, parse_chat, parse_completion, parse_translated
from adjourn.server.api.translated.engine_defaults import EngineDefaults
from adjourn.server.api.translated.messages import MESSAGES_PATH as MESSAGES
from adjourn.server.api.translated.messages import MessagesTranslation
from adjourn.server.api.translated.responses import RESPONSES_PATH as RESPONSES
from adjourn.server.api.translated.responses import ResponsesTranslation
from adjourn.server.api.translated.translation import Translation
from adjourn.server.config import Settings
from adjourn.server.errors import BadRequest, GatewayError, TooLarge, error_body
from adjourn.server.gateway import Gateway
from adjourn.server.responses.passthrough import Passthrough
from adjourn.server.responses.policy_response import PolicyResponse
from adjourn.server.stream.chunk import Fields
from adjourn.server.upstream import http
from adjourn.server.upstream.client import forwarded_headers

__all__ = ["create_app"]

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
_ENDPOINTS = {CHAT, COMPLETIONS, RESPONSES, MESSAGES, "/v1/models"}
RequestParser = Callable[..., ParsedRequest]
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def create_app(settings: Settings, transport: http.AsyncBaseTransport | None = None) -> FastAPI:
    """``transport`` stands in for the network in tests."""
    gateway = Gateway(settings, transport)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(gateway.watch_engine())
        yield
        gateway.draining = True
        watch.cancel()
        await gateway.aclose()

    app = FastAPI(
        title="Adjourn",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,  # the path is the engine's
    )
    app.state.gateway = gateway

    @app.exception_handler(GatewayError)
    async def refuse(request: Request, error: GatewayError) -> Response:
        gateway.metrics.requests.labels(
            _endpoint_label(request.url.path), "other", "none", str(error.status)
        ).inc()
        headers = error.headers
        if _REQUEST_ID.fullmatch(request_id := request.headers.get("x-request-id", "")):
            headers["x-request-id"] = request_id
        return Response(error_body(request.url.path, error), error.status, headers=headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        """It left while it was still sending; nothing was begun."""
        gateway.metrics.client_disconnects.labels("sending").inc()
        return Response(status_code=499)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The gateway is alive; whether the engine is, `/ready` tells."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """200 once the engine answered and until shutdown, with what the engine can't do."""
        report = gateway.capabilities
        state = {
            "ready": gateway.is_ready,
            "engine": report.engine_version if report else None,
            "models": {
                m.id: m.dialect.definition.name if m.dialect else None
                for m in gateway.models.values()
            },
            "missing": dict(report.missing) if report else {},
        }
        headers = {} if gateway.is_ready else {"retry-after": "2"}
        return JSONResponse(state, 200 if gateway.is_ready else 503, headers)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post(CHAT)
    async def chat(request: Request) -> Response:
        return await judge(request, CHAT, parse_chat)

    @app.post(COMPLETIONS)
    async def complete(request: Request) -> Response:
        return await judge(request, COMPLETIONS, parse_completion)

    @app.post(MESSAGES)
    async def messages(request: Request) -> Response:
        return await judge(request, MESSAGES, translated(MessagesTranslation))

    @app.post(RESPONSES)
    async def responses(request: Request) -> Response:
        return await judge(request, RESPONSES, translated(ResponsesTranslation))

    def translated(api: Callable[[Fields, EngineDefaults], Translation]) -> RequestParser:
        return partial(
            parse_translated, translate=lambda fields: api(fields, gateway.engine_defaults)
        )

    async def judge(request: Request, endpoint: str, read: RequestParser) -> Response:
        arrived = time.perf_counter()
        body = await _read_body(request, settings.max_body_bytes)
        asked = read(body, request.headers, settings, gateway.default_policy, gateway.models)
        return _build_response(gateway, request, endpoint, asked, arrived)

    @app.api_route("/{path:path}", methods=_METHODS, include_in_schema=False)
    async def anything(request: Request) -> Response:
        arrived = time.perf_counter()
        body = await _read_body(request, settings.max_body_bytes)
        path = _request_target(request)
        headers = _with_authorization(settings, forwarded_headers(request.headers.raw))
        labels = (_endpoint_label(request.url.path), "other", "none")
        return Passthrough(
            gateway.metrics, labels, arrived, gateway.engine, request.method, path, headers, body
        )

    return app


def _build_response(
    gateway: Gateway, request: Request, endpoint: str, parsed: ParsedRequest, arrived: float
) -> Response:
    """Judge the request, or hand it through and count why."""
    model = gateway.models.get(parsed.model)
    label = parsed.model if model else "other"
    request_id = request.headers.get("x-request-id", "")
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = uuid.uuid4().hex
    headers = [h for h in forwarded_headers(request.headers.raw) if h[0] != b"x-request-id"]
    headers = _with_authorization(gateway.settings, headers)
    if "x-session-id" not in request.headers:
        headers.append((b"x-session-id", parsed.conversation_id.encode()))
    extra = [(b"x-request-id", request_id.encode())]
    path = _request_target(request)
    policy = parsed.policy
    if policy is None and endpoint == CHAT and gateway.settings.reasoning_field != "upstream":
        policy = Never()  # no stop, but the client's reading of reasoning
    if policy is not None:
        reason = parsed.ineligible_reason or gateway.find_ineligible_reason(
            policy, model, parsed, endpoint
        )
        if reason is None and model is not None:
            name = "off" if parsed.policy is None else policy.name
            extra.append((b"x-adjourn-policy", name.encode()))
            return PolicyResponse(
                gateway,
                endpoint,
                path,
                parsed,
                policy,
                model,
                headers,
                request_id,
                extra,
                arrived,
            )
        gateway.metrics.passed_through.labels(label, reason).inc()
        extra.append((b"x-adjourn-passed-through", str(reason).encode()))
    else:
        extra.append((b"x-adjourn-policy", b"off"))
    headers.append((b"x-request-id", request_id.encode()))
    content = (
        msgspec.json.encode(parsed.fields)
        if parsed.passthrough_body is None
        else parsed.passthrough_body
    )
    labels = (endpoint, label, "off" if policy is None else "passed-through")
    return Passthrough(
        gateway.metrics, labels, arrived, gateway.engine, "POST", path, headers, content, extra
    )


def _request_target(request: Request) -> str:
    """Path and query: decoding and encoding them again would make them others."""
    path: str = request.scope["raw_path"].decode("ascii")
    query: str = request.scope["query_string"].decode("ascii")
    return f"{path}?{query}" if query else path


def _with_authorization(
    settings: Settings, headers: list[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    if settings.upstream_api_key and not any(name == b"authorization" for name, _ in headers):
        headers.append((b"authorization", f"Bearer {settings.upstream_api_key}".encode()))
    return headers


async def _read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises TooLarge, before reading it where the client announced it."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit():
        raise BadRequest("content-length is not a number")
    if int(announced) > limit:
        raise TooLarge(f"the body is over the limit of {limit} bytes")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge(f"the body is over the limit of {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def _endpoint_label(path: str) -> str:
    return path if path in _ENDPOINTS else "other"
