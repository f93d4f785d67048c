"""Volumes in folders of any kind: with labels from data sets of every layout, or without.

Where there is a ``splits.json``, only what it allows for training is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from limner.datasets import open_datasets, project
from limner.datasets.files import VOLUME_SUFFIXES, stem_of
from limner.datasets.record import Case
from limner.errors import FormatError, SeriesChoice

_LABEL_FOLDERS = ("labels", "labelsTr", "masks")


def unlabelled(data: Path) -> list[Case]:
    """All volumes in a folder and those in it, apart from label maps: files, and folders of DICOM
    files.

    Raises:
        FormatError: there are none.
    """
    _check_folder(data)
    if project.sniff(data):
        found = [replace(case, labels=None, label_names={}) for case in _labelled_cases(data)]
    else:
        found = sorted(_walk(data, data), key=lambda case: case.name)
    if not found:
        raise FormatError(
            f"{data} holds no volumes; put NIfTI, NRRD or MetaImage files or folders of DICOM "
            "files in it."
        )
    return found


def labelled(data: Path, *, named: bool) -> list[Case]:
    """All volumes with labels, of a data set or of all data sets in a folder; not those for tests
    or validation. Their names are ``SET/CASE``.

    Args:
        data: the folder, see `limner.datasets.open_datasets`.
        named: whether names of labels are needed.

    Raises:
        FormatError: there are none, or names are needed and missing.
    """
    _check_folder(data)
    found = _labelled_cases(data, named=named)
    if not found:
        raise FormatError(
            f"{data} holds no labelled volumes; lay it out as images/ and labels/ (or imagesTr/ "
            "and labelsTr/) with the labels' names in dataset.json."
        )
    return found


def _labelled_cases(data: Path, *, named: bool = False) -> list[Case]:
    found = []
    for dataset in open_datasets(data):
        if dataset.kind != "volume" or not dataset.trainable:
            continue
        if named and not dataset.label_names:
            raise FormatError(
                f"{dataset.folder / 'dataset.json'} is missing or names no labels, and words are "
                'among the prompts; write {"labels": {"liver": 1}} into it, or leave the '
                "combinations with text out of the recipe."
            )
        found += [
            replace(case, name=f"{dataset.name}/{name}")
            for name, case in sorted(dataset.cases.items())
            if case.labels is not None and case.images and case.split in (None, "train")
        ]
    return found


def _check_folder(data: Path) -> None:
    if not data.is_dir():
        raise FormatError(f"{data} is no folder of volumes.")


def _walk(folder: Path, top: Path) -> Iterator[Case]:
    """Volumes below a folder; label maps are in folders that say so."""
    if folder.name in _LABEL_FOLDERS:
        return
    below = sorted(folder.iterdir())
    volumes = [p for p in below if p.name.lower().endswith(VOLUME_SUFFIXES) and p.name[0] != "."]
    for path in volumes:
        relative = path.relative_to(top)
        yield Case(str(relative.with_name(stem_of(path))), top.name, "volume", (path,))
    if not volumes and any(_is_dicom(path) for path in below if path.is_file()):
        yield from _list_series(folder, top)
        return
    for path in below:
        if path.is_dir() and not path.name.startswith("."):
            yield from _walk(path, top)


def _list_series(folder: Path, top: Path) -> Iterator[Case]:
    from limner import io

    name = str(folder.relative_to(top))
    try:
        io.read(folder)
    except SeriesChoice as choice:
        for series in choice.series:
            yield Case(f"{name}/{series}", top.name, "volume", (folder,), series=str(series))
    else:
        yield Case(name, top.name, "volume", (folder,))


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
