"""HTTP heads, JSON bodies and stream events with the keys and order of vLLM 0.32."""

from __future__ import annotations

import json
import math
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from benchmarks.standin import vocabulary as v

__all__ = [
    "DONE",
    "FINGERPRINT",
    "LAST_HTTP_CHUNK",
    "ChatEvents",
    "chat_document",
    "chat_logprobs",
    "completion_document",
    "completion_events",
    "completion_logprobs",
    "dump_json",
    "error_body",
    "http_chunk",
    "http_response",
    "models_body",
    "stream_head",
    "usage_object",
]

FINGERPRINT = "vllm-0.32.0-0a7cf6da"
DONE = b"data: [DONE]\n\n"
LAST_HTTP_CHUNK = b"0\r\n\r\n"


def dump_json(value: Any) -> bytes:
    """Compact JSON as UTF-8; lone surrogates pass."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )


def http_chunk(data: bytes) -> bytes:
    """One chunk of a chunked HTTP body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _response_head(status: int, fields: str) -> bytes:
    phrase = HTTPStatus(status).phrase
    return (
        f"HTTP/1.1 {status} {phrase}\r\ndate: {formatdate(usegmt=True)}\r\nserver: uvicorn\r\n"
        f"{fields}vary: Origin\r\n"
    ).encode()


def stream_head() -> bytes:
    """The status line and headers of an event stream."""
    fields = "content-type: text/event-stream; charset=utf-8\r\n"
    return _response_head(200, fields) + b"transfer-encoding: chunked\r\n\r\n"


def http_response(status: int, body: bytes = b"", extra_headers: str = "") -> bytes:
    """A whole JSON response; each of `extra_headers` ends in CRLF."""
    kind = "content-type: application/json\r\n" if body else ""
    return (
        _response_head(status, f"{extra_headers}content-length: {len(body)}\r\n{kind}")
        + b"\r\n"
        + body
    )


def error_body(
    status: int, message: str, kind: str | None = None, param: str | None = None
) -> bytes:
    """An error body. vLLM's `type` is a class name or, from FastAPI's handlers, the HTTP phrase."""
    kind = kind or {
        400: "BadRequestError",
        404: "NotFoundError",
        500: "InternalServerError",
        503: "ServiceUnavailableError",
    }.get(status, HTTPStatus(status).phrase)
    return dump_json({"error": {"message": message, "type": kind, "param": param, "code": status}})


def models_body(name: str, max_model_len: int) -> bytes:
    """The body of /v1/models with one model."""
    now = int(time.time())
    permission = {
        "id": "modelperm-0123456789abcdef",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    card = {
        "id": name,
        "object": "model",
        "created": now,
        "owned_by": "vllm",
        "root": name,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [permission],
    }
    return dump_json({"object": "list", "data": [card]})


def usage_object(
    prompt_tokens: int,
    completion_tokens: int,
    reasoning_tokens: int | None,
    prompt_details: dict[str, int | None] | None,
    *,
    with_nulls: bool,
) -> dict[str, Any]:
    """A usage object. Unknown values are null, or absent unless `with_nulls`."""
    details = None if reasoning_tokens is None else {"reasoning_tokens": reasoning_tokens}
    usage = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": prompt_details,
        "completion_tokens_details": details,
    }
    return (
        usage if with_nulls else {key: value for key, value in usage.items() if value is not None}
    )


class ChatEvents:
    """Renders the events of one chat stream. Fields not requested are null, not absent."""

    def __init__(self, response_id: str, model: str) -> None:
        self._head = (
            b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":['
            % (dump_json(response_id), int(time.time()), dump_json(model))
        )

    def render_role(
        self, prompt_ids: list[int] | None, usage: dict[str, Any] | None = None
    ) -> bytes:
        """The first event, without `token_ids`; the only one with `prompt_token_ids`."""
        choice = b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
        tail = b'"finish_reason":null}]%b,"prompt_token_ids":%b,"prompt_text":null}\n\n'
        return self._head + choice + tail % (_usage_suffix(usage), dump_json(prompt_ids))

    def render_delta(
        self,
        delta: dict[str, str],
        token_ids: list[int] | None,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        usage: dict[str, Any] | None = None,
        *,
        is_last: bool = False,
    ) -> bytes:
        """A content event: `stop_reason` accompanies `finish_reason`, and only the last event has
        the fingerprint."""
        reason = b"null"
        if finish_reason is not None:
            reason = b'"%b","stop_reason":null' % finish_reason.encode()
        choice = b'{"index":0,"delta":%b,"logprobs":%b,"finish_reason":%b,"token_ids":%b}]%b%b}\n\n'
        return self._head + choice % (
            dump_json(delta),
            dump_json(logprobs),
            reason,
            dump_json(token_ids),
            _usage_suffix(usage),
            b',"system_fingerprint":"%b"' % FINGERPRINT.encode() if is_last else b"",
        )

    def render_usage(self, usage: dict[str, Any]) -> bytes:
        """The event after the choice's last one, if the request includes usage."""
        tail = b'],"usage":%b,"system_fingerprint":"%b"}\n\n'
        return self._head + tail % (dump_json(usage), FINGERPRINT.encode())

    @staticmethod
    def render_error(status: int, message: str) -> bytes:
        """An error event; only here vLLM writes spaces after colons and commas."""
        return b"data: %b\n\n" % json.dumps(json.loads(error_body(status, message))).encode()


