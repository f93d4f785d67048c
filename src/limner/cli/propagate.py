"""``limner propagate``: prompts on a slice or frame or a few, masks on all the others."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import _options as options
from limner.errors import FormatError, PromptError

if TYPE_CHECKING:
    from limner.cli._propagation_report import PropagationReport
    from limner.cli.segment import CommandPrompts
    from limner.io.image import Image
    from limner.prompts.types import Prompt
    from limner.sessions import Prediction, Session

_log = logging.getLogger(__name__)

INTERRUPTED = 130
_MOST_COLOURS = 4
_LEAST_SURE, _MOST_NAMED = 3, 12  # frames that are named


def propagate(
    image: Annotated[Path, typer.Argument(help="Volume or video: file, DICOM folder, frames.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Mask: .nii.gz .nrrd .mha .tif .dcm .json .npz.")
    ],
    box: Annotated[
        list[str] | None,
        typer.Option(
            help="r0,c0,r1,c1 with --slice, or s0,r0,c0,s1,r1,c1 on one slice. Repeat: on other "
            "slices the same object, on one slice one object each."
        ),
    ] = None,
    click: options.Clicks = None,
    exclude: options.Excluded = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="A label image: masks on one or several slices, an object per label."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts with frames as JSON (docs/prompts.md).")
    ] = None,
    slice_: options.Slice = None,
    axis: Annotated[
        str | None,
        typer.Option(
            help="Of a volume: carry across axis 0, 1 or 2, or axial, coronal, sagittal. "
            "Default 0: as stored."
        ),
    ] = None,
    start: Annotated[int | None, typer.Option(help="First slice or frame to write.")] = None,
    stop: Annotated[int | None, typer.Option(help="First one not to write.")] = None,
    direction: Annotated[str, typer.Option(help="forward, backward or both.")] = "both",
    how: Annotated[
        str,
        typer.Option(
            help="carry: from each mask to the next. interpolate: a box that moves evenly between "
            "marked slices."
        ),
    ] = "carry",
    partial: Annotated[
        bool, typer.Option("--partial", help="On Ctrl-C or a damaged frame, write what is done.")
    ] = False,
    finish_3d: Annotated[
        str | None,
        typer.Option(
            "--finish",
            metavar="MODEL",
            help="On a volume: hand the masks to a 3D model, such as limner-3d, at the end.",
        ),
    ] = None,
    order: options.Order = None,
    world: options.World = None,
    model: options.Model = None,
    weights: options.Weights = None,
    propagator: options.Propagator = None,
    propagator_weights: options.PropagatorWeights = None,
    device: options.Device = "auto",
    window: options.Window = None,
    exact: options.Exact = False,
    keep_embeddings: options.KeepEmbeddings = False,
    zoom: options.Zoom = None,
    name: options.Names = None,
    journal: options.KeepJournal = None,
    series: options.Series = None,
    channel: options.Channel = None,
    lenient: options.Lenient = False,
    dicom_type: options.DicomType = None,
    preview: options.Preview = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="Also write JSON: score, area and centre per frame, where to look."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Carry masks from marked slices or frames to the others of a volume or video."""
    import limner
    from limner.cli._finish import check_output, finish, read_through
    from limner.cli._propagation_report import PropagationReport, expected
    from limner.cli.segment import CommandPrompts, add_prompts, warn_of_differences
    from limner.io.reoriented import Reoriented
    from limner.models import default_model
    from limner.sessions import PropagationRequest

    began = time.perf_counter()
    stored = limner.read(image, series=series, channel=channel, strict=not lenient)
    if stored.kind == "image":
        raise PromptError(f"{image} is one picture; limner segment delineates in it.")
    if finish_3d is not None and stored.kind != "volume":
        raise PromptError(f"--finish goes over the slices of a volume; {image} is a video.")
    across = options.parse_axis(axis, stored, 0 if slice_ is None else slice_)
    picture = stored if across == 0 else Reoriented(stored, across)
    _check_channels(picture)
    file = options.PromptFile() if prompts is None else options.read_prompts(prompts, slice_)
    if weights is None and model is None and file.weights is not None:
        weights = Path(file.weights)
    inputs = (mask, prompts, weights, propagator_weights)
    check_output(output, preview, picture, journal=journal, inputs=inputs, scores=scores)
    said = CommandPrompts(
        tuple(box or ()),
        tuple(click or ()),
        tuple(exclude or ()),
        mask=mask,
        prompts=None if prompts is None else file,
    )
    entries = _placed(said, stored, slice_, order=order, world=world, axis=across)
    _check_readable(picture, entries)
    first, last = start or 0, picture.geometry.shape[0] if stop is None else stop
    carried = PropagationReport(range(first, last))
    if journal is not None:
        read_through(picture)
    with limner.open_session(
        picture,
        model or file.model or default_model(picture.kind, carries=True),
        weights=weights,
        propagator=propagator,
        propagator_weights=propagator_weights,
        device=device,
        exact=exact,
        keep_embeddings=keep_embeddings,
        journal=journal,
        zoom=file.zoom if zoom is None else zoom,
        window=file.window if window is None else options.parse_window(window),
    ) as session:
        add_prompts(session, entries, file.names, name or ())
        warn_of_differences(session, file, prompts)
        walk = session.propagate(start=start, stop=stop, direction=direction, how=how)
        asked = PropagationRequest(start, stop, direction, None, how)
        stopped = _carry(walk, carried, expected(session, asked))
        if stopped is not None and not partial:
            raise _kept(stopped, journal, carried)
        finish(
            session,
            output,
            preview=preview,
            dicom_type=dicom_type,
            as_json=as_json,
            began=began,
            carried=carried,
            model_3d=finish_3d,
        )
        if scores is not None:
            carried.write(scores, session)
        _tell(session, carried)
    if isinstance(stopped, KeyboardInterrupt):
        raise typer.Exit(INTERRUPTED)
    if stopped is not None:
        raise FormatError(f"{stopped} {output} holds what was done before it.") from stopped


