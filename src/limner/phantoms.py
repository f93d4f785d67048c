"""Generated images with a known truth: an image, a volume and a moving sequence.

They look enough like anatomy (a body with organs and a lesion, soft borders, noise, shading) to try
every part of limner without any patient's data, and are the same for the same seed. Intensities
and shapes are drawn at random around plausible values; nothing is copied from a real image.

    phantom = phantoms.volume(7)
    session = limner.open_session(phantom.image, model="toy")
    limner.metrics.dice(session.predict().mask, phantom.truth == 1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.labels import Labels

Array = NDArray[Any]
Seed = int | np.random.Generator

SMALLEST_AXIS = 8  # pixels; below that no organ is left

_AIR, _FAT, _MUSCLE = 0, 1, 2  # tissues without a label of their own; organs follow
_ORGANS = ("liver", "right kidney", "left kidney", "spine", "lesion")
# Mean intensities of air, fat, muscle and the organs.
_HOUNSFIELD = (-1000.0, -100.0, 45.0, 115.0, 190.0, 185.0, 420.0, 60.0)  # contrast-enhanced
_MAGNITUDE = (8.0, 760.0, 300.0, 430.0, 610.0, 600.0, 180.0, 850.0)  # MR, arbitrary units
_COLORS = (
    (12, 10, 14),
    (226, 190, 152),
    (188, 104, 96),
    (122, 46, 44),
    (150, 70, 92),
    (146, 72, 96),
    (222, 214, 196),
    (96, 74, 40),
)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A generated image and what is in it.

    Attributes:
        image: intensities, with geometry.
        truth: uint8 label map of ``image.geometry.shape``; a pixel belongs to what fills most of
            it. 0 is everything without a name.
        names: of the labels that occur in `truth`.
    """

    image: Image
    truth: NDArray[np.uint8]
    names: Mapping[int, str]

    @property
    def labels(self) -> Labels:
        """The truth as a segmentation, ready to be written."""
        return Labels(self.image.geometry, array=self.truth, names=self.names)


def image(seed: Seed, shape: Sequence[int] = (256, 256), *, color: bool = False) -> Phantom:
    """A cut through a body: MR-like in grey, photograph-like in colour.

    Args:
        seed: integer, or a generator, which is advanced.
        shape: rows and columns, each at least `SMALLEST_AXIS`.
        color: uint8 RGB instead of uint16 grey with Rician noise and a bias field.
    """
    rng = np.random.default_rng(seed)
    size = _check_shape(shape, 2)
    table = np.asarray(_COLORS if color else _MAGNITUDE, dtype=np.float32)
    table = table * rng.normal(1.0, 0.03, table.shape).astype(np.float32)
    shapes = _anatomy(rng, 2)
    clean, truth = _paint(shapes, _Warp.draw(rng, 2, 0.035), size, table, subsamples=3)
    clean = clean * _shading(rng, size, 0.18)[(..., None) if color else ...]
    if color:
        pixels = _round_to_dtype(clean + rng.normal(0.0, 6.0, clean.shape), np.uint8)
    else:
        pixels = _round_to_dtype(_rician(rng, clean, 22.0), np.uint16)
    spacing = (float(rng.uniform(280.0, 380.0)) / max(size),) * 2
    image = Image(
        pixels,
        Geometry.from_spacing(size, None if color else spacing),
        modality="XC" if color else "MR",
        format="phantom",
    )
    return _phantom(image, truth, _ORGANS)


