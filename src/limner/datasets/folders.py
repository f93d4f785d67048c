"""Which pictures, volumes or videos the benchmark asks about: data sets, and their parts.

A data set of pictures is a folder with ``images/`` and ``masks/`` (perhaps ``instances/``,
``scribbles/``, ``dataset.json``), files matched by stem; one of volumes has ``images/`` and
``labels/``, or ``imagesTr/`` and ``labelsTr/``; one of videos has folders of clips with ``frames/``
and ``masks/`` each, where frames without a mask are not annotated. A data root with ``splits.json``
says which stems are test, what one object is and what models may be trained on; without it
everything is test.
"""

from __future__ import annotations

import json
import logging
import re
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
Dimensions: TypeAlias = Literal[2, 3]
Kind: TypeAlias = Literal["picture", "volume", "video"]
T = TypeVar("T")

_UNITS: tuple[Unit, ...] = ("label", "instance", "component")
_VOLUMES = "3d/"  # how names of sets of volumes begin in a data root
_FIRST: dict[Kind, str] = {"volume": _VOLUMES, "video": "video/"}  # likewise, of others
_NO_SCORES = "pool/"
_LAYOUTS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "picture": (("images", "masks"),),
    "volume": (("images", "labels"), ("imagesTr", "labelsTr"), ("images", "masks")),
    "video": (("frames", "masks"),),  # of every clip
}
_FIRST_CHANNEL = re.compile(r"(.+)_0000")  # nnU-Net: the label map has no number
_DOUBLE_SUFFIXES = (".nii.gz", ".seg.nrrd", ".ome.tif", ".ome.tiff")
_BESIDE = (".json", ".txt", ".csv", ".xml", ".raw", ".db")  # lie beside pictures of their stem

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """One folder of pictures, or of volumes, with masks.

    Attributes:
        name: such as ``"2d/ct_btcv"``; for a single folder its own name.
        folder: where it is.
        images: file by stem, in order, of the chosen part.
        masks: file by stem of the label or instance maps.
        unit: what one object is: all pixels of a ``"label"``, each value of the ``"instance"`` map,
            each 8-connected (26-connected) ``"component"`` of a label or the ``"whole"``
            foreground.
        standing: ``"seen"``: models may be trained on other images of this set; ``"unseen"``: on
            nothing like it; ``"other"``: not said, or not trained on without such a promise.
        modality: in words, without what stands in brackets.
        targets: names of the labels, by label as text.
        groups: patient, volume or animal by stem, where known.
        teaching: file by stem of the images of the train part and of the val part, whatever part is
            chosen; both empty where the set has no such parts.
        dimensions: 2 for pictures, 3 for volumes.
        annotated: by stem the labels that were annotated there, where only some of the set's were:
            what has no such label is not known to be background.
        clips: of videos, by stem and by name of the frame likewise; empty where it is not said.
        kind: what the images are.
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
    dimensions: Dimensions = 2
    annotated: Mapping[str, frozenset[str]] = field(default_factory=dict)
    clips: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)
    kind: Kind = "picture"


def find_sets(
    data: Path, split: str, patterns: Sequence[str] = (), *, dimensions: Dimensions = 2
) -> list[DataSet]:
    """The data sets of a folder, in order of their names.

    Args:
        data: a root with ``splits.json``, one data set, or a folder of data sets.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"`` three.
        patterns: shell patterns of names, with or without the folder; all sets if empty.
        dimensions: 2 for sets of pictures, 3 for sets of volumes.

    Raises:
        FormatError: nothing to score is found, or a description is damaged.
    """
    kind: Kind = "picture" if dimensions == 2 else "volume"
    return select_sets(list_sets(data, split, kind), data, split, patterns, (kind,))


def list_sets(data: Path, split: str, kind: Kind) -> list[DataSet]:
    """All data sets of a kind with something of a split; perhaps none. Errors as for `find_sets`
    but that.
    """
    if not data.is_dir():
        raise FormatError(f"There is no folder {data}; name one with {_described_layout(kind)}.")
    if (data / "splits.json").is_file():
        found = list(_split_sets(data, split, kind))
    elif split not in ("test", "all"):
        raise FormatError(
            f"{data} has no splits.json, so everything in it is test; leave out --split {split}."
        )
    elif _layout(data, kind):
        found = [_described(data.resolve().name, data, kind)]
    else:
        every = (p for depth in ("*", "*/*") for p in data.glob(depth))
        folders = sorted(p for p in every if _layout(p, kind))
        found = [_described(p.relative_to(data).as_posix(), p, kind) for p in folders]
    return [data_set for data_set in found if data_set.images]


def select_sets(
    found: Sequence[DataSet], data: Path, split: str, patterns: Sequence[str], kinds: Sequence[Kind]
) -> list[DataSet]:
    """Those of some sets whose names are asked for.

    Raises:
        FormatError: there are none.
    """
    if not found:
        layouts = " or ".join(map(_described_layout, kinds))
        raise FormatError(
            f"{data} holds nothing to score: no folder with {layouts} that has "
            f"{' or '.join(f'{kind}s' for kind in kinds)} of the split {split}."
        )
    wanted = [s for s in found if not patterns or _matches(s.name, patterns)]
    if not wanted:
        names = ", ".join(s.name for s in found)
        asked = " or ".join(patterns)
        raise FormatError(f"No set of the split {split} is called {asked}; there are {names}.")
    return wanted


def _described_layout(kind: Kind) -> str:
    parts = " or ".join(f"{a}/ and {b}/" for a, b in _LAYOUTS[kind])
    return f"CLIP/frames/ and CLIP/masks/ ({parts})" if kind == "video" else parts


def guess_dimensions(data: Path, patterns: Sequence[str]) -> Dimensions:
    """Whether pictures or volumes are meant where nobody says so: volumes if all patterns begin
    like ``"3d/"``, or if a folder holds sets of volumes and none of pictures.
    """
    if patterns and all(pattern.startswith(_VOLUMES) for pattern in patterns):
        return 3
    if (data / "splits.json").is_file() or not data.is_dir():
        return 2
    places = [data, *(p for depth in ("*", "*/*") for p in data.glob(depth))]
    kinds: tuple[Kind, ...] = ("picture", "volume")
    flat, solid = (any(_layout(p, kind) for p in places) for kind in kinds)
    return 3 if solid and not flat else 2


def pick_evenly(values: Sequence[T], count: int | None) -> list[T]:
    """At most `count` of the values, at equal steps; all if None."""
    if count is None or len(values) <= count:
        return list(values)
    return [values[int(k * len(values) / count)] for k in range(count)]


def open_image(data_set: DataSet, stem: str) -> Image:
    """The picture, or the volume, of a stem.

    Raises:
        FormatError: it cannot be read, or has other dimensions than the set.
    """
    image = read(data_set.images[stem])
    if data_set.dimensions == 2 and image.kind != "image":
        raise FormatError(f"{data_set.images[stem]} is a {image.kind}; pictures are scored here.")
    if data_set.dimensions == 3 and image.kind != "volume":
        raise FormatError(
            f"{data_set.images[stem]} is one {image.kind}; volumes are scored here (pictures "
            "without --dimensions 3)."
        )
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


def merge_by_label(data_set: DataSet) -> DataSet:
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


def _split_sets(data: Path, split: str, kind: Kind) -> Iterator[DataSet]:
    source = data / "splits.json"
    splits = read_json(source)
    listed = splits.get("sets")
    if not isinstance(listed, dict) or not all(isinstance(v, dict) for v in listed.values()):
        raise FormatError(f"{source} lists no sets; 'sets' has lists of stems by set and split.")
    out = {*splits.get("never_scored", ()), *splits.get("fixtures", ())}
    unseen, seen = set(splits.get("test_only", ())), set(splits.get("train_commercial_ok", ()))
    parts = ("train", "val", "test") if split == "all" else (split,)
    for name, lists in sorted(listed.items()):
        theirs = [k for k, first in _FIRST.items() if name.startswith(first)] or ["picture"]
        if name in out or name.startswith(_NO_SCORES) or kind not in theirs:
            continue
        if not _layout(data / name, kind):
            _log.warning("%s: splits.json lists %s, which is not there.", data, name)
            continue
        standing: Standing = "unseen" if name in unseen else "seen" if name in seen else "other"
        unit = splits.get("unit", {}).get(name, "label")
        described = _described(name, data / name, kind, unit=unit, standing=standing)
        there = described.images
        by_part = {
            part: {stem: there[stem] for stem in lists.get(part, ()) if stem in there}
            for part in ("train", "val", "test")
        }
        missing = [s for part in parts for s in lists.get(part, ()) if s not in there]
        if missing:
            _log.warning("%s: %d listed pictures are missing: %s.", name, len(missing), missing)
        images = {stem: path for part in parts for stem, path in by_part[part].items()}
        teaching = (by_part["train"], by_part["val"])
        yield replace(described, images=images, teaching=teaching)


def _described(
    name: str,
    folder: Path,
    kind: Kind,
    *,
    unit: str | None = None,
    standing: Standing = "other",
) -> DataSet:
    """A set with what its ``dataset.json`` says; `unit` None leaves that to the file, too."""
    path = folder / "dataset.json"
    facts = read_json(path) if path.is_file() else {}
    has_instances = (folder / "instances").is_dir()
    by_value = kind == "volume" and facts.get("instances") is True
    default = "instance" if has_instances or by_value else "label"
    wanted = unit or facts.get("unit", default)
    if wanted not in _UNITS:
        raise FormatError(f"{name}: unit={wanted!r} is unknown; use {', '.join(_UNITS)}.")
    layout = _layout(folder, kind)
    assert layout is not None
    if kind == "video":
        clips = sorted(path for path in folder.iterdir() if _is_clip(path))
        images, masks = ({clip.name: clip / part for clip in clips} for part in layout)
    else:
        images, masks = (_by_stem(folder / part) for part in layout)
    if wanted == "instance" and has_instances:
        masks = _by_stem(folder / "instances")
    return DataSet(
        name,
        folder,
        _first_channels(images, masks) if kind == "volume" else images,
        masks,
        wanted,
        standing,
        _modality(facts),
        _texts(facts.get("targets")) or _label_names(facts.get("labels")),
        _texts(facts.get("group")),
        dimensions=2 if kind == "picture" else 3,
        annotated=_annotated(facts.get("cases")),
        clips=_annotated_frames(facts.get("clips")),
        kind=kind,
    )


def _modality(facts: Mapping[str, Any]) -> str:
    """In words; of Medical Decathlon's and nnU-Net's files the first channel's."""
    value = facts.get("modality") or facts.get("channel_names")
    if isinstance(value, dict):
        value = next(iter(value.values()), None)
    return str(value or "unknown").partition(" (")[0]


