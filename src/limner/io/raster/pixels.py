"""Size limits, channel choice and label maps, shared by readers of 2D images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError, GeometryError
from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.limits import check_allocation
from limner.label_values import channels_of_values, labels_of_values

Array = NDArray[Any]

# A compressed image of a few kilobytes can claim any size. A pathology slide at full resolution
# has some 10⁹ pixels and comes tiled, as TIFF; nothing in medicine is larger in one piece.
MAX_IMAGE_PIXELS = 1 << 30

# A mask that went through JPEG: everything within this of black or of its white (8 bit).
_JPEG_RINGING = 40
_JPEG_CLEAN_SHARE = 0.98

_LOG = logging.getLogger(__name__)


def check_image_size(shape: Sequence[int], itemsize: int, path: Path) -> None:
    """Refuse a compressed image by its header, before anything is decoded.

    Args:
        shape: rows, columns and, if any, channels.
        itemsize: bytes per value.
        path: for the message.

    Raises:
        FormatError: more than `MAX_IMAGE_PIXELS` pixels, none, or more than the memory.
    """
    pixels = prod(int(n) for n in shape[:2])
    if pixels < 1:
        raise FormatError(f"{path}: the header claims {shape[0]}×{shape[1]} pixels; the file is "
                          "damaged.")  # fmt: skip
    if pixels > MAX_IMAGE_PIXELS:
        raise FormatError(
            f"{path}: the header claims {shape[0]}×{shape[1]} pixels; one picture may have "
            f"{MAX_IMAGE_PIXELS:,}. The file is damaged, or save it as a tiled TIFF and crop it."
        )
    check_allocation(shape, itemsize, path)


def check_packed(num_pixels: int, size: int, least_bits: float, path: Path) -> None:
    """Refuse a compressed image whose file is too small for the pixels it claims.

    Args:
        num_pixels: rows times columns, as the header claims.
        size: bytes of the file.
        least_bits: that the format spends on a pixel at the very least.
        path: for the message.

    Raises:
        FormatError: the file is damaged, or a bomb.
    """
    if size * 8 < num_pixels * least_bits:
        raise FormatError(
            f"{path}: the header claims {num_pixels:,} pixels, which {size:,} bytes cannot hold; "
            "the file is damaged or incomplete. Copy it again."
        )


def check_not_empty(path: Path) -> None:
    """Refuse a missing or zero-byte file with a plain sentence.

    Raises:
        FormatError: there is no such file, it cannot be opened, or it has no content.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise FormatError(f"{path}: {(error.strerror or str(error)).lower()}.") from error
    if path.is_file() and size == 0:
        raise FormatError(f"{path}: the file is empty (0 bytes).")


def check_channel(channel: int | None, num_channels: int | None, path: Path) -> None:
    """Refuse a channel that the image does not have; channel 0 of a grey one is itself.

    Raises:
        FormatError: says how many there are.
    """
    if channel is not None and not 0 <= channel < (num_channels or 1):
        raise FormatError(
            f"{path}: there is no channel {channel}; the file has {num_channels or 1}, "
            "counted from 0."
        )


def choose_channel(pixels: Array, channel: int | None, num_channels: int | None) -> Array:
    """One channel of `pixels` (channels last), or all of them if `channel` is None."""
    if channel is None or num_channels is None:
        return pixels
    return np.ascontiguousarray(pixels[..., channel])


def without_alpha(pixels: Array, path: Path) -> Array:
    """The colour (or grey) of an image whose last channel is alpha.

    The hidden colour is kept as stored, not blended with a background. Transparency is a matter of
    display; where it is not the same everywhere, a warning is logged.
    """
    alpha = pixels[..., -1]
    if (alpha != alpha.flat[0]).any():
        _LOG.warning("%s: the alpha channel (transparency) is dropped; colours are kept.", path)
    colour = pixels[..., :-1]
    return np.ascontiguousarray(colour[..., 0] if colour.shape[-1] == 1 else colour)


