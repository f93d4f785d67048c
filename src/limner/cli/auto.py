"""``limner auto``: one image, all labels of a model, no prompts."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from limner.cli import _options as options
from limner.cli._groups import expand_groups

if TYPE_CHECKING:
    from limner.io.image import Image
    from limner.pipeline.automatic import AutomaticSegmentation


@dataclass(frozen=True)
class AutomaticModelOptions:
    """Which model labels the image, and how it is run."""

    PANEL: ClassVar[str] = "Model"

    model: Annotated[
        str, typer.Option(help="One that needs no prompts, such as resenc-unet; see limner models.")
    ]
    weights: options.Weights = None
    labels: Annotated[
        str | None, typer.Option(help="Only these, by name or value: liver,spleen. Default: all.")
    ] = None
    device: options.Device = "auto"
    window: options.Window = None
    exact: options.Exact = False


@dataclass(frozen=True)
class SampleOptions:
    """What a sampling model draws."""

    PANEL: ClassVar[str] = "Sampling models"

    samples: Annotated[
        int | None, typer.Option(help="Draw so many segmentations; default 16.", min=1, max=1000)
    ] = None
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0
    uncertainty: Annotated[
        Path | None, typer.Option(help="Where the model is unsure, 0 to 1, as an image.")
    ] = None

    @property
    def wanted(self) -> int | None:
        """How many samples; a map of uncertainty needs some."""
        from limner.pipeline.automatic import SAMPLES

        return SAMPLES if self.samples is None and self.uncertainty is not None else self.samples


@dataclass(frozen=True)
class CorrectionOptions:
    """The session that corrects the result."""

    PANEL: ClassVar[str] = "Correction by clicks"

    journal: Annotated[
        Path | None,
        typer.Option(help="A session with each label as an object, to correct: limner resume."),
    ] = None
    correct_with: Annotated[
        str | None, typer.Option(help="Its model; default limner-3d, limner-2d.")
    ] = None

    def check(self) -> None:
        """Refuse what cannot be begun, before any work is done."""
        from limner.errors import SessionError
        from limner.models import create_promptable

        if self.correct_with is not None:
            if self.journal is None:
                raise SessionError(
                    "--correct-with goes with --journal FILE, the session to correct; add it, or "
                    "leave it out."
                )
            create_promptable(self.correct_with)
        if self.journal is not None and self.journal.exists():
            raise SessionError(
                f"The journal {self.journal} exists. Continue it with "
                f"`limner resume {self.journal}`, or choose another name."
            )

    def open_session(self, found: AutomaticSegmentation) -> None:
        """Begin the journal, if one is wanted."""
        from limner.pipeline.correct import open_correction

        if self.journal is not None:
            with open_correction(found, self.correct_with, journal=self.journal):
                pass


@expand_groups
def auto(
    path: options.ImagePath,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Labels: .nii.gz .nrrd .mha .png .tif .dcm .json .npz by suffix."
        ),
    ],
    model: AutomaticModelOptions,
    sampling: SampleOptions,
    correction: CorrectionOptions,
    reading: options.ReadOptions,
    stats: Annotated[
        Path | None,
        typer.Option(help="Voxels, ml, mean and SD, bounding box of each label, as JSON."),
    ] = None,
    preview: Annotated[Path | None, typer.Option(help="Also write an overlay: .png.")] = None,
    dicom_type: options.DicomType = None,
    as_json: options.AsJson = False,
) -> None:
    """Label a whole image; with --journal the result can be corrected by clicks afterwards."""
    from limner.cli._result import check_output

    began = time.perf_counter()
    image = reading.read(path)
    others = (stats, sampling.uncertainty)
    check_output(
        output,
        preview,
        image,
        journal=correction.journal,
        inputs=(model.weights,),
        others=others,
        dicom_type=dicom_type,
    )
    _check_images(preview, sampling.uncertainty)
    correction.check()
    found = _segment(image, model, sampling)
    correction.open_session(found)  # first: where it cannot be begun, nothing is written
    _write(found, output, dicom_type, stats, sampling.uncertainty)
    if preview is not None:
        from limner.render.overlay import write_preview

        limits = (found.labels.manifest or {}).get("options", {}).get("window")
        write_preview(preview, image, found.labels.to_array(), names=found.names, window=limits)
    _report(found, output, correction.journal, time.perf_counter() - began, as_json=as_json)


def _check_images(preview: Path | None, uncertainty: Path | None) -> None:
    """Refuse suffixes that cannot be written, before any work is done."""
    from limner.errors import FormatError
    from limner.io.formats import choose_image_writer

    if preview is not None and preview.suffix.lower() != ".png":
        raise FormatError(f"A preview of labels is a .png, not {preview.name}.")
    if uncertainty is not None:
        choose_image_writer(uncertainty)
        if uncertainty.suffix.lower() == ".png":
            raise FormatError(
                f"{uncertainty}: uncertainty has fractions, and a PNG holds whole numbers; use "
                ".tif or .nii.gz."
            )


def _segment(
    image: Image, model: AutomaticModelOptions, sampling: SampleOptions
) -> AutomaticSegmentation:
    import limner
    from limner.cli._progress import bar
    from limner.cli._prompt_files import parse_window

    with bar("labelling") as progress:
        return limner.segment_automatically(
            image,
            model.model,
            weights=model.weights,
            device=model.device,
            exact=model.exact,
            labels=None if model.labels is None else model.labels.split(","),
            window=parse_window(model.window),
            samples=sampling.wanted,
            seed=sampling.seed,
            progress=progress,
        )


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
