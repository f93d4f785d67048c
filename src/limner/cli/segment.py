"""``limner segment``: one image, prompts, a mask."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import _options as options
from limner.cli._examples import ExampleFiles, parse_example, read_examples
from limner.errors import PromptError

if TYPE_CHECKING:
    from limner.io.image import Image
    from limner.prompts.types import Prompt
    from limner.sessions import Session


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CommandPrompts:
    """The prompts of one command line, still in the caller's frame."""

    boxes: tuple[str, ...] = ()
    clicks: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    scribble: Path | None = None
    mask: Path | None = None
    texts: tuple[str, ...] = ()
    prompts: options.PromptFile | None = None
    examples: tuple[ExampleFiles, ...] = ()


def segment(
    image: options.ImagePath,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Mask: .nii.gz .nrrd .mha .png .tif .dcm .json .npz by suffix."
        ),
    ],
    box: options.Boxes = None,
    click: options.Clicks = None,
    exclude: options.Excluded = None,
    scribble: Annotated[
        Path | None,
        typer.Option(
            help="JSON scribbles, or a label image: 1 belongs, 2 does not. See docs/prompts.md."
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A rough mask to start from; one object per label.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A word for the object. Repeat: one object each.")
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            help="IMAGE=MASK or IMAGE=MASK:LABEL: do it as in this picture; without a label all "
            "that is not 0 is meant. Repeat: the more, the better."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts as JSON (docs/prompts.md), or the manifest NAME.limner.json of an "
            "earlier mask, to do the same again."
        ),
    ] = None,
    slice_: options.Slice = None,
    axis: options.Axis = None,
    order: options.Order = None,
    world: options.World = None,
    model: options.Model = None,
    weights: options.Weights = None,
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
    as_json: options.AsJson = False,
) -> None:
    """Delineate an object: prompts in, mask out, in the image's own geometry."""
    import limner
    from limner.cli._finish import check_output, finish
    from limner.models import default_model

    began = time.perf_counter()
    picture = limner.read(image, series=series, channel=channel, strict=not lenient)
    across = options.parse_axis(axis, picture, slice_)
    file = options.PromptFile()
    if prompts is not None:
        file = options.read_prompts(prompts, slice_, axis=across)
    if weights is None and model is None and file.weights is not None:
        weights = Path(file.weights)
    examples = tuple(parse_example(text) for text in example or ())
    inputs = [mask, scribble, prompts, weights]
    inputs += [path for files in examples for path in (files.image, files.mask)]
    check_output(output, preview, picture, journal=journal, inputs=inputs)
    said = CommandPrompts(
        tuple(box or ()),
        tuple(click or ()),
        tuple(exclude or ()),
        scribble,
        mask,
        tuple(text or ()),
        file,
        examples,
    )
    entries = collect_prompts(said, picture, slice_, order=order, world=world, axis=across)
    flat = slice_ is not None and across == 0
    with limner.open_session(
        picture,
        model or file.model or default_model(picture.kind, flat=flat),
        weights=weights,
        device=device,
        exact=exact,
        keep_embeddings=keep_embeddings,
        journal=journal,
        zoom=file.zoom if zoom is None else zoom,
        window=file.window if window is None else options.parse_window(window),
    ) as session:
        add_prompts(session, entries, file.names, name or ())
        warn_of_differences(session, file, prompts)
        finish(
            session,
            output,
            preview=preview,
            dicom_type=dicom_type,
            as_json=as_json,
            began=began,
        )


def warn_of_differences(session: Session, file: options.PromptFile, path: Path | None) -> None:
    """Warn where a manifest is repeated on another image or with other weights."""
    if file.pixel_sha256 not in (None, session.image.pixel_hash()):
        _log.warning(
            "%s was made on another image than %s: the pixels differ.", path, session.image.path
        )
    card = session.card
    if card.name == file.model and card.weights_sha256 != file.weights_sha256:
        _log.warning("%s was made with other weights of %s.", path, card.name)


def add_prompts(
    session: Session,
    entries: Sequence[options.Placed],
    names: Mapping[int, str],
    in_order: Sequence[str],
) -> None:
    """Tell a new session everything; if any of it is refused, no journal is left behind.

    Args:
        session: new.
        entries: the prompts.
        names: by object id.
        in_order: the names of the first objects, instead of those in `names`.
    """
    try:
        for entry in entries:
            object_id = entry.object_id
            session.add(entry.prompt, object_id=object_id, frame=entry.frame, axis=entry.axis)
            if entry.answered:  # a manifest is repeated round by round
                session.predict(object_id=object_id, frame=entry.where)
        if len(in_order) > len(session.object_ids):
            raise PromptError(
                f"{len(in_order)} names are too many for {len(session.object_ids)} object(s)."
            )
        for object_id in names:
            if object_id not in session.object_ids:
                raise PromptError(f"Object {object_id} has a name and no prompt.")
        chosen = {**names, **dict(zip(session.object_ids, in_order, strict=False))}
        for object_id, label in chosen.items():
            session.name(object_id, label)
    except BaseException:
        session.discard()
        raise


