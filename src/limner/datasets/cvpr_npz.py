"""Files of the CVPR 2025 challenge on interactive segmentation of volumes.

A case is an npz file with ``imgs`` (slices, rows, columns), ``spacing``, perhaps ``gts``, and the
prompts of every class: ``boxes`` (one dictionary each: the slices, closed, and a closed box on one
of them), ``clicks`` (lists ``fg`` and ``bg`` of indices each), ``clicks_order`` and ``prev_pred``,
the answer before. Classes are the numbers from 1, or those of ``gts`` in ascending order. Lists of
dictionaries are pickled in these files; they are read as data (`limner.checkpoints.plain_pickle`),
never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_path
from limner.checkpoints.plain_pickle import Refused, read_plain
from limner.datasets.files import stem_of
from limner.datasets.record import Case, Dataset
from limner.datasets.slice_prompts import SlicePrompt
from limner.errors import FormatError
from limner.io import npz
from limner.io.image import Image
from limner.prompts.types import Box, Click

Array = NDArray[Any]

NAME = "CVPR 2025 challenge"
DESCRIPTION = "npz files with imgs and gts"
_BOX_KEYS = (
    *("z_min", "z_max", "z_mid"),
    *("z_mid_x_min", "z_mid_y_min", "z_mid_x_max", "z_mid_y_max"),
)


@dataclass(frozen=True)
class ClassBox:
    """The box of one class.

    Attributes:
        slices: half-open.
        frame: the slice that the box was drawn on.
        slice_box: the box there, 2D.
    """

    slices: tuple[int, int]
    frame: int
    slice_box: Box

    @property
    def volume_box(self) -> Box:
        """The box on all slices."""
        low, high = self.slices
        return Box((low, *self.slice_box.low), (high, *self.slice_box.high))

    @property
    def slice_prompt(self) -> SlicePrompt:
        """The box on its slice, with the slices that the object is on."""
        return SlicePrompt(self.slice_box, self.frame, self.slices)


@dataclass(frozen=True, eq=False)
class ChallengeCase:
    """One file.

    Attributes:
        path: of the file.
        image: a volume; its geometry is limner's reading of ``spacing`` (see `limner.io.npz`).
        spacing: millimetres as stored, which the challenge's scores take along slices, rows and
            columns; 1 where there is none.
        classes: numbers of the classes.
        boxes: by class, in their order; None where the file has none.
        clicks: of each class, round by round; empty where the file has none.
        previous: label map of the answer before, None where the file has none.
        truth: label map, None where it is not known.
    """

    path: Path
    image: Image
    spacing: tuple[float, ...]
    classes: tuple[int, ...]
    boxes: tuple[ClassBox, ...] | None
    clicks: tuple[tuple[tuple[Click, ...], ...], ...]
    previous: Array | None = field(repr=False)
    truth: Array | None = field(repr=False)


def sniff(folder: Path) -> bool:
    """Whether a folder holds npz files."""
    return any(folder.glob("*.npz"))  # nothing where there is no such folder


def open_dataset(folder: Path, name: str) -> Dataset:
    """List the cases of a folder, to train on or to score as other volumes are. See
    `record.Layout`.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".npz")
    cases = {
        stem_of(path): Case(stem_of(path), name, "volume", (path,), path, group=stem_of(path))
        for path in paths
    }
    return Dataset(name, folder, "volume", cases)


def read_case(path: Path, *, truth: Path | None = None) -> ChallengeCase:
    """Read a case.

    Args:
        path: of the npz file.
        truth: file with ``gts``, or a folder with a file of the case's name; by default ``gts`` of
            the case itself, if it has any.

    Raises:
        FormatError: something is missing, damaged or impossible; says what.
    """
    image = npz.read(path)
    if image.kind != "volume":
        raise FormatError(f"{path} holds one {image.kind}; the challenge is about volumes.")
    shape = image.geometry.shape
    gts = _truth(path, truth, shape)
    boxes = _plain_array(path, "boxes")
    clicks = _plain_array(path, "clicks")
    classes: Sequence[int] = [int(v) for v in _unique(gts)] if gts is not None else ()
    count = len(boxes if boxes is not None else clicks if clicks is not None else classes)
    if gts is None:
        classes = range(1, count + 1)
    if not classes:
        raise FormatError(f"{path} says of nothing what to look for: no boxes, no clicks, no gts.")
    if count != len(classes) or (clicks is not None and len(clicks) != count):
        raise FormatError(
            f"{path} has prompts of {count} classes, and there are {len(classes)}; one each is "
            "needed."
        )
    order = _plain_array(path, "clicks_order")
    stated = npz.read_array(path, "spacing")
    previous = npz.read_array(path, "prev_pred")
    if previous is not None and previous.shape != shape:
        raise FormatError(f"{path}: prev_pred of shape {previous.shape} does not fit {shape}.")
    return ChallengeCase(
        path,
        image,
        (1.0, 1.0, 1.0) if stated is None else tuple(float(x) for x in np.ravel(stated)),
        tuple(classes),
        None if boxes is None else tuple(_box(path, k, b, shape) for k, b in enumerate(boxes)),
        tuple(_rounds(path, k, clicks, order, shape) for k in range(len(clicks or ()))),
        previous,
        gts,
    )


def write_answer(path: Path, segs: Array) -> None:
    """Write a label map as the challenge wants it: ``segs``, as small an unsigned type as fits."""
    smallest = segs.astype(np.min_scalar_type(int(segs.max(initial=0))))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, segs=smallest)


def _truth(path: Path, truth: Path | None, shape: tuple[int, ...]) -> Array | None:
    source = path
    if truth is not None:
        source = truth / path.name if truth.is_dir() else truth
        if not source.is_file():
            raise FormatError(f"There is no {source} with the gts of {path.name}.")
    gts = npz.read_array(source, "gts")
    if gts is None:
        if truth is not None:
            raise FormatError(f"{source} has no gts.")
        return None
    if gts.dtype.kind not in "bui" or gts.shape != shape or gts.min(initial=0) < 0:
        raise FormatError(
            f"{source}: gts of {gts.dtype} and shape {gts.shape} is no label map of shape {shape}."
        )
    return gts.astype(np.uint8) if gts.dtype == np.bool_ else gts


def _unique(labels: Array) -> Array:
    """The labels that occur, 0 left out, ascending; plane by plane, which is fast."""
    found: set[int] = set()
    for slice_box in labels:
        found.update(np.unique(slice_box).tolist())
    return np.asarray(sorted(found - {0}), dtype=np.int64)


def _plain_array(path: Path, key: str) -> list[Any] | None:
    """A list in a member, pickled or not; None where there is no such member."""
    stored = npz.read_array(path, key)
    if stored is not None:
        values = stored.tolist()
        return values if isinstance(values, list) else [values]
    pickled = npz.read_pickle(path, key)
    if pickled is None:
        return None
    try:
        found = read_plain(pickled)
    except Refused as error:
        raise FormatError(f"{path}: {key!r} {error}; lists of plain values are needed.") from error
    if found is None:
        return None
    return found if isinstance(found, list) else [found]


def _box(path: Path, number: int, value: Any, shape: tuple[int, ...]) -> ClassBox:
    what = f"{path}: boxes[{number}]"
    if not isinstance(value, dict) or not set(_BOX_KEYS) <= set(value):
        raise FormatError(f"{what} is no dictionary with {', '.join(_BOX_KEYS)}.")
    first, last, mid, left, top, right, bottom = (_whole(what, value[key]) for key in _BOX_KEYS)
    inside = 0 <= first <= mid <= last < shape[0]
    inside &= 0 <= top <= bottom < shape[1] and 0 <= left <= right < shape[2]
    if not inside:
        raise FormatError(
            f"{what} has slices {first}…{last} (drawn on {mid}), rows {top}…{bottom}, columns "
            f"{left}…{right}; they must ascend within {'×'.join(map(str, shape))}."
        )
    return ClassBox((first, last + 1), mid, Box((top, left), (bottom + 1, right + 1)))


def _rounds(
    path: Path, number: int, clicks: Any, order: Any, shape: tuple[int, ...]
) -> tuple[tuple[Click, ...], ...]:
    """The clicks of a class in the order they were made; all at once where that is not told."""
    what = f"{path}: clicks[{number}]"
    value = clicks[number]
    if not isinstance(value, dict) or not all(
        isinstance(value.get(key, []), list) for key in ("fg", "bg")
    ):
        raise FormatError(f"{what} is no dictionary with lists fg and bg.")
    made = {
        key: [_click(what, at, key == "fg", shape) for at in value.get(key, [])]
        for key in ("fg", "bg")
    }
    words = order[number] if isinstance(order, list) and number < len(order) else None
    order_given = [word for word in words if word is not None] if isinstance(words, list) else []
    if sorted(map(str, order_given)) != ["bg"] * len(made["bg"]) + ["fg"] * len(made["fg"]):
        together = (*made["fg"], *made["bg"])
        return (together,) if together else ()
    queues = {key: iter(found) for key, found in made.items()}
    return tuple((next(queues[word]),) for word in order_given)


def _click(what: str, at: Any, positive: bool, shape: tuple[int, ...]) -> Click:
    if not isinstance(at, list) or len(at) != 3:
        raise FormatError(f"{what} has a click at {at!r}; slice, row and column are needed.")
    place = tuple(_whole(what, x) for x in at)
    if not all(0 <= x < n for x, n in zip(place, shape, strict=True)):
        raise FormatError(f"{what} has a click at {place}, outside {'×'.join(map(str, shape))}.")
    return Click(place, positive)


def _whole(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise FormatError(f"{what} holds {value!r}, not a whole number.")
    return int(value)
