"""DICOM files up to their pixel data: search in folders, recognition, headers, and sorting into
images, segmentations and the rest.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from limner.errors import FormatError, LimnerError
from limner.io._errors import muted, one_line
from limner.io._inflate import GZIP_MAGIC, peek_gzip, unpack_gzip

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

MAX_FOLDER_DEPTH = 8
MAX_FOLDER_FILES = 50_000  # more is an archive, not a study
MAX_INFLATED = 4 << 30  # bytes a deflated data set may grow to
PREAMBLE = 128
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG)
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
SEG_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_UNDEFINED = 0xFFFFFFFF
_PIXEL_VRS = ("OB", "OW", "OF", "OD", "UN")
_VR_NAMES = (
    "AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR "
    "US UT UV"
)


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data element lies in its source.

    Attributes:
        tag: 0x7FE00010, or ...08 for float and ...09 for double.
        vr: ``"OB"`` or ``"OW"``; None with implicit VR.
        offset: bytes before the value (for compressed data: before the first item).
        length: bytes of the value that are really there.
        encapsulated: whether the value is a sequence of compressed fragments.
    """

    tag: int
    vr: str | None
    offset: int
    length: int
    encapsulated: bool


@dataclass(frozen=True, eq=False)
class Header:
    """A DICOM file up to its pixel data.

    Attributes:
        path: the file.
        dataset: its elements before the pixel data (those asked for).
        syntax: transfer syntax UID; deduced where the file does not say.
        pixels: where the pixel data lie, None if there are none.
        inflated: the data set's bytes, where it was deflated as a whole.
        packed: whether the file is compressed with gzip.
    """

    path: Path
    dataset: Dataset
    syntax: str
    pixels: PixelElement | None
    inflated: bytes | None = None
    packed: bool = False

    def open(self) -> BinaryIO:
        """The source that `pixels.offset` counts in, opened for reading."""
        if self.inflated is not None:
            return io.BytesIO(self.inflated)
        return io.BytesIO(_unpack(self.path)) if self.packed else self.path.open("rb")

    def text(self, keyword: str) -> str:
        """An element as one line of text, "" where it is absent or empty."""
        return _one_line(self.dataset.get(keyword))

    @property
    def sop_class(self) -> str:
        """SOP class UID, from the data set or else from the file meta information."""
        return self.text("SOPClassUID") or self._meta_text("MediaStorageSOPClassUID")

    @property
    def instance_uid(self) -> str:
        """SOP instance UID, from the data set or else from the file meta information."""
        return self.text("SOPInstanceUID") or self._meta_text("MediaStorageSOPInstanceUID")

    def _meta_text(self, keyword: str) -> str:
        meta = getattr(self.dataset, "file_meta", None)
        return "" if meta is None else _one_line(meta.get(keyword))

    @property
    def syntax_name(self) -> str:
        """The transfer syntax in words."""
        from pydicom.uid import UID

        return UID(self.syntax).name

    @property
    def object_name(self) -> str:
        """What kind of object it is, in words."""
        from pydicom.uid import UID

        name = UID(self.sop_class).name if self.sop_class else "object without SOP class"
        return name.removesuffix(" Storage")[:64]


def _one_line(value: object) -> str:
    """Text without line ends and control characters, which damaged files put anywhere."""
    text = "" if value is None else str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


@contextmanager
def format_errors(path: Path, problem: str = "damaged or unsupported DICOM file") -> Iterator[None]:
    """Turn whatever a damaged file provokes into one `FormatError` that begins with `problem`.

    pydicom and the codecs raise dozens of types on damaged input (struct.error, KeyError,
    NotImplementedError, their own …), so this is the one place that catches them all.
    """
    try:
        yield
    except LimnerError:
        raise
    except MemoryError as error:
        raise FormatError(f"{path}: not enough memory for this DICOM object.") from error
    except OSError as error:
        raise FormatError(f"Cannot read {path}: {one_line(error).lower()}.") from error
    except Exception as error:
        raise FormatError(f"{path}: {problem} ({one_line(error)}).") from error


@contextmanager
def reading(path: Path, problem: str = "damaged or unsupported DICOM file") -> Iterator[None]:
    """`format_errors` with warnings as debug messages; not for threads: filters are global."""
    from pydicom import config

    # What pydicom finds against a value is not worth a line each: what matters is checked here.
    with (
        warnings.catch_warnings(record=True) as caught,
        config.disable_value_validation(),
        muted("pydicom"),
    ):
        warnings.simplefilter("always")
        with format_errors(path, problem):
            yield
    for text in sorted({str(w.message) for w in caught}):
        logger.debug("%s: %s", path, text)