def volume(
    seed: Seed,
    shape: Sequence[int] = (48, 96, 96),
    *,
    spacing: Sequence[float] | None = None,
    hounsfield: bool = True,
    oblique: bool = True,
) -> Phantom:
    """A trunk: CT-like, or MR-like, on an anisotropic and tilted grid.

    Args:
        seed: integer, or a generator, which is advanced.
        shape: slices, rows and columns, each at least `SMALLEST_AXIS`. The body fills the grid
            whatever its size.
        spacing: millimetres in index order; None for a trunk of natural size, 200 mm of it.
        hounsfield: int16 Hounsfield units, so that CT windows make sense; else uint16 MR-like
            magnitudes with Rician noise and a bias field.
        oblique: turn the grid by up to about 15 degrees against the patient.
    """
    rng = np.random.default_rng(seed)
    size = _check_shape(shape, 3)
    table = np.asarray(_HOUNSFIELD if hounsfield else _MAGNITUDE, dtype=np.float32)
    table = table + rng.normal(0.0, 8.0, table.shape).astype(np.float32)
    shapes = _anatomy(rng, 3)
    clean, truth = _paint(shapes, _Warp.draw(rng, 3, 0.03), size, table, subsamples=2)
    if hounsfield:
        noise = rng.normal(0.0, 14.0, size) + 6.0 * _waves(rng, size, 5)
        pixels = _round_to_dtype(np.maximum(clean + noise, -1024.0), np.int16)
    else:
        pixels = _round_to_dtype(_rician(rng, clean * _shading(rng, size, 0.15), 22.0), np.uint16)
    natural = (200.0 / size[0], 360.0 / max(size[1:]), 360.0 / max(size[1:]))
    geometry = Geometry.from_spacing(
        size,
        natural if spacing is None else spacing,
        origin=tuple(float(x) for x in rng.uniform(-200.0, 200.0, 3)),
        direction=_direction(rng, 15.0 if oblique else 0.0),
    )
    image = Image(pixels, geometry, modality="CT" if hounsfield else "MR", format="phantom")
    return _phantom(image, truth, _ORGANS)


def sequence(seed: Seed, shape: Sequence[int] = (24, 128, 128)) -> Phantom:
    """A beating chamber and a drifting vessel, as an ultrasound-like video.

    Args:
        seed: integer, or a generator, which is advanced.
        shape: frames (any number from 1), rows and columns, each at least `SMALLEST_AXIS`.
    """
    rng = np.random.default_rng(seed)
    frames, *rest = (int(n) for n in shape)
    size = _check_shape(rest, 2)
    if frames < 1:
        raise ValueError(f"A sequence has at least one frame, not {frames}.")
    table = np.array((70.0, 150.0, 28.0, 52.0), dtype=np.float32)  # tissue, wall, chamber, vessel
    table = table * rng.uniform(0.9, 1.1, 4).astype(np.float32)
    warp, beat = _Warp.draw(rng, 2, 0.03), float(rng.uniform(12.0, 20.0))  # frames per heart beat
    phase, turn = float(rng.uniform(0.0, 6.28)), float(rng.uniform(-0.4, 0.4))
    tissue = _waves(rng, size, 9)
    pixels = np.zeros((frames, *size), dtype=np.uint8)
    truth = np.zeros((frames, *size), dtype=np.uint8)
    for k in range(frames):
        cycle = 2 * np.pi * k / beat + phase
        clean, truth[k] = _paint(
            _chamber(cycle, turn, k / max(frames - 1, 1)), warp, size, table, subsamples=2, named=2
        )
        speckle = rng.gamma(9.0, 1.0 / 9.0, size)  # multiplicative, mean 1
        pixels[k] = _round_to_dtype(clean * speckle * (1 + 0.12 * tissue), np.uint8)
    spacing = (1.0, 0.5, 0.5)  # the first is the unit normal of the frames
    image = Image(
        pixels,
        Geometry.from_spacing((frames, *size), spacing),
        kind="video",
        modality="US",
        format="phantom",
    )
    return _phantom(image, truth, ("chamber", "vessel"))


@dataclass(frozen=True, eq=False)
class _Ellipsoid:
    """A turned ellipsoid in coordinates that run from -1 to 1 over the grid, and its tissue."""

    tissue: int
    centre: tuple[float, ...]
    radii: tuple[float, ...]
    angle: float = 0.0  # radians, in the plane of the last two axes

    def inside(self, points: Sequence[Array]) -> NDArray[np.bool_]:
        """Which points are inside; `points` holds one broadcastable array per axis."""
        moved = [p - np.float32(c) for p, c in zip(points, self.centre, strict=True)]
        cosine, sine = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        row, column = moved[-2], moved[-1]
        moved[-2], moved[-1] = cosine * row - sine * column, sine * row + cosine * column
        squares = ((m / np.float32(r)) ** 2 for m, r in zip(moved, self.radii, strict=True))
        return np.asarray(reduce(np.add, squares) < 1.0)


