"""Decompression into a buffer of known size, and compression: gzip, zlib and bzip2.

A file never makes more bytes than the buffer holds, so a small header in front of a large
stream is harmless. ISA-L inflates a 150 MB CT in 0.17 s where the standard library takes 1.3 s.
"""

from __future__ import annotations

import bz2
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError

Codec = Literal["gzip", "zlib", "bzip2"]

GZIP_MAGIC = b"\x1f\x8b"
DEFLATE_MAX_RATIO = 1032  # bytes out per byte in, the limit of the deflate format
_CHUNK = 1 << 18  # bytes read at a time
_STEP = 1 << 18  # bytes inflated at a time; 2 MB at a time takes a quarter longer (cache)
_HEADER_BYTES = 348  # of NIfTI-1; less than this behind the data is padding, no second image
_COMPRESSION_LEVEL = 2  # of ISA-L's 0…3; label maps gain nothing from 3

_log = logging.getLogger(__name__)


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


def inflate(
    path: Path,
    buffer: NDArray[np.uint8],
    *,
    codec: Codec,
    start: int = 0,
    skip: int = 0,
    strict: bool = True,
    ends: bool = True,
    trailer: bool = False,
) -> None:
    """Fill a buffer with decompressed bytes of a file, and verify the checksum behind them.

    Args:
        path: the file.
        buffer: one axis, contiguous, writable; it is filled completely.
        codec: how the bytes are packed. Several gzip members in a row count as one stream.
        start: byte of the file at which the stream begins.
        skip: decompressed bytes to pass over first.
        strict: whether foreign bytes behind the stream are an error or only logged.
        ends: whether the stream ends with the buffer. False where more values follow that are not
            wanted: the rest is not read, so that the checksum behind it is not compared.
        trailer: whether more may follow in the stream, such as the tags of FreeSurfer; it is read
            for the checksum.

    Raises:
        FormatError: the stream is damaged, ends early or is followed by something else.
    """
    target = buffer.data
    with path.open("rb") as file:
        file.seek(start)
        stream = _Stream(path, file, codec)
        while skip > 0:
            skip -= len(stream.read(min(skip, _STEP), wanted=len(target) + skip))
        position = 0
        while position < len(target):
            missing = len(target) - position
            piece = stream.read(min(missing, _STEP), wanted=missing)
            target[position : position + len(piece)] = piece
            position += len(piece)
        if trailer:
            stream.read_on()
        elif ends:
            stream.check_end(strict)


def inflated_size(path: Path, *, codec: Codec, start: int = 0) -> int:
    """How many bytes the stream of a file holds, which is read through.

    Raises:
        FormatError: the stream is damaged or ends early.
    """
    with path.open("rb") as file:
        file.seek(start)
        return _Stream(path, file, codec).read_on()


def peek_gzip(path: Path, size: int) -> bytes:
    """The first `size` decompressed bytes of a gzip file; fewer where it is short or damaged."""
    with path.open("rb") as file:
        packed = file.read(size + 4096)  # deflate never grows by more than a few bytes per 64 KiB
    if not packed.startswith(GZIP_MAGIC):
        return b""
    decoder = _decoder("gzip")
    unpacked = b""
    try:
        while len(unpacked) < size and not decoder.eof:
            # In small steps: what came before a damaged place is kept.
            piece = decoder.decompress(packed, min(64, size - len(unpacked)))
            packed = b""
            if not piece and decoder.needs_input:
                break
            unpacked += piece
    except _errors():
        pass
    return unpacked


def unpack_gzip(path: Path, limit: int) -> bytes:
    """All decompressed bytes of a gzip file.

    Raises:
        FormatError: more than `limit` bytes, or the file is damaged or cut off.
    """
    pieces: list[bytes] = []
    size = 0
    with path.open("rb") as file:
        stream = _Stream(path, file, "gzip")
        while piece := stream.read_rest(_STEP):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise FormatError(f"{path}: inflates to more than {limit >> 30} GiB; refused.")
    return b"".join(pieces)


@contextmanager
def gzip_writer(path: Path) -> Iterator[BinaryIO]:
    """A file that compresses what is written to it. The same content gives the same bytes."""
    from isal import igzip

    make: Any = igzip.IGzipFile
    with (
        path.open("wb") as file,
        make("", "wb", _COMPRESSION_LEVEL, fileobj=file, mtime=0) as packed,
    ):
        yield cast(BinaryIO, packed)


