"""Single images: PNG, JPEG, BMP, WebP and one-frame GIF, decoded by Pillow and imagecodecs.

What is kept and what is not:

* Values are as stored: 16 bit stays 16 bit, colour included; 1-bit images are 0 and 1, and 2- or
  4-bit grey is not stretched to 0…255. CMYK and YCbCr become RGB, and so does a palette
  unless all its colours are grey (for labels, `read_labels` keeps the palette's indices).
* Alpha is dropped, the colours below it kept; if transparency varies, a warning is logged.
* Pixels are not turned by EXIF orientation, because masks are drawn on the stored grid. The
  orientation is in the metadata, and a warning is logged.
* No image format here states a physical pixel size (PNG's ``pHYs`` and JPEG's density are for
  printing), so the spacing is unknown.
* Animated images belong to `limner.io.video`.
"""

from __future__ import annotations

import io
import json
import logging
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_bytes
from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io._errors import one_line
from limner.io._inflate import DEFLATE_MAX_RATIO
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.raster.pixels import (
    check_channel,
    check_image_size,
    check_not_empty,
    check_packed,
    choose_channel,
    fitted_geometry,
    labels_from_pixels,
    without_alpha,
)
from limner.io.raster.png import (
    SIGNATURE,
    TEXT_KEY,
    check_chunks,
    decode_deep,
    encode,
    is_animated,
)

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Array = NDArray[Any]

NAME = "raster"

_EXIF_ORIENTATION = 0x0112
_MAX_LABEL = 65535  # of a 16-bit PNG
# The fewest bits a pixel takes: Huffman-coded JPEG spends one on a block of 8×8; deflate one byte
# on 1032, and PNG has pixels of a single bit.
_LEAST_BITS = {"JPEG": 1 / 64, "PNG": 1 / DEFLATE_MAX_RATIO}
_GREY = ("1", "L", "I;16", "I;16L", "I;16B", "I", "F")

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

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, columns and, if any, channels."""
        grid = (self.rows, self.columns)
        return grid if self.channels is None else (*grid, self.channels)


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file is a single image of a kind read here."""
    if head.startswith(SIGNATURE):
        return not is_animated(head)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return not is_animated_webp(head)
    return head.startswith(b"\xff\xd8\xff") or (head.startswith(b"BM") and _is_bitmap(head))


def is_animated_webp(head: bytes) -> bool:
    """Whether an extended WebP has its animation flag set."""
    return head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & 0x02)


def read(
    path: Path, *, channel: int | None = None, series: str | None = None, strict: bool = True
) -> Image:
    """Open an image; the pixels are decoded at first use.

    Args:
        path: the file.
        channel: of a colour image, the one to take as grey.
        series, strict: not used; an image is one thing and is never half read.

    Raises:
        FormatError: not an image, damaged, or too large for this machine.
    """
    header = read_header(path)
    check_channel(channel, header.channels, path)
    if header.orientation != 1:
        _LOG.warning(
            "%s: EXIF says the picture should be turned (orientation %d); pixels stay as stored.",
            path,
            header.orientation,
        )

    def load() -> Array:
        return choose_channel(decode(path, header), channel, header.channels)

    return Image(
        load,
        Geometry.from_spacing((header.rows, header.columns)),
        kind="image",
        dtype=header.dtype,
        num_channels=None if channel is not None else header.channels,
        path=path,
        format=NAME,
        metadata={
            "picture_format": header.format,
            "mode": header.mode,
            "exif_orientation": header.orientation,
        },
    )


def read_labels(path: Path, *, like: Image | None = None) -> Labels:
    """Read an image as a label map: grey values, or a palette's indices, are the object ids.

    A colour image is accepted where its channels are equal. A JPEG is accepted only as a
    black-and-white mask, which becomes object 1.

    Raises:
        FormatError: the values cannot be labels.
        GeometryError: the image has not the shape of `like`.
    """
    header = read_header(path)
    geometry = Geometry.from_spacing((header.rows, header.columns))
    geometry = fitted_geometry(geometry, like, path)
    pixels = decode(path, header, palette_indices=True)
    return labels_from_pixels(
        pixels, geometry, path, names=header.names, lossy=header.format == "JPEG"
    )


def write(path: Path, labels: Labels, *, like: Image | None = None) -> None:
    """Write a label map as PNG, 8 bit where the ids allow it, else 16; names go into a text chunk.

    Where objects overlap the higher id wins. A PNG holds no geometry.

    Raises:
        FormatError: a volume, an id above 65535, or a suffix other than ``.png``.
    """
    if path.suffix.lower() != ".png":
        raise FormatError(
            f"{path}: {path.suffix or 'no suffix'} is not written, since it may change labels; "
            "use .png."
        )
    if labels.geometry.ndim != 2:
        raise FormatError(
            f"{path}: a PNG holds one picture, not labels of shape {labels.geometry.shape}; "
            "use .tif or .nii.gz."
        )
    if max(labels.ids, default=0) > _MAX_LABEL:
        raise FormatError(
            f"{path}: a PNG holds object ids up to {_MAX_LABEL}, not {max(labels.ids)}; "
            "use .tif or .nii.gz, or number the objects anew."
        )
    names = json.dumps({"names": {str(k): v for k, v in labels.names.items()}})
    pixels = np.asarray(labels.to_array())
    atomic_bytes(path, encode(pixels, text=names if labels.names else None))


def write_image(path: Path, image: Image) -> None:
    """Write a 2D image of 8 or 16 bits, grey or RGB, as PNG.

    Raises:
        FormatError: a volume, another pixel type, or a suffix other than ``.png``.
    """
    if path.suffix.lower() != ".png":
        raise FormatError(f"{path}: pictures are written as .png, not {path.suffix!r}.")
    fits = image.geometry.ndim == 2 and image.dtype in (np.uint8, np.uint16)
    if not fits or image.num_channels not in (None, 3):
        raise FormatError(
            f"{path}: a PNG holds one grey or RGB picture of uint8 or uint16, not {image.dtype} of "
            f"shape {image.shape}; use .tif."
        )
    atomic_bytes(path, encode(np.asarray(image.array)))


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
    flat = pillow.getpalette("RGB") or []
    return flat[0::3] == flat[1::3] == flat[2::3]


def _through_palette(pillow: ImageFile, indices: Array, channels: int | None) -> Array:
    colours = np.zeros((256, 3), dtype=np.uint8)  # an index beyond the palette is black
    flat = np.asarray(pillow.getpalette("RGB") or [], dtype=np.uint8)
    colours[: flat.size // 3] = flat.reshape(-1, 3)
    return colours[indices] if channels else colours[:, 0][indices]


def _orientation(pillow: ImageFile) -> int:
    try:
        value = pillow.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # damaged EXIF says nothing about the pixels
        _LOG.debug("%s: unreadable EXIF (%s)", pillow.filename, error)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _stored_names(pillow: ImageFile) -> dict[int, str]:
    text = pillow.info.get(TEXT_KEY)
    if not isinstance(text, str):
        return {}
    try:
        return {int(k): str(v) for k, v in json.loads(text)["names"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_bitmap(head: bytes) -> bool:
    return len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in (
        12,
        40,
        52,
        56,
        64,
        108,
        124,
    )
