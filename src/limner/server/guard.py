"""The guard before all protocols: Host and Origin, token, size of bodies, failures as JSON."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from limner.server.counters import Counters
from limner.server.failures import Refused, describe_failure
from limner.server.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_OPEN = frozenset({"/healthz"})  # answered without a token
_DRAINED = 8 << 20  # bytes
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        settings: hosts, origins, token and limits.
        counters: of requests.
        needs_token: False for a door on the loopback address for viewers that cannot show one.
        open_paths: answered without a token besides ``/healthz``, such as a log-in.
    """

    def __init__(
        self,
        app: Application,
        settings: Settings,
        counters: Counters,
        *,
        needs_token: bool = True,
        open_paths: frozenset[str] = frozenset(),
    ) -> None:
        self._app, self._settings, self._counters = app, settings, counters
        self._token = settings.token if needs_token else None
        self._open = _OPEN | open_paths

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {k.lower().decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
                self._counters.count_request(method, message["status"])
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, _Limited(receive, headers, self._settings), answer)
        except Exception as error:
            if begun:
                raise
            await _drain(receive)
            await _answer(answer, error)

    def _check(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> None:
        host = urlsplit(f"//{headers.get('host', '')}")
        if _name(host.hostname) not in self._settings.hosts:
            raise Refused(
                403, "This server is not known by that host name; see limner serve --host."
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers["host"]):
            raise Refused(403, "Pages of other origins may not use this server.")
        if self._token is None or scope["path"] in self._open:
            return
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not _is_equal(shown.strip(), self._token):
            raise Refused(
                401,
                "A token is needed: Authorization: Bearer TOKEN, as limner serve printed it.",
                {"WWW-Authenticate": "Bearer"},
            )

    def _is_own(self, origin: str, host: str) -> bool:
        return origin in self._settings.origins or urlsplit(origin).netloc == host


class _Limited:
    """Receives a body, but not more than is allowed. Bodies of GET are not waited for: MONAI
    Label's client announces some that it never sends.
    """

    def __init__(self, receive: Receive, headers: dict[str, str], settings: Settings) -> None:
        self._receive = receive
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        self._left = settings.max_json if kind == "application/json" else settings.max_upload
        self._limit = self._left
        length = headers.get("content-length", "0")
        if not length.isdigit():
            raise Refused(400, "Content-Length is no number.")
        if int(length) > self._left:
            raise self._refusal()

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise self._refusal()
        return message

    def _refusal(self) -> Refused:
        return Refused(413, f"The body is larger than {self._limit} bytes.")


def _name(host: str | None) -> str:
    return (host or "").rstrip(".").lower()


def _is_equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


async def _drain(receive: Receive) -> None:
    """Read a little of what is left of a refused body: clients read the answer when they have sent
    all of theirs, and lose it where the connection is closed before.
    """
    left = _DRAINED
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return


async def _answer(send: Send, error: BaseException) -> None:
    status, body, headers = describe_failure(error)
    content = json.dumps(body).encode()
    names = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    fixed = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),  # what is left of the body is not read
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *names]})
    await send({"type": "http.response.body", "body": content})
