"""Prompts in files and option texts: JSON, manifests, label images, numbers and boxes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from limner.errors import FormatError, PromptError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from limner.io.image import Image
    from limner.prompts.types import Prompt


_log = logging.getLogger(__name__)

_FILE_KEYS = ("names", "prompts", "locked", "priority")
_RESUMED_KEYS = ("image", "model", "can_undo", "can_redo")  # of limner resume --json, besides


class PlacedPrompt(NamedTuple):
    """A prompt with its place.

    Attributes:
        prompt: in index order.
        object_id: that it is about.
        frame: slice or frame of a 2D prompt.
        answered: whether a prediction followed it, as in a manifest.
        axis: across which its slice lies.
    """

    prompt: Prompt
    object_id: int
    frame: int | None
    answered: bool = False
    axis: int = 0

    @property
    def where(self) -> int | None:
        """The frame to predict on; prompts on slices across other axes are answered in 3D."""
        return self.frame if self.axis == 0 else None


@dataclass(frozen=True)
class PromptFile:
    """Contents of a prompt file; of a manifest also how its mask was made.

    Attributes:
        entries: the prompts, in the order of the file.
        names: of the objects, by id.
        locked: objects that others are kept off.
        priority: objects that lie above others in a label map, the uppermost first.
        model: name of the model, None where the file names none.
        weights: path of the model's weights file, as it was given.
        weights_sha256: hash of the model's weights.
        zoom: whether the session zoomed in.
        window: CT window ``(low, high)``, or ``"robust"``.
        pixel_sha256: of the image that the prompts were about.
    """

    entries: tuple[PlacedPrompt, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    locked: tuple[int, ...] = ()
    priority: tuple[int, ...] = ()
    model: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    zoom: bool | None = None
    window: str | tuple[float, float] | None = None
    pixel_sha256: str | None = None


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """Parse ``"10,20.5"``.

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
    """Parse ``--window``: a preset's name or ``low,high``.

    Raises:
        PromptError: neither.
    """
    if text is None or "," not in text:
        return text
    limits = parse_numbers(text, "--window")
    if len(limits) != 2:
        raise PromptError(f"--window takes a name or low,high; not {text!r}.")
    return limits[0], limits[1]