@dataclass(frozen=True, eq=False)
class _Warp:
    """A smooth displacement of the plane or of space: what makes ellipsoids organic."""

    shifts: Array  # (waves, ndim)
    frequencies: Array  # (waves, ndim), half periods per grid
    phases: Array  # (waves,)

    @classmethod
    def draw(cls, rng: np.random.Generator, ndim: int, strength: float) -> _Warp:
        frequencies = rng.normal(0.0, 1.7, (5, ndim))
        return cls(rng.normal(0.0, strength, (5, ndim)), frequencies, rng.uniform(0.0, 6.28, 5))

    def apply(self, points: Sequence[Array]) -> list[Array]:
        moved = list(points)
        for shift, frequency, phase in zip(self.shifts, self.frequencies, self.phases, strict=True):
            angle = sum(p * np.float32(np.pi * f) for p, f in zip(points, frequency, strict=True))
            wave = np.cos(angle + np.float32(phase))
            moved = [m + np.float32(s) * wave for m, s in zip(moved, shift, strict=True)]
        return moved


def _anatomy(rng: np.random.Generator, ndim: int) -> list[_Ellipsoid]:
    """The trunk, painted in order: later shapes cover earlier ones."""

    def put(
        tissue: int,
        centre: tuple[float, float, float],
        radii: tuple[float, float, float],
        jitter: float = 0.03,
    ) -> _Ellipsoid:
        middle = np.asarray(centre) + rng.normal(0.0, jitter, 3)
        size = np.asarray(radii) * rng.uniform(0.88, 1.12, 3)
        if ndim == 2:
            middle, size = middle[1:], size[1:]
        angle = float(rng.normal(0.0, 0.15))
        return _Ellipsoid(tissue, tuple(middle.tolist()), tuple(size.tolist()), angle)

    # (slice up, row to the back, column to the left of the patient), so the liver is at low columns
    body = put(_FAT, (0.0, 0.0, 0.0), (3.0, 0.74, 0.86), 0.01)
    inner = _Ellipsoid(
        _MUSCLE,
        body.centre,
        tuple(r * 0.88 for r in body.radii),
        body.angle,
    )
    liver = put(3, (0.1, -0.12, -0.36), (0.62, 0.34, 0.3))
    shift = rng.uniform(-0.35, 0.35, 3) * (1.0, 0.3, 0.25)
    at = tuple(float(c + s) for c, s in zip((0.1, -0.12, -0.36), shift, strict=True))
    return [
        body,
        inner,
        put(6, (0.0, 0.4, 0.0), (3.0, 0.16, 0.15), 0.015),
        liver,
        put(4, (-0.15, 0.3, -0.34), (0.4, 0.13, 0.1)),
        put(5, (-0.1, 0.28, 0.36), (0.4, 0.14, 0.1)),
        put(7, (at[0], at[1], at[2]), (0.2, 0.1, 0.1), 0.01),
    ]


def _chamber(cycle: float, turn: float, time: float) -> list[_Ellipsoid]:
    """The heart at one moment; `time` runs from 0 to 1 over the sequence."""
    squeeze = 1.0 + 0.16 * float(np.sin(cycle))
    centre = (0.08 * float(np.sin(cycle * 0.5)) - 0.1, -0.25 + 0.3 * time)
    radii = (0.42 * squeeze, 0.28 * (1.0 + 0.1 * float(np.cos(cycle))))
    angle = 0.35 + turn * time
    wall = (radii[0] + 0.1, radii[1] + 0.1)
    vessel = (0.62, 0.55 - 0.5 * time)
    return [
        _Ellipsoid(1, centre, wall, angle),
        _Ellipsoid(2, centre, radii, angle),
        _Ellipsoid(1, vessel, (0.2, 0.2)),
        _Ellipsoid(3, vessel, (0.13, 0.13 * squeeze)),
    ]


