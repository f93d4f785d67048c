"""The annotation server: durable sessions over HTTP for limner's own clients and for viewers.

`create_app` makes the ASGI application, `limner serve` runs it. Needs the extra ``serve``.
"""

from __future__ import annotations

from limner.server.app import create_app
from limner.server.settings import Settings

__all__ = ["Settings", "create_app"]