def parse_priority(text: str) -> tuple[int, ...]:
    """Parse ``--priority``: object ids, the uppermost first.

    Raises:
        PromptError: not numbers from 1 separated by commas.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) for part in parts):
        raise PromptError(
            f"--priority takes the numbers of objects, the uppermost first, such as 2,1; not "
            f"{text!r}."
        )
    return tuple(int(part) for part in parts)


def parse_box(text: str) -> Prompt:
    """Parse ``--box``: low corner, then high corner (half-open)."""
    from limner.prompts import Box

    values = parse_numbers(text, "--box")
    if len(values) not in (4, 6):
        raise PromptError(
            f"--box takes r0,c0,r1,c1 or s0,r0,c0,s1,r1,c1 (half-open); not {text!r}."
        )
    half = len(values) // 2
    return Box(values[:half], values[half:])


def parse_axis(text: str | None, image: Image, frame: int | None) -> int:
    """Parse ``--axis``: across which axis of a volume the slice lies; 0 without it.

    Raises:
        PromptError: no such axis, no slice, or no volume.
    """
    from limner.prompts.convert import plane_axis

    if text is None:
        return 0
    if image.kind != "volume" or frame is None:
        raise PromptError("--axis says across which axis of a volume --slice K lies; give both.")
    return int(text) if text in ("0", "1", "2") else plane_axis(image.geometry, text.lower())


def read_scribbles(
    path: Path, image: Image, frame: int | None, *, object_id: int = 1, axis: int = 0
) -> list[PlacedPrompt]:
    """Read ``--scribble``: a JSON file of scribble prompts or a label image (1 yes, 2 no)."""
    from limner.prompts.convert import scribbles_from_mask

    if path.suffix.lower() == ".json":
        return list(read_prompts(path, frame, object_id=object_id, axis=axis).entries)
    masks = read_masks(path, image, frame, axis)
    if not set(masks) <= {1, 2}:
        ids = ", ".join(str(i) for i in masks)
        raise PromptError(
            f"{path}: a scribble image holds 1 (belongs) and 2 (does not belong), not {ids}."
        )
    return [
        PlacedPrompt(stroke, object_id, frame, axis=axis)
        for label, mask in masks.items()
        for stroke in scribbles_from_mask(mask, positive=label == 1)
    ]


def read_masks(
    path: Path, image: Image, frame: int | None, axis: int = 0, *, threshold: float | None = None
) -> dict[int, NDArray[np.bool_]]:
    """Read the masks of a label file by id: of the image's shape, or of one slice or frame of it.

    With `frame`, a 2D file is that slice (across `axis`) and of a 3D file that slice is taken.
    With `threshold`, values from there on are object 1.

    Raises:
        PromptError: there is no such slice, no label on it, or the file is the image itself.
    """
    import limner
    from limner.io import holds_labels

    if threshold is None and image.is_made_of(path):
        raise PromptError(f"{path} is the image itself, not a mask of what is in it.")
    geometry = image.geometry
    index = frame if geometry.ndim == 3 else None
    if index is not None and not 0 <= index < geometry.shape[axis]:
        raise PromptError(f"There is no slice {index}; they are 0…{geometry.shape[axis] - 1}.")
    if index is not None and not holds_labels(path) and limner.read(path).geometry.ndim == 2:
        on_slice = geometry.slice_at(index, axis)
        labels = limner.read_labels(path, like=on_slice, threshold=threshold)
        masks = {i: labels.mask(i) for i in labels.ids}
    else:
        labels = limner.read_labels(path, like=image, threshold=threshold)
        masks = {i: labels.mask(i) for i in labels.ids}
        if index is not None:
            masks = {i: mask.take(index, axis=axis) for i, mask in masks.items()}
    masks = {i: mask for i, mask in masks.items() if mask.any()}
    if not masks:
        where = "" if index is None else f" on slice {index}"
        raise PromptError(f"{path} has no label above 0{where}.")
    return masks


def read_prompts(
    path: Path, frame: int | None = None, *, object_id: int = 1, axis: int = 0
) -> PromptFile:
    """Read ``--prompts``: prompts with object id and frame, from JSON (``docs/prompts.md``).

    A list of prompts (`limner.prompts.to_json`), each with optional ``"object"`` and ``"frame"``;
    the same with names, ``{"names": {"1": "liver"}, "prompts": […]}``; or the manifest written
    beside a mask, to do the same again. Prompts that name no object are about `object_id`, and 2D
    prompts that name no frame about `frame` across `axis`.

    Raises:
        FormatError: not JSON, or not of that form.
        PromptError: what should be a prompt is none.
    """
    return parse_prompts(load_json(path), path, frame, object_id=object_id, axis=axis)


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FormatError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read as JSON prompts: {error}.") from error


def parse_prompts(
    value: Any, path: Path, frame: int | None = None, *, object_id: int = 1, axis: int = 0
) -> PromptFile:
    """Parse the content of a prompt file; see `read_prompts`."""
    items = _find_items(value)
    if items is None:
        raise FormatError(
            f'{path}: expected a list of prompts such as {{"kind": "click", "at": [10, 20]}}, '
            "or a manifest that limner wrote."
        )
    entries = tuple(_parse_item(item, path, frame, object_id, axis) for item in items)
    if isinstance(value, list) or "kind" in value:
        return PromptFile(entries)
    locked, priority = (_parse_ids(value.get(k), k, path) for k in ("locked", "priority"))
    if not isinstance(value.get("objects"), dict):
        strangers = [key for key in value if key not in _FILE_KEYS + _RESUMED_KEYS]
        if strangers:
            raise FormatError(
                f"{path}: unknown field {', '.join(map(repr, strangers))}; a prompt file has "
                f"{' and '.join(_FILE_KEYS)}, and each prompt its own fields (docs/prompts.md)."
            )
        return PromptFile(entries, _parse_names(value.get("names"), path), locked, priority)
    if any(facts.get("propagated_frames") for facts in value["objects"].values()):
        _log.warning("%s: only prompts are repeated, not what was propagated from them.", path)
    names = {i: facts.get("name") for i, facts in value["objects"].items()}
    given = {i: name for i, name in names.items() if name is not None}
    settings = _parse_settings(value, path)
    return PromptFile(entries, _parse_names(given, path), locked, priority, **settings)


def _parse_item(
    item: dict[str, Any], path: Path, frame: int | None, object_id: int, axis: int
) -> PlacedPrompt:
    from limner.prompts import from_json

    fields = dict(item)
    number = fields.pop("object", fields.pop("object_id", object_id))
    where, answered = fields.pop("frame", None), fields.pop("answered", False)
    across = fields.pop("axis", 0)
    try:
        prompt = from_json(fields)
    except PromptError as error:
        raise PromptError(f"{path}: {error}") from error
    if where is None and prompt.num_axes == 2:
        where, across = frame, axis
    return PlacedPrompt(prompt, number, where, bool(answered), across)


def _parse_names(value: Any, path: Path) -> dict[int, str]:
    if value is None:
        return {}
    try:
        names = {int(object_id): name for object_id, name in value.items()}
    except (AttributeError, ValueError):
        names = {0: None}
    if not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise FormatError(
            f'{path}: names are words by object id, such as {{"1": "liver"}}; not {value!r}.'
        )
    return names


def _parse_ids(value: Any, key: str, path: Path) -> tuple[int, ...]:
    ids = [] if value is None else value
    if not isinstance(ids, list) or not all(type(i) is int and i > 0 for i in ids):
        raise FormatError(f"{path}: {key} are numbers of objects such as [1, 2]; not {value!r}.")
    return tuple(ids)


def _parse_settings(manifest: dict[str, Any], path: Path) -> dict[str, Any]:
    """Parse how a mask was made, by field of `PromptFile`; None for what is not there."""

    def fact(part: str, key: str, kind: type) -> Any:
        section = manifest.get(part)
        value = section.get(key) if isinstance(section, dict) else None
        if value is not None and not isinstance(value, kind):
            raise FormatError(f"{path} is no manifest of limner: {part}.{key} is {value!r}.")
        return value

    window, chosen_by = fact("options", "window", list), fact("options", "window_source", str)
    if chosen_by == "robust":
        window = chosen_by
    elif chosen_by in ("header", "soft tissue"):  # which the image brings again
        window = None
    return {
        "model": fact("model", "name", str),
        "weights": fact("options", "weights", str),
        "weights_sha256": fact("model", "weights_sha256", str),
        "zoom": fact("options", "zoom", bool),
        "window": tuple(window) if isinstance(window, list) else window,
        "pixel_sha256": fact("image", "pixel_sha256", str),
    }


def _find_items(value: Any) -> list[dict[str, Any]] | None:
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
