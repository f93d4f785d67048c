"""The nnInteractive v2 protocol: 3D Slicer and napari through ``nninteractive-client`` 2.5 and 2.6.

A client claims a lease, sends its image, then interactions; each is answered with the part of the
mask that has changed. Resetting the interactions goes on with another object of the same session:
that is what viewers mean by it when another segment is chosen.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from limner.errors import FormatError, SessionError, SessionExpired
from limner.prompts.types import Prompt
from limner.server.failures import Refused
from limner.server.packed_nnia import pack_nnia, unpack_nnia
from limner.server.service import Service
from limner.server.viewer_session import Bounds, ViewerSession, open_viewer_session

_LIVENESS = 120.0  # seconds between heartbeats after which another client may take the place
_MOST_LEASES = 16
_TARGETS = frozenset(["bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))])
_BINARY = "application/octet-stream"
_CAPABILITIES: dict[str, Any] = {
    "supported_interactions": dict.fromkeys(
        ("points", "bbox2d", "bbox3d", "scribble", "lasso"), True
    ),
    "channel_mapping": {
        "prev_seg": 0,
        "bbox2d": [1, 2],
        "bbox3d": [1, 2],
        "lasso": [1, 2],
        "points": [3, 4],
        "scribble": [5, 6],
    },
    "num_interaction_channels": 7,
    "supports_initial_label": True,
    "supports_zero_shot_label_refinement": True,
    "preferred_scribble_thickness": [1, 1, 1],
    "interaction_decay": 1.0,
    "inference_session_version": 2,
    "supports_undo": True,
    "do_autozoom": True,
}


@dataclass
class _Lease:
    """One client's place."""

    used: float = field(default_factory=time.monotonic)
    alive: float = field(default_factory=time.monotonic)
    viewer: ViewerSession | None = None
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))
    waits: bool = False  # interactions without a prediction


class _Leases:
    """Places of clients; silent ones are taken when all others are."""

    def __init__(self, idle_seconds: float) -> None:
        self.idle_seconds = idle_seconds
        self._leases: dict[str, _Lease] = {}

    def claim(self) -> str:
        """A place.

        Raises:
            Refused: all are taken.
        """
        now = time.monotonic()
        if len(self._leases) >= _MOST_LEASES:
            self._leases = {
                token: lease
                for token, lease in self._leases.items()
                if now - lease.alive < _LIVENESS and now - lease.used < self.idle_seconds
            }
        if len(self._leases) >= _MOST_LEASES:
            raise Refused(503, "All places of this server are taken.", {"Retry-After": "10"})
        token = secrets.token_urlsafe(24)
        self._leases[token] = _Lease()
        return token

    def find(self, request: Request, *, acts: bool = True) -> _Lease:
        """The lease of a request.

        Raises:
            SessionExpired: it is unknown, or was idle for too long.
        """
        token, now = request.headers.get("x-lease-token", ""), time.monotonic()
        lease = self._leases.get(token)
        if lease is None or now - lease.used > self.idle_seconds:
            self._leases.pop(token, None)
            raise SessionExpired("The lease has run out; connect again.")
        lease.alive = now
        if acts:
            lease.used = now
        return lease

    def remaining(self, lease: _Lease) -> float:
        """Seconds before it runs out."""
        return max(0.0, self.idle_seconds - (time.monotonic() - lease.used))

    def release(self, token: str) -> ViewerSession | None:
        """Give a place back, if it is known."""
        lease = self._leases.pop(token, None)
        return None if lease is None else lease.viewer


