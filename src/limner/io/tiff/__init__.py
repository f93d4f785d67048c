"""TIFF images and stacks, ImageJ, OME and BigTIFF included: one page at a time.

What becomes what:

* Pages of one size are a volume ``(page, row, column)``; a time axis (ImageJ, OME) makes a video.
  Several channels are put last. Of a file with several images (pyramids with a label and a
  thumbnail, several OME images) the first is read, unless `series` names another.
* ``series`` is ``"1"`` for the second image of the file, ``"t=3"`` for a time point of a stack with
  time and slices, ``"level=2"`` for a coarser level of a pyramid; several joined by commas.
* Values are as stored, 1-bit pixels are 0 and 1, and "white is zero" is not turned round (the
  metadata and a warning say so). A palette becomes RGB, except ImageJ's, which is only a way to
  show grey values; for labels the indices are kept.
* A file never makes limner open another one: of an OME set spread over several files the pages of
  this file are read, with a warning.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_path
from limner.errors import FormatError, GeometryError
from limner.geometry import Geometry
from limner.io.image import Image, Kind
from limner.io.inversion import REFLECTION
from limner.io.labels import Labels
from limner.io.limits import check_allocation
from limner.io.raster.pixels import (
    check_channel,
    check_not_empty,
    choose_channel,
    fitted_geometry,
    labels_from_pixels,
    say_turned,
)
from limner.io.tiff.metadata import KEY
from limner.io.tiff.stack import Stack, open_stack

Array = NDArray[Any]

NAME = "tiff"

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")  # all that ImageJ's stacks hold
_CLASSIC_LIMIT = (1 << 32) - (1 << 26)  # bytes; beyond, BigTIFF is needed

_LOG = logging.getLogger(__name__)


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file begins as a TIFF or BigTIFF."""
    return head[:4] in _MAGIC


def read(
    path: Path, *, channel: int | None = None, series: str | None = None, strict: bool = True
) -> Image:
    """Open a TIFF; pages are decoded when they are asked for.

    Args:
        path: the file.
        channel: of several, the one to take as grey.
        series: which image, time point or level, see the module's text.
        strict: False reads the pages that are there where an OME description promises more.

    Raises:
        SeriesChoice: a stack has time and slices, and `series` does not say which.
        FormatError: not a TIFF, damaged, cut off, or too large for this machine.
    """
    check_not_empty(path)
    stack = open_stack(path, series=series, strict=strict)
    return _image(path, stack, channel)


def read_labels(
    path: Path,
    *,
    like: Image | None = None,
    threshold: float | None = None,
    channel: int | None = None,
) -> Labels:
    """Read a TIFF as a label map; a palette's indices are the object ids.

    Several channels are one mask each, unless they are colours; `channel` takes one of them. With
    `threshold`, values from there on are object 1.

    Raises:
        FormatError: the values are fractions, negative or colours.
        GeometryError: it has not the shape of `like`.
    """
    check_not_empty(path)
    stack = open_stack(path, series=None, strict=True, palette_indices=True)
    image = _image(path, stack, channel)
    names = stack.block.get("names")
    return labels_from_pixels(
        image.array,
        fitted_geometry(image.geometry, like, path),
        path,
        names=_names(names),
        lossy=bool(image.metadata["lossy"]),
        colour=stack.photometric in ("RGB", "YCBCR", "CIELAB", "SEPARATED"),
        declared=names is not None or stack.photometric == "PALETTE",
        threshold=threshold,
    )


def write(path: Path, labels: Labels, *, like: Image | None = None) -> None:
    """Write a label map in the smallest unsigned type, compressed without loss.

    Ids up to 65535 make an ImageJ stack; ImageJ knows no larger integers, so more make an ordinary
    TIFF (BigTIFF above 4 GB). The exact geometry and the names are in the description, for limner;
    ImageJ reads the spacing. Where objects overlap the first of `Labels.order` is written.
    """
    pixels = np.asarray(labels.to_array())
    block = {"names": {str(k): v for k, v in labels.names.items()}}
    kind: Kind = "image" if labels.geometry.ndim == 2 else "volume"
    if like is not None and like.kind == "video" and labels.geometry.ndim == 3:
        kind = "video"
    _write(path, pixels, labels.geometry, kind, block)


