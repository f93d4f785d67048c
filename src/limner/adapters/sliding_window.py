"""Sliding-window inference: a network with a fixed patch over an image of any size, overlapping
windows blended with Gaussian weights, in bounded memory.

The scheme is nnU-Net's (Isensee et al., Nature Methods 2021): windows at even steps of at most
``patch * (1 - overlap)``, each weighted by a Gaussian of a standard deviation of an eighth of the
patch. Here the weights of all windows over a pixel add up to 1 beforehand, which a product of
one-dimensional weights makes possible: no map of their sum is kept, and sums in half precision stay
in the range of the logits. Windows are taken slab by slab along the first axis, and what no later
window reaches is handed on at once, so that memory grows with the patch's depth and not with the
image's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Network: TypeAlias = Callable[[Floats], Floats]
Progress: TypeAlias = Callable[[int, int], None]

_SIGMA = 1 / 8  # of the patch
_HANDED_ON = 64 * 2**20  # bytes of a slab that is handed on, about


class _Tile(NamedTuple):
    """A window along one axis: where it lies, and how much each of its pixels counts."""

    place: slice
    weights: Floats


@dataclass(frozen=True)
class SlidingWindow:
    """How windows are laid over an image.

    Attributes:
        patch: pixels per axis of what the network sees. With one axis less than the image has, the
            network is of slices across the first axis.
        overlap: of neighbouring windows at least, as a share of the patch, 0 to below 1.
        gaussian: weight the middle of a window more than its borders; otherwise all the same.
        mirror: axes of the patch along which windows are mirrored as well, in all combinations; the
            answers are averaged.
        batch_size: windows that the network sees at a time.
        float32_bytes: sums larger than this are held in half precision.
    """

    patch: tuple[int, ...]
    overlap: float = 0.5
    gaussian: bool = True
    mirror: tuple[int, ...] = ()
    batch_size: int = 1
    float32_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        if not self.patch or min(self.patch) < 1:
            raise ValueError(f"patch={self.patch}; it is at least one pixel on every axis.")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap={self.overlap}; it is a share, 0 to below 1.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}; it is at least 1.")
        if not set(self.mirror) <= set(range(len(self.patch))):
            raise ValueError(
                f"mirror={self.mirror}; the patch has axes 0 to {len(self.patch) - 1}."
            )

    def predict_slabs(
        self, image: Floats, network: Network, *, progress: Progress | None = None
    ) -> Iterator[Floats]:
        """Run a network over an image; every pixel is answered once, first to last slab.

        Args:
            image: ``(channel, *axes)`` with 2 or 3 axes, of any size: where it is smaller than the
                patch it is padded with 0, the mean of a normalised image.
            network: called with ``(batch, channel, *patch)``, answers ``(batch, label, *patch)``.
            progress: told how many windows of how many are done.

        Yields:
            Logits ``(label, rows, …)`` of consecutive parts along the first axis, float32.

        Raises:
            ValueError: the patch has another number of axes than the image.
        """
        ndim = image.ndim - 1
        if len(self.patch) == ndim - 1:
            yield from self._of_slices().predict_slabs(
                image, lambda x: network(x[:, :, 0])[:, :, None], progress=progress
            )
            return
        if len(self.patch) != ndim:
            raise ValueError(
                f"A patch of {len(self.patch)} axes does not fit an image of {ndim}: {self.patch}."
            )
        padded, inside = _padded(image, self.patch)
        rows = inside[0]
        done = 0
        for slab in self._slabs(padded, network, progress):
            first, last = max(rows.start - done, 0), min(rows.stop - done, slab.shape[1])
            done += slab.shape[1]
            if first < last:
                yield slab[(slice(None), slice(first, last), *inside[1:])]

    def predict(
        self, image: Floats, network: Network, *, progress: Progress | None = None
    ) -> Floats:
        """All of `predict_slabs` in one array ``(label, *axes)``."""
        slabs = list(self.predict_slabs(image, network, progress=progress))
        return np.concatenate(slabs, axis=1)

    def _of_slices(self) -> SlidingWindow:
        """The same over single slices of a volume."""
        mirror = tuple(axis + 1 for axis in self.mirror)
        return SlidingWindow(
            (1, *self.patch),
            self.overlap,
            self.gaussian,
            mirror,
            self.batch_size,
            self.float32_bytes,
        )

    def _slabs(
        self, image: Floats, network: Network, progress: Progress | None
    ) -> Iterator[Floats]:
        """Slabs of an image that is nowhere smaller than the patch."""
        shape = image.shape[1:]
        tiles = [self._tiles(axis, size) for axis, size in enumerate(shape)]
        across = list(product(*tiles[1:]))
        done, total = 0, len(tiles[0]) * len(across)
        sums: NDArray[Any] | None = None
        ends = [*(tile.place.start for tile in tiles[0][1:]), shape[0]]
        for tile, end in zip(tiles[0], ends, strict=True):
            for at in range(0, len(across), self.batch_size):
                windows = [(tile, *rest) for rest in across[at : at + self.batch_size]]
                places = [tuple(t.place for t in window) for window in windows]
                batch = np.stack([image[(slice(None), *place)] for place in places])
                answers = _mirrored(network, batch, self.mirror)
                if sums is None:
                    sums = self._empty(answers.shape[1], shape)
                for answer, place, window in zip(answers, places, windows, strict=True):
                    _weigh(answer, [t.weights for t in window])
                    sums[(slice(None), slice(None), *place[1:])] += answer
                done += len(windows)
                if progress is not None:
                    progress(done, total)
            assert sums is not None
            rows = end - tile.place.start
            yield from _handed_on(sums, rows)
            _move_up(sums, rows)

    def _tiles(self, axis: int, size: int) -> list[_Tile]:
        """The windows along one axis; the weights of those over a pixel add up to 1."""
        patch = self.patch[axis]
        profile = np.ones(patch)
        if self.gaussian:  # its peak is where nnU-Net has it
            away = (np.arange(patch) - patch // 2) / (patch * _SIGMA)
            profile = np.exp(-0.5 * away**2)
        places = [slice(s, s + patch) for s in window_starts(size, patch, self.overlap)]
        total = np.zeros(size)
        for place in places:
            total[place] += profile
        return [_Tile(place, (profile / total[place]).astype(np.float32)) for place in places]

    def _empty(self, labels: int, shape: Sequence[int]) -> NDArray[Any]:
        size = (labels, self.patch[0], *shape[1:])
        half = 4 * math.prod(size) > self.float32_bytes
        return np.zeros(size, np.float16 if half else np.float32)


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """Where the windows along one axis begin: evenly from the first pixel to the last window.

    Args:
        size: pixels of the axis, `patch` at least.
        patch: pixels of a window.
        overlap: of neighbours at least, as a share of the patch.
    """
    step = max(1.0, patch * (1 - overlap))
    count = math.ceil((size - patch) / step) + 1
    return [round(k * (size - patch) / max(1, count - 1)) for k in range(count)]


def _weigh(answer: Floats, weights: Sequence[Floats]) -> None:
    """Multiply ``(label, *patch)`` with the weights along each axis, in place."""
    for axis, along in enumerate(weights):
        answer *= along.reshape([-1 if k == axis else 1 for k in range(len(weights))])


def _mirrored(network: Network, batch: Floats, axes: Sequence[int]) -> Floats:
    """The mean answer to a batch and its mirror images, as an array of its own."""
    total = np.array(network(batch), dtype=np.float32)
    flips = [c for n in range(1, len(axes) + 1) for c in combinations(axes, n)]
    for chosen in flips:
        turned = tuple(axis + 2 for axis in chosen)
        total += np.flip(network(np.ascontiguousarray(np.flip(batch, turned))), turned)
    if flips:
        total /= len(flips) + 1
    return total


def _padded(image: Floats, patch: Sequence[int]) -> tuple[Floats, tuple[slice, ...]]:
    """An image with 0 around it where it is smaller than the patch, and where the image lies."""
    missing = [max(0, p - n) for n, p in zip(image.shape[1:], patch, strict=True)]
    before = [m // 2 for m in missing]
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    if not any(missing):
        return image, inside
    margins = [(b, m - b) for b, m in zip(before, missing, strict=True)]
    return np.pad(image, [(0, 0), *margins]), inside


def _handed_on(sums: NDArray[Any], rows: int) -> Iterator[Floats]:
    """The first rows of the sums, in parts of bounded size."""
    row = 4 * math.prod(sums.shape) // sums.shape[1]
    step = max(1, _HANDED_ON // row)
    cuts = [*range(0, rows, step), rows]
    for low, high in pairwise(cuts):
        yield sums[:, low:high].astype(np.float32)


def _move_up(sums: NDArray[Any], rows: int) -> None:
    """Drop the first rows and add as many empty ones; by channel, to need no second array."""
    for channel in sums:
        channel[: len(channel) - rows] = channel[rows:].copy()
        channel[len(channel) - rows :] = 0
