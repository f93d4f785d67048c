"""PNG beyond Pillow: 16-bit colour, whole-file checks, recognition of animations."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from limner.colors import color_of
from limner.io.raster.pixels import without_alpha

Array = NDArray[Any]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_EXIF = 1 << 24  # bytes
TEXT_KEY = "limner"  # text chunk with what limner adds to a label map, as JSON


def is_animated(path: Path, head: bytes) -> bool:
    """Whether a PNG announces an animation: chunk ``acTL`` before the pixels.

    Args:
        path: of the file, which is read where a profile or a palette fills its first bytes.
        head: its first bytes.
    """
    if not head.startswith(SIGNATURE):
        return False
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        while len(start := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", start)
            if kind in (b"acTL", b"IDAT"):
                return bool(kind == b"acTL")
            file.seek(size + 4, io.SEEK_CUR)
    return False


def find_chunk(file: IO[bytes], kind: bytes) -> bytes | None:
    """What the first chunk of a kind holds; None where there is none. Other chunks are skipped."""
    position = len(SIGNATURE)
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return None
        size = int.from_bytes(head[:4])
        if head[4:] == kind:
            return file.read(size) if size <= _MOST_EXIF else None
        position += 12 + size


def check_chunks(content: bytes) -> None:
    """Check that all chunks are there and that those with pixels have their checksum.

    Decoders stop when the last row is full and then never see a wrong checksum.

    Raises:
        ValueError: the file ends early, or a checksum is wrong.
    """
    position = len(SIGNATURE)
    while position + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + size
        if end > len(content):
            break
        if kind in (b"IHDR", b"PLTE", b"IDAT"):
            found = zlib.crc32(memoryview(content)[position + 4 : end - 4])
            if found != struct.unpack_from(">I", content, end - 4)[0]:
                raise ValueError(f"wrong checksum in chunk {kind.decode('ascii')}")
        if kind == b"IEND":
            return
        position = end
    raise ValueError("the file ends early")


def decode_deep(content: bytes, path: Path) -> Array:
    """Pixels of a PNG with 16 bits per channel, alpha dropped; Pillow would give 8 bits.

    Args:
        content: the whole file.
        path: for messages.

    Returns:
        uint16 ``(row, column)`` or ``(row, column, 3)``.
    """
    import imagecodecs

    pixels = np.asarray(imagecodecs.png_decode(content))
    return without_alpha(pixels, path) if pixels.shape[-1] in (2, 4) else pixels


def label_colours(count: int) -> Array:
    """Colours of the labels 0, 1, …: black, then those of previews.

    Returns:
        uint8 ``(count, 3)``.
    """
    return np.array([(0, 0, 0), *map(color_of, range(1, count))], dtype=np.uint8)[:count]


def encode(pixels: Array, *, text: str | None = None, colours: Array | None = None) -> bytes:
    """A PNG file.

    Args:
        pixels: uint8 or uint16, ``(row, column)`` or ``(row, column, 3)``.
        text: stored under `TEXT_KEY`; not with 16-bit colour.
        colours: a palette in which grey pixels of a byte are shown; their values stay.
    """
    from PIL import Image as Pillow
    from PIL.PngImagePlugin import PngInfo

    if pixels.ndim == 3 and pixels.dtype == np.uint16:
        import imagecodecs

        return bytes(imagecodecs.png_encode(pixels))
    info = PngInfo()
    if text is not None:
        info.add_itxt(TEXT_KEY, text)
    buffer = io.BytesIO()
    shown = Pillow.fromarray(np.ascontiguousarray(pixels))
    if colours is not None:
        shown.putpalette(colours.tobytes())
    shown.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
