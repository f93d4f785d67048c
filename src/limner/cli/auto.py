"""``limner auto``: one image, all labels of a model, no prompts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import _options as options

if TYPE_CHECKING:
    from limner.pipeline.automatic import AutomaticSegmentation


def auto(
    image: options.ImagePath,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Labels: .nii.gz .nrrd .mha .png .tif .dcm .json .npz by suffix."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="One that needs no prompts, such as resenc-unet; see limner models.")
    ],
    weights: options.Weights = None,
    labels: Annotated[
        str | None, typer.Option(help="Only these, by name or value: liver,spleen. Default: all.")
    ] = None,
    stats: Annotated[
        Path | None,
        typer.Option(help="Voxels, ml, mean and SD, bounding box of each label, as JSON."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Of a sampling model: draw so many; default 16.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    uncertainty: Annotated[
        Path | None,
        typer.Option(help="Of a sampling model: where it is unsure, 0 to 1, as an image."),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(help="A session with each label as an object, to correct: limner resume."),
    ] = None,
    correct_with: Annotated[
        str | None, typer.Option(help="The model of that session; default limner-3d, limner-2d.")
    ] = None,
    device: options.Device = "auto",
    exact: options.Exact = False,
    window: options.Window = None,
    series: options.Series = None,
    channel: options.Channel = None,
    lenient: options.Lenient = False,
    dicom_type: options.DicomType = None,
    preview: options.Preview = None,
    as_json: options.AsJson = False,
) -> None:
    """Label a whole image; with --journal the result can be corrected by clicks afterwards."""
    import limner
    from limner.cli._progress import bar
    from limner.cli._prompt_files import parse_window
    from limner.cli._result import check_output
    from limner.errors import FormatError

    began = time.perf_counter()
    opened = limner.read(image, series=series, channel=channel, strict=not lenient)
    others = (stats, uncertainty)
    check_output(output, preview, opened, journal=journal, inputs=(weights,), others=others)
    if preview is not None and preview.suffix.lower() != ".png":
        raise FormatError(f"A preview of labels is a .png, not {preview.name}.")
    if uncertainty is not None:
        samples = _samples_of(model, samples, uncertainty)
    with bar("labelling") as tell:
        found = limner.segment_automatically(
            opened,
            model,
            weights=weights,
            device=device,
            exact=exact,
            labels=None if labels is None else labels.split(","),
            window=parse_window(window),
            samples=samples,
            seed=seed,
            progress=tell,
        )
    _write(found, output, dicom_type, stats, uncertainty)
    if preview is not None:
        from limner.render.overlay import write_preview

        limits = found.labels.manifest["options"]["window"] if found.labels.manifest else None
        labels_shown = found.labels.to_array()
        write_preview(preview, opened, labels_shown, names=found.names, window=limits)
    if journal is not None:
        from limner.pipeline.correct import open_correction

        with open_correction(found, correct_with, journal=journal):
            pass
    _report(found, output, journal, time.perf_counter() - began, as_json=as_json)


def _samples_of(model: str, samples: int | None, path: Path) -> int:
    """How many samples a map of uncertainty is made of; refuses a place it cannot be written to."""
    from limner.io.formats import choose_image_writer
    from limner.pipeline.automatic import SAMPLES

    choose_image_writer(path)
    return SAMPLES if samples is None else samples


def _write(
    found: AutomaticSegmentation,
    output: Path,
    dicom_type: str | None,
    stats: Path | None,
    uncertainty: Path | None,
) -> None:
    import limner
    from limner.atomic import atomic_bytes
    from limner.io import Image, write_image

    limner.write(output, found.labels, like=found.image, dicom_type=dicom_type)
    if stats is not None:
        atomic_bytes(stats, (json.dumps(found.to_json(), indent=2) + "\n").encode())
    if uncertainty is not None and found.uncertainty is not None:
        image = Image(found.uncertainty, found.image.geometry, kind=found.image.kind)
        write_image(uncertainty, image)


def _report(
    found: AutomaticSegmentation,
    output: Path,
    journal: Path | None,
    seconds: float,
    *,
    as_json: bool,
) -> None:
    """Say what was found."""
    if as_json:
        facts = found.to_json() | {"output": str(output), "seconds": round(seconds, 3)}
        print(json.dumps(facts, indent=2))
        return
    for label in found.statistics:
        size = ""
        if label.volume_ml is not None:
            size = f", {label.volume_ml:,.3g} ml"
        elif label.area_mm2 is not None:
            size = f", {label.area_mm2:,.4g} mm²"
        typer.echo(f"{label.id} {label.name}: {label.voxels:,} voxels{size}", err=True)
    typer.echo(
        f"{found.card.name} → {output} in {seconds:.2f} s "
        "(research use only; not a medical device)",
        err=True,
    )
    if journal is not None:
        typer.echo(f"to correct it: limner resume {journal} --object ID --click …", err=True)
