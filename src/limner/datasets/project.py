"""Which files of a data folder may be trained on, and their planes: 2D pictures as they are, slices
of volumes in all three directions.

The folder has the layout of this project's data: ``splits.json``, ``2d``, ``3d``, ``pool/2d``,
``pool/3d``. Files of open sets are opened by name from the lists of allowed stems, so that a test
stem is never asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError

Array = NDArray[Any]
Split = Literal["train", "val"]

LONGEST_SIDE = 768  # of a picture that is kept whole at its own resolution
TILE = 512  # native pixels of a tile of a larger picture
_HELD_OUT = 20  # one group in so many of a pool set is for validation
SOFT_TISSUE = (-160.0, 240.0)  # HU; 8 bits over the whole range of CT would be 10 HU a step
FIRST_BACKGROUND = 500  # SynthSeg's label maps: from here on, no targets
_SLICES = {"hippocampus": 6, "sarcoma": 10, "labelmaps": 10}  # per volume and direction
_LEAST_LABELLED = 24  # pixels of a slice


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One picture with its labels.

    Attributes:
        set_name: such as ``"pool/2d/histo_tnbc"``.
        stem: of its file.
        split: what it is for.
        unit: what one object is: ``"label"``, ``"instance"`` or ``"component"``.
        image: uint8 (row, column) or (row, column, 3), robustly scaled; None where there is a label
            map only.
        labels: uint16 (row, column), 0 is no target.
        instances: uint16 (row, column), one value per object, where the set has them.
        regions: uint16 (row, column): where there is no image, the classes to paint one from.
    """

    set_name: str
    stem: str
    split: Split
    unit: str
    image: NDArray[np.uint8] | None
    labels: NDArray[np.uint16]
    instances: NDArray[np.uint16] | None = None
    regions: NDArray[np.uint16] | None = None


def read_splits(data: Path) -> dict[str, Any]:
    """``splits.json`` of a data folder.

    Raises:
        FormatError: it is missing or damaged.
    """
    path = data / "splits.json"
    try:
        splits: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: {error}. Name a data folder that has a splits.json.") from error
    return splits


def allowed_sets(splits: dict[str, Any], leave_out: Sequence[str] = ()) -> list[str]:
    """The sets to train on: those that permit it commercially, without what resembles a test-only
    set, without videos.

    Raises:
        FormatError: `leave_out` names a set that is not there.
    """
    named = splits["train_commercial_ok"]
    unknown = set(leave_out) - set(named)
    if unknown:
        raise FormatError(f"leave_out names {sorted(unknown)}; known are {', '.join(named)}.")
    near = set(splits["near_test_only"]) | set(splits["test_only"]) | set(splits["never_scored"])
    return [n for n in named if n not in near | set(leave_out) and not n.startswith("video/")]


def allowed_stems(data: Path, splits: dict[str, Any], name: str) -> dict[str, Split]:
    """What each file of a set may be used for; files that are missing here are for nothing."""
    if name.startswith("pool/"):
        folder = "images" if (data / name / "images").is_dir() else "labels"
        stems = sorted(_stem(path) for path in (data / name / folder).iterdir())
        facts = json.loads((data / name / "dataset.json").read_text(encoding="utf-8"))
        group = facts.get("group") or {}
        groups = sorted({group.get(stem, stem) for stem in stems})
        held = set(groups[_HELD_OUT // 2 :: _HELD_OUT]) if len(groups) >= _HELD_OUT else set()
        return {s: "val" if group.get(s, s) in held else "train" for s in stems}
    lists = splits["sets"][name]
    found: dict[str, Split] = dict.fromkeys(lists["train"], "train")
    found |= dict.fromkeys(lists["val"], "val")
    assert not set(found) & set(lists["test"])
    return found


def read_images(
    data: Path, leave_out: Sequence[str] = (), *, slices: bool = True
) -> Iterator[LabelledImage]:
    """All planes that may be trained on or validated with, set by set.

    Args:
        data: the data folder.
        leave_out: sets to pass over.
        slices: those of volumes, too.

    Raises:
        FormatError: a file is missing or damaged, or the folder is no data folder.
    """
    splits = read_splits(data)
    for name in allowed_sets(splits, leave_out):
        if is_volumes(name) and not slices:
            continue
        unit = splits["unit"].get(name, "label")
        for stem, split in allowed_stems(data, splits, name).items():
            if is_volumes(name):
                yield from _volume_planes(data / name, name, stem, split)
            else:
                yield from _picture_planes(data / name, name, stem, split, unit)


def is_volumes(name: str) -> bool:
    """Whether a set of this name holds volumes."""
    return "3d/" in name


def _picture_planes(
    folder: Path, name: str, stem: str, split: Split, unit: str
) -> Iterator[LabelledImage]:
    from limner import io
    from limner.adapters.resize import shrink

    image = scaled(np.asarray(io.read(file_of(folder / "images", stem)).array))
    labels = as_ids(io.read_labels(file_of(folder / "masks", stem)).to_array())
    instances = None
    if (folder / "instances").is_dir():
        instances = as_ids(io.read_labels(file_of(folder / "instances", stem)).to_array())
    if max(labels.shape) <= LONGEST_SIDE:
        yield LabelledImage(name, stem, split, unit, image, labels, instances)
        return
    factor = TILE / max(labels.shape)
    shape = [max(1, round(n * factor)) for n in labels.shape]
    small = np.round(shrink(image, shape)).astype(np.uint8)
    rows, columns = (_nearest(n, m) for n, m in zip(labels.shape, shape, strict=True))
    fewer = None if instances is None else instances[rows][:, columns]
    yield LabelledImage(name, stem, split, unit, small, labels[rows][:, columns], fewer)
    for window in _tiles(labels.shape):
        if (labels[window] > 0).mean() >= 0.005:
            part = None if instances is None else instances[window]
            yield LabelledImage(name, stem, split, unit, image[window], labels[window], part)


def _volume_planes(folder: Path, name: str, stem: str, split: Split) -> Iterator[LabelledImage]:
    from limner import io

    volume = io.read_labels(file_of(folder / "labels", stem))
    labels, spacing = as_ids(volume.to_array()), volume.geometry.spacing
    regions = None
    images: list[Array | None] = [None]
    if (folder / "images").is_dir():
        array = np.asarray(io.read(file_of(folder / "images", stem)).array)
        images = [scaled(array)]
        if "_ct" in name:
            images.append(scaled(array, SOFT_TISSUE))
    else:
        _, regions = np.unique(labels, return_inverse=True)
        regions = regions.reshape(labels.shape).astype(np.uint16)
        labels = np.where(labels >= FIRST_BACKGROUND, 0, labels).astype(np.uint16)
    most = next((n for part, n in _SLICES.items() if part in name), 8)
    for axis in range(3):
        counts = np.moveaxis(labels > 0, axis, 0).sum(axis=(1, 2))
        places = np.flatnonzero(counts >= _LEAST_LABELLED)
        chosen = places[np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)]
        steps = [s for k, s in enumerate(spacing) if k != axis]
        for place, image in ((p, i) for p in chosen for i in images):
            yield LabelledImage(
                name,
                f"{stem}:{axis}:{place}",
                split,
                "label",
                None if image is None else _even(np.take(image, place, axis), steps, smooth=True),
                _even(np.take(labels, place, axis), steps),
                regions=None if regions is None else _even(np.take(regions, place, axis), steps),
            )


def scaled(array: Array, limits: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """uint8 as a session shows it: robust limits of the whole to 0…255; equal channels are one."""
    from limner.adapters.intensity import robust_limits

    if array.ndim == 3 and array.shape[-1] in (3, 4):
        array = array[..., :3]
        spread = np.ptp(array.astype(np.int32), axis=-1)
        if np.percentile(spread, 99) <= 3:  # grey, perhaps through JPEG
            array = array[..., 1]
    low, high = robust_limits(array) if limits is None else limits
    values = (array.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.asarray(np.round(np.clip(np.nan_to_num(values), 0, 255)), dtype=np.uint8)


def as_ids(array: Array) -> NDArray[np.uint16]:
    if array.max(initial=0) > np.iinfo(np.uint16).max:
        _, array = np.unique(array, return_inverse=True)
    return np.asarray(array, dtype=np.uint16)


def _even(plane: Array, steps: Sequence[float], *, smooth: bool = False) -> Array:
    """A slice with equal steps, if they differ much, as viewers show it: stretched on one axis."""
    from scipy import ndimage

    factors = np.asarray(steps) / min(steps)
    if factors.max() < 1.5:
        return np.ascontiguousarray(plane)
    grown = ndimage.zoom(plane.astype(np.float32), factors, order=1 if smooth else 0)
    return np.asarray(np.round(grown).astype(plane.dtype))


def _tiles(shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    starts = [np.linspace(0, max(0, n - TILE), -(-n // TILE)).round().astype(int) for n in shape]
    for row in starts[0]:
        for column in starts[1]:
            yield slice(row, row + TILE), slice(column, column + TILE)


def _nearest(size: int, bins: int) -> NDArray[np.intp]:
    return ((np.arange(bins) + 0.5) * size / bins).astype(np.intp)


def file_of(folder: Path, stem: str) -> Path:
    for suffix in (".png", ".jpg", ".nii.gz"):
        if (folder / (stem + suffix)).is_file():
            return folder / (stem + suffix)
    raise FormatError(f"{folder} has no {stem} (.png, .jpg or .nii.gz), which splits.json lists.")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]
