"""TIFF pages as one grid: which page is which slice, each read without the others."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError, SeriesChoice
from limner.io._errors import muted, one_line
from limner.io.image import Kind
from limner.io.raster.pixels import without_alpha
from limner.io.tiff.metadata import (
    Spacing,
    axes_of,
    check_chain,
    check_extent,
    own_block,
    series_spacing,
)
from limner.io.tiff.samples import channels_of, orientation_of, palette_of

Array = NDArray[Any]

_MAX_CHOICES = 64  # time points named in a SeriesChoice

_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Stack:
    """An opened TIFF whose pages are read on demand.

    The file is closed between reads, so that any number of stacks may be open.

    Attributes:
        grid: ``(row, column)`` or ``(page, row, column)``.
        num_channels: None for grey.
        dtype: of the pixels as `read` gives them.
        kind: of image.
        spacing: millimetres per slice, row and column, each None where not stated.
        block: what limner wrote into the file.
        photometric: TIFF's term, such as ``"MINISBLACK"``.
        has_slices: whether `read_slice` reads less than everything.
        metadata: facts for `limner info`.
    """

    path: Path
    file: Any
    series: Any
    axes: str
    fixed: dict[int, int]
    stack_axis: int | None
    palette: Array | None
    drop_alpha: bool
    has_index: bool
    grid: tuple[int, ...]
    num_channels: int | None
    dtype: np.dtype[Any]
    kind: Kind
    spacing: Spacing
    block: dict[str, Any]
    photometric: str
    orientation: int
    metadata: dict[str, Any]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def has_slices(self) -> bool:
        """Whether single planes can be read."""
        return self._is_paged or self.series.dataoffset is not None

    def read(self) -> Array:
        """All pixels, ``grid`` plus channels."""
        if len(self.grid) == 3 and self.has_slices:
            channels = () if self.num_channels is None else (self.num_channels,)
            pixels = np.empty((*self.grid, *channels), dtype=self.dtype)
            for k in range(self.grid[0]):
                pixels[k] = self.read_slice(k)
            return pixels
        pixels = self._read(None)
        if len(self.grid) == 3 and self.stack_axis is None:  # a stack of one page
            pixels = pixels[None]
        return pixels

    def read_slice(self, index: int) -> Array:
        """Pixels of one page, ``(row, column)`` plus channels."""
        return self._read(index if self.stack_axis is not None else None)

    @property
    def _page_axes(self) -> str:
        return str(self.series.keyframe.axes)

    @property
    def _is_paged(self) -> bool:
        """Whether every page of the file is a plane, or one channel of it."""
        axes, inner = self.axes, self._page_axes
        lead = self.series.shape[: len(axes) - len(inner)]
        return (
            axes.endswith(inner)
            and set(inner) <= set("YXS")
            and len(self.series.pages) == int(np.prod(lead, dtype=np.int64))
        )

    def _read(self, index: int | None) -> Array:
        try:
            with self._lock, muted("tifffile"):
                self.file.filehandle.open()
                try:
                    pixels, axes = self._raw(index)
                finally:
                    self.file.filehandle.close()
            return self._finish(pixels, axes)
        except (FormatError, MemoryError):
            raise
        except Exception as error:  # a decoder may raise anything on bytes made by others
            where = "" if index is None else f" in page {index}"
            raise FormatError(
                f"{self.path}: the file is damaged or incomplete{where} ({one_line(error)})."
            ) from error

    def _raw(self, index: int | None) -> tuple[Array, str]:
        """Stored pixels of a plane (or everything) and the letters of their axes."""
        chosen = dict(self.fixed)
        if index is not None and self.stack_axis is not None:
            chosen[self.stack_axis] = index
        axes, shape = self.axes, self.series.shape
        rest = "".join(a for k, a in enumerate(axes) if k not in chosen)
        if self._is_paged:
            lead = len(axes) - len(self._page_axes)
            ranges = [[chosen[k]] if k in chosen else range(shape[k]) for k in range(lead)]
            numbers = [
                int(np.ravel_multi_index(at, shape[:lead])) if lead else 0
                for at in product(*ranges)
            ]
            pages = [self._page(n) for n in numbers]
            outer = [shape[k] for k in range(lead) if k not in chosen]
            return np.stack(pages).reshape(*outer, *pages[0].shape), rest
        if self.series.dataoffset is not None:  # many planes behind one page's tags
            whole: Array = np.memmap(
                self.path,
                dtype=self.series.dtype.newbyteorder(self.file.byteorder),
                mode="r",
                offset=self.series.dataoffset,
                shape=shape,
            )
        else:
            for page in self.series.pages:
                self._check(page)
            whole = self.series.asarray()
        at = tuple(chosen.get(k, slice(None)) for k in range(len(axes)))
        return np.array(whole[at]), rest

    def _page(self, number: int) -> Array:
        page = self.series.pages[number]
        self._check(page)
        pixels = np.asarray(page.asarray())
        if pixels.shape != self.series.keyframe.shape:
            raise ValueError(f"a page has shape {pixels.shape}")
        return pixels

    def _check(self, page: Any) -> None:
        check_extent(page, self.file.filehandle.size)

    def _finish(self, pixels: Array, axes: str) -> Array:
        """Index order, channels last, palette and alpha resolved, native byte order."""
        order = sorted(range(len(axes)), key=lambda k: _rank(axes[k]))
        pixels = pixels.transpose(order)
        num_channel_axes = sum(a in "CS" for a in axes)
        if num_channel_axes:
            pixels = pixels.reshape(*pixels.shape[: pixels.ndim - num_channel_axes], -1)
        if pixels.dtype.kind == "b":
            pixels = pixels.astype(np.uint8)
        if self.has_index:  # into a palette, with alpha behind it
            pixels = without_alpha(pixels[..., [0, -1]], self.path)
        if self.palette is not None:
            if num_channel_axes and not self.has_index:  # channels that share it
                pixels = pixels[..., 0]
            if pixels.max() >= len(self.palette):
                raise FormatError(
                    f"{self.path}: the file is damaged: value {pixels.max()} is not in its palette "
                    f"of {len(self.palette)} colours."
                )
            pixels = self.palette[pixels]
        elif self.drop_alpha:
            pixels = without_alpha(pixels, self.path)
        return np.ascontiguousarray(pixels, dtype=self.dtype)


def open_stack(
    path: Path, *, series: str | int | None, strict: bool, palette_indices: bool = False
) -> Stack:
    """Open a TIFF and work out what its pages are; no pixel is read.

    Args:
        path: the file.
        series: which image, time point and level, see `limner.io.tiff`.
        strict: False ignores an OME description that promises more planes than there are.
        palette_indices: keep the indices of a palette.

    Raises:
        SeriesChoice: there are more than three axes and `series` does not fix one.
        FormatError: the file is not a TIFF, is damaged, or `series` names nothing in it.
    """
    number, level, points = _parse(series, path)
    file = None
    try:
        with muted("tifffile"):
            file, found = _open(path, strict)
        if number >= len(found):
            raise FormatError(f"{path}: there is no series {number}; the file has {len(found)}.")
        if level >= len(found[number].levels):
            raise FormatError(
                f"{path}: there is no level {level}; the pyramid has {len(found[number].levels)}."
            )
        return _stack(path, file, number, level, points, palette_indices)
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # the parser may raise anything on bytes made by others
        raise FormatError(f"{path}: not a readable TIFF ({one_line(error)}).") from error
    finally:
        if file is not None:
            file.close()


def _open(path: Path, strict: bool) -> tuple[Any, list[Any]]:
    """Open so that no other file is touched.

    Left to itself tifffile follows the file names in OME, Micro-Manager and NDTiff descriptions.
    Told not to, it reads the pages of this file as a plain stack.
    """
    import tifffile

    def open_alone(*, is_ome: bool | None = None) -> tifffile.TiffFile:
        return tifffile.TiffFile(
            path, _multifile=False, is_ndtiff=False, is_mmstack=False, is_ome=is_ome
        )

    file = open_alone()
    try:
        check_chain(file)
        if file.is_ome and any(p is None for s in file.series for p in s.pages):
            if strict:
                raise FormatError(
                    f"{path}: the OME description promises planes that are not in this file; read "
                    "those that are as a plain stack with strict=False, or join the set."
                )
            file.close()
            file = open_alone(is_ome=False)
        elif file.is_ome and file.series[0].kind != "ome":
            _LOG.warning(
                "%s: the OME description spans several files (which are not opened) or is "
                "malformed; the pages of this file are read as a plain stack.",
                path,
            )
        return file, list(file.series)
    except BaseException:
        file.close()
        raise


def _parse(series: str | int | None, path: Path) -> tuple[int, int, dict[str, int]]:
    """Number of the image, level of the pyramid, and index per axis letter."""
    number = level = 0
    points: dict[str, int] = {}
    for part in ("" if series is None else str(series)).split(","):
        name, _, value = part.strip().rpartition("=")
        if not part.strip():
            continue
        if not value.isdecimal():
            raise FormatError(
                f"{path}: series {series!r} is not understood; give a number, 't=K' or 'level=K'."
            )
        if not name:
            number = int(value)
        elif name.lower() == "level":
            level = int(value)
        else:
            points[name.upper()] = int(value)
    return number, level, points


def _stack(
    path: Path, file: Any, number: int, level: int, points: dict[str, int], palette_indices: bool
) -> Stack:
    base = file.series[number]
    series = base.levels[level]
    axes, shape = axes_of(file, series), series.shape
    if series.dtype.kind not in "buif":  # complex
        raise FormatError(f"{path} holds {series.dtype}; save its magnitude, as floats, first.")
    if "Y" not in axes or "X" not in axes:
        raise FormatError(f"{path}: axes {axes} of shape {tuple(shape)} are not a picture.")
    fixed = _fixed_axes(path, axes, shape, points)
    stacked = [k for k, a in enumerate(axes) if a not in "YXCS" and k not in fixed]
    stack_axis = stacked[0] if stacked else None
    grid: tuple[int, ...] = (shape[axes.index("Y")], shape[axes.index("X")])
    if stack_axis is not None:
        grid = (shape[stack_axis], *grid)
    block = own_block(file.pages.first)
    if stack_axis is None and block.get("kind") in ("volume", "video") and len(grid) == 2:
        grid = (1, *grid)  # ImageJ's description cannot tell a stack of one slice from an image
    key = series.keyframe
    palette = None if palette_indices else palette_of(file, key)
    drop_alpha, num_channels = channels_of(key, axes, shape)
    photometric = getattr(key.photometric, "name", str(key.photometric))
    has_index = photometric == "PALETTE" and "S" in axes and num_channels != 1
    if has_index:
        drop_alpha, num_channels = False, None
    dtype = np.dtype(np.uint8) if series.dtype.kind == "b" else series.dtype.newbyteorder("=")
    is_video = (stack_axis is not None and axes[stack_axis] == "T") or block.get("kind") == "video"
    spacing = series_spacing(file, number)
    if level:  # coarser by the same factor in rows and columns, apart from rounding
        slices, *in_slice = spacing
        ratio = base.shape[base.axes.index("X")] / grid[-1]
        rows, columns = (None if s is None else s * ratio for s in in_slice)
        spacing = (slices, rows, columns)
    return Stack(
        path=path,
        file=file,
        series=series,
        axes=axes,
        fixed=fixed,
        stack_axis=stack_axis,
        palette=palette,
        drop_alpha=drop_alpha,
        has_index=has_index,
        grid=grid,
        num_channels=3 if palette is not None else num_channels,
        dtype=np.dtype(np.uint8) if palette is not None else dtype,
        kind="image" if len(grid) == 2 else "video" if is_video else "volume",
        spacing=spacing,
        block=block if number == 0 and level == 0 and not fixed else {},
        photometric=photometric,
        orientation=orientation_of(key),
        metadata=_metadata(file, series, base),
    )


def _fixed_axes(
    path: Path, axes: str, shape: tuple[int, ...], points: dict[str, int]
) -> dict[int, int]:
    """Index per axis that is not kept: those asked for, and of the others those of one step.

    One axis beside rows, columns and channels is kept, slices rather than time.
    """
    fixed: dict[int, int] = {}
    for letter, at in points.items():
        k = axes.find(letter)
        if k < 0 or letter in "YXCS" or at >= shape[k]:
            has = ", ".join(f"{a}={n}" for a, n in zip(axes, shape, strict=True))
            raise FormatError(f"{path}: there is no {letter.lower()}={at}; the file has {has}.")
        fixed[k] = at
    others = [k for k, a in enumerate(axes) if a not in "YXCS" and k not in fixed]
    if len(others) > 1:
        fixed.update({k: 0 for k in others if shape[k] == 1})
        others = [k for k in others if shape[k] > 1] or others[-1:]
        fixed = {k: v for k, v in fixed.items() if k not in others}
    if len(others) > 1:
        k = next((k for k in others if axes[k] != "Z"), others[0])
        letter, count = axes[k].lower(), shape[k]
        raise SeriesChoice(
            f"{path}: axes {axes} of {'×'.join(str(n) for n in shape)} are more than one volume; "
            f"name one with series='{letter}=K', K in 0…{count - 1}.",
            {f"{letter}={i}": f"{letter} {i} of {count}" for i in range(min(count, _MAX_CHOICES))},
        )
    return fixed


def _metadata(file: Any, series: Any, base: Any) -> dict[str, Any]:
    key = series.keyframe
    compression = getattr(key.compression, "name", str(key.compression))
    return {
        "flavour": series.kind,
        "stored_axes": series.axes,
        "compression": compression,
        "lossy": "JPEG" in compression and "LOSSLESS" not in compression,
        "photometric": getattr(key.photometric, "name", str(key.photometric)),
        "num_series": len(file.series),
        "num_levels": len(base.levels),
    }


def _rank(letter: str) -> int:
    """Place of an axis in our order: the stack, rows, columns, channels, samples."""
    return {"Y": 1, "X": 2, "C": 3, "S": 4}.get(letter, 0)
