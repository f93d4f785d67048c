"""Stored samples of the frames of one DICOM file, read one frame at a time."""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.io.dicom import _codecs
from limner.io.dicom._files import EXPLICIT_BIG, NATIVE, Header, format_errors
from limner.io.dicom._stream import StreamFrames

logger = logging.getLogger(__name__)
Array = NDArray[Any]

_FLOAT_TAG, _DOUBLE_TAG = 0x7FE00008, 0x7FE00009
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_MAX_SIDE = 1 << 16
PALETTE = "PALETTE COLOR"


@dataclass(frozen=True)
class PixelFormat:
    """How the samples of a file are stored (PS3.3 C.7.6.3).

    Attributes:
        rows: of a frame.
        columns: of a frame.
        samples: per pixel: 1 or 3 (4 in retired objects).
        allocated: bits per sample in memory: 1, 8, 16, 32 or 64.
        stored: bits of it that carry the value.
        high_bit: the highest of them.
        signed: two's complement.
        is_float: float or double pixel data.
        photometric: photometric interpretation, upper case.
        planar: colour by plane instead of by pixel.
        num_frames: as stated, at least 1.
    """

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    is_float: bool
    photometric: str
    planar: bool
    num_frames: int

    @classmethod
    def from_header(cls, header: Header) -> PixelFormat:
        """Read and check the image pixel module.

        Raises:
            FormatError: there are no pixels, or a value is missing or impossible.
        """
        if header.pixels is None:
            raise FormatError(
                f"{header.path} holds no pixels; it says it is: {header.object_name}."
                f"{_advice(header)}"
            )
        rows, columns = (_integer(header, k) for k in ("Rows", "Columns"))
        is_float = header.pixels.tag in (_FLOAT_TAG, _DOUBLE_TAG)
        samples = _integer(header, "SamplesPerPixel", 1)
        width = {_FLOAT_TAG: 32, _DOUBLE_TAG: 64}.get(header.pixels.tag, 16)
        allocated = width if is_float else _integer(header, "BitsAllocated")
        stored = allocated if is_float else _integer(header, "BitsStored", allocated)
        num_frames = _integer(header, "NumberOfFrames", 1) or 1
        photometric = header.text("PhotometricInterpretation").upper() or "MONOCHROME2"
        if not (0 < rows <= _MAX_SIDE and 0 < columns <= _MAX_SIDE and num_frames > 0):
            raise FormatError(
                f"{header.path}: claims {num_frames} frames of {rows}×{columns} pixels."
            )
        if allocated not in (1, 8, 16, 32, 64) or not 1 <= stored <= allocated:
            raise FormatError(
                f"{header.path}: {stored} bits stored in {allocated} allocated are not supported; "
                "1, 8, 16, 32 and 64 allocated are."
            )
        if samples not in (1, 3):
            raise FormatError(f"{header.path}: {samples} samples per pixel; 1 and 3 are supported.")
        return cls(
            rows=rows,
            columns=columns,
            samples=samples,
            allocated=allocated,
            stored=stored,
            high_bit=_integer(header, "HighBit", stored - 1),
            signed=_integer(header, "PixelRepresentation", 0) == 1 and not is_float,
            is_float=is_float,
            photometric=photometric,
            planar=samples > 1 and _integer(header, "PlanarConfiguration", 0) == 1,
            num_frames=num_frames,
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the samples in memory."""
        if self.is_float:
            return np.dtype(f"f{self.allocated // 8}")
        return np.dtype(f"{'i' if self.signed else 'u'}{max(self.allocated // 8, 1)}")

    @property
    def stored_range(self) -> tuple[int, int]:
        """The lowest and the highest integer that can be stored."""
        half = 1 << (self.stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    @property
    def is_subsampled(self) -> bool:
        """Whether uncompressed chroma has half the columns (YBR_FULL_422)."""
        return self.samples == 3 and self.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422")

    @property
    def frame_bits(self) -> int:
        """Bits of one uncompressed frame."""
        samples = 2 if self.is_subsampled else self.samples
        return self.rows * self.columns * samples * self.allocated


class FrameReader:
    """Reads frames of one file on demand; holds no open file.

    Args:
        header: of the file.
        pixel_format: its image pixel module.

    Raises:
        FormatError: the file is too short for the frames it claims, or its compression is
            unsupported.
    """

    def __init__(self, header: Header, pixel_format: PixelFormat) -> None:
        assert header.pixels is not None
        self.header = header
        self.format = pixel_format
        self._pixels = header.pixels
        self._fragments: list[list[tuple[int, int]]] | None = None
        self._stream: StreamFrames | None = None
        self._syntax = header.syntax  # until the first frame shows another
        if self._pixels.encapsulated:
            if not self.is_stream and self._syntax not in (*_codecs.COMPRESSED, *NATIVE):
                raise FormatError(f"{header.path}: {_syntax_name(self._syntax)} is not supported.")
            # Even an empty frame costs an item header of 8 bytes.
            if not self.is_stream and pixel_format.num_frames * 8 > self._pixels.length:
                self._refuse(self._pixels.length // 8)
        else:
            held = self._pixels.length * 8 // pixel_format.frame_bits
            if held < pixel_format.num_frames and not self._is_bare_codestream():
                self._refuse(held)

    def _is_bare_codestream(self) -> bool:
        """Whether the only frame lies there compressed without the items that DICOM wants around
        it; it is read as if they were there.
        """
        if self.format.num_frames > 1:
            return False
        with self.header.open() as file:
            file.seek(self._pixels.offset)
            start = file.read(4)
        if not start.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51")):
            return False
        self._fragments = [[(self._pixels.offset, self._pixels.length)]]
        self._pixels = replace(self._pixels, encapsulated=True)
        return True

    @property
    def is_stream(self) -> bool:
        """Whether all frames are one video stream, best read in order."""
        return _codecs.is_video_stream(self.header.syntax)

    def _refuse(self, held: int) -> None:
        f = self.format
        raise FormatError(
            f"{self.header.path}: claims {f.num_frames} frames of {f.rows}×{f.columns} pixels and "
            f"has bytes for {held}; the file is truncated."
        )

    @property
    def is_plain(self) -> bool:
        """Whether a frame's bytes are its values: uncompressed, little-endian, no spare bits."""
        f = self.format
        return (
            not self._pixels.encapsulated
            and self.header.syntax != EXPLICIT_BIG
            and (f.is_float or f.stored == f.allocated)
            and f.samples == 1
            and f.allocated >= 8
        )

    def frame(self, index: int) -> tuple[Array, str]:
        """Stored samples of frame `index`.

        Returns:
            ``(rows, columns, samples)`` of `PixelFormat.dtype`, sign and spare bits put right, and
            the photometric interpretation they are in.
        """
        with format_errors(self.header.path), self.header.open() as file:
            if self._pixels.encapsulated:
                samples, photometric = self._decode_compressed(file, index)
            else:
                samples, photometric = self._native(file, index), self.format.photometric
                if self.format.is_subsampled:
                    photometric = "YBR_FULL"
            return self._true_values(samples), photometric

    def read_into(self, index: int, target: Array) -> None:
        """Read a frame for which `is_plain` holds straight into contiguous `target`."""
        size = self.format.frame_bits // 8
        with format_errors(self.header.path), self.header.open() as file:
            file.seek(self._pixels.offset + index * size)
            content: Any = target.reshape(-1).view(np.uint8)
            if file.readinto(content) != size:  # type: ignore[attr-defined]
                raise FormatError(f"{self.header.path}: ends inside frame {index}.")

    def _native(self, file: BinaryIO, index: int) -> Array:
        f = self.format
        start_bit = index * f.frame_bits
        first, last = start_bit // 8, -(-(start_bit + f.frame_bits) // 8)
        file.seek(self._pixels.offset + first)
        content = file.read(last - first)
        if len(content) < last - first:
            raise FormatError(f"{self.header.path}: ends inside frame {index}.")
        if f.allocated == 1:
            bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
            flat = bits[start_bit % 8 : start_bit % 8 + f.frame_bits]
        else:
            flat = self._in_order(content, first)
        if f.is_subsampled:
            return _upsample_chroma(flat, f.rows, f.columns)
        if f.planar:
            return np.moveaxis(flat.reshape(f.samples, f.rows, f.columns), 0, -1)
        return flat.reshape(f.rows, f.columns, f.samples)

    def _in_order(self, content: bytes, first: int) -> Array:
        """Bytes as numbers of this machine's byte order."""
        big = self.header.syntax == EXPLICIT_BIG
        kind = "f" if self.format.is_float else "u"
        size = self.format.allocated // 8
        if big and size == 1 and self._pixels.vr == "OW":
            # 8-bit samples written as big-endian 16-bit words: each pair is swapped (PS3.5 A.3).
            start, stop = first % 2, first % 2 + len(content)
            with self.header.open() as file:
                file.seek(self._pixels.offset + first - start)
                words = np.frombuffer(file.read(stop + stop % 2), dtype=">u2")
            return words.astype("<u2").view(np.uint8)[start:stop]
        return np.frombuffer(content, dtype=f"{'>' if big else '<'}{kind}{size}").astype(
            f"{kind}{size}", copy=False
        )

    def _from_stream(self, file: BinaryIO, index: int) -> Array:
        if self._stream is None:
            content = b""
            for offset, length in _item_table(file, self._pixels.offset, self.header.path)[1:]:
                file.seek(offset)
                content += file.read(length)
            size = (self.format.rows, self.format.columns)
            self._stream = StreamFrames(content, size, self.header.path)
        return self._stream.frame(index)

    def _decode_compressed(self, file: BinaryIO, index: int) -> tuple[Array, str]:
        f = self.format
        if self.is_stream:
            return self._from_stream(file, index), "RGB"
        if self._fragments is None:
            items = _item_table(file, self._pixels.offset, self.header.path)
            self._fragments = _frames_of_items(file, items, f.num_frames, self.header)
        encoded = b""
        for offset, length in self._fragments[index]:
            file.seek(offset)
            encoded += file.read(length)
        self._note_syntax(encoded)
        return _codecs.decode(
            encoded,
            syntax=self._syntax,
            shape=(f.rows, f.columns, f.samples),
            itemsize=max(f.allocated // 8, 1),
            photometric=f.photometric,
        )

    def _note_syntax(self, encoded: bytes) -> None:
        """Go by what a frame is, where the header states another transfer syntax."""
        found = _codecs.find_syntax(encoded, self._syntax)
        if found not in _codecs.COMPRESSED:
            raise FormatError(
                f"{self.header.path}: its pixels are compressed in an unknown way; the header says "
                f"{_syntax_name(found)}."
            )
        if found != self._syntax:
            logger.warning(
                "%s: the header says %s, the pixels are %s and read as such.",
                self.header.path,
                _syntax_name(self._syntax),
                _syntax_name(found),
            )
            self._syntax = found

    def _true_values(self, samples: Array) -> Array:
        """Cut spare bits (old overlays live there) and extend the sign."""
        f = self.format
        if f.is_float or f.allocated == 1:
            return samples
        unsigned = samples.astype(f"u{f.allocated // 8}", copy=False)
        if f.stored == f.allocated:
            return unsigned.view(f.dtype)
        # A codec returns the value itself, so its bits begin at 0 whatever HighBit says.
        spare = (
            0
            if self._pixels.encapsulated and self._syntax != _codecs.RLE
            else (max(f.high_bit + 1 - f.stored, 0))
        )
        left = f.allocated - f.stored - spare
        shifted = np.left_shift(unsigned, unsigned.dtype.type(max(left, 0))).view(f.dtype)
        return np.asarray(np.right_shift(shifted, f.dtype.type(f.allocated - f.stored)))


def _upsample_chroma(flat: Array, rows: int, columns: int) -> Array:
    """YBR_FULL_422 as stored, Y Y Cb Cr per two pixels of a row, to one triple per pixel."""
    quads = flat.reshape(-1, 4)
    pixels = np.empty((quads.shape[0] * 2, 3), dtype=flat.dtype)
    pixels[0::2, 0], pixels[1::2, 0] = quads[:, 0], quads[:, 1]
    pixels[:, 1:] = np.repeat(quads[:, 2:], 2, axis=0)
    return pixels.reshape(rows, columns, 3)


def _item_table(file: BinaryIO, start: int, path: Path) -> list[tuple[int, int]]:
    """(offset, length) of every item of encapsulated pixel data, offset table first."""
    items: list[tuple[int, int]] = []
    file.seek(start)
    while len(head := file.read(8)) == 8:
        group, element, length = struct.unpack("<HHI", head)
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM:
            raise FormatError(f"{path}: the compressed pixel data are damaged.")
        items.append((file.tell(), length))
        file.seek(length, 1)
    return items


def _frames_of_items(
    file: BinaryIO, items: list[tuple[int, int]], num_frames: int, header: Header
) -> list[list[tuple[int, int]]]:
    """Which fragments make up each frame (PS3.5 A.4)."""
    if not items:
        raise FormatError(f"{header.path}: the compressed pixel data are empty.")
    table, fragments = items[0], items[1:]
    if len(fragments) == num_frames:
        return [[f] for f in fragments]
    if num_frames == 1 and fragments:
        return [fragments]
    starts = _table_starts(file, table, fragments, num_frames)
    if starts is None:
        starts = _codestream_starts(file, fragments)
    if len(starts) < num_frames:
        raise FormatError(
            f"{header.path}: claims {num_frames} frames and holds {len(starts)}; "
            "the file is truncated."
        )
    bounds = [*starts, len(fragments)]
    return [fragments[bounds[k] : bounds[k + 1]] for k in range(num_frames)]


def _table_starts(
    file: BinaryIO, table: tuple[int, int], fragments: list[tuple[int, int]], num_frames: int
) -> list[int] | None:
    """First fragment of each frame by the basic offset table, None where that cannot be used."""
    if table[1] != num_frames * 4 or not fragments:
        return None
    file.seek(table[0])
    offsets = struct.unpack(f"<{num_frames}I", file.read(table[1]))
    origin = fragments[0][0] - 8
    index = {offset - 8 - origin: k for k, (offset, _) in enumerate(fragments)}
    starts = [index.get(offset) for offset in offsets]
    found = [s for s in starts if s is not None]
    return found if len(found) == num_frames and sorted(set(found)) == found else None


def _codestream_starts(file: BinaryIO, fragments: list[tuple[int, int]]) -> list[int]:
    """Fragments that begin a JPEG, JPEG-LS or JPEG 2000 codestream."""
    starts = []
    for k, (offset, _) in enumerate(fragments):
        file.seek(offset)
        if file.read(2) in (b"\xff\xd8", b"\xff\x4f"):
            starts.append(k)
    return starts


def _integer(header: Header, keyword: str, default: int | None = None) -> int:
    value = header.dataset.get(keyword)
    if value is None or value == "":
        if default is None:
            raise FormatError(f"{header.path}: the header lacks {keyword}; the file is damaged.")
        return default
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{header.path}: {keyword} is {value!r}, not an integer.") from error


def _syntax_name(syntax: str) -> str:
    from pydicom.uid import UID

    name = UID(syntax).name
    return f"compression {name}" if name != syntax else f"transfer syntax {syntax}"


def _advice(header: Header) -> str:
    from limner.io.dicom._files import RTSTRUCT_CLASS, SEG_CLASSES

    if header.sop_class in (RTSTRUCT_CLASS, *SEG_CLASSES):
        return " Read it with read_labels."
    return ""