def _carry(
    walk: Iterator[Prediction], carried: PropagationReport, total: int
) -> KeyboardInterrupt | FormatError | None:
    """Go through a propagation; what stopped it before its end, if anything did."""
    try:
        carried.collect(walk, "propagating", total)
    except (KeyboardInterrupt, FormatError) as stop:  # the latter: a frame cannot be read
        return stop
    return None


def _check_channels(image: Image) -> None:
    """Warn of a volume with time points, which models would see as so many colours.

    Raises:
        PromptError: it is one slice at several times, which leaves nothing to carry to.
    """
    count = image.num_channels or 1
    if image.kind != "volume" or count <= _MOST_COLOURS:
        return
    if image.geometry.shape[0] == 1:
        raise PromptError(
            f"{image.path} is one slice at {count} times; only a video is carried over time: save "
            "the times as a folder of pictures, or see docs/propagate.md for Python."
        )
    _log.warning(
        "%s has %d channels or time points, and the model sees them all together; "
        "take one with --channel K.",
        image.path,
        count,
    )


def _check_readable(image: Image, entries: list[options.Placed]) -> None:
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


def _placed(
    said: CommandPrompts,
    image: Image,
    frame: int | None,
    *,
    order: str | None,
    world: str | None,
    axis: int,
) -> list[options.Placed]:
    """All prompts as 2D prompts on their slices across an axis.

    The first boxes on each slice are object 1, the second object 2, and so on; clicks are about
    object 1.
    """
    from dataclasses import replace

    from limner.cli.segment import CommandPrompts, collect_prompts

    entries: list[options.Placed] = []
    if said.boxes:
        seen: Counter[int] = Counter()
        for entry in collect_prompts(
            CommandPrompts(said.boxes), image, frame, order=order, world=world, axis=axis
        ):
            for flat in _on_planes(entry, image, axis):
                assert flat.frame is not None
                seen[flat.frame] += 1
                entries.append(flat._replace(object_id=seen[flat.frame]))
        if max(seen.values()) > 1 and (said.clicks or said.excluded):
            raise PromptError(
                "Several boxes on one slice are several objects; say with --prompts FILE.json "
                "which of them each click is about."
            )
    rest = replace(said, boxes=())
    if rest != CommandPrompts() or not entries:
        for entry in collect_prompts(rest, image, frame, order=order, world=world, axis=axis):
            entries += _on_planes(entry, image, axis)
    return entries


def _on_planes(entry: options.Placed, image: Image, axis: int) -> list[options.Placed]:
    """A prompt as one 2D prompt per slice that it marks."""
    import numpy as np

    from limner.prompts.types import MaskPrompt

    prompt: Prompt = entry.prompt
    if prompt.num_axes == 2 and entry.frame is not None:
        if entry.axis not in (0, axis):  # 0: a file that says nothing of it
            raise PromptError(
                f"A {prompt.kind} lies on a slice across axis {entry.axis}, and masks are carried "
                f"across axis {axis}; say --axis {entry.axis}."
            )
        return [entry._replace(axis=0)]
    if isinstance(prompt, MaskPrompt) and prompt.mask.shape == image.geometry.shape:
        planes = np.moveaxis(prompt.mask, axis, 0)
        drawn = [k for k, plane in enumerate(planes) if plane.any()]
        masks = [(k, MaskPrompt(np.array(planes[k]))) for k in drawn]
        return [entry._replace(prompt=flat, frame=k, axis=0) for k, flat in masks]
    dropped = prompt.to_slice(axis)
    if dropped is None:
        raise PromptError(
            f"A {prompt.kind} to start from lies on one slice or frame: say which with --slice K, "
            "or give s,r,c and s0,r0,c0,s1,r1,c1 with s1 = s0 + 1."
        )
    return [entry._replace(prompt=dropped[0], frame=dropped[1], axis=0)]


def _kept(
    stopped: KeyboardInterrupt | FormatError, journal: Path | None, carried: PropagationReport
) -> BaseException:
    """Why it stopped, with where the work is that was done."""
    count = carried.num_frames
    text = ""
    if journal is not None and count:
        text = (
            f"{count} slices or frames are in the journal; limner resume {journal} -o FILE "
            "writes them"
        )
    if isinstance(stopped, KeyboardInterrupt):
        if text:
            print(f"limner: {text}, and with --continue goes on first.", file=sys.stderr)
        return stopped
    if not count:
        return stopped
    if not text:
        text = f"The {count} frames done before were not written: --partial does, or --journal FILE"
    return FormatError(f"{stopped} {text}.")


def _tell(session: Session, carried: PropagationReport) -> None:
    """How far it went, and where to look."""
    image = session.image
    text = f"carried to {carried.num_frames} {'slices' if image.kind == 'volume' else 'frames'}"
    doubtful = session.frames_to_review(_LEAST_SURE)
    if doubtful:
        text += "; least sure: " + ", ".join(f"{d.frame} ({d.score:.2f})" for d in doubtful)
    print(text, file=sys.stderr)
    if image.damaged:
        frames = ", ".join(str(k) for k in sorted(image.damaged)[:_MOST_NAMED])
        more = len(image.damaged) - _MOST_NAMED
        rest = f" and {more} more" if more > 0 else ""
        print(f"could not be read, so left empty: {frames}{rest}", file=sys.stderr)
