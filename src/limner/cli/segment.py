"""``limner segment``: one image, prompts, a mask."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import _options as options
from limner.errors import PromptError

if TYPE_CHECKING:
    from limner.io.image import Image
    from limner.prompts.types import Prompt
    from limner.sessions._base import BaseSession


@dataclass(frozen=True)
class Said:
    """The prompts of one command line, still in the caller's frame."""

    boxes: tuple[str, ...]
    clicks: tuple[str, ...]
    excluded: tuple[str, ...]
    scribble: Path | None
    mask: Path | None
    texts: tuple[str, ...]
    prompts: Path | None


def segment(
    image: options.ImagePath,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Mask: .nii.gz .nrrd .mha .png .tif .dcm .json .npz by suffix."
        ),
    ],
    box: Annotated[
        list[str] | None,
        typer.Option(help="r0,c0,r1,c1 or s0,r0,c0,s1,r1,c1, half-open. Repeat: one object each."),
    ] = None,
    click: Annotated[
        list[str] | None, typer.Option(help="r,c or s,r,c inside the object. May be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--not", help="A click outside the object, likewise.")
    ] = None,
    scribble: Annotated[
        Path | None, typer.Option(help="JSON scribbles, or a label image: 1 belongs, 2 does not.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A rough mask to start from; one object per label.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A word for the object. Repeat: one object each.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts as JSON, or the manifest of an earlier mask.")
    ] = None,
    slice_: Annotated[
        int | None, typer.Option("--slice", help="2D prompts are about this slice or frame.")
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="xyz: clicks and boxes are given as x,y or x,y,z pixels.")
    ] = None,
    world: Annotated[
        str | None, typer.Option(help="lps or ras: clicks and boxes are in patient millimetres.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="See limner models.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The model's weights file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    window: Annotated[
        str | None, typer.Option(help="CT window: a name such as lung, or low,high.")
    ] = None,
    zoom: Annotated[
        bool | None, typer.Option("--zoom/--no-zoom", help="Look at the whole, then closer.")
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="The objects' names, in order.")] = None,
    journal: Annotated[
        Path | None, typer.Option(help="Keep the conversation here; see limner resume.")
    ] = None,
    series: options.Series = None,
    channel: options.Channel = None,
    lenient: options.Lenient = False,
    dicom_type: options.DicomType = None,
    preview: Annotated[Path | None, typer.Option(help="Also write a picture: .png.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Delineate an object: prompts in, mask out, in the image's own geometry."""
    import limner
    from limner.cli._finish import check_output, finish

    began = time.perf_counter()
    picture = limner.read(image, series=series, channel=channel, strict=not lenient)
    check_output(output, preview, picture, journal=journal)
    said = Said(
        tuple(box or ()),
        tuple(click or ()),
        tuple(exclude or ()),
        scribble,
        mask,
        tuple(text or ()),
        prompts,
    )
    entries = gather(said, picture, slice_, order=order, world=world)
    with limner.open_session(
        picture,
        model,
        weights=weights,
        device=device,
        journal=journal,
        zoom=zoom,
        window=options.parse_window(window),
    ) as session:
        _say(session, entries, name or ())
        finish(
            session,
            output,
            preview=preview,
            window=options.parse_window(window),
            dicom_type=dicom_type,
            as_json=as_json,
            began=began,
        )


def _say(session: BaseSession, entries: Sequence[options.Placed], names: Sequence[str]) -> None:
    """Tell a new session everything; if any of it is refused, no journal is left behind."""
    try:
        for prompt, object_id, frame, answered in entries:
            session.add(prompt, object_id=object_id, frame=frame)
            if answered:  # a manifest is repeated round by round
                session.predict(object_id=object_id, frame=frame)
        if len(names) > len(session.object_ids):
            raise PromptError(
                f"{len(names)} names are too many for {len(session.object_ids)} object(s)."
            )
        for object_id, label in zip(session.object_ids, names, strict=False):
            session.name(object_id, label)
    except BaseException:
        if session.journal is not None:
            session.journal.discard()
        raise


def gather(
    said: Said, image: Image, frame: int | None, *, order: str | None, world: str | None
) -> list[options.Placed]:
    """All prompts of the command line, in index order, with object and frame.

    One box, one text and a mask with one label are about the same object, and so are clicks and
    scribbles. Several boxes or texts are objects 1, 2, …; the labels of a mask are object ids.

    Raises:
        PromptError: none at all, or a combination that leaves open which object is meant.
    """
    from limner.prompts import Click, MaskPrompt, TextPrompt

    def placed(prompt: Prompt) -> Prompt:
        return _converted(prompt, image, order=order, world=world)

    boxes = [placed(options.parse_box(text)) for text in said.boxes]
    clicks = [placed(Click(options.numbers(t, "--click"))) for t in said.clicks]
    clicks += [placed(Click(options.numbers(t, "--not"), positive=False)) for t in said.excluded]
    masks = {} if said.mask is None else options.read_masks(said.mask, image, frame)
    shared = bool(clicks or said.scribble or (masks and (boxes or said.texts)))
    if shared and max(len(boxes), len(said.texts), len(masks)) > 1:
        raise PromptError(
            "Several boxes, texts or labels of a mask are several objects; say with "
            "--prompts FILE.json which of them each prompt is about."
        )
    first = next(iter(masks)) if len(masks) == 1 else 1
    entries = [options.Placed(box, k, frame) for k, box in enumerate(boxes, start=first)]
    entries += [
        options.Placed(TextPrompt(text), k, frame) for k, text in enumerate(said.texts, start=first)
    ]
    entries += [options.Placed(MaskPrompt(mask), k, frame) for k, mask in masks.items()]
    entries += [options.Placed(click, first, frame) for click in clicks]
    if said.scribble is not None:
        entries += options.read_scribbles(said.scribble, image, frame, object_id=first)
    if said.prompts is not None:
        entries += options.read_prompts(said.prompts, frame)
    if not entries:
        raise PromptError(
            "Nothing says what to delineate: give --box, --click, --scribble, --mask, --text "
            "or --prompts."
        )
    return entries


def _converted(prompt: Prompt, image: Image, *, order: str | None, world: str | None) -> Prompt:
    from limner.prompts.convert import from_world, from_xyz

    if order not in (None, "xyz") or (order and world):
        raise PromptError("Say --order xyz (pixels) or --world lps|ras (millimetres), not both.")
    if world is not None:
        return from_world(prompt, image.geometry, system=world)
    return from_xyz(prompt) if order else prompt
