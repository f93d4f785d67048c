"""What the benchmark asks about: data sets of pictures with masks, and the objects in them.

A data set is a folder with ``images/`` and ``masks/`` (perhaps ``instances/``, ``scribbles/``,
``dataset.json``), files matched by stem. A data root with ``splits.json`` says which stems are
test, what one object is and what models may be trained on; without it everything is test.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.io import read, read_labels
from limner.io.image import Image
from limner.io.labels import Labels
from limner.prompts.convert import scribbles_from_mask
from limner.prompts.types import Scribble

Array = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]
Unit: TypeAlias = Literal["label", "instance", "component"]
Standing: TypeAlias = Literal["seen", "unseen", "other"]
T = TypeVar("T")

LEAST_COMPONENT = 64  # pixels, by the rules of splits.json
LEAST_OBJECT = 16  # pixels of any other object; smaller ones are fragments at an image's edge
_UNITS: tuple[Unit, ...] = ("label", "instance", "component")
_OTHER_DIMENSIONS = ("3d/", "video/", "pool/")  # of a data root: not pictures, or not for scores
_DOUBLE_SUFFIXES = (".nii.gz", ".seg.nrrd", ".ome.tif", ".ome.tiff")
_BESIDE = (".json", ".txt", ".csv", ".xml", ".raw", ".db")  # lie beside pictures of their stem

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """One folder of pictures with masks.

    Attributes:
        name: such as ``"2d/ct_btcv"``; for a single folder its own name.
        folder: where it is.
        images: file by stem, in order, of the chosen part.
        masks: file by stem of the label or instance maps.
        unit: what one object is: all pixels of a ``"label"``, each value of the ``"instance"`` map
            or each 8-connected ``"component"`` of a label.
        standing: ``"seen"``: models may be trained on other images of this set; ``"unseen"``: on
            nothing like it; ``"other"``: not said, or not trained on without such a promise.
        modality: in words, without what stands in brackets.
        targets: names of the labels, by label as text.
        groups: patient, volume or animal by stem, where known.
    """

    name: str
    folder: Path
    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    unit: Unit = "label"
    standing: Standing = "other"
    modality: str = "unknown"
    targets: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Case:
    """One object to find.

    Attributes:
        object_id: label or instance, ``"3"``, or label and component, ``"3.2"``.
        target_name: in words, empty if unknown.
        target: boolean ``(row, column)``.
        annotator: whose strokes, such as ``"annotator0"``; None where the user is simulated.
        strokes: what the annotator drew, positive first.
    """

    object_id: str
    target_name: str
    target: Mask
    annotator: str | None = None
    strokes: tuple[Scribble, ...] = ()


def find_sets(data: Path, split: str, patterns: Sequence[str] = ()) -> list[DataSet]:
    """The data sets of a folder, in order of their names.

    Args:
        data: a root with ``splits.json``, one data set, or a folder of data sets.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"`` three.
        patterns: shell patterns of names, with or without the folder; all sets if empty.

    Raises:
        FormatError: nothing to score is found, or a description is damaged.
    """
    if not data.is_dir():
        raise FormatError(f"There is no folder {data}; name one with images/ and masks/.")
    if (data / "splits.json").is_file():
        found = list(_split_sets(data, split))
    elif split not in ("test", "all"):
        raise FormatError(
            f"{data} has no splits.json, so everything in it is test; leave out --split {split}."
        )
    elif _is_set(data):
        found = [_described(data.resolve().name, data, _by_stem(data / "images"))]
    else:
        folders = sorted(p for depth in ("*", "*/*") for p in data.glob(depth) if _is_set(p))
        found = [
            _described(p.relative_to(data).as_posix(), p, _by_stem(p / "images")) for p in folders
        ]
    found = [data_set for data_set in found if data_set.images]
    if not found:
        raise FormatError(
            f"{data} holds nothing to score: no folder with images/ and masks/ that has "
            f"pictures of the split {split}."
        )
    wanted = [s for s in found if not patterns or _matches(s.name, patterns)]
    if not wanted:
        names = ", ".join(s.name for s in found)
        asked = " or ".join(patterns)
        raise FormatError(f"No set of the split {split} is called {asked}; there are {names}.")
    return wanted


def spread(values: Sequence[T], count: int | None) -> list[T]:
    """At most `count` of the values, at equal steps; all if None."""
    if count is None or len(values) <= count:
        return list(values)
    return [values[int(k * len(values) / count)] for k in range(count)]


def open_picture(data_set: DataSet, stem: str) -> Image:
    """The picture of a stem.

    Raises:
        FormatError: it cannot be read, or is a volume or a video.
    """
    image = read(data_set.images[stem])
    if image.kind != "image":
        raise FormatError(f"{data_set.images[stem]} is a {image.kind}; pictures are scored here.")
    return image


def cases(
    data_set: DataSet, stem: str, image: Image, *, most: int | None = None, drawn: bool = False
) -> Iterator[Case]:
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
        for object_id in spread(objects.ids, most):
            yield objects.case(object_id)
        return
    people: dict[str, list[Case]] = {}
    for path in sorted((data_set.folder / "scribbles").glob(f"{escape(stem)}__*")):
        annotator = _stem(path).removeprefix(f"{stem}__")
        case = _drawn_case(objects, annotator, read_labels(path, like=image))
        if case is not None:
            people.setdefault(case.object_id, []).append(case)
    for object_id in spread([i for i in objects.ids if i in people], most):
        yield from people[object_id]


class Objects:
    """The objects of one picture that are large enough to ask about.

    Args:
        labels: as read.
        unit: what one object is.
        targets: names by label as text.
    """

    def __init__(self, labels: Labels, unit: Unit, targets: Mapping[str, str]) -> None:
        from scipy import ndimage

        self._labels = labels
        self._targets = targets if unit != "instance" else {}
        self._parts: dict[int, Array] = {}
        self.ids: list[str] = []
        for label, count in _sizes(labels).items():
            if unit != "component":
                self.ids += [str(label)] if count >= LEAST_OBJECT else []
                continue
            parts, _ = ndimage.label(labels.mask(label), np.ones((3, 3)))
            sizes = np.bincount(parts.ravel())
            self._parts[label] = parts
            self.ids += [
                f"{label}.{k}" for k in range(1, len(sizes)) if sizes[k] >= LEAST_COMPONENT
            ]

    def mask(self, object_id: str) -> Mask:
        """Boolean mask of one of `ids`."""
        label, _, part = object_id.partition(".")
        if part:
            return np.asarray(self._parts[int(label)] == int(part))
        return np.asarray(self._labels.mask(int(label)), dtype=bool)

    def case(
        self, object_id: str, annotator: str | None = None, strokes: tuple[Scribble, ...] = ()
    ) -> Case:
        """One of `ids` as a case."""
        label = object_id.partition(".")[0]
        name = self._targets.get(label) or self._labels.names.get(int(label), "")
        return Case(object_id, str(name), self.mask(object_id), annotator, strokes)


def read_objects(data_set: DataSet, stem: str, image: Image) -> Objects:
    """Read the masks of a picture. Errors as for `cases`."""
    path = data_set.masks.get(stem)
    if path is None:
        raise FormatError(
            f"{data_set.folder} has no mask of {stem}; a mask has the stem of its picture."
        )
    return Objects(read_labels(path, like=image), data_set.unit, data_set.targets)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FormatError: it cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds no JSON object.")
    return value


def _drawn_case(objects: Objects, annotator: str, drawing: Labels) -> Case | None:
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
    values, counts = np.unique(labels.to_array(), return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts, strict=True) if v}


def _split_sets(data: Path, split: str) -> Iterator[DataSet]:
    source = data / "splits.json"
    splits = read_json(source)
    listed = splits.get("sets")
    if not isinstance(listed, dict) or not all(isinstance(v, dict) for v in listed.values()):
        raise FormatError(f"{source} lists no sets; 'sets' has lists of stems by set and split.")
    out = {*splits.get("never_scored", ()), *splits.get("fixtures", ())}
    unseen, seen = set(splits.get("test_only", ())), set(splits.get("train_commercial_ok", ()))
    parts = ("train", "val", "test") if split == "all" else (split,)
    for name, lists in sorted(listed.items()):
        if name in out or name.startswith(_OTHER_DIMENSIONS):
            continue
        stems = [stem for part in parts for stem in lists.get(part, ())]
        if not _is_set(data / name):
            _log.warning("%s: splits.json lists %s, which is not there.", data, name)
            continue
        there = _by_stem(data / name / "images")
        missing = [stem for stem in stems if stem not in there]
        if missing:
            _log.warning("%s: %d listed pictures are missing: %s.", name, len(missing), missing)
        images = {stem: there[stem] for stem in stems if stem in there}
        standing: Standing = "unseen" if name in unseen else "seen" if name in seen else "other"
        unit = splits.get("unit", {}).get(name, "label")
        yield _described(name, data / name, images, unit=unit, standing=standing)


def _described(
    name: str,
    folder: Path,
    images: Mapping[str, Path],
    *,
    unit: str | None = None,
    standing: Standing = "other",
) -> DataSet:
    """A set with what its ``dataset.json`` says; `unit` None leaves that to the file, too."""
    path = folder / "dataset.json"
    facts = read_json(path) if path.is_file() else {}
    has_instances = (folder / "instances").is_dir()
    default = "instance" if has_instances else "label"
    chosen = unit or facts.get("unit", default)
    if chosen not in _UNITS:
        raise FormatError(f"{name}: unit={chosen!r} is unknown; use {', '.join(_UNITS)}.")
    return DataSet(
        name,
        folder,
        images,
        _by_stem(folder / ("instances" if chosen == "instance" and has_instances else "masks")),
        chosen,
        standing,
        str(facts.get("modality") or "unknown").partition(" (")[0],
        _texts(facts.get("targets")),
        _texts(facts.get("group")),
    )


def _texts(value: Any) -> dict[str, str]:
    """An object of texts; anything else, such as a note in words, says nothing."""
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    names = (name, name.rpartition("/")[2])
    return any(fnmatchcase(n, pattern) for n in names for pattern in patterns)


def _is_set(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _by_stem(folder: Path) -> dict[str, Path]:
    """Files by stem, in order of names; of several with one stem the one that can be a picture."""
    paths = [p for p in folder.iterdir() if not p.name.startswith(".")]
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda p: (p.suffix.lower() in _BESIDE, p.name)):
        found.setdefault(_stem(path), path)
    return dict(sorted(found.items()))


def _stem(path: Path) -> str:
    for suffix in _DOUBLE_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem
