"""The protocol of ITK-SNAP's deep-learning segmentation (itksnap-dls 0.1, versions 1 and 2 mixed as
ITK-SNAP 4.4 does).

It knows no authentication, so it has a door of its own on the loopback address. Every answer is the
full mask of the object; whatever fails is a 4xx or 5xx, since ITK-SNAP pastes all that comes with
200.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import secrets
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from numpy.typing import NDArray
from starlette.datastructures import UploadFile

from limner._version import __version__
from limner.errors import FormatError, PromptError, SessionError, SessionExpired
from limner.geometry import Geometry
from limner.models import ModelCard
from limner.prompts.types import Prompt
from limner.server.failures import NotFound, Refused
from limner.server.service import Service
from limner.server.viewer_session import ViewerSession, open_viewer_session

_SPOKEN = "0.1.6"  # ITK-SNAP wants numbers with dots, at least 0.1.2
_MOST_SESSIONS = 16
_INTERACTIONS = ["point", "box", "scribble", "lasso"]
_LEVEL = 1  # of gzip


@dataclass
class _Place:
    """One session of ITK-SNAP."""

    model: str
    dimensions: int
    viewer: ViewerSession | None = None


class _Places:
    """Sessions of ITK-SNAP; the oldest goes to disk where there are too many."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._places: OrderedDict[str, _Place] = OrderedDict()

    async def start(self, card: ModelCard) -> str:
        """Begin one."""
        while len(self._places) >= _MOST_SESSIONS:
            await self.end(next(iter(self._places)))
        number = secrets.token_urlsafe(24)
        self._places[number] = _Place(card.name, 3 if 3 in card.ndim else 2)
        return number

    def find(self, number: str) -> _Place:
        """One that was begun.

        Raises:
            SessionExpired: there is none.
        """
        if number not in self._places:
            raise SessionExpired("The session is unknown or has ended; start another one.")
        self._places.move_to_end(number)
        return self._places[number]

    async def end(self, number: str) -> None:
        """End one; it stays on disk."""
        place = self._places.pop(number, None)
        if place is not None and place.viewer is not None:
            await self.service.release(place.viewer.session_id)


def make_itksnap_app(service: Service) -> FastAPI:
    """The application of the door for ITK-SNAP.

    Args:
        service: that answers.
    """
    from limner.server.app import new_app

    app, places = new_app("limner for ITK-SNAP"), _Places(service)
    _add_life(app, places)
    _add_interactions(app, places)
    return app


def _add_life(app: FastAPI, places: _Places) -> None:
    service = places.service

    async def cards() -> list[ModelCard]:
        found = await service.in_thread(service.models.cards)
        return [card for card in found if {"click", "scribble", "lasso"} <= card.prompts]

    @app.get("/status")
    @app.get("/v2/status")
    async def status() -> dict[str, Any]:
        """Whether and in which version the protocol is spoken."""
        return {
            "status": "ok",
            "version": _SPOKEN,
            "server": "limner",
            "limner_version": __version__,
        }

    @app.get("/v2/models")
    async def models() -> dict[str, Any]:
        """What can be chosen."""
        return {
            "models": [
                {
                    "id": card.name,
                    "channels": [1],
                    "dimensions": 3 if 3 in card.ndim else 2,
                    "interactions": _INTERACTIONS,
                }
                for card in await cards()
            ]
        }

    @app.get("/v2/start_session/{model:path}")
    async def start(model: str) -> dict[str, Any]:
        """Begin a session with a model."""
        card = next((c for c in await cards() if c.name == model), None)
        if card is None:
            raise NotFound("model", model)
        return {"session_id": await places.start(card)}

    @app.get("/start_session")
    async def start_default() -> dict[str, Any]:
        """Begin a session with the model for volumes."""
        card = next((c for c in await cards() if 3 in c.ndim), None)
        if card is None:
            raise NotFound("model", "for volumes")
        return {"session_id": await places.start(card)}

    @app.get("/end_session/{number}")
    @app.get("/v2/end_session/{number}")
    async def end(number: str) -> dict[str, Any]:
        """End a session."""
        places.find(number)
        await places.end(number)
        return {"status": "success"}

    @app.post("/upload_raw/{number}")
    @app.post("/v2/upload_raw/{number}")
    async def upload(request: Request, number: str) -> dict[str, Any]:
        """Send the image, or the slice that is shown."""
        place = places.find(number)
        content, facts = await _read_form(request)
        limit = service.settings.max_voxels
        array = await service.in_thread(lambda: read_array(content, facts, limit))
        if place.viewer is not None:
            await service.release(place.viewer.session_id)
            place.viewer = None
        geometry = read_geometry(facts, array.shape[:3])
        place.viewer = await open_viewer_session(
            service, array, geometry=geometry, model=place.model, name="ITK-SNAP"
        )
        return {"status": "success"}


def _add_interactions(app: FastAPI, places: _Places) -> None:
    @app.get("/process_point_interaction/{number}")
    @app.get("/v2/process_point_interaction/{number}")
    async def point(
        number: str,
        point: Annotated[list[int] | None, Query()] = None,
        x: int | None = None,
        y: int | None = None,
        z: int | None = None,
        foreground: bool = True,
    ) -> dict[str, Any]:
        """A click, x first."""
        viewer = _viewer(places.find(number))
        given = point or [n for n in (x, y, z) if n is not None]
        index = [*([0] if len(given) == 2 else []), *reversed(given)]
        inside = len(index) == 3 and all(
            0 <= a < n for a, n in zip(index, viewer.shape, strict=True)
        )
        if not inside:
            raise PromptError(f"The point {given} lies outside the image of {_sizes(viewer)}.")
        return await _answer(viewer, viewer.click(index, positive=foreground))

    @app.post("/process_scribble_interaction/{number}")
    @app.post("/v2/process_scribble_interaction/{number}")
    async def scribble(request: Request, number: str, foreground: bool = True) -> dict[str, Any]:
        """Drawn voxels, as a volume."""
        viewer = _viewer(places.find(number))
        drawn = await _drawn(request, viewer)
        return await _answer(viewer, viewer.stroke(drawn, (0, 0, 0), positive=foreground))

    @app.post("/process_lasso_interaction/{number}")
    @app.post("/v2/process_lasso_interaction/{number}")
    async def lasso(request: Request, number: str, foreground: bool = True) -> dict[str, Any]:
        """A filled lasso, as a volume."""
        viewer = _viewer(places.find(number))
        drawn = await _drawn(request, viewer)
        return await _answer(viewer, viewer.lasso(drawn, (0, 0, 0), positive=foreground))

    @app.get("/reset_interactions/{number}")
    @app.get("/v2/reset_interactions/{number}")
    async def reset(number: str) -> dict[str, Any]:
        """Go on with another object."""
        await _viewer(places.find(number)).start_object()
        return {"status": "success"}


def read_array(content: bytes, facts: dict[str, Any], limit: int) -> NDArray[Any]:
    """A gzipped float32 array, x fastest, as ``(slice, row, column[, component])``.

    Raises:
        FormatError: it is no such array, or not of the size that the facts say.
        Refused: too large.
    """
    try:
        sizes = [int(n) for n in facts["dimensions"]]
        count = int(facts.get("components_per_pixel", 1))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError("The metadata need dimensions and components_per_pixel.") from error
    if len(sizes) not in (2, 3) or min([*sizes, count]) < 1:
        raise FormatError(f"Dimensions are 2 or 3 numbers above 0, not {sizes}.")
    shape = (*([1] if len(sizes) == 2 else []), *reversed(sizes))
    if math.prod(shape) * count > limit:
        raise Refused(413, f"An image of {sizes} has more than {limit} values.")
    expected = math.prod(shape) * count * 4
    try:
        raw = zlib.decompressobj(wbits=31).decompress(content, expected + 1)
    except zlib.error as error:
        raise FormatError(f"The array is not gzip: {error}.") from error
    if len(raw) != expected:
        raise FormatError(f"The array is not the {expected} bytes of float32 {sizes}.")
    values = np.frombuffer(raw, "<f4").reshape((*shape, count))
    if count == 1:
        return values[..., 0]
    is_colour = count == 3 and values.min() >= 0 and values.max() <= 255
    return values.astype(np.uint8) if is_colour else values


def read_geometry(facts: dict[str, Any], shape: Sequence[int]) -> Geometry:
    """The grid that the metadata state: spacing, origin, direction in ITK's order and LPS.

    Raises:
        FormatError: they are no numbers.
    """
    affine = np.eye(4)
    try:
        spacing = ([float(x) for x in facts.get("spacing") or ()] + [1.0] * 3)[:3]
        origin = ([float(x) for x in facts.get("origin") or ()] + [0.0] * 3)[:3]
        direction = np.asarray(facts.get("direction") or np.eye(3), dtype=np.float64)
        if direction.size == 9:
            axes = direction.reshape(3, 3) * spacing
        else:
            axes = np.diag(spacing)
        affine[:3, :3] = axes[:, ::-1]
        affine[:3, 3] = origin
    except (TypeError, ValueError) as error:
        raise FormatError(f"Spacing, origin and direction are numbers: {error}.") from error
    return Geometry(tuple(shape), affine)


async def _answer(viewer: ViewerSession, prompts: Sequence[Prompt]) -> dict[str, Any]:
    await viewer.add(prompts)
    await viewer.predict()
    packed = gzip.compress(viewer.mask.astype(np.int8).tobytes(), _LEVEL)
    return {"status": "success", "result": base64.b64encode(packed).decode()}


async def _read_form(request: Request) -> tuple[bytes, dict[str, Any]]:
    async with request.form(max_files=4, max_fields=16) as form:
        file, text = form.get("file"), form.get("metadata")
        if not isinstance(file, UploadFile):
            raise Refused(400, "The form needs a file.")
        content = await file.read()
        if isinstance(text, UploadFile):
            text = (await text.read()).decode(errors="replace")
    try:
        facts = json.loads(text or "null")
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The metadata are no JSON.") from error
    if not isinstance(facts, dict):
        raise Refused(400, "The metadata are no JSON object.")
    return content, facts


async def _drawn(request: Request, viewer: ViewerSession) -> NDArray[Any]:
    content, facts = await _read_form(request)
    array = read_array(content, facts, math.prod(viewer.shape))
    if array.shape != viewer.shape:
        raise PromptError(f"A mask of {list(array.shape)} does not fit {_sizes(viewer)}.")
    return array


def _viewer(place: _Place) -> ViewerSession:
    if place.viewer is None:
        raise SessionError("There is no image yet; upload_raw comes first.")
    return place.viewer


def _sizes(viewer: ViewerSession) -> str:
    return "×".join(map(str, reversed(viewer.shape)))
