"""Reads a client's HTTP request: body, target, request id, and the headers for the engine."""

from __future__ import annotations

import re

from fastapi import Request

from adjourn.server.config import Settings
from adjourn.server.errors import BadRequest, TooLarge
from adjourn.server.upstream.client import forwarded_headers

__all__ = ["client_request_id", "headers_for_engine", "read_body", "request_target"]

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, of at most ``limit`` bytes.

    Raises TooLarge, before reading if the client announced the length, and BadRequest if the
    announced length is not a number.
    """
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


def request_target(request: Request) -> str:
    """Path and query exactly as the client sent them: decoding and encoding could change them."""
    path: str = request.scope["raw_path"].decode("ascii")
    query: str = request.scope["query_string"].decode("ascii")
    return f"{path}?{query}" if query else path


def client_request_id(request: Request) -> str:
    """The client's ``x-request-id``; empty if it sent none, or an unsafe or too long one."""
    request_id = request.headers.get("x-request-id", "")
    return request_id if _REQUEST_ID.fullmatch(request_id) else ""


def headers_for_engine(
    request: Request, settings: Settings, *, keep_request_id: bool = True
) -> list[tuple[bytes, bytes]]:
    """The client's headers as they are sent to the engine, with the gateway's key if the client
    sent none."""
    headers = forwarded_headers(request.headers.raw)
    if not keep_request_id:
        headers = [header for header in headers if header[0] != b"x-request-id"]
    if settings.upstream_api_key and not any(name == b"authorization" for name, _ in headers):
        headers.append((b"authorization", f"Bearer {settings.upstream_api_key}".encode()))
    return headers