def _paint(
    shapes: Sequence[_Ellipsoid],
    warp: _Warp,
    size: tuple[int, ...],
    table: Array,
    *,
    subsamples: int,
    named: int = _MUSCLE + 1,
) -> tuple[Array, NDArray[np.uint8]]:
    """Mean intensity and most frequent label of every pixel, over `subsamples` points per axis.

    Args:
        shapes: in painting order.
        warp: applied to all of them.
        size: of the grid.
        table: intensity, or intensities per channel, per tissue.
        subsamples: points per axis and pixel: what makes the partial volume.
        named: the first tissue that has a label; it gets label 1.
    """
    offsets = (np.arange(subsamples) + 0.5) / subsamples
    total = np.zeros((*size, *table.shape[1:]), dtype=np.float32)
    votes = np.zeros((len(table) - named, *size), dtype=np.uint8)
    for shift in product(offsets, repeat=len(size)):
        points = [
            ((np.arange(n) + o) * (2.0 / n) - 1.0).astype(np.float32)
            for n, o in zip(size, shift, strict=True)
        ]
        places = warp.apply(np.meshgrid(*points, indexing="ij", sparse=True))
        tissue = np.zeros(size, dtype=np.uint8)
        for shape in shapes:
            tissue[shape.inside(places)] = shape.tissue
        total += table[tissue]
        for k in range(len(votes)):
            votes[k] += tissue == named + k
    count = subsamples ** len(size)
    unnamed = (count - votes.sum(axis=0, dtype=np.int32))[None]
    truth = np.concatenate([unnamed, votes]).argmax(axis=0).astype(np.uint8)
    return total / np.float32(count), truth


def _waves(rng: np.random.Generator, size: tuple[int, ...], half_periods: int) -> Array:
    """A smooth random field of zero mean and unit deviation, float32."""
    field = np.zeros(size, dtype=np.float32)
    axes = [np.linspace(0.0, np.pi, n, dtype=np.float32) for n in size]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    for _ in range(6):
        frequency = rng.uniform(-half_periods, half_periods, len(size))
        angle = sum(g * np.float32(f) for g, f in zip(grid, frequency, strict=True))
        field += np.cos(angle + np.float32(rng.uniform(0.0, 6.28)))
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6))


def _shading(rng: np.random.Generator, size: tuple[int, ...], strength: float) -> Array:
    """A bias field around 1, as coils and lamps make."""
    return np.asarray(np.exp(strength * 0.5 * _waves(rng, size, 2)), dtype=np.float32)


def _rician(rng: np.random.Generator, clean: Array, sigma: float) -> Array:
    """MR magnitudes: Gaussian noise on both channels of the complex signal."""
    real = clean + rng.normal(0.0, sigma, clean.shape)
    return np.asarray(np.hypot(real, rng.normal(0.0, sigma, clean.shape)))


def _round_to_dtype(values: Array, dtype: type[np.integer[Any]]) -> Array:
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(np.rint(values), limits.min, limits.max).astype(dtype))


def _direction(rng: np.random.Generator, degrees: float) -> Array:
    """The grid's axes as columns: slices up, rows to the back, columns to the left; then turned."""
    x, y, z = np.radians(rng.uniform(-degrees, degrees, 3))
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    upright = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    return np.asarray(about_x @ about_y @ about_z @ upright)


def _check_shape(shape: Sequence[int], axes: int) -> tuple[int, ...]:
    size = tuple(int(n) for n in shape)
    if len(size) != axes or min(size) < SMALLEST_AXIS:
        raise ValueError(
            f"A phantom of {axes} axes needs {axes} sizes of at least {SMALLEST_AXIS} pixels, "
            f"not {size}."
        )
    return size


def _phantom(image: Image, truth: NDArray[np.uint8], names: Sequence[str]) -> Phantom:
    present = {int(k) for k in np.unique(truth)} - {0}
    truth.flags.writeable = False
    return Phantom(image, truth, {k: names[k - 1] for k in sorted(present)})
