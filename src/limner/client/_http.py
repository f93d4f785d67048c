"""HTTP of the client: JSON calls over connections that stay open, errors as limner's own."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from limner import errors
from limner.errors import LimnerError, SessionError

_TIMEOUT = 600.0  # seconds: the first prediction on a large volume takes its time
_PLAIN: Mapping[str, type[Exception]] = {
    "ValueError": ValueError,
    "TypeError": TypeError,
    "ServerFailure": RuntimeError,
    "SeriesChoice": errors.FormatError,
}


class Connection:
    """Calls of one server, from any thread.

    Args:
        url: of the server, with or without a path.
        token: that it printed.
    """

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"A server's address is http://HOST:PORT, not {url!r}.")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._kind: type[http.client.HTTPConnection] = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._own = threading.local()

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Send JSON and return the JSON that is answered.

        Args:
            method: of HTTP.
            path: below ``/api/v1/``; its parts are quoted.
            body: JSON values, NumPy's numbers included.
            query: is added to the address; None is left out.
        """
        content = None if body is None else json.dumps(body, default=_plain).encode()
        headers = {"Content-Type": "application/json"} if content is not None else {}
        return json.loads(self.exchange(method, path, content, headers, query)[1])

    def exchange(
        self,
        method: str,
        path: str,
        content: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> tuple[Mapping[str, str], bytes]:
        """Send bytes and return headers and bytes.

        Raises:
            LimnerError, ValueError, TypeError: as the server's session raised it.
            RuntimeError: the server failed; its log says why.
            SessionError: the server cannot be reached, or refuses.
        """
        found = [f"{k}={quote(str(v), safe='')}" for k, v in (query or {}).items() if v is not None]
        address = f"{self._path}/api/v1/{quote(path)}" + (f"?{'&'.join(found)}" if found else "")
        connection = self._open()
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused: the answer says why
                connection.request(
                    method,
                    address,
                    body=content,
                    headers={**self._headers, **(headers or {})},
                    encode_chunked=content is not None and not isinstance(content, bytes),
                )
            answer = connection.getresponse()
            received = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._close()
            raise SessionError(
                f"The server {self.url} cannot be reached ({error}). Is limner serve running there?"
            ) from error
        except BaseException:
            self._close()  # an interrupted exchange leaves half an answer behind
            raise
        if answer.status >= 400:
            raise _error_of(answer.status, received)
        return {k.lower(): v for k, v in answer.getheaders()}, received

    def _open(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if found is not None and found.sock is not None and not _is_stale(found.sock):
            return found
        self._close()
        found = self._kind(self._host, self._port, timeout=_TIMEOUT)
        try:
            found.connect()
        except OSError as error:
            raise SessionError(
                f"The server {self.url} cannot be reached ({error}). Is limner serve running there?"
            ) from error
        found.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._own.connection = found
        return found

    def _close(self) -> None:
        found = getattr(self._own, "connection", None)
        if found is not None:
            found.close()
            self._own.connection = None

    def close(self) -> None:
        """Close the connection of this thread."""
        self._close()


def _is_stale(sock: socket.socket) -> bool:
    """Whether the server has closed a connection that waits: it is readable without an answer due.
    Known before anything is sent, so that no prompt is ever sent twice.
    """
    return bool(select.select([sock], [], [], 0)[0])


def _error_of(status: int, content: bytes) -> Exception:
    try:
        found = json.loads(content)["error"]
        kind, message = str(found["type"]), str(found["message"])
    except (ValueError, KeyError, TypeError):
        return SessionError(f"The server answered {status} without a reason.")
    if kind in _PLAIN:
        return _PLAIN[kind](message)
    own = getattr(errors, kind, None)
    if isinstance(own, type) and issubclass(own, LimnerError):
        return own(message)
    return SessionError(message)


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be sent to a server.")
