"""Options that several commands share, and how their texts become prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from limner.errors import FormatError, PromptError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from limner.io.image import Image
    from limner.prompts.types import Prompt


class Placed(NamedTuple):
    """A prompt, its object, its frame or slice, and whether an answer was asked for after it."""

    prompt: Prompt
    object_id: int
    frame: int | None
    answered: bool = False


ImagePath = Annotated[Path, typer.Argument(help="Picture, volume, video, DICOM file or folder.")]
Series = Annotated[
    str | None, typer.Option(help="Which DICOM series of a folder: number, UID or end of UID.")
]
Channel = Annotated[
    int | None, typer.Option(help="Read one channel or time point of a 4D file, from 0.")
]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Open in spite of gaps, uneven steps, NaN and the like.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
DicomType = Annotated[
    str | None, typer.Option("--type", help="For .dcm: seg, seg-labelmap or rtstruct.")
]


def numbers(text: str, option: str) -> tuple[float, ...]:
    """``"10,20.5"`` as numbers.

    Raises:
        PromptError: not numbers separated by commas.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise PromptError(
            f"{option} takes numbers separated by commas, such as 40,60; not {text!r}."
        ) from None


def parse_window(text: str | None) -> str | tuple[float, float] | None:
    """``--window``: a preset's name or ``low,high``.

    Raises:
        PromptError: neither.
    """
    if text is None or "," not in text:
        return text
    limits = numbers(text, "--window")
    if len(limits) != 2:
        raise PromptError(f"--window takes a name or low,high; not {text!r}.")
    return limits[0], limits[1]


def parse_box(text: str) -> Prompt:
    """``--box``: low corner, then high corner (half-open)."""
    from limner.prompts import Box

    values = numbers(text, "--box")
    if len(values) not in (4, 6):
        raise PromptError(
            f"--box takes r0,c0,r1,c1 or s0,r0,c0,s1,r1,c1 (half-open); not {text!r}."
        )
    half = len(values) // 2
    return Box(values[:half], values[half:])


def read_scribbles(
    path: Path, image: Image, frame: int | None, *, object_id: int = 1
) -> list[Placed]:
    """``--scribble``: a JSON file of scribble prompts or a label image (1 yes, 2 no)."""
    from limner.prompts.convert import scribbles_from_mask

    if path.suffix.lower() == ".json":
        return read_prompts(path, frame, object_id=object_id)
    masks = read_masks(path, image, frame)
    if not set(masks) <= {1, 2}:
        ids = ", ".join(str(i) for i in masks)
        raise PromptError(
            f"{path}: a scribble image holds 1 (belongs) and 2 (does not belong), not {ids}."
        )
    return [
        Placed(stroke, object_id, frame)
        for label, mask in masks.items()
        for stroke in scribbles_from_mask(mask, positive=label == 1)
    ]


def read_masks(path: Path, image: Image, frame: int | None) -> dict[int, NDArray[np.bool_]]:
    """The masks of a label file by id: of the image's shape, or of one slice or frame of it.

    With `frame`, a 2D file is that slice and of a 3D file that slice is taken.

    Raises:
        PromptError: there is no such slice, or no label on it.
    """
    import limner
    from limner.io import holds_labels

    geometry = image.geometry
    plane = frame if geometry.ndim == 3 else None
    if plane is not None and not 0 <= plane < geometry.shape[0]:
        raise PromptError(f"There is no slice {plane}; they are 0…{geometry.shape[0] - 1}.")
    if plane is not None and not holds_labels(path) and limner.read(path).geometry.ndim == 2:
        labels = limner.read_labels(path, like=geometry.plane(plane))
        masks = {i: labels.mask(i) for i in labels.ids}
    else:
        labels = limner.read_labels(path, like=image)
        masks = {i: labels.mask(i)[... if plane is None else plane] for i in labels.ids}
    masks = {i: mask for i, mask in masks.items() if mask.any()}
    if not masks:
        where = "" if plane is None else f" on slice {plane}"
        raise PromptError(f"{path} has no label above 0{where}.")
    return masks


def read_prompts(path: Path, frame: int | None = None, *, object_id: int = 1) -> list[Placed]:
    """``--prompts``: prompts with object id and frame, from JSON.

    A list of prompts (`limner.prompts.to_json`), each with optional ``"object"`` and ``"frame"``;
    or the manifest written beside a mask, to do the same again. Prompts that name no object are
    about `object_id`, and 2D prompts that name no frame about `frame`.

    Raises:
        FormatError: not JSON, or not of that form.
        PromptError: what should be a prompt is none.
    """
    from limner.prompts import from_json
    from limner.prompts.types import num_axes

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read as JSON prompts: {error}.") from error
    items = _items(value)
    if items is None:
        raise FormatError(
            f'{path}: expected a list of prompts such as {{"kind": "click", "at": [10, 20]}}, '
            "or a manifest that limner wrote."
        )
    said: list[Placed] = []
    for item in items:
        fields = dict(item)
        number = fields.pop("object", fields.pop("object_id", object_id))
        where, answered = fields.pop("frame", None), fields.pop("answered", False)
        try:
            prompt = from_json(fields)
        except PromptError as error:
            raise PromptError(f"{path}: {error}") from error
        if where is None and num_axes(prompt) == 2:
            where = frame
        said.append(Placed(prompt, number, where, bool(answered)))
    return said


def _items(value: Any) -> list[dict[str, Any]] | None:
    if isinstance(value, dict) and isinstance(value.get("objects"), dict):
        try:
            return [
                {"object": int(object_id), **prompt}
                for object_id, facts in value["objects"].items()
                for prompt in facts["prompts"]
            ]
        except (KeyError, TypeError, ValueError):
            return None
    if isinstance(value, dict) and "kind" in value:
        return [value]
    if isinstance(value, dict):
        value = value.get("prompts")
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    return None
