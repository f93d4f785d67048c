"""Decoding of single images by Pillow and imagecodecs: headers, pixels, palettes, names."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.io._errors import one_line
from limner.io._inflate import DEFLATE_MAX_RATIO
from limner.io.raster.pixels import check_image_size, check_not_empty, check_packed, without_alpha
from limner.io.raster.png import SIGNATURE, TEXT_KEY, check_chunks, decode_deep, find_chunk

if TYPE_CHECKING:
    from PIL.Image import Exif
    from PIL.ImageFile import ImageFile

Array = NDArray[Any]

_EXIF_ORIENTATION = 0x0112
# The fewest bits a pixel takes: Huffman-coded JPEG spends one on a block of 8×8; deflate one byte
# on 1032, and PNG has pixels of a single bit.
_LEAST_BITS = {"JPEG": 1 / 64, "PNG": 1 / DEFLATE_MAX_RATIO}
_GREY = ("1", "L", "I;16", "I;16L", "I;16B", "I", "F")

HUGE_PIXELS = 1 << 26
_JPEG_END = b"\xff\xd9"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image say.

    Attributes:
        rows, columns: of the stored grid.
        channels: None for grey, 3 for colour (alpha not counted).
        dtype: of the pixels as `decode` gives them.
        mode: Pillow's name of the stored pixels.
        bits: per stored sample where the file says (PNG), else None.
        format: ``"PNG"``, ``"JPEG"``, ``"BMP"``, ``"WEBP"`` or ``"GIF"``.
        orientation: EXIF orientation 1…8, 1 is upright.
        names: object names that limner wrote into the file.
        is_label_map: whether the values are meant as labels: a palette, or limner wrote them.
        transparent: whether a colour stands for transparency.
    """

    rows: int
    columns: int
    channels: int | None
    dtype: np.dtype[Any]
    mode: str
    bits: int | None
    format: str
    orientation: int
    names: dict[int, str]
    is_label_map: bool
    transparent: bool = False

    @property
    def is_huge(self) -> bool:
        """Whether the copies that Pillow makes, of four bytes a pixel, are too much."""
        plain = self.mode in ("L", "RGB") and self.bits in (None, 8) and not self.transparent
        big = self.rows * self.columns >= HUGE_PIXELS
        return big and plain and self.format in ("PNG", "JPEG")

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, columns and, if any, channels."""
        grid = (self.rows, self.columns)
        return grid if self.channels is None else (*grid, self.channels)


def read_header(path: Path) -> Header:
    """The facts about an image, without decoding it.

    Raises:
        FormatError: not an image that is read here, or too large.
    """
    check_not_empty(path)
    try:
        with path.open("rb") as file:
            prefix = file.read(33)
            file.seek(0)
            with open_image(file, path) as pillow:
                check_image_size(pillow.size[::-1], 1, path)
                header = _header_of(pillow, prefix)
            size = file.seek(0, io.SEEK_END)
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # a decoder may raise anything on bytes made by others
        raise FormatError(f"{path}: not a readable picture ({one_line(error)}).") from error
    check_image_size(header.shape, header.dtype.itemsize, path)
    if header.format in _LEAST_BITS:
        check_packed(header.rows * header.columns, size, _LEAST_BITS[header.format], path)
    return header


def decode(path: Path, header: Header, *, palette_indices: bool = False) -> Array:
    """The pixels of the image that `header` was read from.

    Args:
        path: the file.
        header: from `read_header`.
        palette_indices: give a palette's indices ``(row, column)`` instead of its colours.

    Returns:
        ``(row, column)`` or ``(row, column, 3)`` of ``header.dtype``.

    Raises:
        FormatError: the file is truncated or damaged; never half an image.
    """
    try:
        content = path.read_bytes()
        if header.format == "PNG":
            check_chunks(content)
        if header.bits == 16 and header.mode not in _GREY:
            pixels = decode_deep(content, path)
        elif header.is_huge:
            pixels = _decode_in_place(content, header)
        else:
            with open_image(io.BytesIO(content), path) as pillow:
                pillow.load()
                pixels = _pixels_of(pillow, header, path, palette_indices)
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on bytes made by others
        raise FormatError(
            f"{path}: the picture is damaged or incomplete ({one_line(error)})."
        ) from error
    if pixels.shape[:2] != (header.rows, header.columns):
        raise FormatError(f"{path}: {pixels.shape[:2]} pixels do not match the file's header.")
    return pixels


def _decode_in_place(content: bytes, header: Header) -> Array:
    """Pixels of a huge image without any copy of them."""
    import imagecodecs

    if header.format == "PNG":
        return np.asarray(imagecodecs.png_decode(content))
    if not content.rstrip(b"\0").endswith(_JPEG_END):
        raise ValueError("the file ends early")
    return np.asarray(imagecodecs.jpeg8_decode(content))


def open_image(file: Any, path: Path) -> ImageFile:
    """Open with the one Pillow plugin that the first bytes ask for.

    Not with ``PIL.Image.open``: it would try every installed plugin, some of which start other
    programs, and its size check is a process-wide setting that refuses honest large images. Sizes
    are checked by `check_image_size` instead.
    """
    from PIL import (
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        WebPImagePlugin,
    )

    head = file.read(16)
    file.seek(0)
    if head.startswith(SIGNATURE):
        return PngImagePlugin.PngImageFile(file, path.name)
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile(file, path.name)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(file, path.name)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile(file, path.name)
    if head.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile(file, path.name)
    raise FormatError(f"{path}: not a PNG, JPEG, BMP, WebP or GIF picture, whatever its name says.")


def _header_of(pillow: ImageFile, prefix: bytes) -> Header:
    mode, bits = pillow.mode, None
    if prefix.startswith(SIGNATURE):
        bits, kind = prefix[24], prefix[25]
        if bits == 16 and kind in (2, 4, 6):  # Pillow would cut these to 8 bits
            mode = {2: "RGB", 4: "LA", 6: "RGBA"}[kind]
    deep = bits == 16 or mode.startswith("I;16")
    dtype = {"I": np.int32, "F": np.float32}.get(mode, np.uint16 if deep else np.uint8)
    columns, rows = pillow.size
    return Header(
        rows=rows,
        columns=columns,
        channels=None if mode in (*_GREY, "LA", "La") or _has_grey_palette(pillow) else 3,
        dtype=np.dtype(dtype),
        mode=mode,
        bits=bits,
        format=str(pillow.format),
        orientation=_orientation(pillow),
        names=_stored_names(pillow),
        transparent="transparency" in pillow.info,
        is_label_map=pillow.mode in ("P", "PA") or TEXT_KEY in pillow.info,
    )


def _pixels_of(pillow: ImageFile, header: Header, path: Path, palette_indices: bool) -> Array:
    mode = pillow.mode
    if mode in ("P", "PA"):
        values = np.asarray(pillow if mode == "P" else pillow.getchannel(0))
        return (
            values.copy() if palette_indices else _through_palette(pillow, values, header.channels)
        )
    if mode in _GREY:
        pixels = np.array(pillow)
        if header.bits in (2, 4) and mode == "L":  # Pillow stretched them to 0…255
            pixels //= 85 if header.bits == 2 else 17
        return pixels.astype(header.dtype, copy=False)
    if mode in ("LA", "RGBA"):
        return without_alpha(np.asarray(pillow), path)
    return np.array(pillow if mode == "RGB" else pillow.convert("RGB"))


def _has_grey_palette(pillow: ImageFile) -> bool:
    """Whether a palette holds nothing but grey, so that the image is a grey one."""
    if pillow.mode not in ("P", "PA"):
        return False
    if pillow.palette is None:
        return True
    order, flat = pillow.palette.getdata()  # not `getpalette`, which decodes the picture
    step = len(order)  # "RGB", "BGRX"
    return flat[0::step] == flat[1::step] == flat[2::step]


def _through_palette(pillow: ImageFile, indices: Array, channels: int | None) -> Array:
    colours = np.zeros((256, 3), dtype=np.uint8)  # an index beyond the palette is black
    flat = np.asarray(pillow.getpalette("RGB") or [], dtype=np.uint8)
    colours[: flat.size // 3] = flat.reshape(-1, 3)
    return colours[indices] if channels else colours[:, 0][indices]


def _orientation(pillow: ImageFile) -> int:
    try:
        exif = pillow.getexif() if pillow.format != "PNG" else _png_exif(pillow)
        value = exif.get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # damaged EXIF says nothing about the pixels
        _LOG.debug("%s: unreadable EXIF (%s)", pillow.filename, error)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_exif(pillow: ImageFile) -> Exif:
    """EXIF of a PNG; Pillow would decode the pixels to see whether some follows them."""
    from PIL.Image import Image as PillowImage

    if pillow.fp is not None and not {"exif", "Raw profile type exif"} & pillow.info.keys():
        place = pillow.fp.tell()
        found = find_chunk(pillow.fp, b"eXIf")
        pillow.fp.seek(place)
        if found is not None:
            pillow.info["exif"] = b"Exif\0\0" + found
    return PillowImage.getexif(pillow)


def _stored_names(pillow: ImageFile) -> dict[int, str]:
    text = pillow.info.get(TEXT_KEY)
    if not isinstance(text, str):
        return {}
    try:
        return {int(k): str(v) for k, v in json.loads(text)["names"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