def _label_names(value: Any) -> dict[str, str]:
    """Names by label, from Medical Decathlon's ``{"1": "liver"}`` or nnU-Net's ``{"liver": 1}``."""
    if not isinstance(value, dict):
        return {}
    pairs = [(str(k), v) if str(k).isdigit() else (str(v), k) for k, v in value.items()]
    return {label: str(name) for label, name in pairs if label.isdigit() and label != "0"}


def _annotated(value: Any) -> dict[str, frozenset[str]]:
    """Annotated labels by stem, from ``cases``: ``{"stem": {"targets": ["1"]}}``."""
    if not isinstance(value, dict):
        return {}
    return {
        str(stem): frozenset(map(str, case["targets"]))
        for stem, case in value.items()
        if isinstance(case, dict) and isinstance(case.get("targets"), list)
    }


def _annotated_frames(value: Any) -> dict[str, dict[str, frozenset[str]]]:
    """Annotated labels by clip and frame, from ``clips``: ``{"clip": {"annotated": {"007":
    ["1"]}}}``; anything else instead of the labels by frame, such as ``"all"``, says nothing.
    """
    if not isinstance(value, dict):
        return {}
    said = {str(k): v.get("annotated") for k, v in value.items() if isinstance(v, dict)}
    return {
        clip: {str(frame): frozenset(map(str, labels)) for frame, labels in frames.items()}
        for clip, frames in said.items()
        if isinstance(frames, dict) and all(isinstance(v, list) for v in frames.values())
    }


