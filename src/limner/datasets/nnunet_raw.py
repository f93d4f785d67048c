"""nnU-Net's raw data: ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz`` and ``dataset.json``.

The number is that of the channel (Isensee et al., https://doi.org/10.1038/s41592-020-01008-z;
format: nnU-Net's documentation/dataset_format.md). Images may be of any format that limner reads,
such as PNG. ``imagesTs`` are for tests, and scored where there are ``labelsTs``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from limner.datasets import files
from limner.datasets.plain_folders import build_dataset, group_channels
from limner.datasets.record import Case, Dataset, Split

NAME = "nnU-Net raw"
DESCRIPTION = "imagesTr/ and labelsTr/"
_PARTS: tuple[tuple[str, str, Split], ...] = (
    ("imagesTr", "labelsTr", "train"),
    ("imagesTs", "labelsTs", "test"),
)


def sniff(folder: Path) -> bool:
    """Whether a folder has training images and labels."""
    return all((folder / name).is_dir() for name in _PARTS[0][:2])


def open_dataset(folder: Path, name: str) -> Dataset:
    """List the cases of a folder. See `record.Layout`."""
    facts = files.read_description(folder)
    cases: dict[str, Case] = {}
    found = None
    for image_part, label_part, split in _PARTS:
        labels = files.files_by_stem(folder / label_part)
        images = group_channels(files.files_by_stem(folder / image_part), labels)
        part = build_dataset(folder, name, images, labels, facts)
        found = found or part
        for stem, case in part.cases.items():
            cases.setdefault(stem, replace(case, split=split if split == "test" else None))
    assert found is not None
    return replace(found, cases=cases)
