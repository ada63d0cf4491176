"""One request over the network with an end: a deadline for the whole of it, a limit of size, a look at cancel.

The time limits of sockets are for one piece of an answer. A server that sends a byte now and then keeps them for
ever; so a thread reads, and is left behind with its connection closed when the time is up.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.request
from contextlib import suppress
from typing import Any

from zemosaic_io.solvers.base import Cancel, check_cancel

__all__ = ["AnswerTooLarge", "fetch"]

_POLL_S = 0.05
_PIECE_BYTES = 1 << 16
_MAX_ANSWER_BYTES = 8_000_000


class AnswerTooLarge(ValueError):
    """The server sends more than any answer of a plate solver has."""


class _Connections:
    """The sockets of one request, so that they can be shut from another thread."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def plain(self, host: str, **options: Any) -> http.client.HTTPConnection:
        return self._watched(http.client.HTTPConnection(host, **options))

    def secure(self, host: str, **options: Any) -> http.client.HTTPConnection:
        return self._watched(http.client.HTTPSConnection(host, **options))

    def _watched(self, connection: http.client.HTTPConnection) -> http.client.HTTPConnection:
        connect = connection.connect

        def connect_and_note() -> None:
            connect()
            # The connection forgets its socket when the answer begins.
            self._sockets.append(connection.sock)

        connection.connect = connect_and_note  # type: ignore[method-assign]
        return connection

    def shut(self) -> None:
        for connected in self._sockets:
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, connections: _Connections) -> None:
        super().__init__()
        self._connections = connections

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connections.plain, request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, connections: _Connections) -> None:
        super().__init__()
        self._connections = connections

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connections.secure, request)


class _Exchange:
    """A request on its way, in a thread of its own."""

    def __init__(self, request: urllib.request.Request, timeout_s: float, max_bytes: int) -> None:
        self.content = b""
        self.error: Exception | None = None
        self.connections = _Connections()
        self._request, self._timeout_s, self._max_bytes = request, timeout_s, max_bytes
        self.thread = threading.Thread(target=self._run, name="web-request", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        opener = urllib.request.build_opener(_Http(self.connections), _Https(self.connections))
        pieces: list[bytes] = []
        left = self._max_bytes
        try:
            with opener.open(self._request, timeout=self._timeout_s) as answer:
                while piece := answer.read1(_PIECE_BYTES):
                    pieces.append(piece)
                    left -= len(piece)
                    if left < 0:
                        raise AnswerTooLarge(f"the answer has more than {self._max_bytes} bytes")
            self.content = b"".join(pieces)
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            # AttributeError: the connection was closed under the reader.
            self.error = error


def fetch(
    request: urllib.request.Request,
    limit_s: float,
    cancel: Cancel | None = None,
    max_bytes: int = _MAX_ANSWER_BYTES,
) -> bytes:
    """Send a request and return the answer.

    Parameters
    ----------
    request : urllib.request.Request
    limit_s : float
        Longest time for all of it, from looking up the name to the last byte.
    cancel : Cancel, optional
    max_bytes : int
        Largest answer.

    Raises
    ------
    TimeoutError
        The time is up.
    Cancelled
        ``cancel`` was set.
    AnswerTooLarge, OSError, http.client.HTTPException, ValueError
        There is no such answer.
    """
    deadline = time.monotonic() + limit_s
    exchange = _Exchange(request, max(_POLL_S, limit_s), max_bytes)
    try:
        while exchange.thread.is_alive():
            check_cancel(cancel)
            if time.monotonic() > deadline:
                raise TimeoutError(f"no whole answer within {limit_s:.0f} s")
            exchange.thread.join(_POLL_S)
    finally:
        exchange.connections.shut()
    if exchange.error is not None:
        raise exchange.error
    return exchange.content
