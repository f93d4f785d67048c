"""Folders with one image per frame, as videos."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError, LimnerError
from limner.geometry import Geometry
from limner.io import raster, tiff
from limner.io.formats import find_format
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.limits import check_allocation
from limner.io.raster.pixels import fitted_geometry
from limner.io.video.lenient import LENIENT, LenientReader, stack_frames

Array = NDArray[Any]

_RASTER, _TIFF = (find_format(name).suffixes for name in ("raster", "tiff"))
_SUFFIXES = (*_RASTER, *_TIFF)
_SAME = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
_SUBFOLDER = "frames"


def is_frame_folder(folder: Path) -> bool:
    """Whether a folder holds images, or a folder ``frames`` that does, by their names."""
    return _has_images(folder) or _has_images(folder / _SUBFOLDER)


def read_folder(folder: Path, *, channel: int | None, name: str, strict: bool = True) -> Image:
    """Open a folder of frames; every header is read now, pixels one frame at a time.

    Args:
        folder: holds the images, or a folder ``frames`` with them. Hidden files and files that
            are not images are passed over.
        channel: of colour frames, the one to take as grey.
        name: of the format, for the image.
        strict: False takes an image that cannot be opened, or that differs, for a damaged frame.

    Raises:
        FormatError: no images, several kinds of image, or one that differs in size, channels
            or type; it is named.
    """
    files = frame_files(folder)
    module = _module_of(files)
    first, odd = _usual(files, module, strict)
    assert first.path is not None

    def one(index: int) -> Array:
        if index in odd:
            raise FormatError(odd[index])
        try:
            return np.asarray(module.read(files[index], channel=channel).array)
        except FormatError as error:
            raise FormatError(f"{error} {LENIENT}" if strict else str(error)) from error

    read_frame = one if strict else LenientReader(one, len(files))

    def load() -> Array:
        shape = (len(files), *opened.shape)
        check_allocation(shape, first.dtype.itemsize, folder)
        return stack_frames(read_frame, shape, first.dtype)

    opened = module.read(first.path, channel=channel)
    spacing = first.spacing if first.geometry.has_spacing else None
    return Image(
        load,
        Geometry.from_spacing(
            (len(files), *first.geometry.shape), None if spacing is None else (1.0, *spacing)
        ),
        kind="video",
        dtype=first.dtype,
        num_channels=opened.num_channels,
        read_slice=read_frame,
        path=folder,
        files=files,
        format=name,
        metadata={"container": "folder of frames", "frame_format": first.format},
        damaged=read_frame.damaged if isinstance(read_frame, LenientReader) else None,
    )


def read_label_folder(folder: Path, *, like: Image | None) -> Labels:
    """Read a folder of label maps, one image per frame, as labels of a video.

    Raises:
        FormatError: as `read_folder`, or an image that is no label map.
        GeometryError: the folder has not the shape of `like`.
    """
    files = frame_files(folder)
    module = _module_of(files)
    first, _ = _usual(files, module, strict=True)
    geometry = Geometry.from_spacing((len(files), *first.geometry.shape))
    geometry = fitted_geometry(geometry, like, folder)
    check_allocation(geometry.shape, 4, folder)
    pixels = np.empty(geometry.shape, dtype=np.uint32)
    names: dict[int, str] = {}
    for k, path in enumerate(files):
        labels = module.read_labels(path)
        pixels[k] = labels.to_array()
        names.update(labels.names)
    return Labels(geometry, array=pixels, names=names)


def frame_files(folder: Path) -> list[Path]:
    """The images of a folder of frames in natural order of their names.

    Raises:
        FormatError: there are none, or of several kinds.
    """
    if not _has_images(folder) and _has_images(folder / _SUBFOLDER):
        folder = folder / _SUBFOLDER
    files = [p for p in folder.iterdir() if _is_image_file(p)]
    if not files:
        raise FormatError(
            f"{folder} holds neither DICOM files nor pictures ({' '.join(_SUFFIXES)}) that could "
            "be the frames of a video; name the file or the folder that does."
        )
    kinds = Counter(_SAME.get(p.suffix.lower(), p.suffix.lower()) for p in files)
    if len(kinds) > 1:
        found = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
        raise FormatError(
            f"{folder}: the folder holds pictures of several kinds ({found}); keep the frames of "
            "one video in a folder of their own."
        )
    return sorted(files, key=lambda p: _natural(p.name))


def _module_of(files: list[Path]) -> ModuleType:
    return raster if files[0].suffix.lower() in _RASTER else tiff


def _usual(files: list[Path], module: ModuleType, strict: bool) -> tuple[Image, dict[int, str]]:
    """The first frame like most others, and what is wrong with those that are not, by number.

    Raises:
        FormatError: one is not, and `strict`; or none can be opened.
    """
    facts: list[tuple[tuple[int, ...], str] | None] = []
    wrong: dict[int, str] = {}
    for number, path in enumerate(files):
        try:
            image: Image = module.read(path)
            if image.kind != "image":
                raise FormatError(f"{path}: holds several pictures; a frame is one picture.")
            facts.append((image.shape, str(image.dtype)))
        except LimnerError as error:
            if strict or len(wrong) == len(files) - 1:
                raise
            facts.append(None)
            wrong[number] = str(error)
    (usual, count), *_ = Counter(f for f in facts if f is not None).most_common(1)
    for number, (path, fact) in enumerate(zip(files, facts, strict=True)):
        if fact is None or fact == usual:
            continue
        text = (
            f"{path}: this frame is {_show(fact)}, but {count} of {len(files)} are "
            f"{_show(usual)}; all frames of a video are alike."
        )
        if strict:
            raise FormatError(f"{text} {LENIENT}")
        wrong[number] = text
    return module.read(files[facts.index(usual)]), wrong


def _show(fact: tuple[tuple[int, ...], str]) -> str:
    return f"{'×'.join(str(n) for n in fact[0])} {fact[1]}"


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(_is_image_file(p) for p in folder.iterdir())


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which numbers count as numbers: frame2 before frame10."""
    parts = re.split(r"(\d+)", name.lower())
    return [(1, int(p), p) if p.isdecimal() else (0, 0, p) for p in parts if p]
