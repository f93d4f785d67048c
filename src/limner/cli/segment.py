"""``limner segment``: one image, prompts, a mask."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import _options as options
from limner.errors import PromptError

if TYPE_CHECKING:
    from limner.io.image import Image
    from limner.prompts.types import Prompt


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
    check_output(output, preview, picture)
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
        for prompt, object_id, frame in entries:
            session.add(prompt, object_id=object_id, frame=frame)
        for object_id, label in enumerate(name or (), start=1):
            session.name(object_id, label)
        finish(
            session,
            output,
            preview=preview,
            window=options.parse_window(window),
            dicom_type=dicom_type,
            as_json=as_json,
            began=began,
        )


def gather(
    said: Said, image: Image, frame: int | None, *, order: str | None, world: str | None
) -> list[tuple[Prompt, int, int | None]]:
    """All prompts of the command line, in index order, with object and frame.

    Raises:
        PromptError: none at all, or a combination that leaves open which object is meant.
    """
    from limner.prompts import Click, TextPrompt

    placed: list[Prompt] = [options.parse_box(text) for text in said.boxes]
    clicks: list[Prompt] = [Click(options.numbers(t, "--click")) for t in said.clicks]
    clicks += [Click(options.numbers(t, "--not"), positive=False) for t in said.excluded]
    if max(len(placed), len(said.texts)) > 1 and (clicks or said.scribble):
        raise PromptError(
            "Several boxes or texts are several objects; say with --prompts FILE.json "
            "which object a click or scribble is about."
        )
    placed = [_converted(p, image, order=order, world=world) for p in placed]
    clicks = [_converted(p, image, order=order, world=world) for p in clicks]
    entries = [(p, k, frame) for k, p in enumerate(placed, start=1)]
    entries += [(TextPrompt(t), k, frame) for k, t in enumerate(said.texts, start=1)]
    if said.mask is not None:
        entries += _from_mask(said.mask, image, frame)
    entries += [(p, 1, frame) for p in clicks]
    if said.scribble is not None:
        entries += [(p, 1, frame) for p in options.read_scribbles(said.scribble, image, frame)]
    if said.prompts is not None:
        entries += options.read_prompts(said.prompts)
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


def _from_mask(path: Path, image: Image, frame: int | None) -> list[tuple[Prompt, int, int | None]]:
    import limner

    labels = limner.read_labels(path, like=image)
    if not labels.ids:
        raise PromptError(f"{path} is empty: it has no label above 0.")
    entries: list[tuple[Prompt, int, int | None]] = []
    for object_id in labels.ids:
        mask = labels.mask(object_id)
        if frame is not None and mask.ndim == 3:
            mask = mask[frame]
        entries.append((limner.MaskPrompt(mask), object_id, frame))
    return entries
