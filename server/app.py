"""The routes. Requests of the known APIs run under a policy; every other path is passed through."""

from __future__ import annotations

import asyncio
import contextlib
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
from adjourn.server.api.chat import CHAT_PATH
from adjourn.server.api.completions import COMPLETIONS_PATH
from adjourn.server.api.request import ParsedRequest, parse_chat, parse_completion, parse_translated
from adjourn.server.api.translated.engine_defaults import EngineDefaults
from adjourn.server.api.translated.messages import MESSAGES_PATH, MessagesTranslation
from adjourn.server.api.translated.responses import RESPONSES_PATH, ResponsesTranslation
from adjourn.server.api.translated.translation import Translation
from adjourn.server.client_request import (
    client_request_id,
    headers_for_engine,
    read_body,
    request_target,
)
from adjourn.server.config import Settings
from adjourn.server.errors import GatewayError, error_body
from adjourn.server.gateway import Gateway
from adjourn.server.responses.passthrough import Passthrough
from adjourn.server.responses.policy_response import PolicyResponse
from adjourn.server.stream.chunk import Fields
from adjourn.server.upstream import http

__all__ = ["create_app"]

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
_ENDPOINTS = {CHAT_PATH, COMPLETIONS_PATH, RESPONSES_PATH, MESSAGES_PATH, "/v1/models"}
RequestParser = Callable[..., ParsedRequest]


def create_app(settings: Settings, transport: http.AsyncBaseTransport | None = None) -> FastAPI:
    """The gateway as an ASGI application. ``transport`` replaces the network in tests."""
    gateway = Gateway(settings, transport)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(gateway.watch.run())
        yield
        gateway.draining = True
        watch.cancel()
        await gateway.aclose()

    app = FastAPI(
        title="Adjourn",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,  # /openapi.json is passed through to the engine
    )
    app.state.gateway = gateway

    @app.exception_handler(GatewayError)
    async def send_error(request: Request, error: GatewayError) -> Response:
        gateway.metrics.requests.labels(
            _endpoint_label(request.url.path), "other", "none", str(error.status)
        ).inc()
        headers = error.headers
        if request_id := client_request_id(request):
            headers["x-request-id"] = request_id
        return Response(error_body(request.url.path, error), error.status, headers=headers)

    @app.exception_handler(ClientDisconnect)
    async def count_disconnect(request: Request, error: ClientDisconnect) -> Response:
        """The client left while it was sending its request; nothing was sent to the engine."""
        gateway.metrics.client_disconnects.labels("sending").inc()
        return Response(status_code=499)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """200 while the gateway runs, whether or not the engine answers (see `/ready`)."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """200 while the engine answers, until shutdown; with what the engine cannot do."""
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

    @app.post(CHAT_PATH)
    async def chat(request: Request) -> Response:
        return await respond(request, CHAT_PATH, parse_chat)

    @app.post(COMPLETIONS_PATH)
    async def complete(request: Request) -> Response:
        return await respond(request, COMPLETIONS_PATH, parse_completion)

    @app.post(MESSAGES_PATH)
    async def messages(request: Request) -> Response:
        return await respond(request, MESSAGES_PATH, translated(MessagesTranslation))

    @app.post(RESPONSES_PATH)
    async def responses(request: Request) -> Response:
        return await respond(request, RESPONSES_PATH, translated(ResponsesTranslation))

    def translated(api: Callable[[Fields, EngineDefaults], Translation]) -> RequestParser:
        return partial(
            parse_translated, translate=lambda fields: api(fields, gateway.engine_defaults)
        )

    async def respond(request: Request, endpoint: str, parse: RequestParser) -> Response:
        arrived = time.perf_counter()
        body = await read_body(request, settings.max_body_bytes)
        parsed = parse(body, request.headers, settings, gateway.default_policy, gateway.models)
        return _build_response(gateway, request, endpoint, parsed, arrived)

    @app.api_route("/{path:path}", methods=_METHODS, include_in_schema=False)
    async def pass_through(request: Request) -> Response:
        arrived = time.perf_counter()
        body = await read_body(request, settings.max_body_bytes)
        labels = (_endpoint_label(request.url.path), "other", "none")
        path, headers = request_target(request), headers_for_engine(request, settings)
        return Passthrough(
            gateway.metrics, labels, arrived, gateway.engine, request.method, path, headers, body
        )

    return app


def _build_response(
    gateway: Gateway, request: Request, endpoint: str, parsed: ParsedRequest, arrived: float
) -> Response:
    """Run the request under its policy, or pass it through and count the reason."""
    settings, model = gateway.settings, gateway.models.get(parsed.model)
    request_id = client_request_id(request) or uuid.uuid4().hex
    headers = headers_for_engine(request, settings, keep_request_id=False)
    if "x-session-id" not in request.headers:
        headers.append((b"x-session-id", parsed.conversation_id.encode()))
    extra = [(b"x-request-id", request_id.encode())]
    path = request_target(request)
    policy, reason = parsed.policy, None
    if policy is None and endpoint == CHAT_PATH and settings.reasoning_field != "upstream":
        policy = Never()  # it never stops; the response is needed to rename the reasoning field
    if policy is not None:
        reason = parsed.ineligible_reason or gateway.find_ineligible_reason(
            policy, model, parsed, endpoint
        )
    if policy is not None and model is not None and reason is None:
        name = "off" if parsed.policy is None else policy.name
        extra.append((b"x-adjourn-policy", name.encode()))
        return PolicyResponse(
            gateway, endpoint, path, parsed, policy, model, headers, request_id, extra, arrived
        )
    label = parsed.model if model else "other"
    if policy is None:
        extra.append((b"x-adjourn-policy", b"off"))
    else:
        gateway.metrics.passed_through.labels(label, reason).inc()
        extra.append((b"x-adjourn-passed-through", str(reason).encode()))
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


def _endpoint_label(path: str) -> str:
    return path if path in _ENDPOINTS else "other"
