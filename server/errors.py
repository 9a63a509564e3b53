"""The errors that the gateway answers with, in the format of OpenAI's API or of Anthropic's.

    GatewayError
    ├── BadRequest            400  the request is not valid; ``param`` names the field
    ├── TooLarge              413  the body exceeds ``max_body_bytes``
    ├── UpstreamDown          502  the engine cannot be reached, or broke off its response
    ├── ShuttingDown          503  the gateway shut down before the response was complete
    └── UpstreamTimeout       504  the engine was silent for longer than ``idle_timeout``

An error response of the engine itself is none of these: it is passed through unchanged.
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
    """Base of the errors. ``kind`` is the API's error type, ``retry_after`` is in seconds."""

    status = 500
    kind = "internal_error"
    code: str | None = None
    retry_after: int | None = None
    reason: str | None = None  # label in ``upstream_errors``; None: not an error of the engine

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
        """The response body, in OpenAI's format."""
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
    """The response body, in the format of the API that ``path`` belongs to."""
    if not path.startswith(_MESSAGES_PATH):
        return error.body
    kind = _MESSAGES_ERROR_TYPES.get(error.status, "api_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": error.message}})


def error_event(path: str, error: GatewayError) -> bytes:
    """The error as the last event of a stream, in the format of the API of ``path``."""
    name = b"event: error\n" if path.startswith(_MESSAGES_PATH) else b""
    return name + b"data: " + error_body(path, error) + b"\n\n"


def interruption_error(reason: str) -> GatewayError:
    """The error for a response that the engine did not finish. ``reason``: the label in
    ``upstream_errors``."""
    if reason == "timeout":
        return UpstreamTimeout("the engine stopped sending in the middle of its response")
    return UpstreamDown("the engine broke off in the middle of its response", reason=reason)
