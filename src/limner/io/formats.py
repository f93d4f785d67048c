"""Which format module reads or writes a path: by content, then by suffix."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from limner.errors import FormatError
from limner.io._errors import plain_errors

# In the order in which they are asked whether a file is theirs: exact magic numbers first, and a
# DICOM segmentation before DICOM in general.
SEGMENTATIONS = ("dicom.seg", "dicom.rtstruct", "coco")  # files that hold nothing but labels
IMAGE_READERS = ("nifti", "nrrd", "mha", "npz", "dicom.images", "tiff", "raster", "video")
LABEL_READERS = (*IMAGE_READERS[:4], *SEGMENTATIONS, *IMAGE_READERS[4:])

_WRITERS = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".seg.nrrd": "nrrd",
    ".nrrd": "nrrd",
    ".mha": "mha",
    ".npz": "npz",
    ".png": "raster",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".dcm": "dicom.seg",
    ".json": "coco",
}
_LABELS_ONLY = (".seg.nrrd", ".npz", ".dcm", ".json")
_DICOM_TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "seg": ("dicom.seg", {}),
    "seg-labelmap": ("dicom.seg", {"dicom_type": "seg-labelmap"}),
    "rtstruct": ("dicom.rtstruct", {}),
}
_KEEP_OVERLAPS = (".seg.nrrd", ".json", ".dcm")
_KNOWN = (
    ".nii .nii.gz .nrrd .mha .mhd .npz .dcm .tif .png .jpg .bmp .webp .gif, videos, and folders of "
    "DICOM files or frames"
)
_HEAD_BYTES = 1024


@dataclass(frozen=True)
class Writer:
    """How a suffix is written.

    Attributes:
        module: the format.
        options: fixed by the choice, such as the kind of DICOM object.
        keeps_overlaps: whether a pixel may belong to several objects.
    """

    module: ModuleType
    options: Mapping[str, Any] = field(default_factory=dict)
    keeps_overlaps: bool = False


def load_format(name: str) -> ModuleType:
    """The module of a format."""
    return importlib.import_module(f"limner.io.{name}")


def reader_of(path: Path, names: Sequence[str]) -> ModuleType:
    """The format module, one of `names`, that understands a file or folder.

    Raises:
        FormatError: nothing there, empty, or of no known kind.
    """
    if path.is_dir():
        return _folder_reader(path)
    head = read_head(path)
    for module in map(load_format, names):
        if module.sniff(path, head):
            return module
    for module in map(load_format, names):
        if _has_suffix(path, module.SUFFIXES):
            return module  # its reader says what is wrong with the content
    raise FormatError(
        f"{path} is of no known kind: it begins with {head[:8]!r}. limner reads {_KNOWN}; "
        "convert it first."
    )


def writer_of(path: Path, *, dicom_type: str | None = None) -> Writer:
    """How labels are written to a path.

    Raises:
        FormatError: the suffix is unknown; the message lists those that are known.
        ValueError: an unknown `dicom_type`, or one for a file that is not ``.dcm``.
    """
    suffix = _suffix_of(path, _WRITERS, "labels are")
    name, fixed = _WRITERS[suffix], dict[str, Any]()
    if dicom_type is not None:
        if name != "dicom.seg":
            raise ValueError(f"dicom_type={dicom_type!r} belongs to .dcm files, not to {path}.")
        if dicom_type not in _DICOM_TYPES:
            raise ValueError(f"dicom_type is {' or '.join(_DICOM_TYPES)}, not {dicom_type!r}.")
        name, fixed = _DICOM_TYPES[dicom_type]
    keeps = suffix in _KEEP_OVERLAPS and dicom_type != "seg-labelmap"
    return Writer(load_format(name), fixed, keeps_overlaps=keeps)


def image_writer_of(path: Path) -> ModuleType:
    """The format module that writes images to a path.

    Raises:
        FormatError: the suffix is unknown, or holds labels only.
    """
    table = {s: n for s, n in _WRITERS.items() if s not in _LABELS_ONLY}
    return load_format(table[_suffix_of(path, table, "images are")])


def read_head(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        FormatError: there is no such file, it is empty, or it cannot be opened.
    """
    if not path.exists():
        raise FormatError(f"There is no file or folder {path}; check the spelling.")
    if not path.is_file():
        raise FormatError(f"{path} is neither a file nor a folder.")
    with plain_errors(path), path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise FormatError(f"{path} is empty (0 bytes). Copy or download it again.")
    return head


def _folder_reader(path: Path) -> ModuleType:
    from limner.io.dicom._files import contains_dicom

    if contains_dicom(path):
        return load_format("dicom.images")
    return load_format("video")  # pictures as frames; it says so if there are none


def _has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    return path.name.lower().endswith(tuple(suffixes))


def _suffix_of(path: Path, table: Mapping[str, str], what: str) -> str:
    for suffix in sorted(table, key=len, reverse=True):
        if _has_suffix(path, (suffix,)):
            return suffix
    raise FormatError(
        f"{path} has no suffix that can be written; {what} written as {' '.join(table)}."
    )
