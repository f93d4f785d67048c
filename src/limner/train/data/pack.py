"""All images that may be trained on: one compact folder that travels, and flat arrays in memory.

On disk: ``pack.json`` (facts, one entry per set) and one ``.xz`` a set: images as differences
between neighbours, colours as luminance and chrominance at half resolution, in steps too small to
see; label maps as they are. No codec but Python's own is needed to open it, so that a machine with
nothing but NumPy and PyTorch can train. In memory: pixels of all images end to end, so that a whole
batch is one gather.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.train.data.archive import (
    ArchiveWriter,
    decode_differences,
    encode_differences,
    read_archive,
    read_digest,
)
from limner.train.data.images import LabelledImage

Array = NDArray[Any]

SUMMARY = "pack.json"
LABELS, OBJECTS, FINE, COARSE = range(4)  # layers: what a target's id is an id of
UNITS = ("label", "instance", "component")
_STEP_2D, _STEP_3D = 4, 1  # grey values, of images and slices; JPEG's own errors are larger
_IDS = ("labels", "objects", "fine", "coarse")  # arrays that are uint16 in memory
_MOST_ENTRIES = 40  # unlabelled regions kept per image and layer


@dataclass(frozen=True, eq=False)
class PackedImages:
    """Everything to train on, in memory.

    Attributes:
        names: of the sets.
        digest: SHA-256 of the packed files.
        pixels: uint8, all images end to end, each (channel, row, column).
        layers: four uint16 arrays, the maps of all images end to end: labels, objects, superpixels,
            groups of superpixels.
        images: int64 (image, 8): set, split (0 train, 1 val), unit, rows, columns, channels (0
            where there is a label map only, 1 or 3), first pixel, first map pixel.
        entries: int32 (entry, 8): image, layer, then as `regions.table`; sorted by both.
        num_stems: int64 (set,): files of each set.
    """

    names: tuple[str, ...]
    digest: str
    pixels: NDArray[np.uint8]
    layers: tuple[NDArray[np.uint16], ...]
    images: NDArray[np.int64]
    entries: NDArray[np.int32]
    num_stems: NDArray[np.int64]


def write_pack(
    folder: Path, images: Iterable[LabelledImage], *, seed: int = 0, source: str = ""
) -> dict[str, Any]:
    """Pack images.

    Args:
        folder: is made; its files are replaced.
        images: of `limner.train.data.images.read_images`.
        seed: of the superpixels.
        source: as of an `ArchiveWriter`; `images` are then those of sets that are not finished.

    Returns:
        What ``pack.json`` holds.

    Raises:
        FormatError: there is no image.
    """
    archive = ArchiveWriter(folder, SUMMARY, seed=seed, source=source)
    for image in images:
        packed = _pack_image(image, archive.next_rng(image.set_name))
        stem = image.stem.split(":")[0]
        archive.add(image.set_name, stem, image.split, packed, unit=image.unit)
    return archive.write()


def open_pack(folder: Path, leave_out: Sequence[str] = (), *, slices: bool = True) -> PackedImages:
    """Unpack into memory.

    Args:
        folder: of `write_pack`.
        leave_out: sets to pass over.
        slices: those of volumes, too; a pack that holds nothing else is opened whole.

    Raises:
        FormatError: it is no pack, of another version, or damaged.
    """
    pixels: list[Array] = []
    maps: list[list[Array]] = [[], [], [], []]
    images: list[Array] = []
    entries: list[Array] = []
    stems: dict[str, int] = {}
    command = f"limner train pack DATA -o {folder}"
    found = list(read_archive(folder, SUMMARY, command=command, leave_out=leave_out, wide=_IDS))
    if not slices and not all(_holds_slices(parts) for _, _, parts in found):
        found = [one for one in found if not _holds_slices(one[2])]
    for name, fact, parts in found:
        stems[name] = len(fact["stems"])
        for part in parts:
            first = sum(len(p) for p in images)
            place = np.array([[len(stems) - 1, *part["facts"], *part["shape"], part["kind"][0]]])
            images.append(place)
            pixels.append(_unpack_pixels(part))
            for layer, flat in zip(maps, _unpack_maps(part), strict=True):
                layer.append(flat)
            table = part["entries"].astype(np.int32)
            entries.append(np.insert(table, 0, first, axis=1))
    if not images:
        raise FormatError(f"{folder} holds no image to train on.")
    facts = np.concatenate(images).astype(np.int64)
    table = np.concatenate(entries)
    starts = [np.cumsum([0] + [p.size for p in pixels[:-1]])]
    starts.append(np.cumsum([0] + [m.size for m in maps[0][:-1]]))
    return PackedImages(
        tuple(stems),
        read_digest(folder, SUMMARY),
        _join(pixels),
        tuple(_join(layer) for layer in maps),
        np.concatenate([facts, np.stack(starts, axis=1)], axis=1),
        table[np.lexsort((table[:, 1], table[:, 0]))],
        np.array(list(stems.values())),
    )


def _holds_slices(parts: Sequence[dict[str, Array]]) -> bool:
    """Whether a set holds slices of volumes: their grey values are stored in finer steps."""
    return bool(parts[0]["kind"][1] == _STEP_3D)


def _pack_image(image: LabelledImage, rng: np.random.Generator) -> dict[str, Array]:
    """The arrays of one image as they are stored."""
    from limner.train.data import regions

    rows, columns = image.labels.shape
    least = 12 if image.is_slice else 64
    objects = image.instances
    if objects is None:
        objects = regions.label_components(image.labels, least)
    tables = {LABELS: regions.region_table(image.labels, least, rows * columns)}
    tables[OBJECTS] = regions.region_table(objects, least, rows * columns)
    if image.image is None:
        assert image.regions is not None
        fine, coarse = image.regions, np.zeros(0, dtype=np.uint16)
    else:
        fine = regions.compute_superpixels(image.image, rng)
        coarse = regions.group_superpixels(fine, image.image, rng)
        for layer, found in ((FINE, fine), (COARSE, coarse[fine])):
            table = regions.region_table(found, max(least, 48), rows * columns // 2)
            keep = rng.permutation(len(table))[:_MOST_ENTRIES]
            tables[layer] = table[np.sort(keep)]
    rows_of = [np.insert(t, 0, layer, axis=1) for layer, t in tables.items()]
    packed: dict[str, Array] = {
        "shape": np.array([rows, columns], dtype=np.int32),
        "facts": np.array([image.split == "val", UNITS.index(image.unit)], dtype=np.int32),
        "labels": image.labels,
        "objects": objects,
        "fine": fine,
        "coarse": coarse,
        "entries": np.concatenate(rows_of).astype(np.int32),
    }
    step = _STEP_3D if image.is_slice else _STEP_2D
    return packed | _pack_pixels(image.image, step)


def _pack_pixels(image: NDArray[np.uint8] | None, step: int) -> dict[str, Array]:
    """Luminance, and for colour chrominance at half resolution, in steps, as differences."""
    nothing = np.zeros(0, dtype=np.uint8)
    if image is None:
        kind, luma, chroma = 0, nothing, nothing
    elif image.ndim == 2:
        kind, luma, chroma = 1, image, nothing
    else:
        kind = 3
        red, green, blue = (image[..., k].astype(np.float32) for k in range(3))
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        luma = np.round(grey).astype(np.uint8)
        pair = np.stack([(blue - grey) * 0.564 + 128, (red - grey) * 0.713 + 128])
        chroma = np.clip(np.round(_halve(pair)), 0, 255).astype(np.uint8)
    return {
        "kind": np.array([kind, step], dtype=np.int32),
        "luma": _differences(luma, step),
        "chroma": _differences(chroma, step),
    }


def _unpack_pixels(part: dict[str, Array]) -> NDArray[np.uint8]:
    """Flat (channel, row, column)."""
    kind, step = (int(v) for v in part["kind"])
    luma = _summed(part["luma"], step)
    if kind < 3:
        return luma.ravel()
    rows, columns = luma.shape
    halves = _summed(part["chroma"], step)
    blue, red = (c.repeat(2, 0).repeat(2, 1)[:rows, :columns] for c in halves)
    grey = luma.astype(np.float32)
    blue, red = grey + (blue - 128.0) / 0.564, grey + (red - 128.0) / 0.713
    green = (grey - 0.299 * red - 0.114 * blue) / 0.587
    planar = np.stack([red, green, blue])
    return np.clip(np.round(planar), 0, 255).astype(np.uint8).ravel()


def _unpack_maps(part: dict[str, Array]) -> tuple[NDArray[np.uint16], ...]:
    """One flat array per layer."""
    fine = part["fine"]
    coarse = part["coarse"][fine] if part["coarse"].size else np.zeros_like(fine)
    return part["labels"].ravel(), part["objects"].ravel(), fine.ravel(), coarse.ravel()


def _join(parts: list[Array]) -> Array:
    """The parts end to end. Empties the list: the memory is needed twice only for a moment."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def _halve(values: Array) -> Array:
    """Means of two by two pixels of the last two axes; an odd edge is repeated."""
    rows, columns = values.shape[-2:]
    pads = [(0, 0)] * (values.ndim - 2) + [(0, rows % 2), (0, columns % 2)]
    even = np.pad(values, pads, mode="edge")
    pairs: Array = (even[..., ::2, :] + even[..., 1::2, :]) / 2
    return np.asarray((pairs[..., ::2] + pairs[..., 1::2]) / 2)


def _differences(values: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Levels as differences along rows and columns, modulo 256: noise where there was an image."""
    levels = ((values.astype(np.uint16) + step // 2) // step).astype(np.uint8)
    return levels if levels.ndim < 2 else encode_differences(levels, 2)


def _summed(values: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Inverse of `_differences`."""
    if values.ndim < 2:
        return values
    levels = decode_differences(values, 2)
    return np.minimum(levels.astype(np.uint16) * step, 255).astype(np.uint8)
