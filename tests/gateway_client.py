"""Send chat requests to a gateway or engine, and decode streams and metrics."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx

CHAT = "/v1/chat/completions"

__all__ = [
    "CHAT",
    "body",
    "chat",
    "engine_requests",
    "events",
    "metric_value",
    "normalize",
    "raw_stream",
    "stream",
]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "standin", "messages": [{"role": "user", "content": "hi"}], **fields}


def chat(url: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return httpx.post(url + CHAT, json=body(**fields), headers=headers, timeout=60)


def raw_stream(url: str, headers: dict[str, str] | None = None, **fields: Any) -> bytes:
    """The complete body of a streamed response, as bytes."""
    return chat(url, headers, stream=True, **fields).content


def events(raw: bytes) -> list[Any]:
    """The ``data`` of each event in a stream, decoded from JSON; ``[DONE]`` stays a string."""
    datas = re.findall(r"^data: ?(.*?)\r?$", raw.decode(), re.MULTILINE)
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def stream(url: str, headers: dict[str, str] | None = None, **fields: Any) -> list[Any]:
    return events(raw_stream(url, headers, **fields))


def normalize(raw: bytes) -> bytes:
    """Replace the id and creation time of a response, which differ between two requests."""
    raw = re.sub(rb'"id":"chatcmpl-[^"]*"', b'"id":"chatcmpl-X"', raw)
    return re.sub(rb'"created":\d+', b'"created":0', raw)


def engine_requests(standin: str) -> list[dict[str, Any]]:
    """The latest requests with a body that the stand-in received: path, headers, and the body as
    text. Requests without a body are left out: they may be the gateway's health checks."""
    got: list[dict[str, Any]] = httpx.get(f"{standin}/standin/requests").json()
    return [request for request in got if request["body"]]


def metric_value(url: str, name: str, **labels: str) -> float:
    """The sum of all series of the metric ``name`` that have these labels."""
    total = 0.0
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if found:
            series_labels = dict(re.findall(r'(\w+)="([^"]*)"', found[1] or ""))
            if labels.items() <= series_labels.items():
                total += float(found[2])
    return total
