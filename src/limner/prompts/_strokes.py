"""Hand-drawn strokes and outlines in a 2D region, with smooth noise."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.prompts.regions import bounds, depth, largest_component

Array = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]


def choose_slice(
    region: Mask, rng: np.random.Generator, axis: int | None
) -> tuple[Mask, int | None, int]:
    """The plane to draw on: in 3D a slice on which the region is large (at least three quarters of
    the largest), across `axis` or a random one.

    Returns:
        The region on the plane; the axis across and the slice's index, None and 0 in 2D.
    """
    if region.ndim == 2:
        return region, None, 0
    across = int(rng.integers(3)) if axis is None else axis
    if across not in (0, 1, 2):
        raise ValueError(f"axis={axis} must be 0, 1, 2 or None.")
    volume = np.moveaxis(region, across, 0)
    areas = np.count_nonzero(volume, axis=(1, 2))
    large = np.flatnonzero(areas >= 0.75 * areas.max())
    index = int(large[rng.integers(len(large))])
    return volume[index], across, index


def lift(points: Array, across: int | None, index: int) -> Array:
    """Points ``(n, 2)`` of a plane from `choose_slice` as float64 points of the image."""
    placed = points if across is None else np.insert(points, across, index, axis=1)
    return np.asarray(placed, dtype=np.float64)


def stroke(style: str, part: Mask, rng: np.random.Generator) -> Array:
    """Pixels ``(n, 2)`` of an unbroken wavering line inside a region; none where it misses it.

    Args:
        style: ``"line"``, ``"centreline"`` or ``"contour"``.
        part: 2D, with a rim of False one pixel wide.
        rng: source of every random choice.
    """
    draw = {"line": random_line, "centreline": centreline, "contour": inner_contour}[style]
    return longest_run(waver(draw(part, rng), part, rng), part)


def random_line(part: Mask, rng: np.random.Generator) -> Array:
    """A straight line between two random pixels of the region; it may leave the region."""
    inside = np.argwhere(part)
    return np.asarray(inside[rng.integers(len(inside), size=2)], dtype=np.float64)


def centreline(part: Mask, rng: np.random.Generator) -> Array:
    """The longest way through the skeleton of the largest component; a random line where that is
    little more than a point, as in a disk.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra
    from scipy.spatial import cKDTree
    from skimage import morphology

    thin: Any = morphology.skeletonize
    places = np.argwhere(thin(largest_component(part)[0])).astype(np.float64)
    if len(places) < 0.25 * np.sqrt(part.sum()) or len(places) < 2:
        return random_line(part, rng)
    pairs = cKDTree(places).query_pairs(1.5, output_type="ndarray")
    length = np.linalg.norm(places[pairs[:, 0]] - places[pairs[:, 1]], axis=1)
    graph = coo_array((length, (pairs[:, 0], pairs[:, 1])), shape=(len(places),) * 2).tocsr()

    def farthest(start: int) -> tuple[int, Array]:
        away, before = dijkstra(graph, directed=False, indices=start, return_predecessors=True)
        return int(np.where(np.isfinite(away), away, -1).argmax()), before

    start, _ = farthest(0)
    end, before = farthest(start)
    way = [end]
    while way[-1] != start:
        way.append(int(before[way[-1]]))
    return places[way]


def inner_contour(part: Mask, rng: np.random.Generator) -> Array:
    """A contour of the blurred region between its edge and its middle, from a random start."""
    from scipy import ndimage
    from skimage import measure

    blur = rng.uniform(0.1, 0.4) * float(np.sqrt(part.sum() / np.pi))
    blurred = ndimage.gaussian_filter(part.astype(np.float32), blur, mode="constant", truncate=2.0)
    inside = blurred[part]
    find: Any = measure.find_contours
    contours = find(blurred, rng.uniform(float(inside.min()), float(inside.max())))
    if not contours:
        return random_line(part, rng)
    longest = max(contours, key=len)
    return np.asarray(np.roll(longest, rng.integers(len(longest)), axis=0))


