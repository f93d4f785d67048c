"""Which target on which image: drawn on the host, a batch at a time.

A target is a union of regions of one layer of the pack: a label, several labels, a component or
instance, several of them, a superpixel or a group of superpixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.train.data.pack import COARSE, FINE, LABELS, OBJECTS, PackedImages

Array = NDArray[Any]

MOST_IDS = 6  # regions that one target unites
_SET_POWER = 0.4  # a set with 16 times the images is drawn 3 times as often
_UNITED = 0.1  # share of targets that are unions

# Shares of layers by what one object of a set is.
_LAYER_SHARES = {0: {LABELS: 0.85, OBJECTS: 0.15}, 1: {LABELS: 0.06, OBJECTS: 0.94}}


@dataclass(frozen=True, eq=False)
class Targets:
    """A batch of targets.

    Attributes:
        images: index in the pack, int64 (B,).
        layers: int64 (B,).
        ids: int64 (B, MOST_IDS); the first is repeated where there are fewer.
        boxes: float64 (B, 4): first row, first column, last row + 1, last column + 1 on the image.
    """

    images: NDArray[np.int64]
    layers: NDArray[np.int64]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]


class TargetTable:
    """Draws targets from the images of one split.

    Args:
        pack: the images.
        split: 0 to train, 1 to validate.
        unlabelled_fraction: share of targets that no label names.

    Raises:
        ValueError: the split has no target.
    """

    def __init__(self, pack: PackedImages, *, split: int, unlabelled_fraction: float) -> None:
        self._pack = pack
        self._unlabelled_fraction = unlabelled_fraction
        keys = pack.entries[:, 0].astype(np.int64) * 4 + pack.entries[:, 1]
        marks = np.arange(len(pack.images) * 4 + 1)
        self._starts = np.searchsorted(keys, marks)
        named = self._starts[2::4] > self._starts[0:-1:4]  # a label or an object
        eligible = np.flatnonzero((pack.images[:, 1] == split) & named)
        if not eligible.size:
            raise ValueError(f"The pack has no target to {'validate with' if split else 'learn'}.")
        sets, counts = np.unique(pack.images[eligible, 0], return_counts=True)
        share = pack.num_stems[sets].astype(np.float64) ** _SET_POWER
        per_image = np.zeros(len(pack.names))
        per_image[sets] = share / share.sum() / counts
        self.images = eligible
        self._shares = per_image[pack.images[eligible, 0]]
        self._shares /= self._shares.sum()

    def draw(self, number: int, rng: np.random.Generator) -> Targets:
        """A batch."""
        images = rng.choice(self.images, size=number, p=self._shares)
        chosen = [self._draw_on(int(image), rng) for image in images]
        return self._gathered(chosen)

    def named(self, set_index: int, most: int, rng: np.random.Generator) -> Targets:
        """Single targets that labels name, of one set, without repetition.

        Args:
            set_index: in the pack's names.
            most: at most so many.
            rng: chooses.
        """
        unit = 0
        rows: list[int] = []
        for image in self.images[self._pack.images[self.images, 0] == set_index]:
            unit = min(1, int(self._pack.images[image, 2]))
            rows.extend(self._range(int(image), OBJECTS if unit else LABELS))
        kept = rng.permutation(np.array(rows, dtype=np.int64))[:most]
        return self._gathered([np.array([row]) for row in np.sort(kept)])

    def _draw_on(self, image: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Rows of `entries` that make up one target."""
        if rng.random() < self._unlabelled_fraction:
            order = [FINE, COARSE] if rng.random() < 0.5 else [COARSE, FINE]
        else:
            share = _LAYER_SHARES[min(1, int(self._pack.images[image, 2]))]
            order = [LABELS, OBJECTS] if rng.random() < share[LABELS] else [OBJECTS, LABELS]
        rows = next(r for layer in (*order, LABELS, OBJECTS) if len(r := self._range(image, layer)))
        first = int(rng.integers(len(rows)))
        if len(rows) == 1 or rng.random() >= _UNITED:
            return np.array([rows[first]])
        number = int(rng.integers(2, min(MOST_IDS, len(rows)) + 1))
        boxes = self._pack.entries[rows.start : rows.stop, 4:].astype(np.float64)
        centres = boxes[:, :2] + boxes[:, 2:]
        away = np.linalg.norm(centres - centres[first], axis=1)
        return rows.start + np.argsort(away, kind="stable")[:number]

    def _range(self, image: int, layer: int) -> range:
        key = image * 4 + layer
        return range(int(self._starts[key]), int(self._starts[key + 1]))

    def _gathered(self, chosen: list[NDArray[np.int64]]) -> Targets:
        table = self._pack.entries
        padded = np.stack([np.resize(np.append(r, [r[0]] * MOST_IDS), MOST_IDS) for r in chosen])
        first = table[padded[:, 0]]
        found = table[padded].astype(np.float64)
        boxes = np.concatenate([found[..., 4:6].min(axis=1), found[..., 6:8].max(axis=1)], axis=1)
        return Targets(
            first[:, 0].astype(np.int64),
            first[:, 1].astype(np.int64),
            table[padded, 2].astype(np.int64),
            boxes,
        )
