"""The npz files of the CVPR medical segmentation challenges (2024 and 2025).

``imgs`` is ``(D, H, W)``, ``(H, W)`` or ``(H, W, 3)``; ``gts`` or ``segs`` a label map of the same
grid; ``spacing`` three millimetres. Their order is not the same everywhere: the preparation that
the challenge published stores ITK's ``(x, y, z)``, others store the array's order. Pixels are
nearly always square within a slice, so three numbers of which only the last two are equal count as
``(z, y, x)``, all others as ``(x, y, z)``.

``boxes`` of 2024 is a plain array and ends up in the metadata. In 2025 it is a list of dicts, which
NumPy can only store as a pickle. Unpickling can run anything the sender likes, so such members are
never opened: they are named in ``metadata["skipped"]``.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_path
from limner.errors import FormatError, GeometryError
from limner.geometry import Geometry
from limner.io._block import check_finite
from limner.io._errors import one_line
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.limits import check_allocation
from limner.label_values import labels_of_values

Array = NDArray[Any]

NAME = "npz"

_ZIP_MAGIC = b"PK\x03\x04"
_IMAGE_KEYS = ("imgs", "image")
_LABEL_KEYS = ("segs", "gts")
_MAX_SMALL = 1 << 16  # values of a member that is a fact, not pixels
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    UnicodeDecodeError,  # a damaged name
    EOFError,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # encrypted
)
_MAX_PICKLE = 1 << 24  # bytes; the prompts of a challenge case have some thousands
_STEP = 1 << 20  # bytes inflated at a time


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file is a zip whose first member is a NumPy array."""
    if not head.startswith(_ZIP_MAGIC) or len(head) < 30:
        return False
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].endswith(b".npy")


def holds_labels(path: Path) -> bool:
    """Whether there is a label map and no image in the file."""
    with _open_archive(path) as archive:
        keys = set(_members_of(archive, path))
    return bool(keys & set(_LABEL_KEYS)) and not keys & set(_IMAGE_KEYS)


def read(
    path: Path, *, channel: int | None = None, series: str | None = None, strict: bool = True
) -> Image:
    """Read the image of a challenge case: the header now, the pixels when they are wanted.

    Args:
        path: the file.
        channel: take only this one of several channels.
        series: ignored.
        strict: ignored.

    Raises:
        FormatError: no image in it, damaged, or larger than this machine's memory.
        GeometryError: a spacing of 0 or NaN.
    """
    with _open_archive(path) as archive:
        members = _members_of(archive, path)
        member = _choose(members, _IMAGE_KEYS, path, "image")
        spacing = _small(archive, members.get("spacing"), path)
        boxes = _small(archive, members.get("boxes"), path)
    colour = _is_colour(member, path, has_spacing=spacing is not None)
    count = member.shape[-1] if colour else None
    if channel is not None and not 0 <= channel < (count or 1):
        raise FormatError(f"{path} has no channel {channel}; it has {count or 1}, from 0.")
    shape = member.shape[:-1] if colour else member.shape
    geometry = _geometry_of(shape, spacing, path)

    def load() -> Array:
        with _open_archive(path) as archive:
            pixels = _load(archive, member, path)
        check_finite(pixels, path)
        return pixels if channel is None or count is None else pixels[..., channel].copy()

    metadata = {
        "keys": sorted(members),
        "skipped": sorted(m.key for m in members.values() if m.dtype.hasobject),
        "spacing": None if spacing is None else spacing.tolist(),
        "boxes": None if boxes is None else boxes.tolist(),
    }
    return Image(
        load,
        geometry,
        dtype=member.dtype.newbyteorder("="),
        num_channels=count if channel is None else None,
        path=path,
        format=NAME,
        metadata=metadata,
    )