def _texts(value: Any) -> dict[str, str]:
    """An object of texts; anything else, such as a note in words, says nothing."""
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    names = (name, name.rpartition("/")[2])
    return any(fnmatchcase(n, pattern) for n in names for pattern in patterns)


def _layout(folder: Path, kind: Kind) -> tuple[str, str] | None:
    """Names of the folders of images and masks; None if this is no set of the kind."""
    if kind == "video":
        there = folder.is_dir() and any(_is_clip(path) for path in folder.iterdir())
        return _LAYOUTS[kind][0] if there else None
    for names in _LAYOUTS[kind]:
        if all((folder / name).is_dir() for name in names):
            return names
    return None


def _is_clip(folder: Path) -> bool:
    return all((folder / name).is_dir() for name in _LAYOUTS["video"][0])


def _first_channels(images: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, Path]:
    """Of images with a number per channel, as nnU-Net has them, the first, by its mask's stem."""
    found: dict[str, Path] = {}
    for stem, path in images.items():
        numbered = _FIRST_CHANNEL.fullmatch(stem)
        if stem not in masks and numbered and numbered[1] in masks:
            found[numbered[1]] = path
        elif stem in masks or stem[:-5] not in masks:
            found[stem] = path
    return dict(sorted(found.items()))


def _by_stem(folder: Path) -> dict[str, Path]:
    """Files by stem, in order of names; of several with one stem the one that can be a picture."""
    paths = [p for p in folder.iterdir() if not p.name.startswith(".")]
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda p: (p.suffix.lower() in _BESIDE, p.name)):
        found.setdefault(stem_of(path), path)
    return dict(sorted(found.items()))
