"""The Medical Segmentation Decathlon: ``dataset.json`` with pairs of files, 4D NIfTI volumes.

``dataset.json`` lists ``training`` as pairs ``{"image": …, "label": …}`` and ``test`` as images
without labels; channels are the fourth axis of a file and named by ``modality``, labels by
``{"1": "liver"}`` (Antonelli et al., https://doi.org/10.1038/s41467-022-30695-9).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from limner.datasets import files
from limner.datasets.plain_folders import build_dataset
from limner.datasets.record import Dataset
from limner.errors import FormatError

NAME = "Medical Segmentation Decathlon"
DESCRIPTION = "dataset.json with pairs of files in 'training'"


def sniff(folder: Path) -> bool:
    """Whether ``dataset.json`` lists pairs of files."""
    if not (folder / "dataset.json").is_file():
        return False
    try:
        training = files.read_description(folder).get("training")
    except FormatError:
        return False
    return bool(isinstance(training, list) and training and isinstance(training[0], dict))


def open_dataset(folder: Path, name: str) -> Dataset:
    """List the cases of a folder. See `record.Layout`."""
    facts = files.read_description(folder)
    pairs = [_read_pair(folder, pair) for pair in facts["training"]]
    tests = [folder / p for p in facts.get("test", ()) if isinstance(p, str)]
    images = {files.stem_of(image): (image,) for image, _ in pairs}
    labels = {files.stem_of(image): label for image, label in pairs}
    images |= {files.stem_of(image): (image,) for image in tests}
    found = build_dataset(folder, name, dict(sorted(images.items())), labels, facts)
    return replace(
        found,
        cases={
            stem: case if case.is_labelled else replace(case, split="test")
            for stem, case in found.cases.items()
        },
    )


def _read_pair(folder: Path, pair: Any) -> tuple[Path, Path]:
    try:
        return folder / pair["image"], folder / pair["label"]
    except (TypeError, KeyError) as error:
        raise FormatError(
            f"{folder / 'dataset.json'}: {pair!r} in 'training' is no pair of files; write "
            '{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}.'
        ) from error