def read_labels(path: Path, *, like: Image | None = None, threshold: float | None = None) -> Labels:
    """Read ``segs``, or ``gts`` where there are no ``segs``.

    Args:
        path: the file.
        like: the image they belong to; its grid counts where the file has no ``spacing``.
        threshold: values from this one on are object 1.

    Raises:
        FormatError: no label map in it, or values that are no labels.
        GeometryError: the label map has not the shape of `like`.
    """
    with _open_archive(path) as archive:
        members = _members_of(archive, path)
        member = _choose(members, _LABEL_KEYS, path, "label map")
        spacing = _small(archive, members.get("spacing"), path)
        values = _load(archive, member, path)
    declared = member.key in _LABEL_KEYS
    try:
        values = labels_of_values(values, threshold=threshold, declared=declared, name=str(path))
    except ValueError as error:
        raise FormatError(f"{path}: {member.key!r} is no label map: {error}.") from error
    geometry = _geometry_of(values.shape, spacing, path)
    if like is not None and spacing is None:
        if like.geometry.shape != geometry.shape:
            raise GeometryError(
                f"{path}: labels of shape {geometry.shape} do not fit the image of shape "
                f"{like.geometry.shape}."
            )
        geometry = like.geometry
    return Labels(geometry, array=values)


def read_array(path: Path, key: str) -> Array | None:
    """An array of numbers or texts by its name; None where there is none, or a pickled one.

    Raises:
        FormatError: damaged, or larger than this machine's memory.
    """
    with _open_archive(path) as archive:
        member = _members_of(archive, path).get(key)
        if member is None or member.dtype.hasobject or member.dtype.kind not in "buifU":
            return None
        return _load(archive, member, path)


def read_pickle(path: Path, key: str) -> bytes | None:
    """The pickle of an array of objects by its name, as bytes; None where there is none.

    It is data of whoever sent the file, and must not be given to `pickle`.

    Raises:
        FormatError: damaged, or larger than `_MAX_PICKLE`.
    """
    with _open_archive(path) as archive:
        member = _members_of(archive, path).get(key)
        if member is None or not member.dtype.hasobject:
            return None
        with archive.open(member.name) as file:
            _array_header(file, path, key)
            found = file.read(_MAX_PICKLE + 1)
    if len(found) > _MAX_PICKLE:
        raise FormatError(f"{path}: {key!r} has more than {_MAX_PICKLE >> 20} MB, too many.")
    return found


def write(path: Path, labels: Labels, *, like: Image | None) -> None:
    """Write a label map as ``segs`` in the smallest unsigned type, compressed.

    Args:
        path: ends in ``.npz``.
        labels: where objects overlap the first of `Labels.order` is written.
        like: the image they belong to; if it came from npz, its ``spacing`` is repeated, else it is
            written as ``(x, y, z)``. The format holds neither origin nor direction.
    """
    arrays = {"segs": np.asarray(labels.to_array())}
    stated = None if like is None or like.format != NAME else like.metadata.get("spacing")
    if stated is not None:
        arrays["spacing"] = np.asarray(stated, dtype=np.float64)
    elif labels.geometry.has_spacing and labels.geometry.ndim == 3:
        arrays["spacing"] = np.asarray(labels.geometry.spacing[::-1], dtype=np.float64)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


@dataclass(frozen=True)
class _Member:
    """An array of the archive, known from its header alone."""

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _ZIP_ERRORS as error:
        raise FormatError(
            f"{path} is not an npz file, or is damaged: {one_line(error)}. Copy or download it "
            "again."
        ) from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}.") from error


def _members_of(archive: zipfile.ZipFile, path: Path) -> dict[str, _Member]:
    members = {}
    for entry in archive.infolist():
        if not entry.filename.endswith(".npy"):
            continue
        key = entry.filename.removesuffix(".npy")
        with archive.open(entry) as file:
            shape, fortran_order, dtype = _array_header(file, path, key)
            there = entry.file_size - file.tell()
        claimed = prod(shape) * dtype.itemsize
        if not dtype.hasobject and claimed > there:
            raise FormatError(
                f"{path}: the array {key!r} claims {claimed} bytes, and {there} are there; the "
                "file is damaged."
            )
        members[key] = _Member(key, entry.filename, shape, dtype, fortran_order)
    return members