def outline(region: Mask, distance: float, roughness: float, rng: np.random.Generator) -> Array:
    """Corners ``(n, 2)`` of a closed line around all of a region, `distance` pixels away from it on
    average, within the plane. Around several parts it is their convex hull.
    """
    from scipy import ndimage
    from skimage import measure, morphology

    hull: Any = morphology.convex_hull_image
    find: Any = measure.find_contours
    simplify: Any = measure.approximate_polygon
    low, high = bounds(region)
    rim = int(np.ceil(2 * distance)) + 2
    part = np.pad(region[tuple(map(slice, low, high))], rim)
    reach = distance * (1 + roughness * noise(part.shape, max(part.shape) / 6, rng))
    around = depth(~part, closed=False) <= reach
    if ndimage.label(around, np.ones((3, 3)))[1] > 1:
        around = hull(around)
    found = find(around.astype(np.float32), 0.5, fully_connected="high")
    # A contour passes 0.35 pixels from pixel centres, so no pixel is lost by this.
    line = simplify(max(found, key=len), 0.3)[:-1] + low - rim
    return clip_polygon(line, np.array(region.shape) - 1)


def clip_polygon(corners: Array, high: Array) -> Array:
    """The part of a polygon within ``0 <= index <= high``, by cutting off one side after another
    (Sutherland and Hodgman's method).
    """
    for axis in range(2):
        for limit, sign in ((0.0, 1.0), (float(high[axis]), -1.0)):
            room = sign * (corners[:, axis] - limit)
            following, next_room = np.roll(corners, -1, axis=0), np.roll(room, -1)
            crosses = (room < 0) != (next_room < 0)
            share = room / np.where(crosses, room - next_room, 1.0)
            cuts = corners + share[:, None] * (following - corners)
            cuts[:, axis] = limit
            both = np.stack([corners, cuts], axis=1)
            corners = both[np.stack([room >= 0, crosses], axis=1)]
    return corners


def waver(line: Array, part: Mask, rng: np.random.Generator) -> Array:
    """Sample a line every half pixel and displace it smoothly, as a hand does: by 6 pixels or half
    of the region's depth at most.
    """
    lengths = np.linalg.norm(np.diff(line, axis=0), axis=1)
    along = np.concatenate(([0.0], np.cumsum(lengths)))
    if along[-1] == 0:
        return line
    places = np.linspace(0.0, along[-1], int(along[-1] * 2) + 2)
    samples = np.stack([np.interp(places, along, line[:, k]) for k in range(2)], axis=1)
    scale = max(8.0, len(samples) / 4)
    reach = rng.uniform(0.0, min(6.0, 0.5 * float(depth(part).max())))
    reach = min(reach, scale / 8)  # steeper waves would tear the line
    waves = [noise((len(samples),), scale, rng) for _ in range(2)]
    return np.asarray(samples + reach * np.stack(waves, axis=1))


def longest_run(samples: Array, part: Mask) -> Array:
    """The pixels of the longest piece of a densely sampled line that stays in the region."""
    pixels = np.floor(samples + 0.5).astype(np.int64)
    new = np.concatenate(([True], (np.diff(pixels, axis=0) != 0).any(axis=1)))
    pixels = pixels[new]
    steps = np.concatenate(([0], np.abs(np.diff(pixels, axis=0)).max(axis=1, initial=0)))
    size = np.asarray(part.shape)
    on_grid = ((pixels >= 0) & (pixels < size)).all(axis=1)
    inside = on_grid & part[tuple(np.clip(pixels, 0, size - 1).T)]
    best = (0, 0)
    start = 0
    for k in range(len(pixels) + 1):
        if k == len(pixels) or not inside[k] or steps[k] > 1:
            if k - start > best[1] - best[0]:
                best = (start, k)
            start = k if k < len(pixels) and inside[k] else k + 1
    return pixels[best[0] : best[1]]


def corners(pixels: Array) -> Array:
    """The pixels of an unbroken line at which its direction changes, and its ends."""
    steps = np.diff(pixels, axis=0)
    turns = (np.diff(steps, axis=0) != 0).any(axis=1)
    ends = np.ones(min(len(pixels), 2), dtype=bool)
    keep = np.concatenate((ends[:1], turns, ends[1:])) if len(pixels) > 1 else ends
    return np.asarray(pixels[keep])


def noise(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> Array:
    """Smooth noise from -1 to 1 with features of about `scale` pixels: random numbers on a coarse
    grid, interpolated.
    """
    coarse = tuple(int(np.ceil(n / scale)) + 2 for n in shape)
    values = rng.uniform(-1.0, 1.0, coarse)
    for axis, n in enumerate(shape):
        place = np.linspace(0.0, coarse[axis] - 1.0, n)
        low = np.minimum(place.astype(int), coarse[axis] - 2)
        share = (place - low).reshape([n if k == axis else 1 for k in range(len(shape))])
        share = share * share * (3.0 - 2.0 * share)  # without kinks at the knots
        first, second = np.take(values, low, axis), np.take(values, low + 1, axis)
        values = first + share * (second - first)
    return np.asarray(values)
