"""Routes of results: labels for limner's client, and files in every format that limner writes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import Response

from limner.errors import FormatError
from limner.io import manifest_path, write
from limner.server.api.sessions import PREFIX
from limner.server.service import Service
from limner.server.session_store import LiveSession
from limner.sessions.wire import labels_to_json

EXPORTS: dict[str, tuple[str, str | None]] = {
    "nii.gz": ("application/gzip", None),
    "nii": ("application/octet-stream", None),
    "nrrd": ("application/octet-stream", None),
    "seg.nrrd": ("application/octet-stream", None),
    "mha": ("application/octet-stream", None),
    "npz": ("application/octet-stream", None),
    "png": ("image/png", None),
    "tif": ("image/tiff", None),
    "json": ("application/json", None),
    "dcm": ("application/dicom", "seg"),
    "labelmap.dcm": ("application/dicom", "seg-labelmap"),
    "rtstruct.dcm": ("application/dicom", "rtstruct"),
}


def export_file(live: LiveSession, form: str, *, manifest: bool = False) -> bytes:
    """What `limner.write` would write of a session.

    Args:
        live: the session.
        form: a key of `EXPORTS`.
        manifest: the manifest beside it instead.

    Raises:
        FormatError: unknown, or it cannot hold this.
    """
    if form not in EXPORTS:
        raise FormatError(f"A format is {', '.join(EXPORTS)}, not {form[:40]!r}.")
    labels = live.session.export()
    with tempfile.TemporaryDirectory(prefix="limner-") as folder:
        path = Path(folder) / f"segmentation.{form}"
        write(path, labels, like=live.session.image, dicom_type=EXPORTS[form][1])
        return (manifest_path(path) if manifest else path).read_bytes()


def add_export_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of results."""

    @app.get(f"{PREFIX}/{{session}}/labels", tags=["results"])
    async def labels(session: str) -> dict[str, Any]:
        """All objects with names and manifest, for limner's client."""
        return await service.run(
            session, lambda live: labels_to_json(live.session.export()), heavy=True
        )

    @app.get(f"{PREFIX}/{{session}}/manifest", tags=["results"])
    async def manifest(session: str) -> dict[str, Any]:
        """How the masks were made."""
        found = await service.run(session, lambda live: live.session.export().manifest, heavy=True)
        return dict(found or {})

    @app.get(f"{PREFIX}/{{session}}/export", tags=["results"], response_class=Response)
    async def export(
        session: str, format: Annotated[str, Query(description=", ".join(EXPORTS))] = "nii.gz"
    ) -> Response:
        """A file on exactly the grid of the image."""
        content = await service.run(session, lambda live: export_file(live, format), heavy=True)
        name = f'attachment; filename="segmentation.{format}"'
        return Response(
            content, media_type=EXPORTS[format][0], headers={"Content-Disposition": name}
        )
