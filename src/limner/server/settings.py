"""Server settings: folders, token, models and the limits on what clients may ask for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from limner.io.limits import physical_memory


@dataclass(frozen=True)
class Settings:
    """What a server is started with.

    Attributes:
        state: folder of sessions and uploads; whoever may write there may read all of them.
        studies: folder whose images are offered; None: only what clients upload.
        token: that clients must show; None: no token is asked, which only a server on the loopback
            address may do.
        models: names that clients may use; empty: all that are ready here.
        hosts: values of the ``Host`` header that are accepted, without port. Others are refused,
            so that no page of the web can reach a local server by a name of its own.
        origins: values of the ``Origin`` header that are accepted besides the server's own.
        max_upload: bytes of one upload as it is sent.
        max_json: bytes of one JSON body.
        max_voxels: values of an uploaded image, channels included.
        max_sessions: that are kept on disk.
        max_waiting: predictions that wait in all; more are refused with 429.
        max_live: sessions held in memory; the least recently used go to disk.
        memory: bytes of this process above which sessions go to disk as well.
        lease_seconds: after which a viewer that is silent loses its place.
    """

    state: Path
    studies: Path | None = None
    token: str | None = None
    models: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    origins: tuple[str, ...] = ()
    max_upload: int = 2 << 30
    max_json: int = 64 << 20
    max_voxels: int = 1 << 31
    max_sessions: int = 10_000
    max_waiting: int = 256
    max_live: int = 32
    memory: int = field(default_factory=lambda: physical_memory() // 2)
    lease_seconds: float = 1800.0

    def make_folders(self) -> None:
        """Make the state folders, for their owner only."""
        for folder in (self.state, self.sessions, self.uploads):
            folder.mkdir(parents=True, exist_ok=True)
            if os.name == "posix":
                folder.chmod(0o700)

    @property
    def sessions(self) -> Path:
        """Where sessions are kept."""
        return self.state / "sessions"

    @property
    def uploads(self) -> Path:
        """Where uploaded images are kept."""
        return self.state / "uploads"
