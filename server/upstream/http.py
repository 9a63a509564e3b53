"""The names that the gateway and the laboratory use from httpx.

No other module imports httpx (a test checks it), so a move to another library with the same
interface, such as httpx2, changes the import below and nothing else. Only messages, the transport
interface and the exceptions are used, never httpx's client or connection pool: requests go
through ``adjourn.server.upstream.transport``.

    names                              what for
    ---------------------------------  ------------------------------------------------------------
    Request, Response                  one request, and its response with a body that may stream
    AsyncBaseTransport                 sends a Request; a test passes one that replaces the network
    AsyncByteStream                    the body of a Response
    create_ssl_context                 the context that verifies certificates, as httpx does it
    InvalidURL                         raised by Request
    TransportError                     base of the exceptions below, raised by a transport
      ConnectError, ReadError          the connection cannot be opened; it was lost
      RemoteProtocolError              the engine sent something that is not HTTP
      TimeoutException                 base of the two timeouts
        ConnectTimeout, ReadTimeout    the limit to connect; the limit of silence while reading
"""

from __future__ import annotations

from httpx import (
    AsyncBaseTransport,
    AsyncByteStream,
    ConnectError,
    ConnectTimeout,
    InvalidURL,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    Request,
    Response,
    TimeoutException,
    TransportError,
    create_ssl_context,
)

__all__ = [
    "AsyncBaseTransport",
    "AsyncByteStream",
    "ConnectError",
    "ConnectTimeout",
    "InvalidURL",
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
    "Request",
    "Response",
    "TimeoutException",
    "TransportError",
    "create_ssl_context",
]
