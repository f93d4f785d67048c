"""Options that several commands share, and how their texts become prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.errors import FormatError, PromptError

if TYPE_CHECKING:
    from limner.io.image import Image
    from limner.prompts.types import Prompt

ImagePath = Annotated[Path, typer.Argument(help="Picture, volume, video, DICOM file or folder.")]
Series = Annotated[
    str | None, typer.Option(help="Which DICOM series of a folder: number, UID or end of UID.")
]
Channel = Annotated[
    int | None, typer.Option(help="Read one channel or time point of a 4D file, from 0.")
]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Open a DICOM series in spite of gaps or uneven steps.")
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
    """``--window``: a preset's name or ``low,high``."""
    if text is None or "," not in text:
        return text
    low, _, high = text.partition(",")
    return numbers(low, "--window")[0], numbers(high, "--window")[0]


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


def read_scribbles(path: Path, image: Image, frame: int | None) -> list[Prompt]:
    """``--scribble``: a JSON file of scribble prompts or a label image (1 yes, 2 no)."""
    from limner import read_labels
    from limner.prompts.convert import scribbles_from_mask

    if path.suffix.lower() == ".json":
        return [prompt for prompt, _, _ in read_prompts(path)]
    labels = read_labels(path, like=image)
    if not set(labels.ids) <= {1, 2}:
        raise PromptError(
            f"{path}: a scribble image holds 1 (belongs) and 2 (does not), "
            f"not {labels.ids}."
        )
    marks: list[Prompt] = []
    for label in labels.ids:
        mask = labels.mask(label)
        if frame is not None and mask.ndim == 3:
            mask = mask[frame]
        marks += scribbles_from_mask(mask, positive=label == 1)
    return marks


def read_prompts(path: Path) -> list[tuple[Prompt, int, int | None]]:
    """``--prompts``: prompts with object id and frame, from JSON.

    A list of prompts (`limner.prompts.to_json`), each with optional ``"object"`` and ``"frame"``;
    or the manifest written beside a mask, to do the same again.

    Raises:
        FormatError: not JSON, or not of that form.
    """
    from limner.prompts import from_json

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} cannot be read as JSON prompts: {error}.") from error
    items = _items(value)
    if items is None:
        raise FormatError(
            f'{path}: expected a list of prompts such as {{"kind": "click", "at": [10, 20]}}, '
            "or a manifest that limner wrote."
        )
    said = []
    for item in items:
        fields = dict(item)
        object_id, frame = fields.pop("object", 1), fields.pop("frame", None)
        said.append((from_json(fields), object_id, frame))
    return said


def _items(value: Any) -> list[dict[str, Any]] | None:
    if isinstance(value, dict) and isinstance(value.get("objects"), dict):
        return [
            {"object": int(object_id), **prompt}
            for object_id, facts in value["objects"].items()
            for prompt in facts["prompts"]
        ]
    if isinstance(value, dict) and "kind" in value:
        return [value]
    if isinstance(value, dict):
        value = value.get("prompts")
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    return None