def say_turned(orientation: int, rows: int, columns: int) -> str:
    """The end of a warning about pixels that viewers show turned: where a position read off one is.

    Args:
        orientation: of EXIF and TIFF, 2 to 8.
        rows: of the stored pixels.
        columns: likewise.
    """
    down, right = f"{rows - 1}-", f"{columns - 1}-"
    row, column = {
        2: ("r", f"{right}c"),
        3: (f"{down}r", f"{right}c"),
        4: (f"{down}r", "c"),
        5: ("c", "r"),
        6: (f"{down}c", "r"),
        7: (f"{down}c", f"{right}r"),
        8: ("c", f"{right}r"),
    }[orientation]
    return (
        f"the picture should be turned (orientation {orientation}); pixels stay as stored, and "
        f"what a viewer shows at row r, column c is ({row}, {column}) here."
    )


def labels_from_pixels(
    pixels: Array,
    geometry: Geometry,
    path: Path,
    *,
    names: Mapping[int, str] | None = None,
    lossy: bool = False,
    colour: bool = False,
    declared: bool = False,
    threshold: float | None = None,
) -> Labels:
    """Make labels of an image's values, by the rules of `limner.label_values`.

    Args:
        pixels: numbers; channels last.
        geometry: the grid.
        path: for messages.
        names: by object id.
        lossy: the file went through JPEG: a black-and-white mask becomes object 1 where it is
            nearer to white, anything else is refused.
        colour: channels are colours, which make a label map only where they are equal; else each
            may be the mask of one object.
        declared: the file says that its values are labels.
        threshold: values from this one on are object 1.

    Raises:
        FormatError: the values cannot be labels.
    """
    try:
        if pixels.ndim == geometry.ndim + 1:
            found = _grey_of(pixels, tolerance=_JPEG_RINGING if lossy and threshold is None else 0)
            if found is None and colour:
                raise ValueError(
                    "a colour picture is not a label map; save one grey or palette value per object"
                )
            if found is None:
                masks = channels_of_values(pixels, threshold=threshold, name=str(path))
                return Labels(geometry, masks=masks, names=names)
            pixels = found
        if lossy and threshold is None:
            pixels, declared = _binary_from_lossy(pixels, path), True
        array = labels_of_values(pixels, threshold=threshold, declared=declared, name=str(path))
    except ValueError as error:
        raise FormatError(f"{path}: {error}.") from error
    return Labels(geometry, array=array, names=names)


def fitted_geometry(own: Geometry, like: Image | None, path: Path) -> Geometry:
    """The grid of labels read from a file that may not state its place in space.

    Args:
        own: what the file says.
        like: the image the labels belong to; its grid counts where the file has no spacing.
        path: for the message.

    Raises:
        GeometryError: the shapes differ.
    """
    if like is None:
        return own
    if own.shape != like.geometry.shape:
        raise GeometryError(
            f"{path}: labels of shape {own.shape} do not fit the image of shape "
            f"{like.geometry.shape}."
        )
    return own if own.has_spacing else like.geometry


def _grey_of(pixels: Array, *, tolerance: int) -> Array | None:
    """The first channel where all are equal, else None."""
    first = pixels[..., 0]
    for k in range(1, pixels.shape[-1]):
        apart = np.abs(pixels[..., k].astype(np.float64) - first) > tolerance
        if apart.any():
            return None
    return np.asarray(first)


def _binary_from_lossy(pixels: Array, path: Path) -> Array:
    top = int(pixels.max(initial=0))
    values = pixels.astype(np.int64)
    clean = (values <= _JPEG_RINGING) | (values >= top - _JPEG_RINGING)
    if 0 < top < 4 * _JPEG_RINGING or clean.mean() < _JPEG_CLEAN_SHARE:
        raise FormatError(
            f"{path}: JPEG changes pixel values, so this cannot be read as a label map; "
            "save it as PNG."
        )
    _LOG.warning("%s: JPEG blurs masks; what is nearer to white is taken as object 1.", path)
    return np.asarray(values * 2 > max(top, 1), dtype=np.uint8)
