"""Pixel blocks of NIfTI, NRRD and MetaImage files, read whole or slice by slice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io._inflate import DEFLATE_MAX_RATIO, GZIP_MAGIC, inflate, inflated_size
from limner.io.image import ChannelKind, Image
from limner.io.limits import check_allocation

Array = NDArray[Any]

FROM_END = -1  # as `Block.skip`

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """Where the values are and how they are stored.

    Attributes:
        path: the file.
        shape: of all values, slowest axis first, channels included.
        dtype: of one value, with its byte order.
        start: byte of the file at which the values, or the stream that packs them, begin.
        codec: ``"raw"``, ``"text"`` (numbers in ASCII) or a compression.
        skip: bytes to pass over inside the decompressed stream; `FROM_END`: all but the values.
        channel_axis: the axis of `shape` that holds channels, None for grey.
        channel: the only one that is wanted, None for all.
        strict: whether foreign bytes behind a compressed stream are an error.
        trailer: whether anything may follow the values: more is read for its checksum only.
        pieces: blocks of one axis that the values lie in one after the other, where they are in
            several files; `path` is then the first of these.
        ends: whether the values end where the compressed stream does; False where channels follow
            that are not wanted.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int = 0
    codec: Literal["raw", "text", "gzip", "zlib", "bzip2"] = "raw"
    skip: int = 0
    channel_axis: int | None = None
    channel: int | None = None
    strict: bool = True
    ends: bool = True
    trailer: bool = False
    pieces: tuple[Block, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all values, uncompressed."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def num_channels(self) -> int | None:
        """Channels that reading gives, None for grey."""
        if self.channel_axis is None or self.channel is not None:
            return None
        return self.shape[self.channel_axis]

    @property
    def has_slices(self) -> bool:
        """Whether `read_slice` works."""
        return self.codec == "raw" and not self.pieces

    def split_over(self, files: Sequence[Path], piece: Callable[[Block], Block]) -> Block:
        """The same values in several files, of as many values each.

        Args:
            files: in order.
            piece: where in its file a block begins, given one that begins at the first byte.

        Raises:
            FormatError: the values cannot be divided so.
        """
        share, rest = divmod(prod(self.shape), len(files))
        if rest:
            shown = "×".join(str(n) for n in self.shape)
            raise FormatError(f"{files[0]} and the others: {len(files)} files, {shown} values.")
        first = Block(files[0], (share,), self.dtype, codec=self.codec, strict=self.strict)
        pieces = tuple(piece(replace(first, path=file)) for file in files)
        return replace(self, path=files[0], pieces=pieces)

    def check_size(self) -> None:
        """Refuse a header that promises more than the file can hold.

        Raises:
            FormatError: says what is promised and what is there.
        """
        for piece in self.pieces:
            piece.check_size()
        if self.pieces:
            return
        room = self.path.stat().st_size - self.start
        needed, packing = self.nbytes, ""
        if self.codec == "text":
            needed = 2 * prod(self.shape) - 1  # a digit and a blank each
        elif self.codec in ("gzip", "zlib"):
            needed, packing = needed // DEFLATE_MAX_RATIO, f" in {self.codec}"
        elif self.codec == "bzip2":
            needed, packing = int(needed > 0), " in bzip2"
        if room < needed:
            raise FormatError(
                f"{self.path} is cut off or its header is wrong: "
                f"{'×'.join(str(n) for n in self.shape)} values of {self.dtype} need at least "
                f"{needed} bytes{packing}, and {max(room, 0)} are there."
            )

    def select(self, channel: int | None) -> Block:
        """The same block with one channel only.

        Raises:
            FormatError: there is no such channel.
        """
        if channel is None:
            return self
        count = 1 if self.channel_axis is None else self.shape[self.channel_axis]
        if not 0 <= channel < count:
            raise FormatError(
                f"{self.path} has no channel {channel}; it has {count}, counted from 0."
            )
        if self.channel_axis is None:
            return self
        if self.channel_axis != 0 or self.codec == "text" or self.pieces or self.skip < 0:
            return replace(self, channel=channel)
        # Channels one behind the other (a time series): the others need not be read.
        rest = replace(self, shape=self.shape[1:], channel_axis=None)
        distance = channel * rest.nbytes
        if self.codec == "raw":
            return replace(rest, start=self.start + distance)
        return replace(rest, skip=self.skip + distance, ends=channel == count - 1)

    def read(self) -> Array:
        """All values in the machine's byte order, channels last.

        Raises:
            FormatError: the values do not fit the memory, are cut off or damaged.
        """
        check_allocation(self.shape, self.dtype.itemsize, self.path)
        if self.codec == "text":
            return self._arrange(self._parse_text())
        buffer = np.empty(self.nbytes, dtype=np.uint8)
        self._fill(buffer)
        return self._arrange(buffer.view(self.dtype).reshape(self.shape))

    def read_slice(self, index: int) -> Array:
        """The values at `index` of the first spatial axis; only for raw blocks."""
        try:
            mapped = np.memmap(self.path, self.dtype, "r", self.start, self.shape)
        except ValueError as error:  # the file has shrunk
            raise FormatError(f"{self.path} cannot be read: {error}.") from error
        where: tuple[Any, ...] = (slice(None), index) if self.channel_axis == 0 else (index,)
        values = np.asarray(mapped[where])
        if self.channel_axis is not None:
            values = np.moveaxis(values, max(self.channel_axis - 1, 0), -1)
            values = values if self.channel is None else values[..., self.channel]
        return values.astype(self.dtype.newbyteorder("="), order="C")

    def _fill(self, buffer: NDArray[np.uint8]) -> None:
        position = 0
        for piece in self.pieces:
            piece._fill(buffer[position : position + piece.nbytes])
            position += piece.nbytes
        if self.pieces:
            return
        if self.codec == "raw":
            with self.path.open("rb") as file:
                file.seek(self.start)
                if file.readinto(buffer.data) != self.nbytes:
                    raise FormatError(f"{self.path} was cut off while it was read.")
        elif self.codec != "text":
            codec = self.codec
            if codec == "zlib" and self._starts_with(GZIP_MAGIC):
                codec = "gzip"  # MetaImage's own reader takes both
            skip = self.skip
            if skip == FROM_END:
                skip = inflated_size(self.path, codec=codec, start=self.start) - self.nbytes
                if skip < 0:
                    raise FormatError(f"{self.path} is cut off: {-skip} bytes of its pixels miss.")
            inflate(
                self.path,
                buffer,
                codec=codec,
                start=self.start,
                skip=skip,
                strict=self.strict,
                ends=self.ends,
                trailer=self.trailer,
            )

    def _arrange(self, values: Array) -> Array:
        if self.channel_axis is not None:
            values = np.moveaxis(values, self.channel_axis, -1)
            if self.channel is not None:
                values = values[..., self.channel].copy()  # lets go of the other channels
        if not values.dtype.isnative:
            values = values.byteswap(inplace=True).view(values.dtype.newbyteorder("="))
        return values

    def _parse_text(self) -> Array:
        if self.pieces:
            values = [piece._parse_text() for piece in self.pieces]
            return np.concatenate(values).reshape(self.shape)
        with self.path.open("rb") as file:
            file.seek(self.start)
            words = file.read().split()
        wanted = prod(self.shape)
        if len(words) < wanted:
            raise FormatError(f"{self.path} holds {len(words)} numbers, not {wanted}.")
        try:
            return np.array(words[:wanted]).astype(self.dtype).reshape(self.shape)
        except (ValueError, OverflowError) as error:
            raise FormatError(f"{self.path}: its pixels are not {self.dtype}: {error}.") from error

    def _starts_with(self, magic: bytes) -> bool:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(len(magic)) == magic


def block_image(
    block: Block,
    geometry: Geometry,
    *,
    path: Path,
    format: str,
    modality: str | None = None,
    metadata: Mapping[str, Any],
    convert: Callable[[Array], Array] | None = None,
    dtype: np.dtype[Any] | None = None,
    channel_kind: ChannelKind | None = None,
) -> Image:
    """An image whose pixels are read from a block when they are wanted.

    Args:
        block: spatial axes in index order, besides the channels.
        geometry: the grid.
        path: what the user named; the block may be in a file beside it.
        format: name of the reader.
        modality: DICOM's term where known.
        metadata: facts for `limner info` and the writers.
        convert: applied to what was read, such as a rescale to real units.
        dtype: what `convert` gives.
        channel_kind: what the channels are, if there are any.
    """

    def load() -> Array:
        values = block.read()
        values = values if convert is None else convert(values)
        check_finite(values, block.path)
        return values

    def load_slice(index: int) -> Array:
        values = block.read_slice(index)
        return values if convert is None else convert(values)

    return Image(
        load,
        geometry,
        dtype=dtype or block.dtype.newbyteorder("="),
        num_channels=block.num_channels,
        channel_kind=channel_kind,
        read_slice=load_slice if geometry.ndim == 3 and block.has_slices else None,
        files=[piece.path for piece in block.pieces or (block,)],
        path=path,
        format=format,
        modality=modality,
        metadata=metadata,
    )


def check_finite(values: Array, path: Path) -> None:
    """Log how many pixels are NaN or infinite.

    They are kept: it is the file's content, and models ignore them when they normalise.

    Raises:
        FormatError: no pixel is finite, so that there is nothing to see.
    """
    if values.dtype.kind != "f" or values.size == 0:
        return
    # One plane at a time: a mask of the whole volume would be a quarter of its size again.
    broken = sum(int(part.size - np.isfinite(part).sum()) for part in values)
    if broken == values.size:
        raise FormatError(f"{path}: every pixel is NaN or infinite; there is no image in it.")
    if broken:
        _log.warning("%s: %d of %d pixels are NaN or infinite.", path, broken, values.size)
