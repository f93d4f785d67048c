"""``limner info``: what a file is; of an image without reading its pixels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli import _options as options

if TYPE_CHECKING:
    from limner.geometry import Geometry
    from limner.io.image import Image

_CHANNELS = {"colour": "colours", "time": "time points"}
_JOURNAL = re.compile(rb'[0-9a-f]{8} \{"journal"')


def info(
    path: options.ImagePath,
    series: options.Series = None,
    channel: options.Channel = None,
    lenient: options.Lenient = False,
    like: Annotated[
        Path | None, typer.Option(help="The image that a segmentation belongs to.")
    ] = None,
    any_frame: options.AnyFrame = False,
    as_json: options.AsJson = False,
) -> None:
    """Say what a file or folder holds: an image, a segmentation, a journal or a manifest."""
    import limner
    from limner.errors import SeriesChoice

    facts = _describe_other(path, like, any_frame=any_frame)
    if facts is not None:
        _show(facts, as_json=as_json)
        return
    try:
        image = limner.read(path, series=series, channel=channel, strict=not lenient)
    except SeriesChoice as choice:
        if as_json:
            print(json.dumps({"path": str(path), "series": choice.series}, indent=2))
        else:
            _print_series(choice.series)
        return
    _show(describe(image), as_json=as_json)


def _show(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2, default=str))
        return
    for key, value in facts.items():
        if key == "orientation" and value:
            value = _explain_orientation(value)
        if key != "objects":
            print(f"{key.replace('_', ' '):>18}  {_shown(value)}")
    elements = "voxels" if len(facts.get("shape", ())) == 3 else "pixels"
    for found in facts.get("objects", ()):
        parts = [found["name"], f"{found['pixels']:,} {elements}"]
        print(f"{'object':>18}  {found['id']}: {', '.join(filter(None, parts))}")


def _explain_orientation(letters: str) -> str:
    """Where each axis points, in words: "SPL: slices to S, rows to P, columns to L"."""
    axes = ("slices", "rows", "columns")[-len(letters) :]
    towards = ", ".join(f"{a} to {letter}" for a, letter in zip(axes, letters, strict=True))
    return f"{letters}: {towards}"


def _describe_other(path: Path, like: Path | None, *, any_frame: bool) -> dict[str, Any] | None:
    """Facts about a file that is no image; None where it is one, or is not there."""
    from limner.io import holds_labels

    if not path.is_file():
        return None
    if path.name.lower().endswith(".limner.json"):
        return _describe_manifest(path)
    with path.open("rb") as file:
        if _JOURNAL.match(file.read(64)):
            return _describe_journal(path)
    if holds_labels(path) or path.name.lower().endswith(".seg.nrrd"):
        return _describe_labels(path, like, any_frame=any_frame)
    return None


def _describe_journal(path: Path) -> dict[str, Any]:
    from limner.sessions import read_journal

    header, events = read_journal(path)
    return {
        "path": str(path),
        "kind": f"a journal; see limner resume {path}",
        "image": header["image"]["path"],
        "model": header["model"]["name"],
        "created": header["created"],
        "events": len(events),
    }


def _describe_manifest(path: Path) -> dict[str, Any]:
    from limner.cli._prompt_files import read_prompts

    automatic = _describe_automatic(path)
    if automatic is not None:
        return automatic
    file = read_prompts(path)
    return {
        "path": str(path),
        "kind": f"a manifest; see limner segment IMAGE --prompts {path}",
        "model": file.model,
        "prompts": len(file.entries),
        "names": list(file.names.values()),
    }


def _describe_automatic(path: Path) -> dict[str, Any] | None:
    """Facts about the manifest of `limner auto`, which has no prompts; None of another one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["method"] != "automatic":
            return None
        return {
            "path": str(path),
            "kind": "a manifest of limner auto, made without prompts",
            "image": value["image"]["path"],
            "model": value["model"]["name"],
            "created": value["created"],
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _describe_labels(path: Path, like: Path | None, *, any_frame: bool) -> dict[str, Any]:
    """Facts about a segmentation, which is read."""
    import numpy as np

    import limner
    from limner.io.formats import choose_reader

    labels = limner.read_labels(path, like=like, any_frame=any_frame)
    overlapping = labels.num_overlapping()
    if overlapping:
        sizes = {i: int(labels.mask(i).sum()) for i in labels.ids}
    else:  # one pass, however many objects
        ids, counts = np.unique(labels.to_array(), return_counts=True)
        sizes = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    facts = {
        "path": str(path),
        "format": choose_reader(path, labels=True).load().NAME,
        "kind": "segmentation",
        **_describe_grid(labels.geometry),
        "num_objects": len(labels.ids),
        "empty_objects": len(labels.empty_ids),
        "overlapping_pixels": overlapping,
    }
    facts["objects"] = [
        {"id": i, "name": labels.names.get(i), "pixels": sizes.get(i, 0)}
        for i in sorted(labels.ids + labels.empty_ids)
    ]
    return facts


def describe(image: Image) -> dict[str, Any]:
    """Facts about an image as JSON values; pixels are not read."""
    geometry = image.geometry
    facts: dict[str, Any] = {
        "path": str(image.path),
        "format": image.format,
        "kind": image.kind,
        "modality": image.modality,
        **_describe_grid(geometry, frames=image.kind == "video"),
        "channels": image.num_channels,
        "channels_are": _CHANNELS.get(image.channel_kind or ""),
        "pixel_type": str(image.dtype),
    }
    if facts["channels_are"] is None:
        del facts["channels_are"]
    if not geometry.is_orthogonal:
        facts["orthogonal"] = "no: the axes are sheared; distances in it are approximate"
    facts.update({k: v for k, v in image.metadata.items() if _is_plain(v) and k not in facts})
    return facts


def _describe_grid(geometry: Geometry, *, frames: bool = False) -> dict[str, Any]:
    """Shape, spacing and place; of the frames of a video the spacing in them alone is one."""
    known = geometry.has_spacing
    placed = known and not frames
    return {
        "shape": list(geometry.shape),
        "spacing_mm": [round(s, 6) for s in geometry.spacing[int(frames) :]] if known else None,
        "orientation": geometry.orientation if placed else None,
        "origin_lps_mm": [round(x, 4) for x in geometry.origin] if placed else None,
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 8 and all(isinstance(v, (str, int, float)) for v in value)
    return isinstance(value, (str, int, float, bool))


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return " × ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
    return str(value)


def _print_series(series: dict[str, str]) -> None:
    print(f"{len(series)} series; name one with --series NUMBER or UID:")
    for number, (uid, line) in enumerate(series.items(), start=1):
        print(f"{number:>4}  {line}\n      {uid}")
