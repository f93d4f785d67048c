"""Images: pixels read on demand, their geometry and where they came from."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io._changes import FileStamps, Stamp
from limner.io._errors import plain_errors

Array = NDArray[Any]
Kind = Literal["image", "volume", "video"]
ChannelKind = Literal["colour", "time", "other"]


class Image:
    """A 2D image, a volume or a video: lazy pixels on a `Geometry`.

    Intensities are as stored (after DICOM's or NIfTI's rescale to real units, where the file has
    one). Nothing is resampled, reoriented or windowed.

    Args:
        array: pixels of shape ``geometry.shape`` or ``geometry.shape + (channels,)``, or a function
            without arguments that reads them, called at most once.
        geometry: the grid.
        kind: ``"image"`` (2D), ``"volume"`` (3D) or ``"video"`` (frames); guessed from `geometry`
            if None.
        modality: DICOM's term where known: ``"CT"``, ``"MR"``, ``"US"``, …
        dtype: needed with a function: the pixel type.
        num_channels: needed with a function: None for grey, else the size of the last axis.
        channel_kind: see the attribute; guessed if None: 3 channels of a byte are a colour.
        read_slice: optional function that reads one slice or frame without reading the rest.
        plane: deprecated name of `read_slice`.
        path: the file or folder.
        files: that hold the pixels, if not `path`.
        format: the reader that understood it, such as ``"nifti"``.
        metadata: facts for `limner info` and the writers.
        damaged: see the attribute.

    Attributes:
        channel_kind: what the channels are: a ``"colour"``, points in ``"time"``, or ``"other"``
            (sequences, stains, classes); None for grey.
        damaged: slices or frames that could not be read so far, and why; others stand in for them.
            Only of images that were read with ``strict=False``: else such a frame is an error.
    """

    def __init__(
        self,
        array: ArrayLike | Callable[[], Array],
        geometry: Geometry,
        *,
        kind: Kind | None = None,
        modality: str | None = None,
        dtype: DTypeLike | None = None,
        num_channels: int | None = None,
        channel_kind: ChannelKind | None = None,
        read_slice: Callable[[int], Array] | None = None,
        plane: Callable[[int], Array] | None = None,
        path: Path | None = None,
        files: Sequence[Path] = (),
        format: str = "array",
        metadata: Mapping[str, Any] | None = None,
        damaged: Mapping[int, str] | None = None,
    ) -> None:
        self.geometry = geometry
        self.kind: Kind = kind or ("image" if geometry.ndim == 2 else "volume")
        self.modality = modality
        self.path = path
        self.files = tuple(files)
        self.format = format
        self.metadata: Mapping[str, Any] = MappingProxyType(dict(metadata or {}))
        self.damaged: Mapping[int, str] = MappingProxyType({} if damaged is None else damaged)
        self.read_options: dict[str, Any] = {}  # with which `limner.read` reads it again
        if plane is not None:
            _warn_of_old_name("plane=", "read_slice=")
        self._read_slice = read_slice or plane
        self._stamps: FileStamps | None = None
        self._load: Callable[[], Array] | None = None
        self._array: Array | None = None
        self._hash: str | None = None
        if callable(array):
            if dtype is None:
                raise TypeError("An image with lazy pixels needs its dtype.")
            self._load = array
            self.dtype = np.dtype(dtype)
            self.num_channels = num_channels
        else:
            pixels = np.asarray(array)
            self.dtype = pixels.dtype
            self.num_channels = pixels.shape[-1] if pixels.ndim == geometry.ndim + 1 else None
            self._array = self._check_shape(pixels)
        self.channel_kind = self._kind_of_channels(channel_kind)

    @property
    def array(self) -> Array:
        """The pixels, read at first use; read-only. Index order, channels last.

        Raises:
            FormatError: the file is damaged, gone, another one than was opened, or too large for
                the free memory.
        """
        if self._array is None:
            assert self._load is not None
            with plain_errors(self.path):
                self._check_unchanged()
                pixels = self._check_shape(self._load())
                self._check_unchanged()
                self._array = pixels
        return self._array

    @property
    def is_loaded(self) -> bool:
        """Whether the pixels are in memory."""
        return self._array is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape plus, if any, the number of channels; known without reading pixels."""
        channels = () if self.num_channels is None else (self.num_channels,)
        return self.geometry.shape + channels

    @property
    def spacing(self) -> tuple[float, ...]:
        """``geometry.spacing``."""
        return self.geometry.spacing

    @property
    def affine(self) -> Array:
        """``geometry.affine``: index to LPS millimetres."""
        return self.geometry.affine

    def slice_at(self, index: int) -> Array:
        """Pixels of slice or frame `index`, ``(row, column[, channel])``, without reading the rest
        if possible.
        """
        if self.geometry.ndim != 3:
            raise FormatError("A 2D image has no slices or frames.")
        if not 0 <= index < self.geometry.shape[0]:
            raise FormatError(f"Frame {index} is outside 0…{self.geometry.shape[0] - 1}.")
        if self._array is not None or self._read_slice is None:
            return np.asarray(self.array[index])
        with plain_errors(self.path):
            self._check_unchanged(all_files=False)
            return self._read_slice(index)

    def slices(self) -> Iterator[Array]:
        """All slices or frames in order, one at a time."""
        return (self.slice_at(k) for k in range(self.geometry.shape[0]))

    def plane(self, index: int) -> Array:
        """Deprecated name of `slice_at`."""
        _warn_of_old_name("Image.plane", "Image.slice_at")
        return self.slice_at(index)

    def planes(self) -> Iterator[Array]:
        """Deprecated name of `slices`."""
        _warn_of_old_name("Image.planes", "Image.slices")
        return self.slices()

    def is_made_of(self, path: Path) -> bool:
        """Whether a file is the image's own, or one of the files of its series."""
        if self.path is None:
            return False
        files = (*self.files, *self.metadata.get("sources", {}).get("files", ()))
        return path.resolve() in {self.path.resolve(), *(Path(f).resolve() for f in files)}

    def watch(self, known: dict[Path, Stamp | None]) -> None:
        """Refuse to read pixels of files that have changed since now.

        Args:
            known: stamps of some of them that were taken before the header was read.
        """
        listed = (Path(f) for f in self.metadata.get("sources", {}).get("files", ()))
        self._stamps = FileStamps([*known, *self.files, *listed], known)

    def _check_unchanged(self, *, all_files: bool = True) -> None:
        if self._stamps is not None:
            self._stamps.check(all_files=all_files)

    def pixel_hash(self) -> str:
        """SHA-256 over shape, type and pixels: the same image whatever file it came from.

        A frame that cannot be read counts as such, so that a damaged video has a hash, too.
        """
        if self._hash is not None:
            return self._hash
        digest = hashlib.sha256(f"{self.shape} {self.dtype.str}".encode())
        if self.geometry.ndim == 2:
            digest.update(np.ascontiguousarray(self.array).data)
        else:
            for k in range(self.geometry.shape[0]):
                try:
                    digest.update(np.ascontiguousarray(self.slice_at(k)).data)
                except FormatError:
                    if self.kind != "video":
                        raise
                    digest.update(f"frame {k} cannot be read".encode())
        self._hash = digest.hexdigest()
        return self._hash

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        """For NumPy functions: the pixels of `array`, read-only unless they are copied.

        Raises:
            FormatError: as for `array`.
            ValueError: ``copy=False`` with another `dtype` than that of the pixels.
        """
        return np.array(self.array, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        shape = "×".join(str(n) for n in self.shape)
        spacing = "×".join(f"{s:.3g}" for s in self.spacing) + " mm"
        if not self.geometry.has_spacing:
            spacing = "no spacing"
        parts = [
            self.kind,
            self.modality,
            shape,
            str(self.dtype),
            spacing,
            self.geometry.orientation,
        ]
        return f"<Image {' '.join(p for p in parts if p)}>"

    def _kind_of_channels(self, stated: ChannelKind | None) -> ChannelKind | None:
        if self.num_channels is None or stated is not None:
            return None if self.num_channels is None else stated
        colour = self.kind != "volume" or self.dtype == np.uint8
        return "colour" if colour and self.num_channels in (3, 4) else "other"

    def _check_shape(self, pixels: Array) -> Array:
        expected = self.geometry.shape
        if pixels.shape[: len(expected)] != expected or pixels.ndim > len(expected) + 1:
            raise FormatError(f"Pixels of shape {pixels.shape} do not fill the grid {expected}.")
        view = pixels.view()
        view.flags.writeable = False
        return view


def _warn_of_old_name(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)