def begins_as_dicom(head: bytes) -> bool:
    """Whether the first bytes of a file are DICOM: by the magic, or as a bare data set.

    A file without preamble must begin with an element of group 2 or 8 whose VR and length make
    sense.
    """
    if head[PREAMBLE : PREAMBLE + 4] == b"DICM":
        return True
    if len(head) < 16:
        return False
    group, element, length = struct.unpack("<HHI", head[:8])
    vr = head[4:6].decode("latin-1")
    if head[:4] in (b"\0\x08\0\x05", b"\0\x08\0\x08") and vr == "CS":
        return True  # big-endian
    if group not in (2, 8) or element > 0x1200:
        return False
    if vr in _VR_NAMES.split():
        return True
    if length > 256 or length % 2 or 8 + length + 4 > len(head):
        return False
    follower, next_element = struct.unpack("<HH", head[8 + length : 12 + length])
    return bool(follower == group and next_element > element)


def read_header(path: Path, tags: Sequence[str] | None = None) -> Header:
    """Parse a file up to its pixel data.

    Args:
        path: the file.
        tags: keywords of the elements wanted; None for all.

    Raises:
        FormatError: it is not DICOM or is damaged.
    """
    with reading(path), path.open("rb") as file:
        head = file.read(4096)
        packed = head.startswith(GZIP_MAGIC)
        source: BinaryIO = io.BytesIO(_unpack(path)) if packed else file
        head = source.read(4096) if packed else head
        if not begins_as_dicom(head):
            raise FormatError(f"{path} is not a DICOM file.")
        source.seek(0)
        if DEFLATED.encode() in head[:1024]:
            return _read_deflated(path, source, tags)
        return replace(_parse(path, source, tags), packed=packed)


@lru_cache(maxsize=2)  # frames of one file are asked for one by one
def _unpack(path: Path) -> bytes:
    return unpack_gzip(path, MAX_INFLATED)


def _unpack_head(path: Path, head: bytes) -> bytes:
    """The first bytes of a file, decompressed where it is a gzip file."""
    return peek_gzip(path, len(head)) if head.startswith(GZIP_MAGIC) else head


def _parse(path: Path, file: BinaryIO, tags: Sequence[str] | None) -> Header:
    from pydicom import dcmread

    wanted: list[Any] | None = None if tags is None else _tags_of(tuple(tags))
    dataset = dcmread(file, stop_before_pixels=True, force=True, specific_tags=wanted)
    if not len(dataset) and not len(dataset.file_meta):
        raise FormatError(f"{path}: a DICOM file without a single element.")
    implicit, little = dataset.original_encoding
    stated = str(dataset.file_meta.get("TransferSyntaxUID", "") or "").strip()
    fallback = IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG
    pixels = _locate_pixels(file, bool(little))
    if pixels is not None and not pixels.encapsulated and _holds_items(file, pixels.offset):
        # Fragments under a defined length: against PS3.5 A.4, but met, also under a native syntax.
        pixels = replace(pixels, encapsulated=True)
    return Header(path, dataset, stated or fallback, pixels)


def _holds_items(file: BinaryIO, offset: int) -> bool:
    """Whether two items in a row begin here, the offset table and a fragment."""
    for _ in range(2):
        file.seek(offset)
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"\xfe\xff\x00\xe0":
            return False
        offset += 8 + int.from_bytes(head[4:], "little")
    return True


@cache
def _tags_of(keywords: tuple[str, ...]) -> list[Any]:
    """Keywords as tags, looked up once instead of once per file."""
    from pydicom.tag import Tag

    return [Tag(k) for k in keywords]


