"""Plain folders of images and masks: ``images/`` with ``masks/`` or ``labels/``, matched by stem.

Beside them there may be ``instances/`` (one value per object), ``scribbles/`` (strokes of people)
and ``dataset.json`` with ``targets`` (names of labels), ``modality``, ``licence``, ``unit``,
``group`` (patient by stem) and ``cases`` (labels that were annotated, by stem). ``labels/`` alone
are label maps to paint images from.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.datasets import files
from limner.datasets.record import UNITS, Case, Dataset, Kind, Unit
from limner.errors import FormatError

NAME = "plain folders"
DESCRIPTION = "images/ and masks/, or images/ and labels/"
_MASKS = ("masks", "labels")
_CHANNEL = re.compile(r"(.+)_(\d{4})")  # one file per channel, as nnU-Net numbers them

_log = logging.getLogger(__name__)


def sniff(folder: Path) -> bool:
    """Whether a folder has images and masks, or label maps alone."""
    masks = any((folder / name).is_dir() for name in _MASKS)
    return masks and ((folder / "images").is_dir() or (folder / "labels").is_dir())


def open_dataset(folder: Path, name: str) -> Dataset:
    """List the cases of a folder. See `record.Layout`."""
    masks = next(part for part in _MASKS if (folder / part).is_dir())
    images = files.files_by_stem(folder / "images")
    labels = files.files_by_stem(folder / masks)
    facts = files.read_description(folder)
    if not (folder / "images").is_dir():
        return build_dataset(folder, name, dict.fromkeys(labels, ()), labels, facts)
    return build_dataset(folder, name, group_channels(images, labels), labels, facts)


def build_dataset(
    folder: Path,
    name: str,
    images: Mapping[str, tuple[Path, ...]],
    labels: Mapping[str, Path],
    facts: Mapping[str, Any],
) -> Dataset:
    """A data set of files by stem and of what its ``dataset.json`` says.

    Args:
        folder: of the set.
        name: of the set.
        images: files of the channels by stem, in order.
        labels: file of the label map by stem; a stem without one is not annotated.
        facts: of ``dataset.json``; empty if there is none.

    Raises:
        FormatError: the unit is unknown, or labels are not named as they should be.
    """
    strays = sorted(set(labels) - set(images))
    if strays:
        _log.warning("%s: %d label maps have no image: %s.", name, len(strays), strays[:5])
    instances = files.files_by_stem(folder / "instances")
    first = next((paths[0] for paths in images.values() if paths), None)
    kind: Kind = "volume" if first is None else files.kind_of(first)
    by_value = kind == "volume" and facts.get("instances") is True
    unit = check_unit(name, facts.get("unit", "instance" if instances or by_value else "label"))
    names = files.label_names(facts, folder / "dataset.json")
    group, annotated = files.texts(facts.get("group")), files.annotated_labels(facts.get("cases"))
    modality, licence = files.modality_of(facts), files.licence_of(facts)
    cases = {
        stem: Case(
            stem,
            name,
            kind,
            paths,
            labels.get(stem),
            instances.get(stem),
            group=group.get(stem, stem),
            channels=files.channel_names(facts),
            label_names=names,
            annotated=annotated.get(stem),
            licence=licence,
            modality=modality,
        )
        for stem, paths in images.items()
    }
    values = files.value_names(facts)
    return Dataset(name, folder, kind, cases, unit, names, values, modality, licence)


def check_unit(name: str, unit: Any) -> Unit:
    """What one object of a set is.

    Raises:
        FormatError: it is none of `UNITS`.
    """
    if unit not in UNITS:
        raise FormatError(f"{name}: unit={unit!r} is unknown; use {', '.join(UNITS)}.")
    return unit  # type: ignore[no-any-return]


def group_channels(
    images: Mapping[str, Path], labels: Mapping[str, Path]
) -> dict[str, tuple[Path, ...]]:
    """Files of images by the stem of their label map: ``a_0000`` and ``a_0001`` are channels of
    ``a`` where there is a label map ``a``, or no label map ``a_0000`` and several channels.
    """
    found: dict[str, list[Path]] = {}
    for stem, path in images.items():
        numbered = _CHANNEL.fullmatch(stem)
        base = numbered[1] if numbered and stem not in labels else stem
        is_channel = base in labels or f"{base}_0001" in images
        found.setdefault(base if is_channel else stem, []).append(path)
    return {stem: tuple(paths) for stem, paths in sorted(found.items())}
