"""The client of a limner server: sessions elsewhere with the verbs of sessions here.

Needs nothing but the core: HTTP is the standard library's.
"""

from __future__ import annotations

from limner.client.remote import RemoteClient, connect
from limner.client.session import RemoteSession

__all__ = ["RemoteClient", "RemoteSession", "connect"]
