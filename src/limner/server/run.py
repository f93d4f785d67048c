"""Running a server: its doors (address and protocols of each), uvicorn, a graceful stop."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from limner.errors import SessionError
from limner.server.app import make_app
from limner.server.guard import Application, Guard
from limner.server.service import Service
from limner.server.settings import Settings
from limner.server.viewers.monai_label import OPEN_PATHS

_log = logging.getLogger(__name__)
_GRACE = 20  # seconds that requests get to end when the server stops


@dataclass(frozen=True)
class Door:
    """An address and what answers there.

    Attributes:
        host: to bind.
        port: 0 takes a free one.
        app: makes the application; None: all protocols.
        needs_token: False only on the loopback address.
    """

    host: str
    port: int
    app: Callable[[Service], Application] | None = None
    needs_token: bool = True


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run_server(
    settings: Settings, doors: list[Door], ready: Callable[[list[int]], None] = lambda ports: None
) -> None:
    """Serve until SIGINT or SIGTERM; then what runs ends and all sessions go to disk.

    Args:
        settings: of the server.
        doors: where it listens.
        ready: is told the ports, in the order of the doors, once all of them answer.

    Raises:
        SessionError: an address is taken or cannot be had, or a door without a token is reached
            from elsewhere.
    """
    for door in doors:
        if not is_loopback(door.host) and (settings.token is None or not door.needs_token):
            raise SessionError(
                f"A server that is reached from elsewhere ({door.host}) must ask for a token; "
                "leave out --no-token, or use --host 127.0.0.1 and an SSH tunnel."
            )
    sockets = [_bind(door) for door in doors]
    asyncio.run(_serve(settings, doors, sockets, ready))


def _bind(door: Door) -> socket.socket:
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((door.host, door.port))
    except OSError as error:
        bound.close()
        raise SessionError(
            f"Cannot listen on {door.host}:{door.port} ({error.strerror}); choose another port."
        ) from error
    return bound


async def _serve(
    settings: Settings,
    doors: list[Door],
    sockets: list[socket.socket],
    ready: Callable[[list[int]], None],
) -> None:
    service = Service(settings)
    servers = []
    for door in doors:
        app = make_app(service, closes=False) if door.app is None else door.app(service)
        guarded = Guard(
            app,
            settings,
            service.counters,
            needs_token=door.needs_token,
            open_paths=OPEN_PATHS,
        )
        config = uvicorn.Config(
            guarded,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
            lifespan="off",
        )
        servers.append(_Quiet(config))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _stop, servers)
    running = [
        asyncio.create_task(server.serve([bound]))
        for server, bound in zip(servers, sockets, strict=True)
    ]
    while not all(server.started for server in servers) and not any(t.done() for t in running):
        await asyncio.sleep(0.01)
    ready([bound.getsockname()[1] for bound in sockets])
    await asyncio.gather(*running)
    await service.close()


class _Quiet(uvicorn.Server):
    """Leaves signals to `_serve`, which has several of them."""

    def install_signal_handlers(self) -> None:
        """Install none."""

    def capture_signals(self) -> object:  # type: ignore[override]
        """Capture none."""
        from contextlib import nullcontext

        return nullcontext()


def _stop(servers: list[_Quiet]) -> None:
    for server in servers:
        server.should_exit = True
