"""All volumes that may be trained on: beside the images in the folder of a pack, and in memory.

``volumes.json`` holds the facts, ``vNN.xz`` the volumes of a set: differences between neighbours
within slices, in steps too small to see; label maps as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.train.data import volumes as found_in
from limner.train.data.archive import (
    ArchiveWriter,
    decode_differences,
    encode_differences,
    read_archive,
    read_digest,
)
from limner.train.data.volumes import LabelledVolume

Array = NDArray[Any]

LABELS, FINE, COARSE, FIRST_BAND = 0, 1, 2, 3  # maps: what a target's id is an id of
_LEAST_LABEL = 40  # voxels of a label that is a target
_LEAST_CLARITY = 2.0  # grey values: an unlabelled target whose border nobody sees teaches nothing
_LEAST_FILL = 0.08  # of its box
_LEAST_CELLS = 60  # voxels of the coarser grid that a supervoxel has to be a target
_STEP = 2  # grey values
_MOST_ENTRIES = 80  # unlabelled regions kept per volume and map
SUMMARY = "volumes.json"


@dataclass(frozen=True, eq=False)
class PackedVolume:
    """One volume in memory.

    Attributes:
        set_index: in the pack's names.
        split: 0 train, 1 val.
        spacing: float64 (3,), millimetres.
        images: uint8 (window, slice, row, column); no window where it has to be painted.
        regions: uint8 or uint16 (slice, row, column): classes to paint from; empty otherwise.
        maps: ids: labels, small and large supervoxels (these two on a coarser grid), then bands.
        factors: voxels per step of the coarser grid.
        entries: int32 (entry, 9): map, id, voxels, first slice, row, column, last + 1 of each, on
            the volume's grid; sorted by map.
    """

    set_index: int
    split: int
    spacing: NDArray[np.float64]
    images: NDArray[np.uint8]
    regions: Array
    maps: tuple[Array, ...]
    factors: tuple[int, ...]
    entries: NDArray[np.int32]

    @property
    def shape(self) -> tuple[int, ...]:
        """Slices, rows, columns."""
        return tuple(self.maps[LABELS].shape)


@dataclass(frozen=True, eq=False)
class PackedVolumes:
    """All volumes to train on, in memory.

    Attributes:
        names: of the sets.
        digest: SHA-256 of the packed files.
        volumes: the volumes.
    """

    names: tuple[str, ...]
    digest: str
    volumes: tuple[PackedVolume, ...]


def write_volumes(
    folder: Path, volumes: Iterable[LabelledVolume], *, seed: int = 0, source: str = ""
) -> dict[str, Any]:
    """Pack volumes.

    Args:
        folder: is made; its files of the same names are replaced.
        volumes: of `limner.train.data.volumes.read_volumes`.
        seed: of the supervoxels.
        source: as of an `ArchiveWriter`; `volumes` are then those of sets that are not finished.

    Returns:
        What ``volumes.json`` holds.

    Raises:
        FormatError: there is no volume.
    """
    archive = ArchiveWriter(folder, SUMMARY, prefix="v", seed=seed, source=source)
    for volume in volumes:
        packed = _pack_volume(volume, archive.next_rng(volume.set_name))
        archive.add(volume.set_name, volume.stem, volume.split, packed)
    return archive.write()


def open_volumes(folder: Path, leave_out: Sequence[str] = ()) -> PackedVolumes:
    """Unpack into memory.

    Args:
        folder: of `write_volumes`.
        leave_out: sets to pass over.

    Raises:
        FormatError: it holds no volumes, of another version, or damaged ones.
    """
    command = f"limner train pack DATA -o {folder} --dimensions 3"
    what = "pack with volumes"
    names: list[str] = []
    volumes: list[PackedVolume] = []
    for name, _, parts in read_archive(
        folder, SUMMARY, command=command, what=what, leave_out=leave_out
    ):
        volumes.extend(_unpack_volume(part, len(names)) for part in parts)
        names.append(name)
    if not volumes:
        raise FormatError(f"{folder} holds no volume to train on.")
    return PackedVolumes(tuple(names), read_digest(folder, SUMMARY), tuple(volumes))


def _pack_volume(volume: LabelledVolume, rng: np.random.Generator) -> dict[str, Array]:
    """The arrays of one volume as they are stored."""
    shape = volume.labels.shape
    half = int(np.prod(shape)) // 2
    tables = {LABELS: found_in.region_table(volume.labels, _LEAST_LABEL, half * 2)}
    fine = coarse = np.zeros((0, 0, 0), np.uint16)
    factors: tuple[int, ...] = (1, 1, 1)
    if len(volume.images):
        image = volume.images[-1]
        fine, coarse, small, factors = found_in.compute_supervoxels(image, volume.spacing, rng)
        scale = np.array([1, np.prod(factors), *factors, *factors], dtype=np.int32)
        if image.size < found_in.LEAST_VOXELS:
            fine = fine[:0, :0, :0]
        for key, ids in ((FINE, fine), (COARSE, coarse)):
            if not ids.size:
                continue
            rows = (
                _clear(found_in.region_table(ids, _LEAST_CELLS, ids.size // 3), ids, small) * scale
            )
            tables[key] = rows[np.sort(rng.permutation(len(rows))[:_MOST_ENTRIES])]
    for k, band in enumerate(volume.bands):
        rows = found_in.region_table(band, _LEAST_LABEL, half)
        tables[FIRST_BAND + k] = _clear(rows, band, *volume.images)
    entries = np.concatenate([np.insert(t, 0, key, axis=1) for key, t in tables.items()])
    entries[:, 6:9] = np.minimum(entries[:, 6:9], shape)
    names, regions, values = volume.labels, np.zeros((0, 0, 0), np.uint16), np.zeros(0, np.uint16)
    if volume.regions is not None:  # of which labels are a part
        regions, names = volume.regions, regions
        values = np.zeros(int(volume.regions.max()) + 1, np.uint16)
        values[volume.regions.ravel()] = volume.labels.ravel()
    levels = ((volume.images.astype(np.uint16) + _STEP // 2) // _STEP).astype(np.uint8)
    return {
        "facts": np.array([volume.split == "val", *factors], dtype=np.int32),
        "spacing": np.array(volume.spacing, dtype=np.float64),
        "pixels": encode_differences(levels, 2),
        "names": names,
        "regions": regions,
        "values": values,
        "fine": fine,
        "coarse": coarse,
        "bands": volume.bands,
        "entries": entries.astype(np.int32),
    }


def _clear(rows: NDArray[np.int32], ids: Array, *images: Array) -> NDArray[np.int32]:
    """The regions whose border can be seen in one of the images and that are no mere shells."""
    fill = rows[:, 1] / np.prod(rows[:, 5:8] - rows[:, 2:5], axis=1)
    clear = np.max([found_in.edge_clarity(ids, image) for image in images], axis=0)[rows[:, 0]]
    kept: NDArray[np.int32] = rows[(clear >= _LEAST_CLARITY) & (fill >= _LEAST_FILL)]
    return kept


def _unpack_volume(part: dict[str, Array], set_index: int) -> PackedVolume:
    names = part["names"]
    if part["regions"].size:
        names = part["values"][part["regions"]]
    images = np.zeros((0, *names.shape), np.uint8)
    if part["pixels"].size:
        images = np.minimum(decode_differences(part["pixels"], 2).astype(np.uint16) * _STEP, 255)
    return PackedVolume(
        set_index,
        int(part["facts"][0]),
        part["spacing"],
        images.astype(np.uint8),
        part["regions"],
        (names, part["fine"], part["coarse"], *part["bands"]),
        tuple(int(f) for f in part["facts"][1:4]),
        part["entries"],
    )
