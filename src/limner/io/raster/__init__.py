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

import json
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_bytes
from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.raster.decoding import decode, read_header
from limner.io.raster.pixels import (
    check_channel,
    choose_channel,
    fitted_geometry,
    labels_from_pixels,
    say_turned,
)
from limner.io.raster.png import (
    SIGNATURE,
    encode,
    is_animated,
    label_colours,
)

Array = NDArray[Any]

NAME = "raster"

_MAX_LABEL = 65535  # of a 16-bit PNG

_LOG = logging.getLogger(__name__)


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file is a single image of a kind read here."""
    if head.startswith(SIGNATURE):
        return not is_animated(path, head)
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
        turned = say_turned(header.orientation, header.rows, header.columns)
        _LOG.warning("%s: EXIF says %s", path, turned)

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


def read_labels(path: Path, *, like: Image | None = None, threshold: float | None = None) -> Labels:
    """Read an image as a label map: grey values, or a palette's indices, are the object ids.

    A colour image is accepted where its channels are equal. A JPEG is accepted only as a
    black-and-white mask, which becomes object 1. With `threshold`, values from there on are.

    Raises:
        FormatError: the values cannot be labels.
        GeometryError: the image has not the shape of `like`.
    """
    header = read_header(path)
    geometry = Geometry.from_spacing((header.rows, header.columns))
    geometry = fitted_geometry(geometry, like, path)
    pixels = decode(path, header, palette_indices=True)
    return labels_from_pixels(
        pixels,
        geometry,
        path,
        names=header.names,
        lossy=header.format == "JPEG",
        colour=True,
        declared=header.is_label_map,
        threshold=threshold,
    )


def write(path: Path, labels: Labels, *, like: Image | None = None) -> None:
    """Write a label map as PNG; names go into a text chunk.

    Ids up to 255 are values of a byte that a palette shows in colours, 0 in black; more are 16-bit
    grey, for which PNG has no palette. Where objects overlap the first of `Labels.order` is
    written. A PNG holds no geometry.

    Raises:
        FormatError: a volume, an id above 65535, or a suffix other than ``.png``.
    """
    if path.suffix.lower() != ".png":
        raise FormatError(
            f"{path}: {path.suffix or 'no suffix'} is not written, since it may change labels; "
            "use .png."
        )
    _refuse_stack(path, labels.geometry)
    if max(labels.ids, default=0) > _MAX_LABEL:
        raise FormatError(
            f"{path}: a PNG holds object ids up to {_MAX_LABEL}, not {max(labels.ids)}; "
            "use .tif or .nii.gz, or number the objects anew."
        )
    names = json.dumps({"names": {str(k): v for k, v in labels.names.items()}})
    pixels = np.asarray(labels.to_array())
    colours = label_colours(max(2, int(pixels.max()) + 1)) if pixels.dtype == np.uint8 else None
    atomic_bytes(path, encode(pixels, text=names, colours=colours))


def check_writable(path: Path, like: Image) -> None:
    """Refuse volumes and videos.

    Raises:
        FormatError: as for `write`.
    """
    _refuse_stack(path, like.geometry)


def _refuse_stack(path: Path, geometry: Geometry) -> None:
    if geometry.ndim != 2:
        raise FormatError(
            f"{path}: a PNG holds one picture, not labels of shape {geometry.shape}; "
            "use .tif or .nii.gz."
        )


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
