"""Download addresses of a weights card, mirrors first; files in the hub's own cache.

No request is made here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from limner.checkpoints.cards import WeightsCard
from limner.errors import CheckpointError

_HUB = "https://huggingface.co"
_HUB_SOURCE = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^@]+?)(@(?P<revision>[^@]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Address:
    """Where a file may be had.

    Attributes:
        url: ``http``, ``https`` or ``file``.
        hub: whether the user's token for the Hugging Face hub may be shown there.
    """

    url: str
    hub: bool = False

    @property
    def local(self) -> Path | None:
        """The path of a ``file:`` address."""
        parts = urlsplit(self.url)
        return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def addresses(card: WeightsCard, mirrors: Sequence[str]) -> tuple[Address, ...]:
    """All that are worth a try, best first: each mirror, then the sources themselves.

    A mirror is the address (or path) of a folder in which the file lies under its own name, or
    under host and path of the source, or under the path alone.

    Raises:
        CheckpointError: a source or mirror is no address.
    """
    origins = [_address(source) for source in card.sources]
    found = []
    for mirror in mirrors:
        base = _address(mirror.rstrip("/")).url
        found.append(Address(f"{base}/{quote(card.name)}"))
        for origin in origins:
            parts = urlsplit(origin.url)
            if parts.scheme != "file":
                query = f"?{parts.query}" if parts.query else ""
                found.append(Address(f"{base}/{parts.netloc}{parts.path}{query}"))
                found.append(Address(f"{base}{parts.path}{query}"))
    offline = hub_is_offline()
    found += [origin for origin in origins if not (origin.hub and offline)]
    return tuple(dict.fromkeys(found))


def _address(source: str) -> Address:
    if source.startswith("hf:"):
        repository, file, revision = _parse(source)
        endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
        where = f"{repository}/resolve/{quote(revision, safe='')}/{quote(file)}"
        return Address(f"{endpoint}/{where}", hub=True)
    if urlsplit(source).scheme in ("http", "https", "file"):
        return Address(source)
    path = Path(source).expanduser()
    if path.exists():
        return Address(path.absolute().as_uri())
    raise CheckpointError(
        f"{source!r} is no address of a file; use https://…, file://… or hf:owner/repository/file."
    )


def _parse(source: str) -> tuple[str, str, str]:
    found = _HUB_SOURCE.fullmatch(source)
    if found is None:
        raise CheckpointError(
            f"{source!r} is no file on the hub; write hf:owner/repository/file or "
            "hf:owner/repository/file@revision."
        )
    return found["repository"], found["file"], found["revision"] or "main"


def in_hub_cache(source: str) -> Path | None:
    """The file of an ``hf:`` source, if the hub's own tools have fetched it before."""
    if not source.startswith("hf:"):
        return None
    repository, file, revision = _parse(source)
    folder = _hub_cache() / f"models--{repository.replace('/', '--')}"
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    path = folder / "snapshots" / commit / file
    return path if path.is_file() else None


def hub_is_offline() -> bool:
    """Whether the user told the hub's tools to make no requests."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _hub_cache() -> Path:
    """As the hub's own tools choose it."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if own:
        return Path(own).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "huggingface" / "hub"
