"""``limner everything``: mask proposals for all objects of an image, without prompts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from limner.cli import _options as options
from limner.cli._groups import expand_groups

if TYPE_CHECKING:
    from limner.io.image import Image
    from limner.sessions.everything import Proposal


@dataclass(frozen=True)
class EverythingModel(options.ModelOptions):
    """Which model proposes masks."""

    model: Annotated[str | None, typer.Option(help="Any that takes clicks; see limner models.")] = (
        None
    )


@dataclass(frozen=True)
class ProposalOptions:
    """Which masks are proposed; None leaves it to the model."""

    PANEL: ClassVar[str] = "Proposals"

    points: Annotated[int, typer.Option(help="Clicks per side of the image.")] = 32
    crops: Annotated[int, typer.Option(help="Layers of crops beside the whole image.")] = 0
    min_score: Annotated[
        float | None, typer.Option(help="Predicted quality, 0 to 1; default: the model's.")
    ] = None
    min_stability: Annotated[
        float | None, typer.Option(help="IoU at two thresholds, 0 to 1; default: the model's.")
    ] = None
    box_iou: Annotated[
        float, typer.Option(help="Of boxes that overlap more, the best mask stays.")
    ] = 0.7
    min_area: Annotated[int, typer.Option(help="Pixels of the smallest mask.")] = 1
    max_share: Annotated[float, typer.Option(help="Of the image, in the largest mask.")] = 0.8
    most: Annotated[int | None, typer.Option(help="So many of the best.")] = None

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `limner.sessions.everything.Settings.of`."""
        chosen = {
            "points": self.points,
            "crops": self.crops,
            "least_score": self.min_score,
            "least_stability": self.min_stability,
            "box_iou": self.box_iou,
            "least_area": self.min_area,
            "largest_share": self.max_share,
            "most": self.most,
        }
        return {key: value for key, value in chosen.items() if value is not None}


@expand_groups
def everything(
    path: options.ImagePath,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help=".json: every mask as COCO runs; .png .tif .nii.gz .npz …: a label map, where "
            "masks overlap the one with the higher score.",
        ),
    ],
    proposals: ProposalOptions,
    model: EverythingModel,
    reading: options.ReadOptions,
    slice_: Annotated[
        int | None, typer.Option("--slice", help="Of a volume or video: which slice or frame.")
    ] = None,
    preview: options.Preview = None,
    as_json: options.AsJson = False,
) -> None:
    """Propose masks for everything in an image; nothing is written before all is done."""
    from limner.cli._progress import bar
    from limner.cli._result import check_output
    from limner.models import default_model
    from limner.sessions import everything as mode

    began = time.perf_counter()
    image = reading.read(path)
    check_output(output, preview, image, inputs=(model.weights,))
    with model.open_session(image, default_model(image.kind, flat=True)) as session:
        settings = mode.Settings.of(session.card, **proposals.settings())
        with bar("asking") as progress:
            found = mode.proposed(session, settings, frame=slice_, progress=progress)
        facts = mode.manifest_of(session, found, settings, slice_)
    _write(output, image, found, slice_, facts)
    if preview is not None:
        _draw(preview, image, found, slice_, session.options.window_requested)
    report = {
        "image": str(path),
        "model": session.card.name,
        "masks": [{"id": k, **p.to_json()} for k, p in enumerate(found, start=1)],
        "output": str(output),
        "seconds": round(time.perf_counter() - began, 3),
        "notice": "Research use only; not a medical device.",
    }
    _print_report(report, as_json=as_json)


def _print_report(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
        return
    count, seconds = len(report["masks"]), report["seconds"]
    print(
        f"{report['model']}: {count} masks → {report['output']} in {seconds:.1f} s "
        f"({count / max(seconds, 1e-3):.1f} a second; research use only, not a medical device)"
    )


def _write(
    path: Path,
    image: Image,
    found: Sequence[Proposal],
    frame: int | None,
    facts: dict[str, Any],
) -> None:
    """The masks by suffix, and the manifest beside them."""
    import limner
    from limner.atomic import atomic_bytes
    from limner.io import manifest_path
    from limner.io.labels import Labels
    from limner.sessions.everything import to_coco

    if path.suffix.lower() == ".json":
        atomic_bytes(path, json.dumps(to_coco(found, image, frame)).encode())
        atomic_bytes(manifest_path(path), json.dumps(facts, indent=2).encode())
        return
    labels = Labels(image.geometry, array=_labels(found, image, frame), manifest=facts)
    limner.write(path, labels, like=image)


def _labels(found: Sequence[Proposal], image: Image, frame: int | None) -> Any:
    """A label map of the image's shape."""
    import numpy as np

    from limner.sessions.everything import label_map

    on_slice = label_map(found, image.geometry.shape[-2:])
    if frame is None:
        return on_slice
    labels = np.zeros(image.geometry.shape, dtype=on_slice.dtype)
    labels[frame] = on_slice
    return labels


def _draw(
    path: Path,
    image: Image,
    found: Sequence[Proposal],
    frame: int | None,
    window: str | tuple[float, float] | None,
) -> None:
    from limner.render.overlay import write_preview

    write_preview(path, image, _labels(found, image, frame), frame=frame, window=window)
