"""Prompts of a command line: parsed, placed in the image, added to a session."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from limner.cli._examples import ExampleFiles, parse_example, read_examples
from limner.cli._options import ObjectOptions, PlaceOptions, PromptOptions
from limner.cli._prompt_files import (
    PlacedPrompt,
    PromptFile,
    parse_box,
    parse_numbers,
    parse_priority,
    read_masks,
    read_prompts,
    read_scribbles,
)
from limner.errors import PromptError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from limner.io.image import Image
    from limner.prompts.types import Click, Prompt
    from limner.sessions import Session

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CommandPrompts:
    """The prompts of one command line, still in the caller's coordinates.

    Attributes:
        boxes: texts of ``--box``; `clicks` and `excluded` of ``--click`` and ``--not``.
        scribble: JSON or a label image.
        mask: a label file.
        threshold: of `mask`: values from this one on are the object.
        texts: words.
        file: of ``--prompts``, read.
        examples: files of ``--example``.
        paths: all files that are read.
    """

    boxes: tuple[str, ...] = ()
    clicks: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    scribble: Path | None = None
    mask: Path | None = None
    threshold: float | None = None
    texts: tuple[str, ...] = ()
    file: PromptFile | None = None
    examples: tuple[ExampleFiles, ...] = ()

    @classmethod
    def parse(cls, given: PromptOptions, frame: int | None, axis: int = 0) -> CommandPrompts:
        """Parse the options; reads the file of ``--prompts``, whose 2D prompts are on `frame`.

        Raises:
            PromptError: one is malformed, or ``--threshold`` has no mask to work on.
        """
        if given.threshold is not None and given.mask is None:
            raise PromptError("--threshold says from which value on --mask is the object; give it.")
        return cls(
            tuple(given.box or ()),
            tuple(given.click or ()),
            tuple(given.exclude or ()),
            given.scribble,
            given.mask,
            given.threshold,
            tuple(given.text or ()),
            None if given.prompts is None else read_prompts(given.prompts, frame, axis=axis),
            tuple(parse_example(text) for text in given.example or ()),
        )

    @property
    def paths(self) -> list[Path | None]:
        """Files that are read, but for that of ``--prompts``."""
        pairs = [path for files in self.examples for path in (files.image, files.mask)]
        return [self.mask, self.scribble, *pairs]


def collect_prompts(
    given: CommandPrompts,
    image: Image,
    place: PlaceOptions,
    *,
    object_id: int = 1,
    axis: int = 0,
) -> list[PlacedPrompt]:
    """Collect all prompts of a command line, in index order, with object and frame.

    One box, one text and a mask with one label are about the same object, and so are clicks,
    scribbles and all examples. Several boxes or texts are objects 1, 2, …; the labels of a mask are
    object ids.

    Args:
        given: the prompts.
        image: that they are about.
        place: slice or frame of 2D prompts, and the coordinates of clicks and boxes.
        object_id: of the first object.
        axis: across which the slice lies.

    Raises:
        PromptError: none at all, or a combination that leaves open which object is meant.
    """
    from limner.prompts import MaskPrompt, TextPrompt

    frame = place.slice_
    boxes = [_to_index(parse_box(text), image, place) for text in given.boxes]
    clicks = [_to_index(click, image, place) for click in _parse_clicks(given)]
    masks: dict[int, NDArray[np.bool_]] = {}
    if given.mask is not None:
        masks = read_masks(given.mask, image, frame, axis, threshold=given.threshold)
    _check_single_object(given, masks)
    first = next(iter(masks)) if len(masks) == 1 else object_id
    entries = [PlacedPrompt(box, k, frame) for k, box in enumerate(boxes, start=first)]
    entries += [
        PlacedPrompt(TextPrompt(text), k, frame) for k, text in enumerate(given.texts, start=first)
    ]
    entries += [PlacedPrompt(MaskPrompt(mask), k, frame) for k, mask in masks.items()]
    entries += [PlacedPrompt(click, first, frame) for click in clicks]
    entries += [PlacedPrompt(e, first, frame) for e in read_examples(given.examples)]
    entries = [entry._replace(axis=axis) for entry in entries]
    if given.scribble is not None:
        entries += read_scribbles(given.scribble, image, frame, object_id=first, axis=axis)
    if given.file is not None:
        entries += given.file.entries
    if not entries:
        raise PromptError(
            "Nothing says what to delineate: give --box, --click, --scribble, --mask, --text, "
            "--example or --prompts."
        )
    return entries


def _parse_clicks(given: CommandPrompts) -> list[Click]:
    """Parse ``--click`` and ``--not``."""
    from limner.prompts import Click

    inside = [Click(parse_numbers(text, "--click")) for text in given.clicks]
    outside = [Click(parse_numbers(text, "--not"), positive=False) for text in given.excluded]
    return inside + outside


def _check_single_object(given: CommandPrompts, masks: Mapping[int, object]) -> None:
    """Refuse prompts that are about one object beside others that are about several."""
    marked = bool(given.clicks or given.excluded or given.scribble or given.examples)
    shared = marked or bool(masks and (given.boxes or given.texts))
    if shared and max(len(given.boxes), len(given.texts), len(masks)) > 1:
        raise PromptError(
            "Several boxes, texts or labels of a mask are several objects; say with "
            "--prompts FILE.json which of them each prompt is about."
        )


def collect_on_slices(
    given: CommandPrompts, image: Image, place: PlaceOptions, axis: int
) -> list[PlacedPrompt]:
    """Collect all prompts as 2D prompts on their slices across an axis.

    The first boxes on each slice are object 1, the second object 2, and so on; clicks are about
    object 1. Arguments as for `collect_prompts`.
    """
    entries: list[PlacedPrompt] = []
    if given.boxes:
        counts: Counter[int] = Counter()
        for entry in collect_prompts(CommandPrompts(given.boxes), image, place, axis=axis):
            for on_slice in _to_slices(entry, image, axis):
                assert on_slice.frame is not None
                counts[on_slice.frame] += 1
                entries.append(on_slice._replace(object_id=counts[on_slice.frame]))
        if max(counts.values()) > 1 and (given.clicks or given.excluded):
            raise PromptError(
                "Several boxes on one slice are several objects; say with --prompts FILE.json "
                "which of them each click is about."
            )
    rest = replace(given, boxes=())
    if rest != CommandPrompts() or not entries:
        for entry in collect_prompts(rest, image, place, axis=axis):
            entries += _to_slices(entry, image, axis)
    return entries


def _to_slices(entry: PlacedPrompt, image: Image, axis: int) -> list[PlacedPrompt]:
    """Convert a prompt to one 2D prompt per slice that it marks."""
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
        slices = np.moveaxis(prompt.mask, axis, 0)
        marked = [k for k, mask in enumerate(slices) if mask.any()]
        masks = [(k, MaskPrompt(np.array(slices[k]))) for k in marked]
        return [entry._replace(prompt=mask, frame=k, axis=0) for k, mask in masks]
    projected = prompt.to_slice(axis)
    if projected is None:
        raise PromptError(
            f"A {prompt.kind} to start from lies on one slice or frame: say which with --slice K, "
            "or give s,r,c and s0,r0,c0,s1,r1,c1 with s1 = s0 + 1."
        )
    return [entry._replace(prompt=projected[0], frame=projected[1], axis=0)]


def add_prompts(
    session: Session,
    entries: Sequence[PlacedPrompt],
    file: PromptFile | None,
    objects: ObjectOptions,
) -> None:
    """Add all prompts, names, locks and priorities to a new session; if one is refused, no journal
    is left behind.

    Args:
        session: new.
        entries: the prompts.
        file: with names by object id, locks and priorities.
        objects: names of the first objects in order; more locks, and another priority.
    """
    names = {} if file is None else file.names
    in_order = objects.name or ()
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
        set_precedence(session, objects, file)
    except BaseException:
        session.discard()
        raise


def set_precedence(
    session: Session, objects: ObjectOptions, file: PromptFile | None = None
) -> None:
    """Lock objects, and set who keeps the pixels that objects share."""
    for object_id in (*(file.locked if file else ()), *(objects.lock or ())):
        session.lock(object_id)
    priority = file.priority if file else ()
    if objects.priority is not None:
        priority = parse_priority(objects.priority)
    if priority:
        session.set_priority(priority)


def warn_of_differences(session: Session, file: PromptFile | None, path: Path | None) -> None:
    """Warn where a manifest is repeated on another image or with other weights."""
    if file is None:
        return
    if file.pixel_sha256 not in (None, session.image.pixel_hash()):
        _log.warning(
            "%s was made on another image than %s: the pixels differ.", path, session.image.path
        )
    card = session.card
    if card.name == file.model and card.weights_sha256 != file.weights_sha256:
        _log.warning("%s was made with other weights of %s.", path, card.name)


def _to_index(prompt: Prompt, image: Image, place: PlaceOptions) -> Prompt:
    """Convert a prompt from the caller's coordinates to index order."""
    from limner.prompts.convert import check_inside, from_world, from_xyz

    order, world = place.order, place.world
    if order not in (None, "xyz") or (order and world):
        raise PromptError("Say --order xyz (pixels) or --world lps|ras (millimetres), not both.")
    if world is None:
        return from_xyz(prompt) if order else prompt
    system = world.lower()
    placed = from_world(prompt, image.geometry, system=system)
    try:
        check_inside(placed, image.geometry.shape)
    except PromptError:
        reach = _format_extent(image, system)
        raise PromptError(
            f"The {prompt.kind} lies outside the image, which reaches {reach}; "
            "check the millimetres, and whether they are LPS (DICOM, ITK) or RAS (NIfTI, Slicer)."
        ) from None
    return placed


def _format_extent(image: Image, system: str) -> str:
    """Format the extent of an image in millimetres, per axis of LPS or RAS."""
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
