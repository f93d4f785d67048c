"""Which pictures the benchmark asks about: data sets, and their parts.

A data set is a folder with ``images/`` and ``masks/`` (perhaps ``instances/``, ``scribbles/``,
``dataset.json``), files matched by stem. A data root with ``splits.json`` says which stems are
test, what one object is and what models may be trained on; without it everything is test.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from limner.errors import FormatError
from limner.io import read
from limner.io.image import Image

Unit: TypeAlias = Literal["label", "instance", "component", "whole"]
Standing: TypeAlias = Literal["seen", "unseen", "other"]
T = TypeVar("T")

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
        unit: what one object is: all pixels of a ``"label"``, each value of the ``"instance"`` map,
            each 8-connected ``"component"`` of a label or the ``"whole"`` foreground.
        standing: ``"seen"``: models may be trained on other images of this set; ``"unseen"``: on
            nothing like it; ``"other"``: not said, or not trained on without such a promise.
        modality: in words, without what stands in brackets.
        targets: names of the labels, by label as text.
        groups: patient, volume or animal by stem, where known.
        teaching: file by stem of the images of the train part and of the val part, whatever part is
            chosen; both empty where the set has no such parts.
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
    teaching: tuple[Mapping[str, Path], Mapping[str, Path]] = ({}, {})


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


def by_label(data_set: DataSet) -> DataSet:
    """The set with all pixels of a label as one object, whatever its unit is.

    Values of an instance map name no class; where it is all there is, an object is what is not 0.
    """
    if data_set.unit == "instance" and not (data_set.folder / "instances").is_dir():
        return replace(data_set, unit="whole")
    return replace(data_set, unit="label", masks=_by_stem(data_set.folder / "masks"))


def stem_of(path: Path) -> str:
    """A file's name without its ending; ``.nii.gz`` and its like are one ending."""
    for suffix in _DOUBLE_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


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
        if not _is_set(data / name):
            _log.warning("%s: splits.json lists %s, which is not there.", data, name)
            continue
        there = _by_stem(data / name / "images")
        by_part = {
            part: {stem: there[stem] for stem in lists.get(part, ()) if stem in there}
            for part in ("train", "val", "test")
        }
        missing = [s for part in parts for s in lists.get(part, ()) if s not in there]
        if missing:
            _log.warning("%s: %d listed pictures are missing: %s.", name, len(missing), missing)
        images = {stem: path for part in parts for stem, path in by_part[part].items()}
        standing: Standing = "unseen" if name in unseen else "seen" if name in seen else "other"
        unit = splits.get("unit", {}).get(name, "label")
        described = _described(name, data / name, images, unit=unit, standing=standing)
        yield replace(described, teaching=(by_part["train"], by_part["val"]))


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
        found.setdefault(stem_of(path), path)
    return dict(sorted(found.items()))