def zlib_compress(content: bytes | memoryview) -> bytes:
    """The content as one zlib stream."""
    from isal import isal_zlib

    return bytes(isal_zlib.compress(content, _COMPRESSION_LEVEL))


class _Stream:
    """Decompressed bytes of an open file, member after member."""

    def __init__(self, path: Path, file: BinaryIO, codec: Codec) -> None:
        self._path = path
        self._file = file
        self._codec: Codec = codec
        self._decoder = _decoder(codec)
        self._errors = _errors()
        self._pending = b""

    def read(self, size: int, *, wanted: int) -> bytes:
        """At least one and at most `size` bytes; `wanted` is what is missing, for the message."""
        while not self._decoder.eof or self._next_member():
            piece = self._decode(size, f"its {self._codec} data end {wanted} bytes too early")
            if piece:
                return piece
        raise self._cut_off(f"its {self._codec} data end {wanted} bytes too early")

    def read_on(self) -> int:
        """Read to the end of the stream, and count its bytes."""
        count = 0
        while not self._decoder.eof or self._next_member():
            count += len(self._decode(_STEP, f"the checksum of its {self._codec} data is missing"))
        return count

    def read_rest(self, size: int) -> bytes:
        """At most `size` bytes; none at the end of the stream."""
        while not self._decoder.eof or self._next_member():
            piece = self._decode(size, "its gzip data end too early")
            if piece:
                return piece
        return b""

    def check_end(self, strict: bool) -> None:
        """Read to the end of the stream, so that its checksum is compared, unless much follows."""
        surplus = 0
        missing = f"the checksum of its {self._codec} data is missing"
        while surplus < _HEADER_BYTES and (not self._decoder.eof or self._next_member()):
            surplus += len(self._decode(_HEADER_BYTES - surplus, missing))
        rest = b"" if surplus >= _HEADER_BYTES else self._pending + self._file.read(_CHUNK)
        rest = rest.lstrip(b"\0")  # tapes and some writers fill up with zeros
        if surplus >= _HEADER_BYTES or (rest.startswith(GZIP_MAGIC) and self._codec == "gzip"):
            _log.warning("%s holds more data than its header says; ignored.", self._path)
            return
        if surplus:
            _log.info("%s: %d bytes follow its data; ignored.", self._path, surplus)
        if not rest:
            return
        if strict:
            raise FormatError(
                f"{self._path}: foreign bytes follow its {self._codec} data; the file is damaged. "
                "Copy it again, or read it with strict=False."
            )
        _log.warning("%s: foreign bytes follow its data; ignored.", self._path)

    def _decode(self, size: int, missing: str) -> bytes:
        packed = b""
        if self._decoder.needs_input:
            packed = self._pending or self._file.read(_CHUNK)
            self._pending = b""
            if not packed:
                raise self._cut_off(missing)
        try:
            return self._decoder.decompress(packed, size)
        except self._errors as error:
            raise FormatError(
                f"{self._path}: its {self._codec} data are damaged ({error}). "
                "Copy or download it again."
            ) from error

    def _next_member(self) -> bool:
        """Begin the member behind the one that ended; False if there is none. What follows is then
        `_pending`.
        """
        self._pending = self._decoder.unused_data or self._file.read(_CHUNK)
        if self._codec != "gzip" or not self._pending.startswith(GZIP_MAGIC):
            return False
        self._decoder = _decoder(self._codec)
        return True

    def _cut_off(self, missing: str) -> FormatError:
        return FormatError(f"{self._path} is cut off: {missing}. Copy or download it again.")


def _decoder(codec: Codec) -> _Decoder:
    if codec == "bzip2":
        return bz2.BZ2Decompressor()
    from isal import igzip_lib

    flag = igzip_lib.DECOMP_GZIP if codec == "gzip" else igzip_lib.DECOMP_ZLIB
    return cast(_Decoder, igzip_lib.IgzipDecompressor(flag=flag))


def _errors() -> tuple[type[Exception], ...]:
    from isal import igzip_lib

    isal_error: Any = igzip_lib.IsalError
    return (isal_error, EOFError, OSError, ValueError)
