"""Pixel values as masks and label maps: whole numbers, probabilities, anti-aliased edges, one-hot.

What is no mask is not taken for one. Booleans and whole numbers from 0 on are labels, and so are
floats within a thousandth of them. Values between 0 and 1 are probabilities, of which the caller
says from where on a pixel belongs to the object. An object that was drawn or resampled with soft
edges is cut at half of its value, and a warning says so. Grey levels that change from pixel to
pixel are an image, not objects.

Errors are `ValueError` with the end of a sentence; who knows the file or the prompt begins it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

WHOLE_TOLERANCE = 1e-3  # from a whole number: what resampling and float16 leave of a label
_LARGEST_LABEL = 2.0**53  # whole numbers beyond are not exact as floats

# What tells grey levels from objects: how many levels there must be at least, and on how many
# pixels; toys of a few pixels are believed.
_FEWEST_RIM_LEVELS = 3
_LOWEST_FULL_LEVEL = 16
_FEWEST_GREY_LEVELS = 16
_FEWEST_PIXELS = 1024
_MOST_SLICES = 24  # of a volume that are looked at
_RIM_REACH = 3  # pixels between inside and outside across a soft edge
_RIM_SHARE = 0.95  # of the levels in between that lie on such an edge
_NEARLY = 0.1  # of the full value: 8-bit edges that were blurred fade out slowly

_log = logging.getLogger("limner.io")


def labels_of_values(
    values: ArrayLike, *, threshold: float | None = None, declared: bool = False, name: str
) -> Array:
    """A label map of integers from 0 on, which stay as they are (a 0/255 mask has object 255).

    Args:
        values: numbers of any kind, 2D or 3D.
        threshold: values from this one on are object 1, all others background.
        declared: the file says that these are labels (a palette, an intent, names), so that grey
            levels are not looked for.
        name: of the file or the array, for warnings.

    Raises:
        ValueError: the values are no labels; says what they are and what to do.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "buif":
        raise ValueError(f"the values are {array.dtype}, not labels; save integers")
    if array.dtype.kind == "f":
        _check_finite(array)
    if threshold is not None:
        return np.asarray(array >= threshold, dtype=np.uint8)
    if array.dtype.kind == "f":
        return _labels_of_floats(array, declared, name)
    if array.dtype.kind == "i" and array.min(initial=0) < 0:
        raise ValueError("a label map holds no negative values; this one does")
    return array if declared or array.dtype.kind == "b" else _without_grey_levels(array, name)


def mask_of_values(values: ArrayLike, *, name: str = "A mask") -> Mask:
    """The mask of one object, an array of its own.

    Args:
        values: booleans, or numbers with one value besides 0.
        name: of the mask, for warnings.

    Raises:
        ValueError: as `labels_of_values`, or labels of several objects.
    """
    array = np.asarray(values)
    if array.dtype.kind == "b":
        return np.array(array)
    if array.dtype.kind == "f":
        _check_finite(array)
        if array.min(initial=0.0) < -WHOLE_TOLERANCE:
            raise ValueError(
                "negative values are no mask; of logits give logits > 0, of probabilities "
                "probabilities >= 0.5"
            )
    labels = labels_of_values(array, name=name)
    top = labels.max(initial=0)
    inside = np.asarray(labels != 0)
    if not np.array_equal(inside, labels == top) and top > 0:
        ids = np.unique(labels[inside])
        shown = ", ".join(str(i) for i in ids[:3]) + (", …" if ids.size > 3 else "")
        raise ValueError(
            f"labels {shown} are several objects, and a mask is one; give labels == {ids[0]}, or "
            "labels > 0 for all of them"
        )
    return inside


