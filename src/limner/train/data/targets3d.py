"""Which target in which volume: drawn on the host, one at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limner.train.data.pack3d import COARSE, FINE, FIRST_BAND, LABELS, PackedVolume, PackedVolumes

_SET_POWER = 0.4  # a set with 16 times the voxels is drawn 3 times as often
_UNITED = 0.15  # share of targets that unite several regions of one map
_MOST_IDS = 6
# Where a volume has one or two labels, what it shows besides is most of what there is to learn.
_UNLABELLED_OF_FEW = 0.55
_FEW = 3  # labels
_BANDS = 0.6  # share of unlabelled targets that are parts of like brightness


@dataclass(frozen=True, eq=False)
class Target3d:
    """A target: the union of some regions of one map.

    Attributes:
        volume: index in the pack.
        map: LABELS, FINE, COARSE or a band.
        ids: of the regions.
        box: float64 (2, 3): first voxel and last + 1 on the volume's grid.
    """

    volume: int
    map: int
    ids: NDArray[np.int64]
    box: NDArray[np.float64]


class TargetTable3d:
    """Draws targets from the volumes of one split.

    Args:
        pack: the volumes.
        split: 0 to train, 1 to validate.
        unlabelled_fraction: share of targets that no label names, in volumes with many labels.

    Raises:
        ValueError: the split has no target.
    """

    def __init__(self, pack: PackedVolumes, *, split: int, unlabelled_fraction: float) -> None:
        self._pack = pack
        self._unlabelled_fraction = unlabelled_fraction
        named = [LABELS in s.entries[:, 0] for s in pack.volumes]
        kept = [k for k, s in enumerate(pack.volumes) if s.split == split and named[k]]
        if not kept:
            raise ValueError(f"The pack has no volume to {'validate with' if split else 'learn'}.")
        self.volumes = np.array(kept)
        self._sets = np.array([pack.volumes[k].set_index for k in kept])
        self._pictured = np.array([len(pack.volumes[k].images) > 0 for k in kept])
        voxels = [float(np.prod(pack.volumes[k].shape)) for k in kept]
        files = np.bincount(self._sets, minlength=len(pack.names))
        total = np.bincount(self._sets, voxels, minlength=len(pack.names))
        self._shares = total[self._sets] ** _SET_POWER / files[self._sets]

    def draw(self, rng: np.random.Generator, *, pictured: bool) -> Target3d | None:
        """A target in a volume with or without an image; None if there is none such."""
        fit = np.flatnonzero(self._pictured == pictured)
        if not fit.size:
            return None
        shares = self._shares[fit] / self._shares[fit].sum()
        index = int(self.volumes[rng.choice(fit, p=shares)])
        volume = self._pack.volumes[index]
        rows = _rows(volume, self._map(volume, rng))
        rows = rows if len(rows) else _rows(volume, LABELS)
        weights = np.ones(len(rows))
        if rows[0, 0] != LABELS:  # else the many small ones would be nearly all that is seen
            fill = rows[:, 2] / np.prod(rows[:, 6:9] - rows[:, 3:6], axis=1)
            weights = np.sqrt(rows[:, 2] * fill)
        first = int(rng.choice(len(rows), p=weights / weights.sum()))
        chosen = rows[first : first + 1]
        if len(rows) > 1 and rng.random() < _UNITED:
            number = int(rng.integers(2, min(_MOST_IDS, len(rows)) + 1))
            away = np.linalg.norm(_middles(rows) - _middles(chosen), axis=1)
            chosen = rows[np.argsort(away, kind="stable")[:number]]
        return _target(index, chosen)

    def named(self, set_index: int, most: int, rng: np.random.Generator) -> list[Target3d]:
        """Single targets that labels name, of one set, without repetition."""
        found = [
            _target(int(index), row[None])
            for index in self.volumes[self._sets == set_index]
            for row in _rows(self._pack.volumes[index], LABELS)
        ]
        return [found[k] for k in np.sort(rng.permutation(len(found))[:most])]

    @property
    def sets(self) -> list[int]:
        """The sets that have targets."""
        return [int(k) for k in np.unique(self._sets)]

    def _map(self, volume: PackedVolume, rng: np.random.Generator) -> int:
        few = len(_rows(volume, LABELS)) <= _FEW
        share = (
            max(self._unlabelled_fraction, _UNLABELLED_OF_FEW) if few else self._unlabelled_fraction
        )
        if not len(volume.images) or rng.random() >= share:
            return LABELS
        if rng.random() < _BANDS:
            bands = np.unique(volume.entries[volume.entries[:, 0] >= FIRST_BAND, 0])
            if len(bands):
                return int(rng.choice(bands))
        return FINE if rng.random() < 0.4 else COARSE


def _rows(volume: PackedVolume, which: int) -> NDArray[np.int32]:
    return np.asarray(volume.entries[volume.entries[:, 0] == which])


def _middles(rows: NDArray[np.int32]) -> NDArray[np.float64]:
    return (rows[:, 3:6] + rows[:, 6:9]) / 2.0


def _target(index: int, rows: NDArray[np.int32]) -> Target3d:
    box = np.stack([rows[:, 3:6].min(axis=0), rows[:, 6:9].max(axis=0)]).astype(np.float64)
    return Target3d(index, int(rows[0, 0]), rows[:, 1].astype(np.int64), box)
