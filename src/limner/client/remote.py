"""Connecting to a limner server: `connect` and the client that opens sessions there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.client._http import Connection
from limner.client.session import RemoteSession
from limner.errors import SessionError
from limner.geometry import Geometry
from limner.io.image import Image
from limner.models import ModelCard
from limner.sessions import as_image
from limner.sessions.wire import card_from_json, voxels_id, voxels_to_json

_CHUNK = 8 << 20  # bytes of pixels that are compressed at a time


def connect(url: str, token: str | None = None) -> RemoteClient:
    """Connect to a server that ``limner serve`` runs.

    Args:
        url: such as ``"http://127.0.0.1:8765"``.
        token: that it printed.

    Raises:
        SessionError: it cannot be reached, or refuses the token.
        ValueError: no address of a server.
    """
    client = RemoteClient(Connection(url, token))
    client.models()
    return client


class RemoteClient:
    """One server. Made by `connect`; its sessions have the verbs of `limner.Session`.

    Args:
        connection: to the server.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def models(self) -> tuple[ModelCard, ...]:
        """The cards of the models that the server offers."""
        found = self._connection.call("GET", "models")["models"]
        return tuple(map(card_from_json, found))

    def cases(self) -> list[dict[str, Any]]:
        """The images that lie on the server: ``id``, ``name``, ``origin``."""
        found: list[dict[str, Any]] = self._connection.call("GET", "cases")["cases"]
        return found

    def sessions(self) -> list[dict[str, Any]]:
        """The sessions that the server keeps, oldest first: ``id``, ``case``, ``name``, …"""
        found: list[dict[str, Any]] = self._connection.call("GET", "sessions")["sessions"]
        return found

    def image(self, case: str) -> Image:
        """An image that lies on the server; slices are fetched when they are wanted.

        Args:
            case: its id.
        """
        facts = self._connection.call("GET", f"cases/{case}")
        geometry = Geometry.from_json(facts["geometry"])

        def read_slice(index: int) -> NDArray[Any]:
            return self._fetch_slice(case, index)

        def load() -> NDArray[Any]:
            if geometry.ndim == 2:
                return read_slice(0)
            return np.stack([read_slice(k) for k in range(geometry.shape[0])])

        return Image(
            load,
            geometry,
            kind=facts["kind"],
            modality=facts["modality"],
            dtype=facts["dtype"],
            num_channels=facts["num_channels"],
            read_slice=None if geometry.ndim == 2 else read_slice,
        )

    def open_session(
        self,
        image: Image | ArrayLike | str | Path,
        model: str | None = None,
        *,
        zoom: bool | None = None,
        window: str | Sequence[float] | None = None,
        exact: bool = False,
        propagator: str | None = None,
        keep_masks: bool = False,
        name: str = "",
    ) -> RemoteSession:
        """Open a session on the server; the image is sent there unless it is there already.

        Args:
            image: as for `limner.open_session`.
            model: name of a model that the server offers, see `models`.
            zoom: as for `limner.open_session`, like the others.
            window: CT window.
            exact: compute in float32.
            propagator: name of another model that carries masks.
            keep_masks: given masks stand.
            name: of the session, for people.

        Raises:
            SessionError: the server refuses, or cannot be reached.
            LimnerError, ValueError: as `limner.open_session`.
            TypeError: a model that is no name: objects cannot be sent.
        """
        for role, given in (("model", model), ("propagator", propagator)):
            if given is not None and not isinstance(given, str):
                raise TypeError(f"A {role} is a name that the server offers, not {given!r}.")
        opened = as_image(image)
        case = self._send(opened)
        return self.open_case(
            case,
            model,
            image=opened,
            zoom=zoom,
            window=window if window is None or isinstance(window, str) else list(window),
            exact=exact,
            propagator=propagator,
            keep_masks=keep_masks,
            name=name,
        )

    def open_case(
        self, case: str, model: str | None = None, *, image: Image | None = None, **options: Any
    ) -> RemoteSession:
        """Open a session on an image that lies on the server.

        Args:
            case: its id, see `cases`.
            model: as for `open_session`, like the options.
            image: the same, where it is here, too.
            options: of `open_session`.
        """
        body = {"case": case, "model": model, **options}
        facts = self._connection.call("POST", "sessions", body)
        return RemoteSession(self._connection, facts["id"], image or self.image(case), facts)

    def resume(self, session: str, *, image: Image | None = None) -> RemoteSession:
        """Continue a session that the server keeps.

        Args:
            session: its id, see `sessions` and `RemoteSession.id`.
            image: its image, where it is here; else slices are fetched when they are wanted.

        Raises:
            SessionError: there is none of that id, or it cannot be loaded.
        """
        facts = self._connection.call("GET", f"sessions/{session}")
        return RemoteSession(self._connection, session, image or self.image(facts["case"]), facts)

    def close(self) -> None:
        """Close the connection; sessions stay on the server."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, image: Image) -> str:
        """Have an image on the server; returns the id of its case."""
        try:
            found: str = self._connection.call("GET", f"cases/{voxels_id(image)}")["id"]
        except SessionError:
            headers = {
                "X-Meta": json.dumps(voxels_to_json(image)),
                "Content-Type": "application/octet-stream",
            }
            sent = self._connection.exchange("POST", "cases/voxels", _packed(image), headers)
            found = json.loads(sent[1])["id"]
        return found

    def _fetch_slice(self, case: str, index: int) -> NDArray[Any]:
        headers, content = self._connection.exchange("GET", f"cases/{case}/slices/{index}")
        facts = json.loads(headers["x-meta"])
        values = np.frombuffer(zlib.decompress(content), np.dtype(facts["dtype"]))
        return values.reshape(facts["shape"])


def _packed(image: Image) -> Iterator[bytes]:
    """The pixels as zlib, slice by slice, so that a video is never in memory as a whole."""
    packer = zlib.compressobj(level=1)
    dtype = image.dtype.newbyteorder("<")
    for part in [image.array] if image.geometry.ndim == 2 else image.slices():
        data = np.ascontiguousarray(part, dtype).reshape(-1).view(np.uint8).data
        for start in range(0, len(data), _CHUNK):
            piece = packer.compress(data[start : start + _CHUNK])
            if piece:
                yield piece
    yield packer.flush()
