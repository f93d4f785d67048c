"""``limner convert``: an image or a segmentation into another format, same grid."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from limner.cli import _options as options
from limner.errors import FormatError, GeometryError, SeriesChoice

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
) -> None:
    """Convert an image or a segmentation; nothing is resampled or reoriented."""
    import limner
    from limner.io import holds_labels, write_image

    if target.exists() and source.exists() and target.samefile(source):
        raise FormatError(f"{target} is the source itself; name another file.")
    labels = labels or source.name.lower().endswith(".seg.nrrd")
    labels_only = target.name.lower().endswith(_LABELS_ONLY)
    if threshold is not None or labels or like is not None or labels_only or holds_labels(source):
        image = None
        if like is not None:
            image = limner.read(like, series=series, strict=not lenient)
        try:
            found = limner.read_labels(
                source, like=image, any_frame=any_frame, threshold=threshold, channel=channel
            )
        except (FormatError, GeometryError) as error:
            if labels or like is not None or threshold is not None or holds_labels(source):
                raise
            with suppress(SeriesChoice):
                limner.read(source)  # a file that is no image either has its own error
            raise FormatError(_no_images(source, target, error)) from error
        limner.write(target, found, like=image, dicom_type=dicom_type)
        count = len(found.ids)
        typer.echo(f"{count} object{'' if count == 1 else 's'} → {target}", err=True)
        return
    image = limner.read(source, series=series, channel=channel, strict=not lenient)
    write_image(target, image)
    typer.echo(f"{image!r} → {target}", err=True)


def _no_images(source: Path, target: Path, reason: Exception) -> str:
    suffix = next(s for s in _LABELS_ONLY if target.name.lower().endswith(s))
    what = "DICOM images" if suffix == ".dcm" else f"images as {suffix}"
    return (
        f"limner writes no {what}; a {suffix} is a segmentation, and {source.name} is none "
        f"({str(reason).rstrip('.')}). Images are written as .nii.gz, .nrrd, .mha, .png or .tif."
    )
