"""Compressed DICOM frames: one encoded frame in, its stored samples out.

Decoded with imagecodecs (libjpeg-turbo, CharLS, OpenJPEG: BSD), never with GDCM or
pylibjpeg-libjpeg, whose licences or safety records do not fit. The size that a codestream claims is
compared with the header's before anything is decoded.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

RLE = "1.2.840.10008.1.2.5"
DEFLATED_FRAME = "1.2.840.10008.1.2.8.1"
_JPEG_BASELINE = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_HTJ2K = (
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
)
_MPEG_PREFIX = "1.2.840.10008.1.2.4.10"
COMPRESSED = frozenset(
    (
        RLE,
        DEFLATED_FRAME,
        *_JPEG_BASELINE,
        *_JPEG_LOSSLESS,
        *_JPEG_LS,
        *_JPEG_2000,
        *_HTJ2K,
    )
)
_MAX_RLE_SEGMENTS = 15
_LSE = 0xF8  # marker of JPEG-LS preset parameters
_MAX_RESET = 255
_SOF_MARKERS = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), 0xF7))


def is_video_stream(syntax: str) -> bool:
    """Whether a transfer syntax is MPEG-2, MPEG-4 or HEVC: one stream for all frames."""
    tail = syntax.removeprefix(_MPEG_PREFIX)
    return tail != syntax and tail[:1].isdigit()


def find_syntax(encoded: bytes, stated: str) -> str:
    """The transfer syntax that a frame is really in, by its first bytes; `stated` where they do not
    tell or agree. Archives and converters leave the wrong one behind.
    """
    if encoded.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")):
        return stated if stated in (*_JPEG_2000, *_HTJ2K) else _JPEG_2000[1]
    if not encoded.startswith(b"\xff\xd8\xff"):
        return stated
    process = _jpeg_process(encoded)
    kinds = {0xC3: _JPEG_LOSSLESS, 0xF7: _JPEG_LS}.get(process, _JPEG_BASELINE)
    if stated in kinds or (process != 0xF7 and stated in (*_JPEG_BASELINE, *_JPEG_LOSSLESS)):
        return stated if process != 0xC3 or stated in _JPEG_LOSSLESS else kinds[0]
    return kinds[-1]


def decode(
    encoded: bytes,
    *,
    syntax: str,
    shape: tuple[int, int, int],
    itemsize: int,
    photometric: str,
) -> tuple[Array, str]:
    """Decode one frame.

    Args:
        encoded: its bytes, all fragments joined.
        syntax: transfer syntax UID, one of `COMPRESSED`.
        shape: rows, columns, samples per pixel as the header states them.
        itemsize: bytes per sample that the header allocates.
        photometric: the header's photometric interpretation.

    Returns:
        Integers of shape ``(rows, columns, samples)``, and the photometric interpretation they are
        in: some codecs undo the colour transform themselves.

    Raises:
        ValueError: the codestream is damaged, of another size, or of an unsupported kind.
    """
    if syntax == RLE:
        return _decode_rle(encoded, shape, itemsize), photometric
    if syntax == DEFLATED_FRAME:
        return _inflate(encoded, shape, itemsize), photometric
    _check_claim(encoded, shape)
    pixels, photometric = _decode_codestream(encoded, syntax, photometric)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape != shape and pixels.shape == (shape[2], *shape[:2]):
        pixels = np.moveaxis(pixels, 0, -1)  # JPEG-LS without interleaving
    if pixels.shape != shape:
        raise ValueError(f"a frame of {pixels.shape} decoded where the header says {shape}")
    return pixels, photometric


def _decode_codestream(encoded: bytes, syntax: str, photometric: str) -> tuple[Array, str]:
    import imagecodecs

    if syntax in _JPEG_BASELINE or (syntax in _JPEG_LOSSLESS and _jpeg_process(encoded) != 0xC3):
        return _decode_jpeg(encoded, photometric)
    if syntax in _JPEG_LOSSLESS:
        return np.asarray(imagecodecs.jpegsof3_decode(encoded)), photometric
    if syntax in _JPEG_LS:
        _check_presets(encoded)
        return np.asarray(imagecodecs.jpegls_decode(encoded)), photometric
    if syntax in (*_JPEG_2000, *_HTJ2K):
        pixels = np.asarray(imagecodecs.jpeg2k_decode(_skip_jp2_padding(encoded)))
        if photometric in ("YBR_RCT", "YBR_ICT") or _has_component_transform(encoded):
            photometric = "RGB" if photometric.startswith("YBR") else photometric
        return pixels, photometric
    raise ValueError(f"transfer syntax {syntax} is not supported")


def _decode_jpeg(encoded: bytes, photometric: str) -> tuple[Array, str]:
    """Lossy JPEG. What the codestream says of its colours beats the header, which is often wrong.

    Without JFIF or Adobe marker libjpeg takes any three components for YCbCr; the header decides
    then (PS3.5 8.2.1).
    """
    import imagecodecs

    kind, components = _jpeg_colours(encoded)
    if components != 3:
        return np.asarray(imagecodecs.jpeg8_decode(encoded)), photometric
    if kind is None:
        kind = "YCBCR" if photometric.startswith("YBR") else "RGB"
    pixels = imagecodecs.jpeg8_decode(encoded, colorspace=kind, outcolorspace="RGB")
    return np.asarray(pixels), "RGB"


def _jpeg_segments(encoded: bytes) -> list[tuple[int, int, int]]:
    """Markers before the first scan as (marker, start, end) of their payloads."""
    found: list[tuple[int, int, int]] = []
    at = encoded.find(b"\xff\xd8")
    if at < 0:
        raise ValueError("a frame is not a JPEG codestream")
    at += 2
    while at + 4 <= len(encoded):
        if encoded[at] != 0xFF:
            at += 1
            continue
        marker = encoded[at + 1]
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack(">H", encoded[at + 2 : at + 4])
        found.append((marker, at + 4, at + 2 + length))
        if marker == 0xDA:
            break
        at += 2 + length
    return found


def _jpeg_process(encoded: bytes) -> int:
    return next((m for m, _, _ in _jpeg_segments(encoded) if m in _SOF_MARKERS), 0)


def _jpeg_colours(encoded: bytes) -> tuple[str | None, int]:
    """The colour space that the codestream states, None if it does not, and its components."""
    kind, components = None, 0
    for marker, start, end in _jpeg_segments(encoded):
        if marker == 0xE0 and encoded[start : start + 5] == b"JFIF\0":
            kind = kind or "YCBCR"
        elif marker == 0xEE and encoded[start : start + 5] == b"Adobe" and end - start >= 12:
            kind = "YCBCR" if encoded[start + 11] == 1 else "RGB"
        elif marker in _SOF_MARKERS:
            components = encoded[start + 5] if start + 5 < len(encoded) else 0
    return kind, components


def _check_claim(encoded: bytes, shape: tuple[int, int, int]) -> None:
    """Refuse a codestream whose own header claims another size: a damaged file, or a bomb."""
    claim = _claimed_size(encoded)
    if claim is not None and claim != shape[:2]:
        raise ValueError(
            f"a compressed frame claims {claim[0]}×{claim[1]} pixels "
            f"where the header says {shape[0]}×{shape[1]}"
        )


def _claimed_size(encoded: bytes) -> tuple[int, int] | None:
    siz = encoded.find(b"\xff\x4f\xff\x51", 0, 4096)
    if siz >= 0 and len(encoded) >= siz + 24:
        x1, y1, x0, y0 = struct.unpack(">IIII", encoded[siz + 8 : siz + 24])
        return y1 - y0, x1 - x0
    if encoded[:2] != b"\xff\xd8":
        return None
    for marker, start, _ in _jpeg_segments(encoded):
        if marker in _SOF_MARKERS and start + 5 <= len(encoded):
            rows, columns = struct.unpack(">HH", encoded[start + 1 : start + 5])
            return rows, columns
    return None


def _check_presets(encoded: bytes) -> None:
    """Refuse JPEG-LS preset parameters on which CharLS 2.4 was seen to loop for ever.

    Every encoder met writes RESET 64 (ISO 14495-1 C.2.4.1.1); a damaged one of 1280 hung it.
    """
    for marker, start, end in _jpeg_segments(encoded):
        if marker == _LSE and end - start >= 11 and encoded[start] == 1:
            _, low, middle, high, reset = struct.unpack(">5H", encoded[start + 1 : start + 11])
            if reset > _MAX_RESET or not low <= middle <= high:
                raise ValueError("JPEG-LS preset parameters out of range")


def _has_component_transform(encoded: bytes) -> bool:
    """Whether a JPEG 2000 codestream undoes a colour transform itself (COD, SGcod)."""
    cod = encoded.find(b"\xff\x52", 0, 4096)
    return 0 <= cod < len(encoded) - 8 and encoded[cod + 8] == 1


def _skip_jp2_padding(encoded: bytes) -> bytes:
    """From the codestream's start: some writers wrap it in a JP2 box, which DICOM forbids."""
    start = encoded.find(b"\xff\x4f\xff\x51", 0, 4096)
    return encoded[start:] if start > 0 else encoded


