"""``limner info``: what a file is, without reading its pixels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from limner.cli import _options as options

if TYPE_CHECKING:
    from limner.io.image import Image


def info(
    path: options.ImagePath,
    series: options.Series = None,
    channel: options.Channel = None,
    lenient: options.Lenient = False,
    as_json: options.AsJson = False,
) -> None:
    """Say what a file or folder holds: kind, size, spacing, orientation, modality."""
    import limner
    from limner.errors import SeriesChoice

    try:
        image = limner.read(path, series=series, channel=channel, strict=not lenient)
    except SeriesChoice as choice:
        if as_json:
            print(json.dumps({"path": str(path), "series": choice.series}, indent=2))
        else:
            _print_series(choice.series)
        return
    facts = describe(image)
    if as_json:
        print(json.dumps(facts, indent=2, default=str))
    else:
        for key, value in facts.items():
            print(f"{key.replace('_', ' '):>14}  {_shown(value)}")


def describe(image: Image) -> dict[str, Any]:
    """Facts about an image as JSON values; pixels are not read."""
    geometry = image.geometry
    facts: dict[str, Any] = {
        "path": str(image.path),
        "format": image.format,
        "kind": image.kind,
        "modality": image.modality,
        "shape": list(geometry.shape),
        "channels": image.num_channels,
        "pixel_type": str(image.dtype),
        "spacing_mm": [round(s, 6) for s in geometry.spacing] if geometry.has_spacing else None,
        "orientation": geometry.orientation if geometry.has_spacing else None,
        "origin_lps_mm": [round(x, 4) for x in geometry.origin] if geometry.has_spacing else None,
    }
    if not geometry.is_orthogonal:
        facts["orthogonal"] = "no: the axes are sheared; distances in it are approximate"
    facts.update({k: v for k, v in image.metadata.items() if _is_plain(v) and k not in facts})
    return facts


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
