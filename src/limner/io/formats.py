"""Table of file formats, by which a reader or writer is chosen before any is imported.

A format is one module below `limner.io`, see `limner.io.protocols`, and one entry of `FORMATS`.
A file is recognised by content first: of the formats whose entry says that it may begin so, the
first in the order of the table whose own `sniff` agrees. Then by suffix, so that the reader can say
what is wrong with the content.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from limner.errors import FormatError
from limner.io._errors import plain_errors
from limner.io.protocols import Format

_KNOWN = (
    ".nii .nii.gz .nrrd .mha .mhd .mgz .npz .dcm .dcm.gz .tif .png .jpg .bmp .webp .gif, videos, "
    "and folders of DICOM files or frames"
)
_HEAD_BYTES = 1024


@dataclass(frozen=True)
class Written:
    """What a suffix holds when it is written.

    Attributes:
        images: images as well as labels.
        overlaps: pixels may belong to several objects.
    """

    images: bool = False
    overlaps: bool = False


@dataclass(frozen=True)
class FormatEntry:
    """A format, as far as it takes to choose it.

    Attributes:
        module: its name below `limner.io`.
        suffixes: that it reads, in lower case.
        begins: offsets and the bytes there, of which every file of the format shows one.
        begins_as: the same as a test of the first bytes, where no bytes are fixed.
        images: whether its files hold images; else nothing but labels.
        placeless: whether its files may know a spacing, but no place in the patient.
        label_options: what its own `read_labels` takes besides `like`.
        writes: by suffix, what is written.
    """

    module: str
    suffixes: tuple[str, ...]
    begins: tuple[tuple[int, bytes], ...] = ()
    begins_as: Callable[[bytes], bool] | None = None
    images: bool = True
    placeless: bool = False
    label_options: tuple[str, ...] = ()
    writes: Mapping[str, Written] = field(default_factory=dict)

    def may_be(self, head: bytes) -> bool:
        """Whether a file that begins so may be of the format; its `sniff` says whether it is."""
        if self.begins_as is not None and self.begins_as(head):
            return True
        return any(head.startswith(magic, offset) for offset, magic in self.begins)

    def has_suffix(self, path: Path) -> bool:
        """Whether a path is named like a file of the format."""
        return path.name.lower().endswith(self.suffixes)

    def load(self) -> Format:
        """Import the format."""
        return cast(Format, importlib.import_module(f"limner.io.{self.module}"))


def _may_be_lines(head: bytes) -> bool:
    """Text that assigns something in its first line."""
    first = head.lstrip()[:64]
    return first[:1].isalpha() and b"=" in first


def _may_be_json(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")


_DICOM = (
    (128, b"DICM"),
    (0, b"\x1f\x8b"),  # .dcm.gz
    *((0, start) for start in (b"\2\0", b"\x08\0", b"\0\x08\0\5", b"\0\x08\0\x08")),  # no preamble
)
_PNG, _WEBP = (0, b"\x89PNG\r\n\x1a\n"), (0, b"RIFF")

# In the order in which they are asked: exact magic numbers first, a DICOM segmentation before DICOM
# in general, and DICOM before TIFF, which its preamble may hold as well.
FORMATS: tuple[FormatEntry, ...] = (
    FormatEntry(
        "nifti",
        (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz"),
        ((0, b"\x1f\x8b"), *((0, n.to_bytes(4, o)) for n in (348, 540) for o in ("little", "big"))),
        writes={".nii": Written(images=True), ".nii.gz": Written(images=True)},
    ),
    FormatEntry(
        "nrrd",
        (".nrrd", ".nhdr"),
        ((0, b"NRRD"),),
        label_options=("threshold", "channel"),
        writes={".seg.nrrd": Written(overlaps=True), ".nrrd": Written(images=True)},
    ),
    FormatEntry(
        "mha",
        (".mha", ".mhd"),
        begins_as=_may_be_lines,
        writes={".mha": Written(images=True)},
    ),
    FormatEntry(
        "mgh",
        (".mgz", ".mgh", ".mgh.gz"),
        ((0, b"\x1f\x8b"), (0, b"\0\0\0\1")),
        writes={".mgz": Written(images=True), ".mgh": Written(images=True)},
    ),
    FormatEntry(
        "npz",
        (".npz",),
        ((0, b"PK\3\4"),),
        placeless=True,
        label_options=("threshold",),
        writes={".npz": Written()},
    ),
    FormatEntry(
        "dicom.seg",
        (".dcm", ".dcm.gz"),
        _DICOM,
        images=False,
        label_options=("any_frame",),
        writes={".dcm": Written(overlaps=True)},
    ),
    FormatEntry(
        "dicom.rtstruct",
        (".dcm", ".dcm.gz"),
        _DICOM,
        images=False,
        label_options=("any_frame",),
    ),
    FormatEntry(
        "coco",
        (".json",),
        begins_as=_may_be_json,
        images=False,
        writes={".json": Written(overlaps=True)},
    ),
    FormatEntry("dicom.images", (".dcm", ".dcm.gz", ".dicom", ".ima"), _DICOM),
    FormatEntry(
        "tiff",
        (".tif", ".tiff", ".btf", ".tf8"),
        tuple((0, magic) for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
        placeless=True,
        label_options=("threshold", "channel"),
        writes={".tif": Written(images=True), ".tiff": Written(images=True)},
    ),
    FormatEntry(
        "raster",
        (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp"),
        (_PNG, _WEBP, (0, b"\xff\xd8\xff"), (0, b"BM")),
        placeless=True,
        label_options=("threshold",),
        writes={".png": Written(images=True)},
    ),
    FormatEntry(
        "video",
        (
            *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv"),
            *(".flv", ".ogv", ".y4m", ".h264", ".hevc", ".gif", ".apng"),
        ),
        (
            *(_PNG, _WEBP, (0, b"G")),  # animations; AVI is RIFF, too, transport streams are G, too
            *((4, box) for box in (b"ftyp", b"moov", b"mdat", b"wide")),  # QuickTime, MP4
            *((0, b"\x1aE\xdf\xa3"), (0, b"0&\xb2u"), (0, b"\0\0\1\xba"), (0, b"\0\0\1\xb3")),
            *((0, b"FLV\1"), (0, b"OggS"), (0, b"YUV4MPEG2")),
        ),
        placeless=True,
    ),
)

_KEEP_EMPTY = (".dcm", ".seg.nrrd")

_DICOM_TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "seg": ("dicom.seg", {}),
    "seg-labelmap": ("dicom.seg", {"dicom_type": "seg-labelmap"}),
    "rtstruct": ("dicom.rtstruct", {}),
}


@dataclass(frozen=True)
class Writer:
    """How a suffix is written.

    Attributes:
        format: its entry.
        options: fixed by the choice, such as the kind of DICOM object.
        keeps_overlaps: whether a pixel may belong to several objects.
        keeps_empty: whether a named object may have no pixel.
    """

    format: FormatEntry
    options: Mapping[str, Any] = field(default_factory=dict)
    keeps_overlaps: bool = False
    keeps_empty: bool = False


def find_format(module: str) -> FormatEntry:
    """The entry of a format by its module below `limner.io`."""
    return next(entry for entry in FORMATS if entry.module == module)


def choose_reader(path: Path, *, labels: bool = False) -> FormatEntry:
    """The format that understands a file or folder.

    Args:
        path: of the file or folder.
        labels: also formats that hold nothing but labels.

    Raises:
        FormatError: nothing there, empty, or of no known kind.
    """
    if path.is_dir():
        return _choose_folder_reader(path)
    head = read_head(path)
    found = recognise(path, head, labels=labels)
    if found is not None:
        return found
    for entry in FORMATS:
        if (labels or entry.images) and entry.has_suffix(path):
            return entry  # its reader says what is wrong with the content
    raise FormatError(
        f"{path} is of no known kind: it begins with {head[:8]!r}. limner reads {_KNOWN}; "
        "convert it first."
    )


def recognise(path: Path, head: bytes, *, labels: bool = True) -> FormatEntry | None:
    """The format of a file by its content alone; None if it is of no known kind.

    Args:
        path: of the file.
        head: its first bytes, see `read_head`.
        labels: also formats that hold nothing but labels.
    """
    for entry in FORMATS:
        if (labels or entry.images) and entry.may_be(head) and entry.load().sniff(path, head):
            return entry
    return None


def choose_writer(path: Path, *, dicom_type: str | None = None) -> Writer:
    """How labels are written to a path.

    Raises:
        FormatError: the suffix is unknown; the message lists those that are known.
        ValueError: an unknown `dicom_type`, or one for a file that is not ``.dcm``.
    """
    suffix, entry = _find_suffix(path, "labels are", lambda written: True)
    keeps, options = entry.writes[suffix].overlaps, dict[str, Any]()
    if dicom_type is not None:
        if suffix != ".dcm":
            raise ValueError(f"dicom_type={dicom_type!r} belongs to .dcm files, not to {path}.")
        if dicom_type not in _DICOM_TYPES:
            raise ValueError(f"dicom_type is {' or '.join(_DICOM_TYPES)}, not {dicom_type!r}.")
        module, options = _DICOM_TYPES[dicom_type]
        entry, keeps = find_format(module), dicom_type != "seg-labelmap"
    return Writer(entry, options, keeps, suffix in _KEEP_EMPTY)


def choose_image_writer(path: Path) -> FormatEntry:
    """The format in which images are written to a path.

    Raises:
        FormatError: the suffix is unknown, or holds labels only.
    """
    return _find_suffix(path, "images are", lambda written: written.images)[1]


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


def _choose_folder_reader(path: Path) -> FormatEntry:
    from limner.io.dicom._files import contains_dicom

    if contains_dicom(path):
        return find_format("dicom.images")
    return find_format("video")  # images as frames; it says so if there are none


def _find_suffix(
    path: Path, what: str, wanted: Callable[[Written], bool]
) -> tuple[str, FormatEntry]:
    table = {s: e for e in FORMATS for s, written in e.writes.items() if wanted(written)}
    for suffix in sorted(table, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return suffix, table[suffix]
    raise FormatError(
        f"{path} has no suffix that can be written; {what} written as {' '.join(table)}."
    )
