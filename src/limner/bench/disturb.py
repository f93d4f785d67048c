"""Disturbances of images and prompts: misplaced clicks, loose boxes, other pixel types.

They act on the image before a session gets it, or on a prompt before it is given, never inside the
session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.io.image import Image
from limner.prompts.types import Box, Click, Prompt

Array = NDArray[Any]

CLICK_OFFSET = 5.0  # pixels
BOX_GROWTH = 0.1  # of the box's length, on each side
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def disturb_image(image: Image, name: str) -> Image | None:
    """The picture as `name` of `config.DISTURBANCES` leaves it; the same one where it is about
    prompts; None where it does not apply, such as ``"grey"`` to a grey picture.
    """
    array = image.array
    colours = (image.num_channels or 1) >= 3
    match name:
        case "sixteen_bit":
            changed = None if array.dtype == np.uint16 else _sixteen_bit(array)
        case "rgb":
            grey = array if array.ndim == 2 else array[..., 0]
            changed = None if colours else np.repeat(grey[..., None], 3, axis=-1)
        case "grey":
            changed = _grey(array) if colours else None
        case "inverted":
            changed = _inverted(array, image.num_channels)
        case _:
            return image
    if changed is None:
        return None
    return Image(changed, image.geometry, modality=image.modality)


def disturb_prompt(
    prompt: Prompt, name: str, rng: np.random.Generator, shape: Sequence[int]
) -> Prompt:
    """A prompt as `name` of `config.DISTURBANCES` leaves it: inside the image, in whole pixels.

    Args:
        prompt: as the user meant it. In a volume a click moves within its slice.
        name: of the disturbance; those about something else return the prompt itself.
        rng: source of every random choice.
        shape: of the image.
    """
    limit = np.asarray(shape)
    if name == "click_off_5" and isinstance(prompt, Click):
        angle = rng.uniform(0.0, 2 * np.pi)
        move = np.zeros(limit.size)
        move[-2:] = CLICK_OFFSET * np.array((np.sin(angle), np.cos(angle)))
        at = np.clip(np.rint(np.asarray(prompt.at) + move), 0, limit - 1)
        return Click(tuple(at), prompt.positive)
    if name == "box_large_20" and isinstance(prompt, Box):
        low, high = np.asarray(prompt.low), np.asarray(prompt.high)
        reach = np.maximum(np.rint(BOX_GROWTH * (high - low)), 1.0)
        return Box(tuple(np.maximum(low - reach, 0)), tuple(np.minimum(high + reach, limit)))
    return prompt


def click_beside(target: NDArray[np.bool_], rng: np.random.Generator) -> Click | None:
    """A negative click near an object: half the radius of a disk of its area from its edge, or as
    near to that as the picture allows; None where the object fills the picture.
    """
    from scipy import ndimage

    if target.all():
        return None
    gap = ndimage.distance_transform_edt(~target)
    wanted = max(2.0, 0.5 * float(np.sqrt(target.sum() / np.pi)))
    miss = np.where(target, np.inf, np.abs(gap - wanted))
    places = np.argwhere(miss <= miss.min() + 0.5)
    row, column = places[rng.integers(len(places))]
    return Click((float(row), float(column)), positive=False)


def _sixteen_bit(array: Array) -> NDArray[np.uint16]:
    """The values on the whole range of uint16, in the same order: times 257 for 8 bits."""
    if array.dtype == np.uint8:
        return np.asarray(array.astype(np.uint16) * np.uint16(257))
    values = array.astype(np.float64)
    low, high = np.nanmin(values), np.nanmax(values)
    share = np.nan_to_num((values - low) / max(high - low, 1e-30))
    return np.asarray(np.rint(share * 65535), dtype=np.uint16)


def _grey(array: Array) -> Array:
    values = array[..., :3].astype(np.float64) @ np.asarray(_LUMA)
    rounded = np.rint(values) if array.dtype.kind in "iu" else values
    return np.asarray(rounded, dtype=array.dtype)


def _inverted(array: Array, num_channels: int | None) -> Array:
    """Unsigned integers from the type's largest value, other types within their own range; a
    channel of opacity (the second of two, the fourth of four) stays.
    """
    changed = array.copy()
    colours = changed
    if num_channels in (2, 4):
        colours = changed[..., : num_channels - 1]
    if array.dtype == np.bool_:
        np.logical_not(colours, out=colours)
    elif array.dtype.kind == "u":
        np.subtract(np.iinfo(array.dtype).max, colours, out=colours)
    else:
        values = colours.astype(np.float64)  # differences of signed integers may not fit their type
        colours[...] = (np.nanmin(values) + np.nanmax(values) - values).astype(array.dtype)
    return changed
