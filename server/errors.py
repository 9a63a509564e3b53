"""What goes wrong at the gateway, in the error shape of OpenAI or, on its paths, of Anthropic.

    GatewayError
    ├── BadRequest            400  the client erred; ``param`` says where
    ├── TooLarge              413
    ├── UpstreamDown          502  the engine cannot be reached
    ├── ShuttingDown          503  the gateway ends before the request did
    └── UpstreamTimeout       504  the engine was silent for too long

Errors that the engine itself answers with are no errors here: they are handed through as they are.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "BadRequest",
    "GatewayError",
    "ShuttingDown",
    "TooLarge",
    "UpstreamDown",
    "UpstreamTimeout",
    "error_body",
    "error_event",
    "interruption_error",
]


class GatewayError(Exception):
    status = 500
    kind = "internal_error"
    code: str | None = None
    retry_after: int | None = None
    reason: str | None = None  # under which ``upstream_errors`` counts it; None: not the engine's

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if reason is not None:
            self.reason = reason
        if code is not None:
            self.code = code

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(
            {
                "error": {
                    "message": self.message,
                    "type": self.kind,
                    "param": self.param,
                    "code": self.code,
                }
            }
        )

    @property
    def headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        return headers


class BadRequest(GatewayError):
    status = 400
    kind = "invalid_request_error"


class TooLarge(GatewayError):
    status = 413
    kind = "invalid_request_error"
    code = "request_too_large"


class UpstreamDown(GatewayError):
    status = 502
    kind = "upstream_error"
    code = "upstream_unavailable"
    retry_after = 2
    reason = "down"


class ShuttingDown(GatewayError):
    status = 503
    kind = "server_error"
    code = "shutting_down"
    retry_after = 2


class UpstreamTimeout(GatewayError):
    status = 504
    kind = "upstream_error"
    code = "upstream_timeout"
    retry_after = 2
    reason = "timeout"


_MESSAGES_PATH = "/v1/messages"
_MESSAGES_ERROR_TYPES = {
    400: "invalid_request_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(path: str, error: GatewayError) -> bytes:
    """The error in the shape of the API that the path belongs to."""
    if not path.startswith(_MESSAGES_PATH):
        return error.body
    kind = _MESSAGES_ERROR_TYPES.get(error.status, "api_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": error.message}})


def error_event(path: str, error: GatewayError) -> bytes:
    """The error as the last event of a stream there."""
    name = b"event: error\n" if path.startswith(_MESSAGES_PATH) else b""
    return name + b"data: " + error_body(path, error) + b"\n\n"


def interruption_error(reason: str) -> GatewayError:
    """What to say of an engine that did not finish its response."""
    if reason == "timeout":
        return UpstreamTimeout("the engine fell silent in the middle of its response")
    return UpstreamDown("the engine broke off in the middle of its response", reason=reason)