def _array_header(file: IO[bytes], path: Path, key: str) -> tuple[tuple[int, ...], bool, Any]:
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        return np.lib.format.read_array_header_2_0(file)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:
        raise FormatError(
            f"{path}: the array {key!r} has no valid header ({one_line(error)})."
        ) from error


def _choose(members: dict[str, _Member], keys: Sequence[str], path: Path, what: str) -> _Member:
    """The member with one of the names, else the only one that could be it."""
    known = [members[key] for key in keys if key in members]
    others = [m for m in members.values() if len(m.shape) in (2, 3, 4) and m.key not in _KNOWN]
    found = known or (others if len(others) == 1 else [])
    if not found:
        listed = ", ".join(sorted(members)) or "nothing"
        raise FormatError(
            f"{path} holds no {what}: it has {listed}, and one of {', '.join(keys)} is needed."
        )
    member = found[0]
    if member.dtype.kind not in "buif" or member.dtype.itemsize > 8:
        raise FormatError(
            f"{path}: {member.key!r} holds {member.dtype}, and limner does not unpickle; numbers "
            "are needed."
        )
    if len(member.shape) not in (2, 3, 4) or min(member.shape) < 1:
        raise FormatError(f"{path}: {member.key!r} of shape {member.shape} is no {what}.")
    return member


_KNOWN = (*_IMAGE_KEYS, *_LABEL_KEYS, "spacing", "boxes", "clicks", "clicks_order", "prev_pred")


def _load(archive: zipfile.ZipFile, member: _Member, path: Path) -> Array:
    """The values of a member, of which never more is inflated than its header says."""
    check_allocation(member.shape, member.dtype.itemsize, path)
    buffer = np.empty(prod(member.shape) * member.dtype.itemsize, dtype=np.uint8)
    target, position = buffer.data, 0
    with archive.open(member.name) as file:
        _array_header(file, path, member.key)
        while position < len(target):
            piece = file.read(min(_STEP, len(target) - position))
            if not piece:
                raise FormatError(f"{path}: the array {member.key!r} is cut off.")
            target[position : position + len(piece)] = piece
            position += len(piece)
        file.read(1)  # the end of the member: zipfile compares its checksum there
    order = "F" if member.fortran_order else "C"
    values = buffer.view(member.dtype).reshape(member.shape, order=order)  # type: ignore[call-overload]
    return np.ascontiguousarray(values, dtype=member.dtype.newbyteorder("="))


def _small(archive: zipfile.ZipFile, member: _Member | None, path: Path) -> Array | None:
    """A fact beside the pixels; None where it is missing, not numbers, or suspiciously large."""
    if member is None or member.dtype.kind not in "buif" or min(member.shape, default=1) < 0:
        return None
    if prod(member.shape) > _MAX_SMALL:
        return None
    return _load(archive, member, path)


def _is_colour(member: _Member, path: Path, *, has_spacing: bool) -> bool:
    """Whether the last axis is colour: challenge files of 2D images have no spacing and say
    ``2D`` in their name, those of volumes ``3D``.
    """
    if len(member.shape) != 3:
        return len(member.shape) == 4
    if has_spacing or path.name.upper().startswith("3D"):
        return False
    return member.shape[-1] in (3, 4)


def _geometry_of(shape: tuple[int, ...], spacing: Array | None, path: Path) -> Geometry:
    if len(shape) not in (2, 3):
        raise FormatError(f"{path}: an array of shape {shape} has no grid of 2 or 3 axes.")
    if spacing is None:
        return Geometry.from_spacing(shape)
    steps = [float(s) for s in np.ravel(spacing)]
    if len(steps) == 3:
        in_array_order = steps[1] == steps[2] != steps[0]
        steps = steps if in_array_order else steps[::-1]
    if len(steps) not in (2, 3) or not np.isfinite(steps).all() or min(steps) <= 0:
        raise GeometryError(
            f"{path}: its spacing is {np.ravel(spacing)[:4].tolist()}; three numbers above 0 mm "
            "are needed."
        )
    return Geometry.from_spacing(shape, steps[-len(shape) :])
