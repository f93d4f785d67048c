"""``limner propagate``: prompts on a slice or frame or a few, masks on all the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from limner.cli import _options as options
from limner.cli._groups import expand_groups
from limner.errors import FormatError, PromptError

if TYPE_CHECKING:
    from limner.cli._prompt_files import PlacedPrompt
    from limner.cli._propagation_report import PropagationReport
    from limner.io.image import Image
    from limner.sessions import Prediction, Session


INTERRUPTED = 130
_MOST_COLOURS = 4
_LEAST_SURE, _MOST_NAMED = 3, 12  # frames that are named


@dataclass(frozen=True)
class SlicePromptOptions:
    """Prompts on slices or frames."""

    PANEL: ClassVar[str] = "Prompts"

    box: Annotated[
        list[str] | None,
        typer.Option(
            help="r0,c0,r1,c1 with --slice, or s0,r0,c0,s1,r1,c1 on one slice. Repeat: on other "
            "slices the same object, on one slice one object each."
        ),
    ] = None
    click: options.Clicks = None
    exclude: options.Excluded = None
    mask: Annotated[
        Path | None,
        typer.Option(help="A label image: masks on one or several slices, an object per label."),
    ] = None
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts with frames as JSON (docs/prompts.md).")
    ] = None

    def as_prompts(self) -> options.PromptOptions:
        """These and no others."""
        return options.PromptOptions(
            box=self.box,
            click=self.click,
            exclude=self.exclude,
            mask=self.mask,
            prompts=self.prompts,
        )


@dataclass(frozen=True)
class AxisOptions(options.PlaceOptions):
    """Where prompts lie, and across which axis of a volume masks are propagated."""

    axis: Annotated[
        str | None,
        typer.Option(
            help="Of a volume: propagate across axis 0, 1 or 2, or axial, coronal, sagittal. "
            "Default 0: as stored."
        ),
    ] = None


@dataclass(frozen=True)
class RangeOptions:
    """Where masks are propagated to, and how."""

    PANEL: ClassVar[str] = "Propagation"

    start: Annotated[int | None, typer.Option(help="First slice or frame to write.")] = None
    stop: Annotated[int | None, typer.Option(help="First one not to write.")] = None
    direction: Annotated[str, typer.Option(help="forward, backward or both.")] = "both"
    how: Annotated[
        str,
        typer.Option(
            help="carry: from each mask to the next. interpolate: a box that moves evenly between "
            "marked slices."
        ),
    ] = "carry"
    partial: Annotated[
        bool, typer.Option("--partial", help="On Ctrl-C or a damaged frame, write what is done.")
    ] = False
    finish_3d: Annotated[
        str | None,
        typer.Option(
            "--finish",
            metavar="MODEL",
            help="On a volume: hand the masks to a 3D model, such as limner-3d, at the end.",
        ),
    ] = None
    scores: Annotated[
        Path | None,
        typer.Option(help="Also write JSON: score, area and centre per frame, what to review."),
    ] = None


@expand_groups
def propagate(
    path: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="Volume or video: file, DICOM folder, frames.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Mask: .nii.gz .nrrd .mha .tif .dcm .json .npz.")
    ],
    prompts: SlicePromptOptions,
    place: AxisOptions,
    span: RangeOptions,
    objects: options.ObjectOptions,
    model: options.ModelOptions,
    propagator: options.PropagatorOptions,
    reading: options.ReadOptions,
    result: options.OutputOptions,
) -> None:
    """Propagate masks from marked slices or frames to the others of a volume or video."""
    from limner.cli._prompts import (
        CommandPrompts,
        add_prompts,
        collect_on_slices,
        warn_of_differences,
    )
    from limner.cli._propagation_report import PropagationReport
    from limner.cli._result import check_output, read_through, write_result
    from limner.models import default_model

    began = time.perf_counter()
    stored, image, axis = _open_image(path, reading, place, span)
    given = CommandPrompts.parse(prompts.as_prompts(), place.slice_)
    file, journal = given.file, result.journal
    weights = (model.find_weights(file), propagator.propagator_weights)
    inputs = (*given.paths, prompts.prompts, *weights)
    check_output(
        output,
        result.preview,
        image,
        journal=journal,
        inputs=inputs,
        scores=span.scores,
        dicom_type=result.dicom_type,
    )
    entries = collect_on_slices(given, stored, place, axis)
    _check_readable(image, entries)
    last = image.geometry.shape[0] if span.stop is None else span.stop
    report = PropagationReport(range(span.start or 0, last))
    if journal is not None:
        read_through(image)
    with model.open_session(
        image,
        default_model(image.kind, propagates=True),
        file=file,
        journal=journal,
        propagator=propagator.propagator,
        propagator_weights=propagator.propagator_weights,
    ) as session:
        add_prompts(session, entries, file, objects)
        warn_of_differences(session, file, prompts.prompts)
        stopped = _run(session, span, report)
        if stopped is not None and not span.partial:
            raise _explain_stop(stopped, journal, report)
        write_result(
            session,
            output,
            preview=result.preview,
            dicom_type=result.dicom_type,
            as_json=result.as_json,
            began=began,
            report=report,
            model_3d=span.finish_3d,
        )
        if span.scores is not None:
            report.write(span.scores, session)
        _print_summary(session, report)
    if isinstance(stopped, KeyboardInterrupt):
        raise typer.Exit(INTERRUPTED)
    if stopped is not None:
        raise FormatError(f"{stopped} {output} holds what was done before it.") from stopped


def _open_image(
    path: Path, reading: options.ReadOptions, place: AxisOptions, span: RangeOptions
) -> tuple[Image, Image, int]:
    """Read the image: as stored, with the axis of propagation first, and that axis.

    Raises:
        PromptError: it is a single image, or cannot be propagated in as asked.
    """
    from limner.cli._prompt_files import parse_axis
    from limner.io.reoriented import Reoriented

    stored = reading.read(path)
    if stored.kind == "image":
        raise PromptError(f"{path} is one picture; limner segment delineates in it.")
    if span.finish_3d is not None and stored.kind != "volume":
        raise PromptError(f"--finish goes over the slices of a volume; {path} is a video.")
    axis = parse_axis(place.axis, stored, 0 if place.slice_ is None else place.slice_)
    image = stored if axis == 0 else Reoriented(stored, axis)
    _check_channels(image)
    return stored, image, axis


def _run(
    session: Session, span: RangeOptions, report: PropagationReport
) -> KeyboardInterrupt | FormatError | None:
    """Run the propagation into the report; return what stopped it before its end, if anything."""
    from limner.cli._propagation_report import count_expected
    from limner.sessions import PropagationRequest

    predictions: Iterator[Prediction] = session.propagate(
        start=span.start, stop=span.stop, direction=span.direction, how=span.how
    )
    request = PropagationRequest(span.start, span.stop, span.direction, None, span.how)
    try:
        report.collect(predictions, "propagating", count_expected(session, request))
    except (KeyboardInterrupt, FormatError) as stop:  # the latter: a frame cannot be read
        return stop
    return None


def _check_channels(image: Image) -> None:
    """Refuse one slice at several times, which leaves nothing to carry to.

    Raises:
        PromptError: it is such.
    """
    count = image.num_channels or 1
    times = image.channel_kind == "time" or count > _MOST_COLOURS
    if image.kind == "volume" and times and image.geometry.shape[0] == 1:
        raise PromptError(
            f"{image.path} is one slice at {count} times; only a video is carried over time: save "
            "the times as a folder of pictures, or see docs/propagate.md for Python."
        )


def _check_readable(image: Image, entries: Sequence[PlacedPrompt]) -> None:
    """Refuse prompts on a damaged frame, before anything is done.

    Raises:
        FormatError: one is.
    """
    if image.kind != "video":
        return
    for frame in sorted({e.frame for e in entries if e.frame is not None}):
        if 0 <= frame < image.geometry.shape[0]:
            image.slice_at(frame)
        if frame in image.damaged:
            raise FormatError(f"{image.damaged[frame]} Annotate another frame.")


def _explain_stop(
    stopped: KeyboardInterrupt | FormatError, journal: Path | None, report: PropagationReport
) -> BaseException:
    """Explain why it stopped, and where the work is that was done."""
    count = report.num_frames
    text = ""
    if journal is not None and count:
        text = (
            f"{count} slices or frames are in the journal; limner resume {journal} -o FILE "
            "writes them"
        )
    if isinstance(stopped, KeyboardInterrupt):
        if text:
            print(f"limner: {text}, and with --continue goes on first.", file=sys.stderr)
        elif count:
            print(
                f"limner: {count} slices or frames were done and are not kept; next time --partial "
                "writes them on Ctrl-C, and --journal FILE keeps them to go on from.",
                file=sys.stderr,
            )
        return stopped
    if not count:
        return stopped
    if not text:
        text = f"The {count} frames done before were not written: --partial does, or --journal FILE"
    return FormatError(f"{stopped} {text}.")


def _print_summary(session: Session, report: PropagationReport) -> None:
    """Print how far it went, and which frames to review."""
    image = session.image
    text = f"carried to {report.num_frames} {'slices' if image.kind == 'volume' else 'frames'}"
    worst = session.frames_to_review(_LEAST_SURE)
    if worst:
        text += "; least sure: " + ", ".join(f"{d.frame} ({d.score:.2f})" for d in worst)
    print(text, file=sys.stderr)
    if image.damaged:
        frames = ", ".join(str(k) for k in sorted(image.damaged)[:_MOST_NAMED])
        more = len(image.damaged) - _MOST_NAMED
        rest = f" and {more} more" if more > 0 else ""
        print(f"could not be read, so left empty: {frames}{rest}", file=sys.stderr)