def write_image(path: Path, image: Image) -> None:
    """Write an image, volume or video, any number of channels, compressed without loss.

    Raises:
        FormatError: the pixel type has no place in a TIFF (boolean is written as 0 and 1).
    """
    pixels = np.asarray(image.array)
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8)
    if pixels.dtype.kind not in "uif":
        raise FormatError(f"{path}: a TIFF holds integers and floats, not {pixels.dtype}.")
    _write(path, pixels, image.geometry, image.kind, {})


def _image(path: Path, stack: Stack, channel: int | None) -> Image:
    check_channel(channel, stack.num_channels, path)
    metadata = dict(stack.metadata)
    if stack.photometric == "MINISWHITE":
        _LOG.warning(
            "%s: white is zero in this file (MINISWHITE); values stay as stored, and it is shown "
            "and given to models inverted.",
            path,
        )
        limits = np.iinfo(stack.dtype) if stack.dtype.kind in "ui" else None
        metadata[REFLECTION] = 0 if limits is None else int(limits.min) + int(limits.max)
    if stack.photometric == "YCBCR" and not stack.metadata["lossy"]:
        _LOG.warning("%s: its colours are YCbCr and stay as stored; convert it to RGB.", path)
    if stack.orientation != 1:
        turned = say_turned(stack.orientation, *stack.grid[-2:])
        _LOG.warning("%s: its Orientation tag says %s", path, turned)
    shape = stack.grid if stack.num_channels is None else (*stack.grid, stack.num_channels)
    if len(stack.grid) == 2:
        check_allocation(shape, stack.dtype.itemsize, path)
    else:  # one page must fit; the whole stack is checked when it is asked for
        check_allocation(shape[1:], stack.dtype.itemsize, path)

    def load() -> Array:
        check_allocation(shape, stack.dtype.itemsize, path)
        return choose_channel(stack.read(), channel, stack.num_channels)

    def read_slice(index: int) -> Array:
        return choose_channel(stack.read_slice(index), channel, stack.num_channels)

    return Image(
        load,
        _geometry(stack),
        kind=stack.kind,
        dtype=stack.dtype,
        num_channels=None if channel is not None else stack.num_channels,
        read_slice=read_slice if len(stack.grid) == 3 and stack.has_slices else None,
        path=path,
        format=NAME,
        metadata=metadata,
    )


def _geometry(stack: Stack) -> Geometry:
    """Limner's own block if it fits, else the stated spacing; unknown if an axis is not stated."""
    try:
        own = Geometry.from_json(stack.block["geometry"])
        if own.shape == stack.grid:
            return own
    except (KeyError, TypeError, ValueError, GeometryError):
        pass  # no block, or one that does not fit: the ordinary tags count
    slices, rows, columns = stack.spacing
    steps = (rows, columns) if len(stack.grid) == 2 else (slices, rows, columns)
    if stack.kind == "video":
        steps = (1.0, rows, columns)
    if any(s is None for s in steps):
        return Geometry.from_spacing(stack.grid)
    return Geometry.from_spacing(stack.grid, [s for s in steps if s is not None])


def _names(value: Any) -> dict[int, str]:
    try:
        return {int(k): str(v) for k, v in (value or {}).items()}
    except (ValueError, AttributeError):
        return {}


def _write(
    path: Path, pixels: Array, geometry: Geometry, kind: Kind, block: dict[str, Any]
) -> None:
    import tifffile

    stack = {"image": "", "volume": "Z", "video": "T"}[kind]
    colour = pixels.ndim > geometry.ndim
    is_rgb = colour and pixels.dtype == np.uint8 and pixels.shape[-1] == 3
    big = pixels.nbytes > _CLASSIC_LIMIT
    imagej = not big and str(pixels.dtype) in _IMAGEJ_TYPES and (is_rgb or not colour)
    block = {"geometry": geometry.to_json(), "kind": kind, **block}
    metadata: dict[str, Any] = {"axes": f"{stack}YX{'S' if colour else ''}"}
    resolution = None
    if imagej:
        metadata[KEY] = json.dumps(block)
        if geometry.has_spacing:
            rows, columns = geometry.spacing[-2:]
            resolution = (1.0 / columns, 1.0 / rows)  # TIFF says x first, in pixels per unit
            metadata["unit"] = "mm"
            if kind == "volume":
                metadata["spacing"] = geometry.spacing[0]
    else:
        metadata[KEY] = block
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            np.ascontiguousarray(pixels),
            bigtiff=big,
            imagej=imagej,
            photometric="rgb" if colour and pixels.shape[-1] == 3 else "minisblack",
            planarconfig="contig" if colour else None,
            compression="zlib",
            resolution=resolution,
            metadata=metadata,
        )
