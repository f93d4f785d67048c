"""A server in this process for tests: uvicorn in a thread on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

import limner
from limner.client import RemoteSession
from limner.models import PromptableModel
from limner.server.app import make_app
from limner.server.guard import Guard
from limner.server.service import Service
from limner.server.settings import Settings
from limner.server.viewers.monai_label import OPEN_PATHS

TOKEN = "a token of tests"


class Served:
    """A running server."""

    def __init__(self, service: Service, port: int) -> None:
        self.service = service
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self._count = 0
        self.client = limner.connect(self.url, TOKEN)

    def close(self) -> None:
        self.client.close()

    def offered(self, model: Any) -> Any:
        """The name under which a model object is offered; what is none stays as it is."""
        if isinstance(model, str) or not isinstance(model, PromptableModel):
            return model
        self._count += 1
        name = f"own/{self._count}"
        self.service.models.add(name, model)
        return name

    def open_session(
        self,
        image: Any,
        model: Any = None,
        *,
        journal: Path | None = None,
        propagator: Any = None,
        **options: Any,
    ) -> RemoteSession:
        """As `limner.open_session`, with the server's journal to be seen at `journal`."""
        session = self.client.open_session(
            image, self.offered(model), propagator=self.offered(propagator), **options
        )
        if journal is not None:
            journal.symlink_to(self.service.sessions.journal(session.id))
        return session


@contextmanager
def serve(state: Path, *, app: Any = None, **settings: Any) -> Iterator[Served]:
    """Run a server until the block ends."""
    chosen = Settings(state, **{"token": TOKEN, **settings})
    service = Service(chosen)
    guarded = Guard((app or make_app)(service), chosen, service.counters, open_paths=OPEN_PATHS)
    with listen(guarded) as port:
        served = Served(service, port)
        try:
            yield served
        finally:
            served.close()


@contextmanager
def listen(app: Any) -> Iterator[int]:
    """Run an ASGI application on a free port of the loopback address."""
    config = uvicorn.Config(app, port=0, log_level="critical", access_log=False, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(1000):
        if server.started or not thread.is_alive():
            break
        time.sleep(0.01)
    assert server.started
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