def channels_of_values(
    values: ArrayLike, *, threshold: float | None = None, name: str
) -> dict[int, Mask]:
    """Masks by object id of an array with one channel per object, which may overlap.

    Where every pixel is in exactly one channel, the first is the background, as in the one-hot
    arrays of training code, and the second is object 1; else the first is object 1.

    Args:
        values: channels last.
        threshold: of probabilities: values from this one on belong to the channel's object.
        name: of the file, for the warning.

    Raises:
        ValueError: the channels are no masks.
    """
    array = np.asarray(values)
    count = array.shape[-1]
    if array.dtype.kind == "f":
        _check_finite(array)
    if threshold is not None:
        masks = [np.asarray(array[..., k] >= threshold) for k in range(count)]
        return dict(enumerate(masks, start=1))
    top = array.max(initial=0)
    masks = []
    for k in range(count):
        channel = array[..., k]
        inside = np.asarray(np.abs(channel - top) <= WHOLE_TOLERANCE) if top else channel != 0
        if (np.abs(channel[~inside]) > WHOLE_TOLERANCE).any():
            raise ValueError(_no_masks(array, count))
        masks.append(inside)
    covered = np.zeros(array.shape[:-1], dtype=np.uint16)
    for mask in masks:
        covered += mask
    first = 0 if (covered == 1).all() else 1
    _log.warning(
        "%s: each of its %d channels is taken as one mask%s.",
        name,
        count,
        ", the first as the background" if first == 0 else "",
    )
    return {k: mask for k, mask in enumerate(masks, start=first) if k > 0}


def _no_masks(array: Array, count: int) -> str:
    if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1 + WHOLE_TOLERANCE:
        return (
            f"its {count} channels hold fractions between 0 and 1, such as probabilities, not "
            "labels; say from which value on a pixel belongs to an object (threshold=0.5, "
            "--threshold 0.5)"
        )
    return (
        f"it holds {count} channels or time points, and a label map is one; take one of them "
        "(channel=K, --channel K), or save one mask of 0 and 1 per object"
    )


def _check_finite(array: Array) -> None:
    broken = array.size - np.count_nonzero(np.isfinite(array))
    if broken:
        raise ValueError(
            f"{broken} values are NaN or infinite, which is no label; save 0 for background"
        )


def _labels_of_floats(array: Array, declared: bool, name: str) -> Array:
    nearest = np.rint(array)
    if (np.abs(array - nearest) <= WHOLE_TOLERANCE).all():
        if float(nearest.max(initial=0.0)) > _LARGEST_LABEL:
            raise ValueError("the values are too large for labels; save the label map as integers")
        if nearest.min(initial=0.0) < 0:
            raise ValueError("a label map holds no negative values; this one does")
        whole = nearest.astype(np.int64)
        return whole if declared else _without_grey_levels(whole, name)
    low, top = float(array.min()), float(array.max())
    if low == 0 and _has_soft_edges(array, top):
        return _cut_at_half(array, top, name)
    if low >= 0 and top <= 1 + WHOLE_TOLERANCE:
        raise ValueError(
            "the values are fractions between 0 and 1, such as probabilities, not labels; say from "
            "which value on a pixel belongs to the object (threshold=0.5, --threshold 0.5), or "
            "save the label map as integers"
        )
    raise ValueError("the values are fractions, not labels; save the label map as integers")


def _without_grey_levels(array: Array, name: str) -> Array:
    """The label map itself; cut at half where its only object has soft edges.

    Raises:
        ValueError: it holds the grey levels of a picture.
    """
    if array.size < _FEWEST_PIXELS:
        return array
    slices = _some_slices(array)
    levels = _levels_of(slices)
    if levels.size <= _FEWEST_RIM_LEVELS:
        return array
    top = int(array.max())
    between = (levels > top * _NEARLY) & (levels < top * (1 - _NEARLY))
    may_be_soft = np.count_nonzero(between) >= _FEWEST_RIM_LEVELS and top >= _LOWEST_FULL_LEVEL
    if may_be_soft and _has_soft_edges(array, top, nearly=_NEARLY):
        return _cut_at_half(array, top, name)
    if levels.size < _FEWEST_GREY_LEVELS:
        return array
    grey = _num_grey(slices, levels)
    if grey >= max(_FEWEST_GREY_LEVELS, levels.size / 2):
        raise ValueError(
            f"it holds {levels.size} grey levels that change from pixel to pixel, as a picture or "
            "a soft mask does, not labels; say from which value on a pixel belongs to the object "
            f"(such as threshold={(top + 1) // 2}, --threshold {(top + 1) // 2}), or name the mask"
        )
    return array


