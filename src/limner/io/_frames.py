"""A folder with one picture per frame, as a video."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io import raster, tiff
from limner.io._limits import check_allocation
from limner.io._pictures import fitted_geometry
from limner.io.image import Image
from limner.io.labels import Labels

Array = NDArray[Any]

_SUFFIXES = (*raster.SUFFIXES, *tiff.SUFFIXES)
_SAME = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
_SUBFOLDER = "frames"


def is_frame_folder(folder: Path) -> bool:
    """Whether a folder holds pictures, or a folder ``frames`` that does, by their names."""
    return _has_pictures(folder) or _has_pictures(folder / _SUBFOLDER)


def read_folder(folder: Path, *, channel: int | None, name: str) -> Image:
    """Open a folder of frames; every header is read now, pixels one frame at a time.

    Args:
        folder: holds the pictures, or a folder ``frames`` with them. Hidden files and files that
            are not pictures are passed over.
        channel: of colour frames, the one to take as grey.
        name: of the format, for the image.

    Raises:
        FormatError: no pictures, several kinds of picture, or one that differs in size, channels
            or type; it is named.
    """
    files = frame_files(folder)
    module = _module_of(files)
    first = _check_alike(files, module)

    def plane(index: int) -> Array:
        return np.asarray(module.read(files[index], channel=channel).array)

    def load() -> Array:
        shape = (len(files), *opened.shape)
        check_allocation(shape, first.dtype.itemsize, folder)
        pixels = np.empty(shape, dtype=first.dtype)
        for k in range(len(files)):
            pixels[k] = plane(k)
        return pixels

    opened = module.read(files[0], channel=channel)
    spacing = first.spacing if first.geometry.has_spacing else None
    return Image(
        load,
        Geometry.from_spacing(
            (len(files), *first.geometry.shape), None if spacing is None else (1.0, *spacing)
        ),
        kind="video",
        dtype=first.dtype,
        num_channels=opened.num_channels,
        plane=plane,
        path=folder,
        format=name,
        metadata={"container": "folder of frames", "frame_format": first.format},
    )


def read_label_folder(folder: Path, *, like: Image | None) -> Labels:
    """Read a folder of label maps, one picture per frame, as labels of a video.

    Raises:
        FormatError: as `read_folder`, or a picture that is no label map.
        GeometryError: the folder has not the shape of `like`.
    """
    files = frame_files(folder)
    module = _module_of(files)
    first = _check_alike(files, module)
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
    """The pictures of a folder of frames in natural order of their names.

    Raises:
        FormatError: there are none, or of several kinds.
    """
    if not _has_pictures(folder) and _has_pictures(folder / _SUBFOLDER):
        folder = folder / _SUBFOLDER
    files = [p for p in folder.iterdir() if _is_picture(p)]
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
    return raster if files[0].suffix.lower() in raster.SUFFIXES else tiff


def _check_alike(files: list[Path], module: ModuleType) -> Image:
    """The first frame like most others; refuse the one that is not."""
    images: list[Image] = [module.read(p) for p in files]
    facts = [(i.shape, str(i.dtype)) for i in images]
    (usual, count), *_ = Counter(facts).most_common(1)
    for path, image, fact in zip(files, images, facts, strict=True):
        if image.kind != "image":
            raise FormatError(f"{path}: holds several pictures; a frame is one picture.")
        if fact != usual:
            raise FormatError(
                f"{path}: this frame is {_show(fact)}, but {count} of {len(files)} are "
                f"{_show(usual)}; all frames of a video are alike."
            )
    return images[0]


def _show(fact: tuple[tuple[int, ...], str]) -> str:
    return f"{'×'.join(str(n) for n in fact[0])} {fact[1]}"


def _has_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(_is_picture(p) for p in folder.iterdir())


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which numbers count as numbers: frame2 before frame10."""
    parts = re.split(r"(\d+)", name.lower())
    return [(1, int(p), p) if p.isdecimal() else (0, 0, p) for p in parts if p]