def collect_prompts(
    said: CommandPrompts,
    image: Image,
    frame: int | None,
    *,
    order: str | None = None,
    world: str | None = None,
    object_id: int = 1,
    axis: int = 0,
) -> list[options.Placed]:
    """All prompts of the command line, in index order, with object and frame.

    One box, one text and a mask with one label are about the same object, and so are clicks,
    scribbles and all examples. Several boxes or texts are objects 1, 2, …; the labels of a mask are
    object ids.

    Args:
        said: the prompts.
        image: that they are about.
        frame: slice or frame of 2D prompts.
        order: ``"xyz"``: clicks and boxes are given as x, y or x, y, z.
        world: ``"lps"`` or ``"ras"``: they are given in patient millimetres.
        object_id: of the first object.
        axis: across which the slice lies.

    Raises:
        PromptError: none at all, or a combination that leaves open which object is meant.
    """
    from limner.prompts import Click, MaskPrompt, TextPrompt

    def placed(prompt: Prompt) -> Prompt:
        return _converted(prompt, image, order=order, world=world)

    boxes = [placed(options.parse_box(text)) for text in said.boxes]
    clicks = [placed(Click(options.numbers(t, "--click"))) for t in said.clicks]
    clicks += [placed(Click(options.numbers(t, "--not"), positive=False)) for t in said.excluded]
    masks = {} if said.mask is None else options.read_masks(said.mask, image, frame, axis)
    marked = bool(clicks or said.scribble or said.examples)
    shared = marked or bool(masks and (boxes or said.texts))
    if shared and max(len(boxes), len(said.texts), len(masks)) > 1:
        raise PromptError(
            "Several boxes, texts or labels of a mask are several objects; say with "
            "--prompts FILE.json which of them each prompt is about."
        )
    first = next(iter(masks)) if len(masks) == 1 else object_id
    entries = [options.Placed(box, k, frame) for k, box in enumerate(boxes, start=first)]
    entries += [
        options.Placed(TextPrompt(text), k, frame) for k, text in enumerate(said.texts, start=first)
    ]
    entries += [options.Placed(MaskPrompt(mask), k, frame) for k, mask in masks.items()]
    entries += [options.Placed(click, first, frame) for click in clicks]
    entries += [options.Placed(e, first, frame) for e in read_examples(said.examples)]
    entries = [entry._replace(axis=axis) for entry in entries]
    if said.scribble is not None:
        entries += options.read_scribbles(said.scribble, image, frame, object_id=first, axis=axis)
    if said.prompts is not None:
        entries += said.prompts.entries
    if not entries:
        raise PromptError(
            "Nothing says what to delineate: give --box, --click, --scribble, --mask, --text, "
            "--example or --prompts."
        )
    return entries


def _converted(prompt: Prompt, image: Image, *, order: str | None, world: str | None) -> Prompt:
    from limner.prompts.convert import check_inside, from_world, from_xyz

    if order not in (None, "xyz") or (order and world):
        raise PromptError("Say --order xyz (pixels) or --world lps|ras (millimetres), not both.")
    if world is None:
        return from_xyz(prompt) if order else prompt
    system = world.lower()
    placed = from_world(prompt, image.geometry, system=system)
    try:
        check_inside(placed, image.geometry.shape)
    except PromptError:
        raise PromptError(
            f"The {prompt.kind} lies outside the image, which reaches {_reach(image, system)}; "
            "check the millimetres, and whether they are LPS (DICOM, ITK) or RAS (NIfTI, Slicer)."
        ) from None
    return placed


def _reach(image: Image, system: str) -> str:
    """From where to where an image reaches in millimetres, per axis of LPS or RAS."""
    import numpy as np

    geometry = image.geometry
    ends = [(-0.5, size - 0.5) for size in geometry.shape]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, geometry.ndim)
    flip = (1.0, 1.0, 1.0) if system == "lps" else (-1.0, -1.0, 1.0)
    world = geometry.index_to_world(corners) * flip
    spans = zip("xyz", world.min(axis=0), world.max(axis=0), strict=True)
    return ", ".join(f"{axis} {low:.1f}…{high:.1f}" for axis, low, high in spans) + (
        f" mm in {system.upper()}"
    )