def add_nninteractive_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of the protocol at the root."""
    leases = _Leases(service.settings.lease_seconds)
    _add_lease_routes(app, service, leases)
    _add_image_routes(app, service, leases)
    _add_point_routes(app, leases)
    _add_mask_routes(app, service, leases)
    _add_history_routes(app, leases)


def _add_lease_routes(app: FastAPI, service: Service, leases: _Leases) -> None:
    @app.post("/claim", tags=["nnInteractive"])
    async def claim() -> dict[str, Any]:
        """Take a place."""
        return {
            "lease_token": leases.claim(),
            "idle_timeout_seconds": leases.idle_seconds,
            "liveness_timeout_seconds": _LIVENESS,
            "max_sessions": _MOST_LEASES,
        }

    @app.get("/capabilities", tags=["nnInteractive"])
    async def capabilities() -> dict[str, Any]:
        """What the model understands."""
        cards = await service.in_thread(service.models.cards)
        licence = next((c.licence for c in cards if c.name == "limner-3d"), "!!MISSING!!")
        return {**_CAPABILITIES, "license": licence, "server": "limner"}

    @app.post("/heartbeat", tags=["nnInteractive"])
    async def heartbeat(request: Request) -> dict[str, Any]:
        """Say that the client still runs."""
        return {"remaining_seconds": leases.remaining(leases.find(request, acts=False))}

    @app.get("/lease_status", tags=["nnInteractive"])
    async def lease_status(request: Request) -> dict[str, Any]:
        """How long the lease holds."""
        lease = leases.find(request, acts=False)
        seconds = leases.remaining(lease)
        return {"remaining_seconds": seconds, "idle_timeout_seconds": leases.idle_seconds}

    @app.post("/release", tags=["nnInteractive"])
    async def release(request: Request) -> dict[str, Any]:
        """Give the place back; the session stays on disk."""
        viewer = leases.release(request.headers.get("x-lease-token", ""))
        if viewer is not None:
            await service.release(viewer.session_id)
        return {"released": True}


def _add_image_routes(app: FastAPI, service: Service, leases: _Leases) -> None:
    @app.post("/set_do_autozoom", tags=["nnInteractive"])
    async def set_do_autozoom(request: Request) -> dict[str, Any]:
        """Accepted; limner's models always zoom."""
        leases.find(request)
        await _json(request)
        return {}

    @app.post("/set_image", tags=["nnInteractive"])
    async def set_image(request: Request) -> dict[str, Any]:
        """Begin on an image of ``[channel, x, y, z]`` in the client's own order."""
        lease, properties = leases.find(request), _meta(request).get("image_properties") or {}
        limit, content = service.settings.max_voxels, await request.body()
        array = await service.in_thread(lambda: unpack_nnia(content, max_values=limit, ndim=4))
        shape = list(array.shape)
        pixels = array[0] if shape[0] == 1 else np.moveaxis(array, 0, -1)
        before, lease.viewer = lease.viewer, None
        if before is not None:
            await service.release(before.session_id)
        spacing = properties.get("spacing") if isinstance(properties, dict) else None
        lease.viewer = await open_viewer_session(
            service, pixels, _spacing(spacing), name="nnInteractive"
        )
        lease.waits = False
        return {"original_image_shape": shape}

    @app.post("/set_target_buffer", tags=["nnInteractive"])
    async def set_target_buffer(request: Request) -> dict[str, Any]:
        """Shape and type of the client's mask."""
        lease, body = leases.find(request), await _json(request)
        viewer = _viewer(lease)
        if body.get("shape") != list(viewer.shape):
            raise FormatError(f"The mask has {body.get('shape')}, the image {list(viewer.shape)}.")
        if body.get("dtype") not in _TARGETS:
            raise FormatError(f"A mask is bool or integer, not {body.get('dtype')!r:.40}.")
        lease.dtype = np.dtype(body["dtype"])
        return {}


def _add_point_routes(app: FastAPI, leases: _Leases) -> None:
    @app.post("/add_point_interaction", tags=["nnInteractive"])
    async def add_point(request: Request) -> Response:
        """A click."""
        lease, body = leases.find(request), await _json(request)
        positive = body.get("include_interaction", True) is not False
        prompts = _viewer(lease).click(body.get("coordinates") or (), positive=positive)
        return await _interact(lease, prompts, body)

    @app.post("/add_bbox_interaction", tags=["nnInteractive"])
    async def add_box(request: Request) -> Response:
        """A half-open box."""
        lease, body = leases.find(request), await _json(request)
        positive = body.get("include_interaction", True) is not False
        bounds = body.get("bbox_coords")
        if not isinstance(bounds, list) or not all(isinstance(pair, list) for pair in bounds):
            raise FormatError("bbox_coords is [[low, high], [low, high], [low, high]].")
        return await _interact(lease, _viewer(lease).box(bounds, positive=positive), body)


