"""Modality and colour transforms of DICOM pixels: real units for grey, RGB for colour.

Nothing is windowed. Grey values get the modality transform (rescale slope and intercept, or a
modality lookup table). ``MONOCHROME1`` means that larger values are drawn darker: values stay as
they are, and `ValuePlan.inverted_from` tells how they are shown (`limner.io.inversion`).
Quantitative images (`QUANTITATIVE`) are shown as they are, because their numbers are measurements.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.io.dicom._files import Header, format_errors
from limner.io.dicom._pixels import PALETTE, FrameReader, PixelFormat

Array = NDArray[Any]

QUANTITATIVE = frozenset(("CT", "PT", "RTDOSE", "NM"))
_INTEGER_TYPES = ("u1", "i1", "i2", "u2", "i4")  # int16 before uint16: the usual type of CT
_KR, _KB = 0.299, 0.114  # luma weights of red and blue, ITU-R BT.601, as PS3.3 C.7.6.3.1.2 has them


@dataclass(frozen=True)
class Rescale:
    """Stored value × slope + intercept = value."""

    slope: float = 1.0
    intercept: float = 0.0

    @property
    def is_integer(self) -> bool:
        """Whether integers stay integers."""
        return float(self.slope).is_integer() and float(self.intercept).is_integer()


@dataclass(frozen=True, eq=False)
class ValuePlan:
    """How the samples of all frames of one image become its values.

    Attributes:
        dtype: of the values, the same for all frames.
        num_channels: 3 for colour, None for grey.
        inverted_from: what grey values are taken from to be shown, None where larger is brighter.
        lookup: modality lookup table as (first stored value, entries), or None.
        palette: header that holds the colour lookup tables, or None.
    """

    dtype: np.dtype[Any]
    num_channels: int | None
    inverted_from: float | None = None
    lookup: tuple[int, Array] | None = None
    palette: Header | None = None

    @classmethod
    def for_frames(
        cls, header: Header, scales: Collection[tuple[PixelFormat, Rescale]], modality: str
    ) -> ValuePlan:
        """Plan for the frames of one image.

        Args:
            header: of the first file, with its lookup tables.
            scales: the formats and rescales that occur among the frames; alike in samples and
                photometric interpretation.
            modality: DICOM's term.
        """
        pixel_format = next(iter(scales))[0]
        if pixel_format.photometric == PALETTE:
            return cls(np.dtype(np.uint8), 3, palette=header)
        if pixel_format.samples == 3:
            return cls(pixel_format.dtype, 3)
        inverted = pixel_format.photometric == "MONOCHROME1" and modality not in QUANTITATIVE
        lookup = _modality_lookup(header)
        if lookup is not None:
            top = float(lookup[1].max())
            return cls(lookup[1].dtype, None, top if inverted else None, lookup)
        ends = _ends(scales)
        return cls(_value_type(scales), None, min(ends) + max(ends) if inverted else None)

    def present(self, samples: Array, photometric: str, rescale: Rescale, bits: int) -> Array:
        """Values of one frame.

        Args:
            samples: ``(rows, columns, samples)`` as stored.
            photometric: what colours they are in.
            rescale: of this frame.
            bits: bits stored.
        """
        if self.palette is not None:
            return _apply_palette(samples[..., 0], self.palette)
        if self.num_channels == 3:
            return _to_rgb(samples, photometric, bits).astype(self.dtype, copy=False)
        grey = samples[..., 0]
        if self.lookup is not None:
            first, table = self.lookup
            index = np.clip(grey.astype(np.int64) - first, 0, table.size - 1)
            return np.asarray(table[index])
        return _rescale(grey, rescale, self.dtype)


class FrameValues:
    """Frame ``k`` of a file as values."""

    def __init__(self, reader: FrameReader, plan: ValuePlan) -> None:
        self._reader = reader
        self._plan = plan

    def read_into(self, index: int, rescale: Rescale, target: Array) -> None:
        """Put the values of frame `index` into `target`, of the frame's shape."""
        direct = (
            self._plan.num_channels is None
            and self._plan.lookup is None
            and self._reader.is_plain
            and target.flags.c_contiguous
        )
        stored = self._reader.format.dtype
        integers = stored.kind in "ui" and target.dtype.kind in "ui"
        if direct and integers and stored.itemsize == target.dtype.itemsize:
            # Adding in place, modulo 2**bits, is exact: the plan's type holds every sum.
            self._reader.read_into(index, target)
            _rescale_in_place(target, rescale)
            return
        if direct and stored == target.dtype and rescale == Rescale():
            self._reader.read_into(index, target)
            return
        samples, photometric = self._reader.frame(index)
        bits = self._reader.format.stored
        with format_errors(self._reader.header.path):
            target[...] = self._plan.present(samples, photometric, rescale, bits)