def _usage_suffix(usage: dict[str, Any] | None) -> bytes:
    return b"" if usage is None else b',"usage":%b' % dump_json(usage)


def chat_logprobs(tokens: list[int], top: int) -> dict[str, Any]:
    """The `logprobs` of a chat choice: -0.1 for each token, with `top` alternatives."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        piece = v.decode([token])
        return {"token": piece, "logprob": logprob, "bytes": list(piece.encode())}

    return {
        "content": [
            {
                **entry(token, -0.1),
                "top_logprobs": [entry(x, y) for x, y in _top_tokens(token, -0.1, top)],
            }
            for token in tokens
        ]
    }


def _top_tokens(token: int, logprob: float, top: int) -> list[tuple[int, float]]:
    """(token, log-probability) pairs: the token first, then others with the remaining mass."""
    rest = max(1.0 - math.exp(logprob), 1e-12)
    others = [300 + i for i in range(top + 1) if 300 + i != token][: max(top - 1, 0)]
    return [(token, logprob), *((x, math.log(rest / (i + 2) ** 2)) for i, x in enumerate(others))]


def chat_document(
    response_id: str,
    model: str,
    message: dict[str, str | None],
    finish_reason: str,
    usage: dict[str, Any],
    token_ids: list[int] | None,
    prompt_ids: list[int] | None,
) -> bytes:
    """The body of an unstreamed chat completion."""
    choice = {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": message["content"],
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": message["reasoning"],
        },
        "logprobs": None,
        "finish_reason": finish_reason,
        "stop_reason": None,
        "token_ids": token_ids,
        "routed_experts": None,
    }
    return dump_json(
        {
            "id": response_id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage,
            "prompt_logprobs": None,
            "prompt_token_ids": prompt_ids,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
    )


def completion_document(
    response_id: str,
    model: str,
    choices: list[dict[str, Any]],
    usage: dict[str, Any],
    kv_transfer_params: dict[str, Any] | None = None,
) -> bytes:
    """The body of a response to /v1/completions."""
    order = ("text", "logprobs", "finish_reason", "stop_reason", "token_ids")
    return dump_json(
        {
            "id": response_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "choices": [
                {
                    "index": index,
                    **{key: choice[key] for key in order},
                    "prompt_logprobs": None,
                    "prompt_token_ids": choice["prompt_token_ids"],
                    "routed_experts": None,
                }
                for index, choice in enumerate(choices)
            ],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage,
            "kv_transfer_params": kv_transfer_params,
            "ec_transfer_params": None,
            "metrics": None,
        }
    )


def completion_events(
    response_id: str, model: str, choice: dict[str, Any], usage: dict[str, Any] | None
) -> list[bytes]:
    """The same response as a stream: one event with all tokens, usage, [DONE]."""
    base = {
        "id": response_id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }
    order = ("text", "logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids")
    first: dict[str, Any] = {
        **base,
        "choices": [{"index": 0, **{key: choice[key] for key in order}}],
    }
    if usage is None:
        first["system_fingerprint"] = FINGERPRINT
    last = {**base, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}
    events = [first] if usage is None else [first, last]
    return [*(b"data: %b\n\n" % dump_json(event) for event in events), DONE]


def completion_logprobs(
    tokens: list[int], logprob: float, top: int, *, most_probable: int | None, as_ids: bool
) -> dict[str, Any]:
    """The `logprobs` of a choice of /v1/completions.

    ``most_probable``: the most probable token, if `allowed_token_ids` forced another one.
    """

    def spell(token: int) -> str:
        return f"token_id:{token}" if as_ids else v.decode([token])

    offsets, top_logprobs, token_logprobs, names = [], [], [], [spell(token) for token in tokens]
    offset = 0
    for token, name in zip(tokens, names, strict=True):
        offsets.append(offset)
        offset += len(name)
        pairs = _top_tokens(token, logprob, max(top, 1))
        if most_probable is not None and most_probable != token:
            rest = math.log(max(1.0 - math.exp(logprob), 1e-12))
            pairs = [(token, rest), *_top_tokens(most_probable, logprob, max(top, 1))]
        token_logprobs.append(pairs[0][1])
        top_logprobs.append({spell(x): y for x, y in pairs})
    return {
        "text_offset": offsets,
        "token_logprobs": token_logprobs,
        "tokens": names,
        "top_logprobs": top_logprobs,
    }