def _read_deflated(path: Path, file: BinaryIO, tags: Sequence[str] | None) -> Header:
    """A data set deflated as a whole, inflated with a limit (PS3.5 A.5)."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset

    packed = file.read()
    begin = PREAMBLE + 4 + 12  # behind the first element, FileMetaInformationGroupLength
    start = begin + int.from_bytes(packed[begin - 4 : begin], "little")
    meta = FileMetaDataset(read_dataset(io.BytesIO(packed[begin:start]), False, True))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(packed[start:], MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise FormatError(f"{path}: inflates to more than {MAX_INFLATED >> 30} GiB; refused.")
    wanted: list[Any] | None = None if tags is None else _tags_of(tuple(tags))
    source = io.BytesIO(content)
    dataset = read_dataset(source, False, True, stop_when=_at_pixels, specific_tags=wanted)
    dataset.file_meta = meta
    return Header(path, dataset, DEFLATED, _locate_pixels(source, True), content)


def _at_pixels(tag: Any, _vr: str | None, _length: int) -> bool:
    return int(tag) in (0x7FE00008, 0x7FE00009, 0x7FE00010)


def _locate_pixels(file: BinaryIO, little: bool) -> PixelElement | None:
    """The pixel data element at which parsing stopped; its length is cut to what the file has."""
    order = "<" if little else ">"
    start = file.read(12)
    if len(start) < 8:
        return None
    group, element = struct.unpack(order + "HH", start[:4])
    tag = group << 16 | element
    if not _at_pixels(tag, None, 0):
        return None
    vr: str | None = start[4:6].decode("latin-1")
    if vr not in _PIXEL_VRS:
        # By the bytes, not by the transfer syntax: the two disagree in real files.
        vr = None
        (length,), size = struct.unpack(order + "I", start[4:8]), 8
    else:
        (length,), size = struct.unpack(order + "I", start[8:12]), 12
    offset = file.tell() - len(start) + size
    available = file.seek(0, io.SEEK_END) - offset
    encapsulated = length == _UNDEFINED
    length = available if encapsulated else min(length, available)
    return PixelElement(tag, vr, offset, max(length, 0), encapsulated)


def is_image(header: Header) -> bool:
    """Whether a file holds pixels of an image, and not a segmentation.

    Raises:
        FormatError: it says that it is an image and holds no pixels.
    """
    if header.pixels is None and header.object_name.endswith("Image"):
        raise FormatError(f"{header.path}: a {header.object_name} that ends before its pixels.")
    return header.pixels is not None and header.sop_class not in SEG_CLASSES


def sop_class_of(path: Path, head: bytes) -> str | None:
    """SOP class UID of a file that looks like DICOM, "" if it states none; None for any other."""
    if not path.is_file():
        return None
    if len(head) < PREAMBLE + 4:
        with path.open("rb") as file:
            head = file.read(4096)
    if not begins_as_dicom(_unpack_head(path, head)):
        return None
    try:
        with reading(path):
            return read_header(path, ["SOPClassUID"]).sop_class
    except FormatError:
        return ""


def find_files(folder: Path) -> list[Path]:
    """DICOM files below a folder, in order of name. Links to other folders are not followed.

    Raises:
        FormatError: more than `MAX_FOLDER_FILES` files.
    """
    found: list[Path] = []
    for seen, path in enumerate(walk(folder, MAX_FOLDER_DEPTH)):
        if seen >= MAX_FOLDER_FILES:
            raise FormatError(
                f"{folder} holds more than {MAX_FOLDER_FILES} files; name the folder of one study."
            )
        if path.name.upper() != "DICOMDIR" and _has_dicom_head(path):
            found.append(path)
    return found


def contains_dicom(folder: Path, *, limit: int = 200) -> bool:
    """Whether one of the first `limit` files below a folder is DICOM."""
    for k, path in enumerate(walk(folder, MAX_FOLDER_DEPTH)):
        if k >= limit:
            return False
        if path.name.upper() == "DICOMDIR" or _has_dicom_head(path):
            return True
    return False


def walk(folder: Path, depth: int) -> Iterator[Path]:
    """Files of a folder and of those below it, in order of name; hidden ones are left out."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise FormatError(f"Cannot list {folder}: {(error.strerror or str(error))}.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if depth > 0 and not entry.is_symlink():
                yield from walk(entry, depth - 1)
        elif entry.is_file():
            yield entry


def _has_dicom_head(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return begins_as_dicom(_unpack_head(path, file.read(512)))
    except OSError:
        return False


def files_of_dicomdir(header: Header) -> list[Path]:
    """The files that a DICOMDIR names and that exist below its own folder.

    References out of the folder are refused (CVE-2026-32711 of pydicom is that hole).
    """
    root = header.path.parent.resolve()
    found: list[Path] = []
    for record in header.dataset.get("DirectoryRecordSequence") or ():
        parts = record.get("ReferencedFileID")
        if not parts:
            continue
        names = [parts] if isinstance(parts, str) else [str(p) for p in parts]
        path = root.joinpath(*names).resolve()
        if not path.is_relative_to(root):
            logger.warning("%s: ignored a reference out of its folder", header.path)
        elif path.is_file():
            found.append(path)
    return found
