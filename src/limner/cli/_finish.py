"""The end of a command that makes a mask: predict, write, picture, report."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import FormatError

if TYPE_CHECKING:
    from limner.io.image import Image
    from limner.io.labels import Labels
    from limner.sessions._base import BaseSession


def check_output(
    output: Path, preview: Path | None, image: Image, *, journal: Path | None = None
) -> None:
    """Refuse a place where nothing can be written, before any work is done.

    Raises:
        FormatError: the folder is missing or closed, the suffix is unknown, or the image, the
            journal or another output would be overwritten.
    """
    from limner.io import manifest_path, writer

    writer(output)
    written = [p for p in (output, manifest_path(output), preview, journal) if p is not None]
    for number, path in enumerate(written):
        if any(path.resolve() == other.resolve() for other in written[:number]):
            raise FormatError(f"{path} would be written twice; name another file.")
    for path in filter(None, (output, preview)):
        folder = path.resolve().parent
        if not folder.is_dir():
            raise FormatError(f"The folder {folder} does not exist; make it first.")
        if not os.access(folder, os.W_OK):
            raise FormatError(f"The folder {folder} cannot be written to; choose another -o.")
        if image.path is not None and path.resolve() == image.path.resolve():
            raise FormatError(f"{path} is the image itself; choose another file.")
    if preview is not None and preview.suffix.lower() not in (".png", ".gif"):
        raise FormatError(f"A preview is a .png (or .gif), not {preview.name}.")


def finish(
    session: BaseSession,
    output: Path,
    *,
    preview: Path | None,
    window: str | tuple[float, float] | None,
    dicom_type: str | None,
    as_json: bool,
    began: float,
) -> None:
    """Answer all prompts, write the mask and the picture, and say what came of it."""
    import limner

    scores = predict_all(session)
    answered = time.perf_counter()
    found = session.export()
    limner.write(output, found, like=session.image, dicom_type=dicom_type)
    if preview is not None:
        from limner.cli.overlay import write_preview

        write_preview(
            preview,
            session.image,
            found.to_array(),
            names=found.names,
            prompts=session.entries,
            window=window,
        )
    report = summary(session, found, scores)
    report["output"] = str(output)
    report["seconds"] = {
        "answer": round(answered - began, 3),
        "total": round(time.perf_counter() - began, 3),
    }
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _tell(report)


def predict_all(session: BaseSession) -> dict[int, float]:
    """Answer every object wherever it has prompts; the lowest score per object."""
    scores: dict[int, float] = {}
    for object_id, frame in dict.fromkeys((e.object_id, e.frame) for e in session.entries):
        score = session.predict(object_id=object_id, frame=frame).score
        scores[object_id] = min(score, scores.get(object_id, 1.0))
    return scores


def summary(session: BaseSession, labels: Labels, scores: dict[int, float]) -> dict[str, Any]:
    """What was found, as JSON values: pixels, area or volume, score per object."""
    geometry = session.image.geometry
    objects = []
    for object_id in session.object_ids:
        mask = labels.mask(object_id)
        count = int(mask.sum())
        facts: dict[str, Any] = {
            "id": object_id,
            "name": labels.names.get(object_id),
            "pixels": count,
            "score": round(scores[object_id], 4) if object_id in scores else None,
        }
        if geometry.has_spacing and session.image.kind != "video":
            unit = "area_mm2" if geometry.ndim == 2 else "volume_mm3"
            facts[unit] = round(count * geometry.voxel_volume, 3)
        objects.append(facts)
    return {
        "image": None if session.image.path is None else str(session.image.path),
        "kind": session.image.kind,
        "shape": list(geometry.shape),
        "model": session.model.card.name,
        "objects": objects,
        "overlapping_pixels": labels.num_overlapping(),
        "notice": "Research use only; not a medical device.",
    }


def _tell(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    for facts in report["objects"]:
        name = facts["name"] or f"object {facts['id']}"
        parts = [f"{facts['pixels']:,} pixels"]
        if "area_mm2" in facts:
            parts.append(f"{facts['area_mm2']:,.1f} mm²")
        if "volume_mm3" in facts:
            parts.append(f"{facts['volume_mm3'] / 1000:,.2f} ml")
        if facts["score"] is not None:
            parts.append(f"score {facts['score']:.2f}")
        console.print(f"[bold]{name}[/bold]: {', '.join(parts)}")
        if not facts["pixels"]:
            console.print("  nothing was found; try a box, another click or another model")
    console.print(
        f"{report['model']} → {report['output']} in {report['seconds']['total']:.2f} s "
        "[dim](research use only; not a medical device)[/dim]"
    )