def _add_mask_routes(app: FastAPI, service: Service, leases: _Leases) -> None:
    async def drawn(request: Request, viewer: ViewerSession) -> NDArray[Any]:
        content, limit = await request.body(), int(np.prod(viewer.shape))
        return await service.in_thread(lambda: unpack_nnia(content, max_values=limit, ndim=3))

    @app.post("/add_scribble_interaction", tags=["nnInteractive"])
    async def add_scribble(request: Request) -> Response:
        """Drawn voxels."""
        lease, meta = leases.find(request), _meta(request)
        viewer, positive = _viewer(lease), meta.get("include_interaction", True) is not False
        mask, low = await drawn(request, viewer), _low(meta)
        return await _interact(lease, viewer.stroke(mask, low, positive=positive), meta)

    @app.post("/add_lasso_interaction", tags=["nnInteractive"])
    async def add_lasso(request: Request) -> Response:
        """A filled lasso."""
        lease, meta = leases.find(request), _meta(request)
        viewer, positive = _viewer(lease), meta.get("include_interaction", True) is not False
        mask, low = await drawn(request, viewer), _low(meta)
        return await _interact(lease, viewer.lasso(mask, low, positive=positive), meta)

    @app.post("/add_initial_seg_interaction", tags=["nnInteractive"])
    async def add_initial(request: Request) -> Response:
        """A mask to start from; the client shows it already."""
        lease, meta = leases.find(request), _meta(request)
        viewer = _viewer(lease)
        mask = await drawn(request, viewer)
        prompts = viewer.rough(mask)
        await viewer.start_object()
        answer = await _interact(lease, prompts, {**meta, "run_prediction": False})
        viewer.show(mask != 0)
        if meta.get("run_prediction"):
            return _diff(lease, await viewer.predict(), ran=True)
        return answer


def _add_history_routes(app: FastAPI, leases: _Leases) -> None:
    @app.post("/predict", tags=["nnInteractive"])
    async def predict(request: Request) -> Response:
        """Answer the interactions that wait."""
        lease, body = leases.find(request), await _json(request)
        viewer = _viewer(lease)
        if not lease.waits and not body.get("force_full_refine"):
            return _diff(lease, None, ran=False)
        lease.waits = False
        return _diff(lease, await viewer.predict(), ran=True)

    @app.post("/undo", tags=["nnInteractive"])
    async def undo(request: Request) -> Response:
        """Take back the last interaction; as often as there are any."""
        lease = leases.find(request)
        ran, bounds = await _viewer(lease).undo()
        return _diff(lease, bounds, ran=ran)

    @app.post("/reset_interactions", tags=["nnInteractive"])
    async def reset(request: Request) -> Response:
        """Go on with another object."""
        lease = leases.find(request)
        await _viewer(lease).start_object()
        lease.waits = False
        return JSONResponse({})


async def _interact(lease: _Lease, prompts: Sequence[Prompt], facts: dict[str, Any]) -> Response:
    viewer = _viewer(lease)
    await viewer.add(prompts)
    if facts.get("run_prediction", True) is False:
        lease.waits = lease.waits or bool(prompts)
        return _diff(lease, None, ran=False)
    lease.waits = False
    return _diff(lease, await viewer.predict(), ran=True)


def _diff(lease: _Lease, bounds: Bounds | None, *, ran: bool) -> Response:
    viewer = _viewer(lease)
    body = b""
    if bounds is not None:
        part = viewer.mask[tuple(slice(a, b) for a, b in bounds)]
        body = pack_nnia(part.astype(lease.dtype))
    meta = {
        "ran_prediction": ran,
        "bbox": bounds,
        "dtype": lease.dtype.name,
        "shape": list(viewer.shape),
    }
    return Response(body, media_type=_BINARY, headers={"X-Meta": json.dumps(meta)})


def _viewer(lease: _Lease) -> ViewerSession:
    if lease.viewer is None:
        raise SessionError("There is no image yet; set_image comes first.")
    return lease.viewer


async def _json(request: Request) -> dict[str, Any]:
    return _object(await request.body() or b"{}", "The body")


def _meta(request: Request) -> dict[str, Any]:
    return _object(request.headers.get("x-meta", "{}"), "X-Meta")


def _object(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"{what} is no JSON.") from error
    if not isinstance(value, dict):
        raise Refused(400, f"{what} is no JSON object.")
    return value


def _low(meta: dict[str, Any]) -> list[int]:
    bounds = meta.get("interaction_bbox")
    if bounds is None:
        return [0, 0, 0]
    try:
        return [int(low) for low, _ in bounds]
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(400, "interaction_bbox is [low, high] for each axis.") from error


def _spacing(value: Any) -> list[float] | None:
    try:
        found = None if value is None else [float(x) for x in value]
    except (TypeError, ValueError) as error:
        raise Refused(400, "spacing is three numbers.") from error
    if found is not None and (len(found) != 3 or not all(0 < x < float("inf") for x in found)):
        raise Refused(400, "spacing is three numbers above 0.")
    return found
