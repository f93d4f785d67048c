"""Data sets to score models on: chosen by split, kind and name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from limner.datasets import open_datasets, project
from limner.datasets.record import SPLITS, Dataset, Kind
from limner.errors import FormatError
from limner.io.image import Image

Dimensions: TypeAlias = Literal[2, 3]
T = TypeVar("T")

_WHERE: dict[Kind, str] = {  # the layouts of each kind, for messages
    "image": "images/ and masks/",
    "volume": "images/ and labels/ or imagesTr/ and labelsTr/ or images/ and masks/",
    "video": "CLIP/frames/ and CLIP/masks/ (frames/ and masks/)",
}


def find_sets(
    data: Path, split: str, patterns: Sequence[str] = (), *, dimensions: Dimensions = 2
) -> list[Dataset]:
    """The data sets of a folder, in order of their names.

    Args:
        data: a root with ``splits.json``, one data set, or a folder of data sets; where nobody
            divided the cases, everything is test.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"`` three.
        patterns: shell patterns of names, with or without the folder; all sets if empty.
        dimensions: 2 for sets of images, 3 for sets of volumes.

    Raises:
        FormatError: nothing to score is found, or a description is damaged.
    """
    kind: Kind = "image" if dimensions == 2 else "volume"
    return select_sets(list_sets(data, split, (kind,)), data, split, patterns, (kind,))


def list_sets(data: Path, split: str, kinds: Sequence[Kind]) -> list[Dataset]:
    """All data sets of some kinds with something of a split, perhaps none, in order of their names.
    Errors as for `find_sets` but that.
    """
    if not data.is_dir():
        raise FormatError(f"There is no folder {data}; name one with {_describe(kinds)}.")
    divided = project.sniff(data)
    if not divided and split not in ("test", "all"):
        raise FormatError(
            f"{data} has no splits.json, so everything in it is test; leave out --split {split}."
        )
    found = [s for s in open_datasets(data) if s.scorable and s.kind in kinds]
    if divided:
        parts = SPLITS if split == "all" else tuple(s for s in SPLITS if s == split)
        found = [dataset.select(*parts) for dataset in found]
    else:
        found = [_without_unlabelled_tests(dataset) for dataset in found]
    return sorted((s for s in found if s.cases), key=lambda dataset: dataset.name)


def select_sets(
    found: Sequence[Dataset], data: Path, split: str, patterns: Sequence[str], kinds: Sequence[Kind]
) -> list[Dataset]:
    """Those of some sets whose names are asked for.

    Raises:
        FormatError: there are none.
    """
    if not found:
        raise FormatError(
            f"{data} holds nothing to score: no folder with {_describe(kinds)} that has "
            f"{' or '.join(f'{kind}s' for kind in kinds)} of the split {split}."
        )
    wanted = [s for s in found if not patterns or _matches(s.name, patterns)]
    if not wanted:
        names = ", ".join(s.name for s in found)
        requested = " or ".join(patterns)
        raise FormatError(f"No set of the split {split} is called {requested}; there are {names}.")
    return wanted


def guess_dimensions(data: Path, patterns: Sequence[str]) -> Dimensions:
    """Whether images or volumes are meant where nobody says so: volumes if nothing else is there,
    of the names asked for.
    """
    if not data.is_dir():
        return 2
    kinds = {s.kind for s in open_datasets(data) if not patterns or _matches(s.name, patterns)}
    return 3 if "volume" in kinds and "image" not in kinds else 2


def pick_evenly(values: Sequence[T], count: int | None) -> list[T]:
    """At most `count` of the values, at equal steps; all if None."""
    if count is None or len(values) <= count:
        return list(values)
    return [values[int(k * len(values) / count)] for k in range(count)]


def open_image(dataset: Dataset, name: str) -> Image:
    """The image, or the volume, of a case; of channels in several files the first.

    Raises:
        FormatError: it cannot be read, or is of another kind than the set.
    """
    case = dataset.cases[name]
    image = case.read_image(channel=0)
    if dataset.dimensions == 2 and image.kind != "image":
        raise FormatError(f"{case.images[0]} is a {image.kind}; pictures are scored here.")
    if dataset.dimensions == 3 and image.kind != "volume":
        raise FormatError(
            f"{case.images[0]} is one {image.kind}; volumes are scored here (pictures "
            "without --dimensions 3)."
        )
    return image


def merge_by_label(dataset: Dataset) -> Dataset:
    """The set with all pixels of a label as one object, whatever its unit is.

    Values of an instance map name no class; where it is all there is, an object is what is not 0.
    """
    if dataset.unit == "instance" and not dataset.has_instances:
        return replace(dataset, unit="whole")
    return replace(dataset, unit="label")


def _without_unlabelled_tests(dataset: Dataset) -> Dataset:
    """The set without images for tests whose labels are not published."""
    cases = {n: c for n, c in dataset.cases.items() if c.is_labelled or c.split != "test"}
    return replace(dataset, cases=cases)


def _describe(kinds: Sequence[Kind]) -> str:
    return " or ".join(_WHERE[kind] for kind in kinds)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    names = (name, name.rpartition("/")[2])
    return any(fnmatchcase(n, pattern) for n in names for pattern in patterns)
