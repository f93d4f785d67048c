"""Patches of labelled images for supervised training: cases prepared once, then cut at random, a
share of them around a label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.train.segmentation_losses import IGNORED

Array = NDArray[Any]
Floats = NDArray[np.float32]

MOST_PLACES = 5_000  # per label and case, to centre patches on


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """An image as the network sees it, with its labels; arrays are mapped from disk.

    Attributes:
        name: of the case.
        image: float16 ``(channel, *axes)``, normalised.
        labels: int16 ``(*axes)``: the channel of the logits that is true, or `IGNORED`.
        places: by channel, positions ``(n, axes)`` of some of its pixels.
        validates: whether it is for validation.
    """

    name: str
    image: Array
    labels: Array
    places: Mapping[int, Array]
    validates: bool = False


def write_case(
    folder: Path, name: str, image: Floats, labels: Array, rng: np.random.Generator
) -> None:
    """Keep a prepared case in a folder; `read_case` maps it from there."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.image.npy", image.astype(np.float16))
    np.save(folder / f"{name}.labels.npy", labels.astype(np.int16))
    places = find_places(labels, rng)
    arrays: dict[str, Any] = {str(label): found for label, found in places.items()}
    np.savez(folder / f"{name}.places.npz", **arrays)
    (folder / f"{name}.json").write_text(json.dumps({"shape": list(labels.shape)}))


def read_case(folder: Path, name: str, *, validates: bool = False) -> PreparedCase:
    """A case that `write_case` has kept."""
    with np.load(folder / f"{name}.places.npz") as file:
        places = {int(k): file[k] for k in file.files}
    image = np.load(folder / f"{name}.image.npy", mmap_mode="r")
    labels = np.load(folder / f"{name}.labels.npy", mmap_mode="r")
    return PreparedCase(name, image, labels, places, validates)


def is_prepared(folder: Path, name: str) -> bool:
    """Whether `write_case` has ended for a case: its last file is there."""
    return (folder / f"{name}.json").exists()


def find_places(labels: Array, rng: np.random.Generator) -> dict[int, Array]:
    """Some positions of every label that occurs, by label; not of the background."""
    found = {}
    for label in np.unique(labels).tolist():
        if label <= 0:
            continue
        places = np.argwhere(labels == label)
        if len(places) > MOST_PLACES:
            places = places[np.sort(rng.choice(len(places), MOST_PLACES, replace=False))]
        found[int(label)] = places.astype(np.int32)
    return found


def draw_patch(
    case: PreparedCase, patch: Sequence[int], rng: np.random.Generator, *, foreground: bool
) -> tuple[Floats, Array]:
    """Cut a patch at random.

    Args:
        case: with one axis more than `patch`, slices across the first axis are cut.
        patch: pixels per axis; where the case is smaller it is padded with 0, the mean, and with
            pixels whose label does not count.
        rng: where.
        foreground: around a pixel of a label, each label of the case with the same probability.

    Returns:
        ``(channel, *patch)`` and the labels ``(*patch)``.
    """
    shape = case.labels.shape
    flat = len(patch) == len(shape) - 1
    sizes = (1, *patch) if flat else tuple(patch)
    centre: Sequence[int] | None = None
    if foreground and case.places:
        label = sorted(case.places)[int(rng.integers(len(case.places)))]
        places = case.places[label]
        centre = places[int(rng.integers(len(places)))].tolist()
    low = []
    for axis, (size, n) in enumerate(zip(shape, sizes, strict=True)):
        spare = size - n
        if spare <= 0:
            low.append(spare // 2)
        elif centre is None:
            low.append(int(rng.integers(spare + 1)))
        else:
            low.append(int(np.clip(centre[axis] - n // 2, 0, spare)))
    image, labels = _cut(case, low, sizes)
    return (image[:, 0], labels[0]) if flat else (image, labels)


def _cut(case: PreparedCase, low: Sequence[int], sizes: Sequence[int]) -> tuple[Floats, Array]:
    """A window of a case that may reach over its borders."""
    shape = case.labels.shape
    image = np.zeros((case.image.shape[0], *sizes), np.float32)
    labels = np.full(sizes, IGNORED, np.int16)
    source, target = [], []
    for a, n, size in zip(low, sizes, shape, strict=True):
        first, last = max(a, 0), min(a + n, size)
        source.append(slice(first, last))
        target.append(slice(first - a, last - a))
    image[(slice(None), *target)] = case.image[(slice(None), *source)]
    labels[tuple(target)] = case.labels[tuple(source)]
    return image, labels
