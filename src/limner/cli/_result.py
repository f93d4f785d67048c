"""Result of a command that makes a mask: prediction, files, preview, report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import FormatError, require

if TYPE_CHECKING:
    from limner.cli._propagation_report import PropagationReport
    from limner.geometry import Geometry
    from limner.io.image import Image
    from limner.io.labels import Labels
    from limner.sessions import Session


def check_output(
    output: Path,
    preview: Path | None,
    image: Image,
    *,
    journal: Path | None = None,
    inputs: Iterable[Path | None] = (),
    scores: Path | None = None,
    others: Iterable[Path | None] = (),
    dicom_type: str | None = None,
) -> None:
    """Refuse a place where nothing can be written, or a format that cannot hold what is to be
    written, before any work is done.

    Args:
        output: of the mask; its manifest lies beside it.
        preview: an overlay or a film.
        image: what is delineated.
        journal: of the session.
        inputs: other files that are read, such as prompts and weights.
        scores: of the frames.
        others: more files that are written.
        dicom_type: of a .dcm.

    Raises:
        MissingDependency: a film without PyAV.
        FormatError, GeometryError: labels of the image cannot be written in this format.
        FormatError: the folder is missing or closed, the suffix is unknown, or an input, the
            journal or another output would be overwritten.
    """
    from limner.io import check_writable, manifest_path, writer

    writer(output, dicom_type=dicom_type)
    more = list(others)
    places = (output, manifest_path(output), preview, journal, scores, *more)
    written = [p for p in places if p is not None]
    for number, path in enumerate(written):
        if any(_is_same(path, other) for other in written[:number]):
            raise FormatError(f"{path} would be written twice; name another file.")
        if any(_is_same(path, other) for other in inputs if other is not None):
            raise FormatError(f"{path} is one of the inputs and would be lost; name another file.")
    born = None if journal is not None and journal.exists() else journal
    for path in filter(None, (output, preview, scores, born, *more)):
        if path.is_dir():
            raise FormatError(f"{path} is a folder; name a file in it.")
        folder = path.resolve().parent
        if not folder.is_dir():
            raise FormatError(f"The folder {folder} does not exist; make it first.")
        if not os.access(folder, os.W_OK):
            raise FormatError(f"The folder {folder} cannot be written to; choose another -o.")
        if image.is_made_of(path):
            raise FormatError(f"{path} is the image itself; choose another file.")
    if preview is not None:
        _check_preview(preview, image)
    check_writable(output, image, dicom_type=dicom_type)


def _check_preview(path: Path, image: Image) -> None:
    suffix, moves = path.suffix.lower(), image.kind != "image"
    if suffix not in ((".png", ".gif", ".mp4") if moves else (".png",)):
        known = "a .png, or moving a .gif or .mp4" if moves else "a .png"
        raise FormatError(f"A preview of one {image.kind} is {known}, not {path.name}.")
    if suffix == ".mp4":
        require("av", extra="video", purpose="write a film as .mp4")


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths name one file, also where only the disk knows (``a.PNG`` on a Mac)."""
    if one.resolve() == other.resolve():
        return True
    return one.exists() and other.exists() and one.samefile(other)


def read_through(image: Image) -> None:
    """Have the hash of a video's frames for journal and manifest, which decodes all of them."""
    from limner.cli._progress import waiting

    if image.kind == "video":
        with waiting("reading all frames once, for their hash"):
            image.pixel_hash()


def write_result(
    session: Session,
    output: Path,
    *,
    preview: Path | None,
    dicom_type: str | None,
    as_json: bool,
    began: float,
    report: PropagationReport | None = None,
    model_3d: str | None = None,
) -> None:
    """Answer all prompts, write mask and preview, and print a report.

    Args:
        session: that is at its end.
        output: of the mask.
        preview: an overlay or a film.
        dicom_type: of a .dcm.
        as_json: report on stdout as JSON.
        began: when the command did, of `time.perf_counter`.
        report: of a propagation; the annotated frames are added to it.
        model_3d: goes over the masks at the end.
    """
    facts = write_answers(
        session,
        output,
        preview=preview,
        dicom_type=dicom_type,
        began=began,
        report=report,
        model_3d=model_3d,
    )
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print_report(facts, session.image.geometry)


