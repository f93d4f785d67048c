"""Which files of a folder a run learns from: volumes alone, or with labels and their names.

Where there is a ``splits.json`` in the layout of this project's data, only what it allows is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limner.datasets import project
from limner.errors import FormatError, SeriesChoice

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_LAYOUTS = (("images", "labels"), ("imagesTr", "labelsTr"))
_CHANNEL = "_0000"  # of nnU-Net's file names
_NO_OBJECT = ("background", "ignore")
Names = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Source:
    """One volume on disk.

    Attributes:
        name: unique, such as ``"btcv/case_01"``.
        image: a file or a folder of DICOM files.
        series: which one, where the folder holds several.
        labels: file of the label map, None where there is none.
        names: of objects, with the values that are theirs.
    """

    name: str
    image: Path
    series: str | None = None
    labels: Path | None = None
    names: Names = field(default_factory=dict)


def unlabelled(data: Path) -> list[Source]:
    """All volumes in a folder and those in it, apart from label maps.

    Raises:
        FormatError: there are none.
    """
    _check_folder(data)
    if (data / "splits.json").is_file():
        found = [Source(s.name, s.image) for s in _allowed(data, named=False)]
    else:
        found = sorted(_walk(data, data), key=lambda s: s.name)
    if not found:
        raise FormatError(
            f"{data} holds no volumes; put NIfTI, NRRD or MetaImage files or folders of DICOM "
            "files in it."
        )
    return found


def labelled(data: Path, *, named: bool) -> list[Source]:
    """All volumes with labels: of a data set (``images`` and ``labels``, or nnU-Net's ``imagesTr``
    and ``labelsTr``), or of all data sets in a folder.

    Args:
        data: the folder.
        named: whether names of labels are needed; else labels without one are ``"label 3"``.

    Raises:
        FormatError: there are none, a label map has no image, or names are needed and missing.
    """
    _check_folder(data)
    if (data / "splits.json").is_file():
        found = _allowed(data, named=named)
    else:
        below = sorted(p for p in data.iterdir() if p.is_dir())
        folders = [data] if _layout(data) else [p for p in below if _layout(p)]
        found = [s for folder in folders for s in _set(folder, folder.name, named=named)]
    if not found:
        raise FormatError(
            f"{data} holds no labelled volumes; lay it out as images/ and labels/ (or imagesTr/ "
            "and labelsTr/) with the labels' names in dataset.json."
        )
    return found


def _check_folder(data: Path) -> None:
    if not data.is_dir():
        raise FormatError(f"{data} is no folder of volumes.")


def _allowed(data: Path, *, named: bool) -> list[Source]:
    splits = project.read_splits(data)
    found = []
    for name in project.allowed_sets(splits):
        if project.is_volumes(name) and (data / name / "images").is_dir():
            stems = project.allowed_stems(data, splits, name)
            allowed = {stem for stem, split in stems.items() if split == "train"}
            found += list(_set(data / name, name, named=named, only=allowed))
    return found


def _layout(folder: Path) -> tuple[Path, Path] | None:
    places = ((folder / images, folder / labels) for images, labels in _LAYOUTS)
    return next(((a, b) for a, b in places if a.is_dir() and b.is_dir()), None)


def _set(folder: Path, name: str, *, named: bool, only: set[str] | None = None) -> Iterator[Source]:
    """The cases of one data set."""
    layout = _layout(folder)
    assert layout is not None
    images = {stem_of(path): path for path in _volumes_in(layout[0])}
    known = _names_in(folder / "dataset.json")
    if named and known is None:
        raise FormatError(
            f"{folder / 'dataset.json'} is missing or names no labels, and words are among the "
            'prompts; write {"labels": {"liver": 1}} into it, or leave the combinations with text '
            "out of the recipe."
        )
    for path in _volumes_in(layout[1]):
        stem = stem_of(path)
        if only is not None and stem not in only:
            continue
        image = images.get(stem, images.get(stem + _CHANNEL))
        if image is None:
            raise FormatError(f"{path} has no image of its name in {layout[0]}.")
        yield Source(f"{name}/{stem}", image, labels=path, names=known or {})


def _names_in(path: Path) -> Names | None:
    """Names of labels: ``{"liver": 1}``, ``{"1": "liver"}`` or ``{"whole tumor": [1, 2]}``."""
    if not path.is_file():
        return None
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        listed = facts.get("labels") or facts.get("targets") or {}
        names: Names = {}
        for key, value in listed.items():
            if isinstance(value, str):
                names[value] = (*names.get(value, ()), int(key))
            else:
                names[key] = tuple(int(v) for v in (value if isinstance(value, list) else [value]))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{path} does not name labels ({error}); write them as "
            '{"labels": {"background": 0, "liver": 1}}.'
        ) from error
    objects = {
        name: tuple(v for v in values if v > 0)
        for name, values in names.items()
        if name.lower() not in _NO_OBJECT
    }
    return {name: values for name, values in objects.items() if values} or None


def _walk(folder: Path, top: Path) -> Iterator[Source]:
    """Volumes below a folder; label maps are in folders that say so."""
    if folder.name in {labels for _, labels in _LAYOUTS}:
        return
    below = sorted(folder.iterdir())
    volumes = _volumes_in(folder)
    for path in volumes:
        relative = path.relative_to(top)
        yield Source(str(relative.with_name(stem_of(path))), path)
    if not volumes and any(_is_dicom(p) for p in below if p.is_file()):
        yield from _series(folder, str(folder.relative_to(top)))
        return
    for path in below:
        if path.is_dir() and not path.name.startswith("."):
            yield from _walk(path, top)


def _series(folder: Path, name: str) -> Iterator[Source]:
    from limner import io

    try:
        io.read(folder)
    except SeriesChoice as choice:
        for series in choice.series:
            yield Source(f"{name}/{series}", folder, series=series)
    else:
        yield Source(name, folder)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _volumes_in(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.name.lower().endswith(SUFFIXES) and p.name[0] != "."
    )


def stem_of(path: Path) -> str:
    """A file's name without the suffixes of volumes."""
    name = path.name
    ending = next((s for s in (".seg.nrrd", *SUFFIXES) if name.lower().endswith(s)), "")
    return name[: len(name) - len(ending)]