def _decode_rle(encoded: bytes, shape: tuple[int, int, int], itemsize: int) -> Array:
    """DICOM's byte-plane PackBits (PS3.5 annex G): one segment per byte of each sample."""
    import imagecodecs

    rows, columns, samples = shape
    count = samples * itemsize
    if len(encoded) < 64:
        raise ValueError("an RLE frame without header")
    num_segments, *offsets = struct.unpack("<16I", encoded[:64])
    if num_segments != count or count > _MAX_RLE_SEGMENTS:
        raise ValueError(f"an RLE frame has {num_segments} segments where {count} are needed")
    bounds = [*offsets[:count], len(encoded)]
    byte_arrays = np.zeros((samples, itemsize, rows * columns), dtype=np.uint8)
    for k in range(count):
        low, high = bounds[k], bounds[k + 1]
        if not 64 <= low <= high <= len(encoded):
            raise ValueError("an RLE frame points outside itself")
        segment = np.frombuffer(imagecodecs.packbits_decode(encoded[low:high]), dtype=np.uint8)
        if segment.size < rows * columns:
            raise ValueError(f"an RLE segment holds {segment.size} of {rows * columns} bytes")
        byte_arrays[k // itemsize, k % itemsize] = segment[: rows * columns]
    values = np.ascontiguousarray(byte_arrays.transpose(2, 0, 1)).view(f">u{itemsize}")
    return values.reshape(rows, columns, samples).astype(f"u{itemsize}")


def _inflate(encoded: bytes, shape: tuple[int, int, int], itemsize: int) -> Array:
    rows, columns, samples = shape
    size = rows * columns * samples * itemsize
    content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(encoded, size)
    if len(content) < size:
        raise ValueError(f"a deflated frame holds {len(content)} of {size} bytes")
    return np.frombuffer(content, dtype=f"<u{itemsize}").reshape(shape)
