"""The fields that 3D Slicer keeps about segments in a NRRD header (``.seg.nrrd``).

Every segment has a name, a label value and a layer; segments that overlap lie in different layers,
which are the fastest axis of the file. Slicer may cut the file to the part that is not empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.geometry import Geometry
from limner.io.labels import Labels
from limner.io.placement import SAME_GRID, turn_towards

Array = NDArray[Any]

SEGMENTS_SUFFIX = ".seg.nrrd"

_FIELD = re.compile(r"Segment(\d{1,6})_(Name|LabelValue|Layer)")


@dataclass(frozen=True)
class Segment:
    """One segment: its name, its value in the label map and which layer that is in."""

    name: str
    value: int
    layer: int


def segments_of(keys: Mapping[str, str]) -> tuple[Segment, ...]:
    """The segments of a NRRD header's keys, in its order; empty if Slicer did not write it.

    Raises:
        ValueError: a label value or layer is no number.
    """
    found: dict[int, dict[str, str]] = {}
    for key, value in keys.items():
        match = _FIELD.fullmatch(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = value
    return tuple(
        Segment(
            name=facts.get("Name", "").replace("\n", " "),
            value=int(facts.get("LabelValue", number + 1)),
            layer=int(facts.get("Layer", 0)),
        )
        for number, facts in sorted(found.items())
    )


def labels_of_segments(pixels: Array, geometry: Geometry, segments: Sequence[Segment]) -> Labels:
    """Labels with the segments' names; overlapping segments stay apart.

    Label values become object ids, unless two layers use the same value: then the segments are
    numbered from 1 in the file's order.

    Args:
        pixels: label map of ``geometry.shape``, with layers as the last axis if there are several.
        geometry: the grid.
        segments: from `segments_of`, at least one.

    Raises:
        ValueError: a segment names a layer that the file does not have.
    """
    layers = pixels if pixels.ndim > geometry.ndim else pixels[..., None]
    if max(s.layer for s in segments) >= layers.shape[-1] or min(s.layer for s in segments) < 0:
        raise ValueError(f"its segments name more layers than the {layers.shape[-1]} it has")
    unique = (
        len({s.value for s in segments}) == len(segments) and min(s.value for s in segments) > 0
    )
    ids = [s.value if unique else k for k, s in enumerate(segments, start=1)]
    names = {i: s.name for i, s in zip(ids, segments, strict=True) if s.name}
    if unique and layers.shape[-1] == 1:
        return Labels(geometry, array=layers[..., 0], names=names)
    masks = {i: layers[..., s.layer] == s.value for i, s in zip(ids, segments, strict=True)}
    return Labels(geometry, masks=masks, names=names)


def place(pixels: Array, own: Geometry, target: Geometry) -> Array | None:
    """A label map that was cut out of a larger grid, put back; None if the grids do not match.

    Args:
        pixels: of ``own.shape``, with layers as the last axis if there are several.
        own: its grid, whose axes may run in another order than those of the target.
        target: the grid of the image.
    """
    if own.ndim != target.ndim:
        return None
    turn = turn_towards(own, target) if own.ndim == 3 else None
    if turn is not None:
        pixels, own = turn.array(pixels), turn.geometry(own)
    low = np.rint(target.world_to_index(own.origin)).astype(int)
    high = low + np.array(own.shape)
    if not target.crop(low.tolist(), high.tolist()).is_close(own, tolerance=SAME_GRID):
        return None
    whole = np.zeros(target.shape + pixels.shape[own.ndim :], dtype=pixels.dtype)
    first, last = np.maximum(low, 0), np.minimum(high, target.shape)
    if (first < last).all():
        inside = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        source = tuple(slice(a, b) for a, b in zip(first - low, last - low, strict=True))
        whole[inside] = pixels[source]
    return whole


def layers_of(labels: Labels) -> tuple[Array, list[Segment]]:
    """Label maps in which nothing overlaps, and what lies where.

    Returns:
        Array of ``shape`` (one layer) or ``shape + (layers,)``, and a segment per object.
    """
    empty = [Segment(labels.name(i), i, 0) for i in labels.empty_ids]
    segments = [Segment(labels.name(i), i, 0) for i in labels.ids] + empty
    if not labels.num_overlapping():
        return np.asarray(labels.to_array()), segments
    dtype = np.min_scalar_type(max(labels.ids))
    layers: list[Array] = []
    segments = []
    for object_id in labels.ids:
        mask = labels.mask(object_id)
        free = next((k for k, layer in enumerate(layers) if not layer[mask].any()), len(layers))
        if free == len(layers):
            layers.append(np.zeros(labels.geometry.shape, dtype=dtype))
        layers[free][mask] = object_id
        segments.append(Segment(labels.name(object_id), object_id, free))
    return np.stack(layers, axis=-1), segments + empty


def fields_of(segments: Sequence[Segment]) -> list[str]:
    """The lines of a NRRD header that tell Slicer about segments."""
    lines = []
    for number, segment in enumerate(segments):
        name = " ".join(segment.name.split()).replace("\\", "\\\\")
        lines += [
            f"Segment{number}_ID:=Segment_{segment.value}",
            f"Segment{number}_Name:={name}",
            f"Segment{number}_LabelValue:={segment.value}",
            f"Segment{number}_Layer:={segment.layer}",
        ]
    return lines