def _cut_at_half(array: Array, top: float, name: str) -> Array:
    _log.warning(
        "%s: a mask with soft edges (values between 0 and %g), cut at half, %g.",
        name,
        top,
        top / 2,
    )
    full = round(top) or 1  # its id is what the same mask with hard edges has
    dtype = np.min_scalar_type(full)
    return np.asarray(np.where(array >= top / 2, full, 0), dtype=dtype)


def _has_soft_edges(array: Array, top: float, *, nearly: float = 0.0) -> bool:
    """Whether the values between 0 and `top` lie on a narrow edge between the two.

    Args:
        array: values from 0 on.
        top: the largest.
        nearly: share of `top` by which values next to 0 and `top` count as these.
    """
    from scipy import ndimage

    window = _window(array)
    if window is None:
        return False
    part = np.pad(array[window], _RIM_REACH)
    full, empty = part >= top * (1 - nearly), part <= top * nearly
    between = ~(full | empty)
    count = np.count_nonzero(between)
    if count == 0 or 2 * np.count_nonzero(full) < count:
        return False
    size = 2 * _RIM_REACH + 1
    near_full = ndimage.maximum_filter(full, size)
    near_empty = ndimage.maximum_filter(empty, size)
    on_edge = np.count_nonzero(between & near_full & near_empty)
    return bool(on_edge >= _RIM_SHARE * count)


def _window(array: Array) -> tuple[slice, ...] | None:
    """The box around what is not 0."""
    places = []
    for axis in range(array.ndim):
        others = tuple(k for k in range(array.ndim) if k != axis)
        found = np.flatnonzero(array.any(axis=others))
        if not found.size:
            return None
        places.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(places)


def _some_slices(array: Array) -> list[Array]:
    """Planes of a volume that are not empty, evenly spread; a 2D array itself."""
    if array.ndim == 2:
        return [array]
    filled = np.flatnonzero(array.any(axis=tuple(range(1, array.ndim))))
    chosen = np.unique(np.linspace(0, filled.size - 1, _MOST_SLICES).round().astype(int))
    return [array[k] for k in filled[chosen]] if filled.size else []


def _levels_of(slices: Iterable[Array]) -> Array:
    """Values above 0, ascending."""
    found = [np.unique(slice_) for slice_ in slices]
    levels = np.unique(np.concatenate(found)) if found else np.zeros(0, int)
    return np.asarray(levels[levels > 0])


def _num_grey(slices: Iterable[Array], levels: Array) -> int:
    """How many levels are rarely part of an even patch, and mostly beside other levels.

    Objects have an inside: patches of 3×3 pixels of one value; or they are specks on background.
    """
    from scipy import ndimage

    pixels, even, beside = (np.zeros(levels.size) for _ in range(3))
    for slice_ in slices:
        inside = slice_ > 0
        low, high = ndimage.minimum_filter(slice_, 3), ndimage.maximum_filter(slice_, 3)
        patch = ndimage.maximum_filter(low == high, 3)
        others = np.zeros(slice_.shape, dtype=np.bool_)
        for axis in (0, 1):
            ahead = np.moveaxis(slice_, axis, 0)
            clash = (ahead[1:] != ahead[:-1]) & (ahead[1:] > 0) & (ahead[:-1] > 0)
            target = np.moveaxis(others, axis, 0)
            target[1:] |= clash
            target[:-1] |= clash
        index = np.searchsorted(levels, slice_[inside])
        pixels += np.bincount(index, minlength=levels.size)
        even += np.bincount(index, patch[inside], minlength=levels.size)
        beside += np.bincount(index, others[inside], minlength=levels.size)
    return int(np.count_nonzero((2 * even < pixels) & (2 * beside > pixels)))