def _rescale_in_place(target: Array, rescale: Rescale) -> None:
    if rescale == Rescale():
        return
    unsigned = target.view(f"u{target.dtype.itemsize}")
    modulus = 1 << (8 * target.dtype.itemsize)
    if rescale.slope != 1:
        unsigned *= unsigned.dtype.type(int(rescale.slope) % modulus)
    unsigned += unsigned.dtype.type(int(rescale.intercept) % modulus)


def _rescale(grey: Array, rescale: Rescale, dtype: np.dtype[Any]) -> Array:
    if rescale == Rescale():
        return grey.astype(dtype, copy=False)
    if dtype.kind in "ui":
        values = grey.astype(np.int64) * int(rescale.slope) + int(rescale.intercept)
        return values.astype(dtype)
    return np.asarray(grey * float(rescale.slope) + float(rescale.intercept)).astype(dtype)


def _value_type(scales: Collection[tuple[PixelFormat, Rescale]]) -> np.dtype[Any]:
    """The smallest integer type that holds every value that can occur, else a float type."""
    types = {f.dtype for f, _ in scales}
    if any(t.kind == "f" for t in types):
        return np.result_type(*types)
    if len(types) == 1 and all(r == Rescale() for _, r in scales):
        return next(iter(types))
    if not all(r.is_integer for _, r in scales):
        return np.dtype(np.float32)
    ends = _ends(scales)
    for name in _INTEGER_TYPES:
        limits = np.iinfo(name)
        if limits.min <= min(ends) and max(ends) <= limits.max:
            return np.dtype(name)
    return np.dtype(np.float32)


def _ends(scales: Collection[tuple[PixelFormat, Rescale]]) -> list[float]:
    """The values of the lowest and highest numbers that each file can store; 0 for floats."""
    ranges = ((0, 0) if f.is_float else f.stored_range for f, _ in scales)
    pairs = zip(ranges, (r for _, r in scales), strict=True)
    return [v * r.slope + r.intercept for ends, r in pairs for v in ends]


def _modality_lookup(header: Header) -> tuple[int, Array] | None:
    """The modality LUT sequence (PS3.3 C.11.1): first stored value mapped, and the table."""
    sequence = header.dataset.get("ModalityLUTSequence")
    if not sequence:
        return None
    entries, first, bits = (int(n) for n in sequence[0].LUTDescriptor)
    content = sequence[0].get_item("LUTData").value
    entries = entries or 1 << 16
    if isinstance(content, bytes):
        wide = len(content) >= entries * 2
        table = np.frombuffer(content, dtype="<u2" if wide else "u1")
    else:
        table = np.atleast_1d(np.asarray(content)).astype(np.uint16)
    if table.size < entries or entries < 1:
        raise FormatError(f"{header.path}: its modality lookup table is shorter than stated.")
    return first, table[:entries].astype(np.uint8 if bits <= 8 else np.uint16)


def _apply_palette(stored: Array, header: Header) -> Array:
    """8-bit RGB of palette colours (PS3.3 C.7.9); 16-bit entries are cut to their upper byte."""
    from pydicom.pixels.processing import apply_color_lut

    colours = apply_color_lut(stored, header.dataset)[..., :3]
    if colours.dtype == np.uint8:
        return np.asarray(colours)
    # Some writers put 8-bit entries into 16-bit words: then nothing lies above 255.
    shift = 8 if int(colours.max(initial=0)) > 255 else 0
    return np.asarray((colours >> shift).astype(np.uint8))


def _to_rgb(samples: Array, photometric: str, bits: int) -> Array:
    if photometric in ("RGB", "YBR_RCT", "YBR_ICT") or not photometric.startswith("YBR"):
        return samples
    if "PARTIAL" in photometric:
        raise ValueError(f"photometric interpretation {photometric} is retired and not supported")
    half = 1 << (bits - 1)
    luma = samples[..., 0].astype(np.float32)
    blue = samples[..., 1].astype(np.float32) - half
    red = samples[..., 2].astype(np.float32) - half
    r = luma + 2 * (1 - _KR) * red
    b = luma + 2 * (1 - _KB) * blue
    g = (luma - _KR * r - _KB * b) / (1 - _KR - _KB)
    rgb = np.stack([r, g, b], axis=-1)
    return np.asarray(np.clip(np.rint(rgb), 0, (1 << bits) - 1))
