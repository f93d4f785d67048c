"""Routes of cases and models: list, facts, slices as they are stored, upload."""

from __future__ import annotations

import io
import json
import zlib
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.server.case_store import VoxelFacts
from limner.server.failures import Refused
from limner.server.service import Service
from limner.server.uploads import receive_file, receive_voxels
from limner.sessions.wire import card_to_json

_BINARY = "application/octet-stream"


def add_case_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of cases and models."""
    cases, prefix = service.cases, "/api/v1"

    @app.get(f"{prefix}/models", tags=["models"])
    async def list_models() -> dict[str, Any]:
        """Cards of the models that sessions may use."""
        found = await service.in_thread(service.models.cards)
        return {"models": [card_to_json(card) for card in found]}

    @app.get(f"{prefix}/cases", tags=["cases"])
    async def list_cases() -> dict[str, Any]:
        """The images that sessions can be opened on."""
        found = await service.in_thread(cases.list)
        return {"cases": [case.to_json() for case in found]}

    @app.get(f"{prefix}/cases/{{case}}", tags=["cases"])
    async def show_case(case: str) -> dict[str, Any]:
        """Kind, grid, type and window presets of an image."""
        return await service.in_thread(lambda: cases.facts(case))

    @app.get(f"{prefix}/cases/{{case}}/slices/{{index}}", tags=["cases"], response_class=Response)
    async def show_slice(
        request: Request,
        case: str,
        index: int,
        axis: Annotated[int, Query(ge=0, le=2)] = 0,
        form: Annotated[str, Query(description="raw (zlib, as stored) or png")] = "raw",
        window: Annotated[str | None, Query(description="low,high; for png")] = None,
    ) -> Response:
        """One slice: little-endian values as they are stored, or a picture for looking at."""
        pixels = await service.in_thread(lambda: cases.slice_pixels(case, index, axis))
        if form == "png":
            return Response(_png(pixels, window), media_type="image/png")
        if form != "raw":
            raise ValueError(f"A form is raw or png, not {form!r}.")
        values = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
        facts = {"shape": list(values.shape), "dtype": values.dtype.str, "compression": "zlib"}
        headers = {"X-Meta": json.dumps(facts), "Cache-Control": "private, max-age=3600"}
        return Response(zlib.compress(values.data, 1), media_type=_BINARY, headers=headers)

    @app.post(f"{prefix}/cases", tags=["cases"], status_code=201)
    async def upload_file(
        request: Request, filename: Annotated[str, Query(max_length=255)]
    ) -> Response:
        """Upload an image file, or a .zip of one DICOM series, as the body."""
        case = await receive_file(service, filename, request.stream())
        return JSONResponse(await service.in_thread(lambda: cases.facts(case.id)), 201)

    @app.post(f"{prefix}/cases/voxels", tags=["cases"], status_code=201)
    async def upload_voxels(
        request: Request, x_meta: Annotated[str, Header(description="JSON; see docs/server.md")]
    ) -> Response:
        """Upload an array: its facts as JSON in X-Meta, its values as zlib in the body."""
        try:
            facts = VoxelFacts.from_json(json.loads(x_meta), service.settings)
        except ValueError as error:
            raise Refused(400, f"X-Meta is no JSON: {error}.") from error
        case = await receive_voxels(service, facts, request.stream())
        return JSONResponse(await service.in_thread(lambda: cases.facts(case.id)), 201)

    @app.delete(f"{prefix}/cases/{{case}}", tags=["cases"])
    async def remove_case(case: str) -> dict[str, Any]:
        """Remove an upload that no session needs any more."""
        used = await service.in_thread(service.sessions.records)
        if any(record.case == case for record in used):
            raise Refused(409, "Sessions still need this image; discard them first.")
        await service.in_thread(lambda: cases.remove(case))
        return {"removed": case}


def _png(pixels: NDArray[Any], window: str | None) -> bytes:
    """A picture of a slice in 8 bit."""
    import PIL.Image

    from limner.adapters.intensity import resolve_window, robust_limits

    if pixels.dtype == np.uint8 and window is None:
        shown = pixels
    else:
        low, high = resolve_window(_parse_window(window)) or robust_limits(pixels)
        scaled = (pixels.astype(np.float32) - low) / max(high - low, 1e-12)
        shown = np.asarray(np.clip(np.nan_to_num(scaled), 0, 1) * 255, dtype=np.uint8)
    if shown.ndim == 3 and shown.shape[-1] != 3:
        shown = shown[..., 0]
    content = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(shown)).save(content, "PNG", compress_level=1)
    return content.getvalue()


def _parse_window(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(x) for x in text.split(",")]
    except ValueError as error:
        raise FormatError(f"A window is low,high, not {text!r}.") from error
