"""``limner convert``: an image or a segmentation into another format, same grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli import _options as options
from limner.errors import FormatError, GeometryError, SeriesChoice

if TYPE_CHECKING:
    from limner.io.labels import Labels
    from limner.io.surfaces import Surface

_LABELS_ONLY = (".dcm", ".json", ".npz", ".seg.nrrd")  # what is written there is a segmentation


def convert(
    source: Annotated[Path, typer.Argument(help="What to convert.")],
    target: Annotated[Path, typer.Argument(help="The new file; its suffix is the format.")],
    like: Annotated[
        Path | None, typer.Option(help="The image that a segmentation belongs to.")
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Treat the source as a segmentation.")
    ] = False,
    series: options.Series = None,
    channel: options.Channel = None,
    threshold: options.Threshold = None,
    lenient: options.Lenient = False,
    any_frame: options.AnyFrame = False,
    dicom_type: options.DicomType = None,
    smooth: Annotated[
        float | None,
        typer.Option(
            metavar="MM",
            help="Of a surface (.stl .obj .ply): millimetres of smoothing; default the smallest "
            "spacing, 0 for none.",
        ),
    ] = None,
    object_ids: Annotated[
        list[int] | None,
        typer.Option("--object", help="Of a surface: only this object. May be repeated.", min=1),
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="All surfaces in one file, not one each.")
    ] = False,
    world: Annotated[
        str, typer.Option(help="Coordinates of a surface: lps (as 3D Slicer reads it) or ras.")
    ] = "lps",
) -> None:
    """Convert an image or a segmentation; nothing is resampled or reoriented. A segmentation of a
    volume becomes surfaces as .stl, .obj or .ply.
    """
    import limner
    from limner.io import holds_labels, write_image
    from limner.io.surfaces import is_surface, write_surfaces

    if target.exists() and source.exists() and target.samefile(source):
        raise FormatError(f"{target} is the source itself; name another file.")
    labels = labels or source.name.lower().endswith(".seg.nrrd")
    surface = is_surface(target)
    if not surface and (smooth is not None or object_ids or together or world != "lps"):
        raise FormatError(
            "--smooth, --object, --together and --world are about surfaces: .stl, .obj or .ply."
        )
    labels_only = surface or target.name.lower().endswith(_LABELS_ONLY)
    declared = threshold is not None or labels or like is not None or holds_labels(source)
    if not (declared or labels_only):
        copied = limner.read(source, series=series, channel=channel, strict=not lenient)
        write_image(target, copied)
        typer.echo(f"{copied!r} → {target}", err=True)
        return
    image = None if like is None else limner.read(like, series=series, strict=not lenient)
    found = _read_labels(
        source,
        target,
        declared=declared or surface,
        like=image,
        any_frame=any_frame,
        threshold=threshold,
        channel=channel,
    )
    if surface:
        _print_surfaces(
            write_surfaces(
                target,
                found,
                objects=object_ids,
                smoothing=smooth,
                together=together,
                world=world.lower(),
            )
        )
        return
    limner.write(target, found, like=image, dicom_type=dicom_type)
    count = len(found.ids)
    typer.echo(f"{count} object{'' if count == 1 else 's'} → {target}", err=True)


def _read_labels(source: Path, target: Path, *, declared: bool, **options: Any) -> Labels:
    """The segmentation; where only the target's suffix says that it is one, an image is told."""
    import limner

    try:
        return limner.read_labels(source, **options)
    except (FormatError, GeometryError) as error:
        if declared:
            raise
        with suppress(SeriesChoice):
            limner.read(source)  # a file that is no image either has its own error
        raise FormatError(_no_images(source, target, error)) from error


def _print_surfaces(written: Mapping[Path, Sequence[Surface]]) -> None:
    for path, surfaces in written.items():
        for surface in surfaces:
            typer.echo(
                f"{surface.name}: {len(surface.faces):,} triangles, {surface.volume / 1000:.4g} ml "
                f"(its voxels {surface.voxels / 1000:.4g} ml) → {path}",
                err=True,
            )


def _no_images(source: Path, target: Path, reason: Exception) -> str:
    suffix = next(s for s in _LABELS_ONLY if target.name.lower().endswith(s))
    what = "DICOM images" if suffix == ".dcm" else f"images as {suffix}"
    return (
        f"limner writes no {what}; a {suffix} is a segmentation, and {source.name} is none "
        f"({str(reason).rstrip('.')}). Images are written as .nii.gz, .nrrd, .mha, .png or .tif."
    )
