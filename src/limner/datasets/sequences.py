"""The objects of a volume or a video that are followed from slice to slice, frame to frame."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.datasets.files import stem_of
from limner.datasets.objects import Objects, read_objects
from limner.datasets.record import Dataset, Kind
from limner.datasets.selection import list_sets, pick_evenly, select_sets
from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io import read_labels
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.video.frames import frame_files

Mask: TypeAlias = NDArray[np.bool_]

# Objects of annotated frames, which frames these are, and their annotated labels where said.
Known: TypeAlias = tuple[Objects, Sequence[int], dict[int, frozenset[str]]]

_KINDS: tuple[Kind, ...] = ("volume", "video")


@dataclass(frozen=True, eq=False)
class Track:
    """One object through the slices of a volume, across its first axis, or the frames of a video.

    Attributes:
        object_id: label or instance, ``"3"``, or label and component, ``"3.2"``.
        target_name: in words, empty if unknown.
        frames: of which the truth is known, ascending.
        target: boolean ``(len(frames), row, column)``, the truth there.
        preferred: of `frames`, those that a user would annotate rather than others.
    """

    object_id: str
    target_name: str
    frames: tuple[int, ...]
    target: Mask
    preferred: frozenset[int] = frozenset()
    annotator: None = None

    @property
    def present(self) -> tuple[int, ...]:
        """The frames that the object is known to be on."""
        there = np.flatnonzero(self.target.any(axis=(1, 2)))
        return tuple(self.frames[k] for k in there)

    def on(self, frame: int) -> Mask:
        """The truth on one of `frames`."""
        return np.asarray(self.target[bisect_left(self.frames, frame)])

    def given(self, count: int) -> tuple[int, ...]:
        """The frames that are annotated: those in the middle of so many equal parts of the frames
        that the object is on; of a video of those on which most of its labels are annotated, where
        there are enough.
        """
        there = self.present
        liked = [k for k in there if k in self.preferred]
        of = liked if len(liked) >= count else there
        return tuple(of[int((k + 0.5) * len(of) / count)] for k in range(count))

    def scored(self, given: Sequence[int], margin: int) -> tuple[int, ...]:
        """The frames that are scored: all others from the object's first to its last one, and so
        many more on either side.
        """
        low, high = self.present[0] - margin, self.present[-1] + margin
        return tuple(k for k in self.frames if low <= k <= high and k not in given)


def find_sequences(data: Path, split: str, patterns: Sequence[str] = ()) -> list[Dataset]:
    """The sets of volumes and of videos of a folder, in order of their names; arguments and errors
    as for `find_sets`.
    """
    found = list_sets(data, split, _KINDS)
    return [_followable(s) for s in select_sets(found, data, split, patterns, _KINDS)]


def open_sequence(data_set: Dataset, stem: str) -> Image:
    """The volume or the video of a stem.

    Raises:
        FormatError: it cannot be read, or is something else.
    """
    case = data_set.cases[stem]
    image = case.read_image(channel=0)
    if image.kind != data_set.kind:
        raise FormatError(f"{case.images[0]} is one {image.kind}, no {data_set.kind}.")
    return image


def find_tracks(
    data_set: Dataset, stem: str, image: Image, *, given: int, most: int | None = None
) -> Iterator[Track]:
    """The objects of one sequence that are on more slices or frames than are given.

    Args:
        data_set: of the sequence.
        stem: of the sequence.
        image: the sequence, whose grid the masks must have.
        given: slices or frames that will be annotated.
        most: objects at most, at equal steps over all; None for all.

    Raises:
        FormatError: a mask is missing or cannot be read.
        GeometryError: a mask has another size than the sequence.
    """
    objects, frames, known = _read(data_set, stem, image)
    every = (_track(objects, i, frames, known) for i in objects.ids)
    ids = [track.object_id for track in every if len(track.present) > given]
    for object_id in pick_evenly(ids, most):
        yield _track(objects, object_id, frames, known)


def find_track(data_set: Dataset, stem: str, image: Image, object_id: str) -> Track:
    """One object of a sequence. Errors as for `find_tracks`.

    Raises:
        KeyError: there is no such object.
    """
    objects, frames, known = _read(data_set, stem, image)
    if object_id not in objects.ids:
        raise KeyError(object_id)
    return _track(objects, object_id, frames, known)


def _followable(data_set: Dataset) -> Dataset:
    """A set of videos with all pixels of a label as one object where its unit is the component:
    what a component is on one frame says nothing of which one it is on the next.
    """
    if data_set.kind == "video" and data_set.unit == "component":
        return replace(data_set, unit="label")
    return data_set


def _read(data_set: Dataset, stem: str, image: Image) -> Known:
    if data_set.kind == "video":
        return _read_clip(data_set, stem, image)
    return read_objects(data_set, stem, image), range(image.geometry.shape[0]), {}


def _track(
    objects: Objects,
    object_id: str,
    frames: Sequence[int],
    known: dict[int, frozenset[str]],
) -> Track:
    case = objects.case(object_id)
    label = object_id.partition(".")[0]
    rows = [k for k, frame in enumerate(frames) if frame not in known or label in known[frame]]
    target = case.target if len(rows) == len(frames) else case.target[rows]
    kept = tuple(frames[k] for k in rows)
    most = max((len(known[k]) for k in kept if k in known), default=0)
    preferred = frozenset(k for k in kept if k in known and len(known[k]) == most)
    return Track(object_id, case.target_name, kept, target, preferred)


def _read_clip(data_set: Dataset, stem: str, image: Image) -> Known:
    """Objects of the annotated frames of a clip, stacked; which frames these are; and which labels
    were annotated there, where that is said.
    """
    case, masks = data_set.cases[stem], data_set.cases[stem].labels
    assert masks is not None
    numbers = {stem_of(p): k for k, p in enumerate(frame_files(case.images[0]))}
    files = {stem_of(path): path for path in frame_files(masks)}
    strangers = sorted(set(files) - set(numbers))
    if strangers:
        raise FormatError(
            f"{masks} has a mask {strangers[0]}, but there is no such frame; a mask "
            "has the name of its frame."
        )
    frames = tuple(sorted(numbers[name] for name in files))
    frame_labels: dict[int, NDArray[Any]] = {}
    for name, path in files.items():
        frame_image = Image(image.slice_at(numbers[name]), image.geometry.slice_at(numbers[name]))
        frame_labels[numbers[name]] = np.asarray(read_labels(path, like=frame_image).to_array())
    stack = np.stack([frame_labels[k] for k in frames])
    if data_set.unit == "whole":
        stack = stack != 0
    labels = Labels(Geometry.from_spacing(stack.shape), array=stack)
    annotated = case.annotated_frames
    known = {numbers[name]: labels for name, labels in annotated.items() if name in numbers}
    return Objects(labels, data_set.unit, data_set.value_names), frames, known