def write_answers(
    session: Session,
    output: Path,
    *,
    preview: Path | None = None,
    dicom_type: str | None = None,
    began: float,
    report: PropagationReport | None = None,
    model_3d: str | None = None,
) -> dict[str, Any]:
    """Answer all prompts, write mask and preview; what was found, as JSON values. Arguments as for
    `write_result`.
    """
    import limner
    from limner.cli._progress import waiting

    with waiting("answering the prompts"):
        scores = predict_all(session, report)
    answered = time.perf_counter()
    read_through(session.image)
    if model_3d is None:
        found = session.export()
    else:
        from limner.sessions.refine_3d import refine_3d as in_3d

        found = in_3d(session, model_3d)
    with waiting(f"writing {output.name}"):
        limner.write(output, found, like=session.image, dicom_type=dicom_type)
    if preview is not None:
        _write_preview(preview, session, found, report)
    facts = summarise(session, found, scores)
    if found.manifest is not None and "finished" in found.manifest:
        facts["finished"] = found.manifest["finished"]["changed_voxels"]
        facts["finished_by"] = found.manifest["finished"]["model"]["name"]
    facts["output"] = str(output)
    facts["seconds"] = {
        "answer": round(answered - began, 3),
        "total": round(time.perf_counter() - began, 3),
    }
    return facts


def _write_preview(
    path: Path, session: Session, labels: Labels, report: PropagationReport | None
) -> None:
    from limner.cli._progress import bar, waiting

    if path.suffix.lower() == ".png":
        from limner.render.overlay import write_preview

        with waiting(f"drawing {path.name}"):
            write_preview(
                path,
                session.image,
                labels,
                names=labels.names,
                prompts=session.entries,
                window=session.options.window_requested,
            )
        return
    from limner.cli._propagation_report import session_timeline
    from limner.render.film import write_timeline_film

    timeline = session_timeline(session) if report is None else report.timeline(session)
    with bar("drawing", "frames") as progress:
        window = session.options.window
        write_timeline_film(path, session.image, labels, timeline, window=window, progress=progress)


def predict_all(session: Session, report: PropagationReport | None = None) -> dict[int, float]:
    """Answer every object wherever it has prompts; the lowest score per object."""
    scores: dict[int, float] = {}
    for found in session.predict_all():
        scores[found.object_id] = min(found.score, scores.get(found.object_id, 1.0))
        if report is not None and found.frame is not None:
            report.add(found, annotated=True)
    return scores


def summarise(session: Session, labels: Labels, scores: dict[int, float]) -> dict[str, Any]:
    """What was found, as JSON values: pixels, area or volume, score per object."""
    geometry = session.image.geometry
    objects, sizes = [], labels.sizes()
    for object_id in session.object_ids:
        count = sizes.get(object_id, 0)
        facts: dict[str, Any] = {
            "id": object_id,
            "name": labels.names.get(object_id),
            "pixels": count,
            "score": round(scores[object_id], 4) if object_id in scores else None,
        }
        if geometry.has_spacing and session.image.kind != "video":
            unit = "area_mm2" if geometry.ndim == 2 else "volume_mm3"
            facts[unit] = _round(count * geometry.voxel_volume)
        objects.append(facts)
    return {
        "image": None if session.image.path is None else str(session.image.path),
        "kind": session.image.kind,
        "shape": list(geometry.shape),
        "model": session.card.name,
        "window": session.options.window,
        "window_source": session.options.window_source,
        "objects": objects,
        "overlapping_pixels": labels.num_overlapping(),
        "notice": "Research use only; not a medical device.",
    }


def _round(size: float) -> float:
    """To a thousandth; below 1 to four significant digits, for cells have areas, too."""
    return round(size, 3) if size >= 1 else float(f"{size:.4g}")


def _print_report(report: dict[str, Any], geometry: Geometry) -> None:
    from rich.console import Console
    from rich.markup import escape

    from limner.adapters.default_window import ChosenWindow

    # A line stays a line, however narrow the terminal: it may go to a log.
    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    elements = "voxels" if report["kind"] == "volume" else "pixels"
    for facts in report["objects"]:
        name = facts["name"] or f"object {facts['id']}"
        parts = [f"{facts['pixels']:,} {elements}"]
        if "area_mm2" in facts or "volume_mm3" in facts:
            parts.append(geometry.format_size(facts["pixels"]))
        if facts["score"] is not None:
            parts.append(f"score {facts['score']:.2f}")
        console.print(f"[bold]{escape(name)}[/bold]: {', '.join(parts)}")
        change = report.get("finished", {}).get(str(facts["id"]))
        if change is not None:
            console.print(
                f"  {report['finished_by']} added {change['added']:,} {elements} and took off "
                f"{change['removed']:,}"
            )
        if not facts["pixels"]:
            console.print("  nothing was found; try a box, another click or another model")
    used = ChosenWindow(report["window"], report["window_source"]).describe()
    if used is not None:
        console.print(used)
    console.print(
        f"{report['model']} → {escape(report['output'])} in {report['seconds']['total']:.2f} s "
        "[dim](research use only; not a medical device)[/dim]"
    )
