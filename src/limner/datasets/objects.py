"""Target objects of images and volumes: labels, instances or components, and people's strokes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.datasets.files import stem_of
from limner.datasets.record import Dataset, Unit
from limner.datasets.selection import pick_evenly
from limner.errors import FormatError
from limner.io import read_labels
from limner.io.image import Image
from limner.io.labels import Labels
from limner.prompts.convert import scribbles_from_mask
from limner.prompts.regions import bounds
from limner.prompts.types import Example, Scribble

Array = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]

LEAST_COMPONENT = 64  # pixels or voxels, by the rules of splits.json
LEAST_OBJECT = 16  # pixels of any other object; smaller ones are fragments at an image's edge
LEAST_VOXELS = 64  # of any object in a volume


@dataclass(frozen=True, eq=False)
class TargetObject:
    """One object to find.

    Attributes:
        object_id: label or instance, ``"3"``, or label and component, ``"3.2"``.
        target_name: in words, empty if unknown.
        target: boolean ``(row, column)`` or ``(slice, row, column)``.
        annotator: whose strokes, such as ``"annotator0"``; None where the user is simulated.
        strokes: what the annotator drew, positive first.
        references: other pictures, with masks of the same label, that are shown first.
        spacing: millimetres per step of a volume, in index order; None in pictures.
    """

    object_id: str
    target_name: str
    target: Mask
    annotator: str | None = None
    strokes: tuple[Scribble, ...] = ()
    references: tuple[Reference, ...] = ()
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """Another picture of a set, that shows what is meant.

    Attributes:
        stem: of the picture.
        example: the picture and all pixels of the label.
        sha256: of both.
    """

    stem: str
    example: Example
    sha256: str


def find_objects(
    data_set: Dataset, stem: str, image: Image, *, most: int | None = None, drawn: bool = False
) -> Iterator[TargetObject]:
    """The objects of one picture.

    Args:
        data_set: of the picture.
        stem: of the picture.
        image: the picture, whose grid the masks must have.
        most: objects at most, at equal steps over all; None for all.
        drawn: give a case per person who drew strokes, about the object that most of their
            positive pixels are on, and none of objects that nobody drew on.

    Raises:
        FormatError: a mask is missing or cannot be read.
        GeometryError: a mask has another size than the picture.
    """
    objects = read_objects(data_set, stem, image)
    if not drawn:
        for object_id in pick_evenly(objects.ids, most):
            yield objects.case(object_id)
        return
    people: dict[str, list[TargetObject]] = {}
    for path in sorted((data_set.folder / "scribbles").glob(f"{escape(stem)}__*")):
        annotator = stem_of(path).removeprefix(f"{stem}__")
        case = _drawn_case(objects, annotator, read_labels(path, like=image))
        if case is not None:
            people.setdefault(case.object_id, []).append(case)
    for object_id in pick_evenly([i for i in objects.ids if i in people], most):
        yield from people[object_id]


class Objects:
    """The objects of one picture or volume that are large enough to ask about.

    Args:
        labels: as read.
        unit: what one object is.
        targets: names by label as text.
        annotated: the labels that were annotated, as text; None for all.
    """

    def __init__(
        self,
        labels: Labels,
        unit: Unit,
        targets: Mapping[str, str],
        *,
        annotated: Collection[str] | None = None,
    ) -> None:
        self._labels = labels
        self._targets = targets if unit != "instance" else {}
        self._parts: dict[int, tuple[tuple[slice, ...], Array]] = {}  # where, and numbers there
        self.ids: list[str] = []
        least = LEAST_OBJECT if labels.geometry.ndim == 2 else LEAST_VOXELS
        for label, count in _sizes(labels).items():
            if annotated is not None and str(label) not in annotated:
                continue
            if unit == "component":
                self.ids += self._components(label)
            elif count >= least:
                self.ids.append(str(label))

    def _components(self, label: int) -> list[str]:
        """Find the parts of a label; ids of those that are large enough."""
        from scipy import ndimage

        mask = self._labels.mask(label)
        window = tuple(map(slice, *bounds(mask)))
        parts, count = ndimage.label(mask[window], np.ones((3,) * mask.ndim))
        self._parts[label] = window, parts
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        return [f"{label}.{k}" for k in range(1, count + 1) if sizes[k] >= LEAST_COMPONENT]

    def mask(self, object_id: str) -> Mask:
        """Boolean mask of one of `ids`."""
        label, _, part = object_id.partition(".")
        if not part:
            return np.asarray(self._labels.mask(int(label)), dtype=bool)
        window, parts = self._parts[int(label)]
        whole = np.zeros(self._labels.geometry.shape, dtype=bool)
        whole[window] = parts == int(part)
        return whole

    def case(
        self, object_id: str, annotator: str | None = None, strokes: tuple[Scribble, ...] = ()
    ) -> TargetObject:
        """One of `ids` as a case."""
        label = object_id.partition(".")[0]
        name = self._targets.get(label) or self._labels.names.get(int(label), "")
        target, geometry = self.mask(object_id), self._labels.geometry
        spacing = None if geometry.ndim == 2 else geometry.spacing
        return TargetObject(object_id, str(name), target, annotator, strokes, spacing=spacing)


def read_objects(data_set: Dataset, stem: str, image: Image) -> Objects:
    """Read the masks of a picture. Errors as for `find_objects`."""
    case = data_set.cases[stem]
    path = case.instances if data_set.unit == "instance" and data_set.has_instances else case.labels
    if path is None:
        raise FormatError(
            f"{data_set.folder} has no mask of {stem}; a mask has the stem of its picture."
        )
    labels = read_labels(path, like=image)
    if data_set.unit == "whole":
        labels = Labels(labels.geometry, array=labels.to_array() != 0)
    return Objects(labels, data_set.unit, data_set.value_names, annotated=case.annotated)


def _drawn_case(objects: Objects, annotator: str, drawing: Labels) -> TargetObject | None:
    yes = drawing.mask(1) if 1 in drawing.ids else np.zeros(drawing.geometry.shape, dtype=bool)
    hits = {i: int(np.count_nonzero(objects.mask(i) & yes)) for i in objects.ids}
    best = max(hits, key=lambda i: hits[i], default=None)
    if best is None or hits[best] == 0:
        return None
    strokes = [
        stroke
        for label in (1, 2)
        if label in drawing.ids
        for stroke in scribbles_from_mask(drawing.mask(label), positive=label == 1)
    ]
    return objects.case(best, annotator, tuple(strokes))


def _sizes(labels: Labels) -> dict[int, int]:
    """Pixels by label, ascending by label."""
    if labels.num_overlapping():
        return {i: int(np.count_nonzero(labels.mask(i))) for i in labels.ids}
    array = np.asarray(labels.to_array())
    if array.dtype.itemsize > 2:
        values, counts = np.unique(array, return_counts=True)
    else:  # plane by plane: ten times faster than sorting a volume
        most = int(array.max(initial=0)) + 1
        counts = sum((np.bincount(p.ravel(), minlength=most) for p in array), np.zeros(most, int))
        values = np.flatnonzero(counts)
        counts = counts[values]
    return {int(v): int(n) for v, n in zip(values, counts, strict=True) if v}
