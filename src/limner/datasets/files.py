"""Files of data sets: stems, descriptions in JSON, and what they say of labels and modality."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from limner.datasets.record import Kind
from limner.errors import FormatError

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_DOUBLE_SUFFIXES = (".nii.gz", ".seg.nrrd", ".ome.tif", ".ome.tiff")
_BESIDE = (".json", ".txt", ".csv", ".xml", ".raw", ".db")  # lie beside images of their stem
_TELLTALE = (".dcm", ".tif", ".tiff", ".npz")  # only their content says whether they are volumes
_NO_OBJECT = ("background", "ignore")

_log = logging.getLogger(__name__)


def stem_of(path: Path) -> str:
    """A file's name without its ending; ``.nii.gz`` and its like are one ending."""
    for suffix in _DOUBLE_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def files_by_stem(folder: Path) -> dict[str, Path]:
    """Files by stem, in order of names; of several with one stem the one that can be an image.

    Empty where there is no such folder.
    """
    if not folder.is_dir():
        return {}
    paths = [p for p in folder.iterdir() if not p.name.startswith(".")]
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda p: (p.suffix.lower() in _BESIDE, p.name)):
        found.setdefault(stem_of(path), path)
    return dict(sorted(found.items()))


def kind_of(path: Path) -> Kind:
    """Whether a file is an image or a volume: by its suffix, and where that does not say, by its
    header. A file that cannot be read is taken for an image; its reader will say what is wrong.
    """
    if path.is_dir() or path.name.lower().endswith(VOLUME_SUFFIXES):
        return "volume"
    if not path.name.lower().endswith(_TELLTALE):
        return "image"
    from limner.io import read

    try:
        return read(path).kind
    except (FormatError, OSError):
        return "image"


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


# What fields that are read may hold; a note in words instead of names says nothing.
_OBJECT, _WORDS = "an object of texts", "a text"
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "targets": ((dict, str, NoneType), _OBJECT),
    "labels": ((dict, str, NoneType), _OBJECT),
    "group": ((dict, str, NoneType), _OBJECT),
    "cases": ((dict, str, NoneType), "an object of objects"),
    "channel_names": ((dict, NoneType), _OBJECT),
    "modality": ((dict, str, NoneType), "a text or an object of texts"),
    "licence": ((str, NoneType), _WORDS),
    "license": ((str, NoneType), _WORDS),
    "instances": ((bool, str, NoneType), "true or false"),
}


def read_description(folder: Path) -> dict[str, Any]:
    """``dataset.json`` of a data set; empty where there is none.

    Raises:
        FormatError: it cannot be read or holds something else.
    """
    path = folder / "dataset.json"
    facts = read_json(path) if path.is_file() else {}
    for key, (kinds, what) in _KINDS.items():
        if key in facts and not isinstance(facts[key], kinds):
            _log.warning("%s: %r is %s, not %s; it is passed over.", path, key, facts[key], what)
    return facts


def label_names(facts: Mapping[str, Any], source: Path) -> dict[str, tuple[int, ...]]:
    """Names of labels from ``targets`` or ``labels``: ``{"1": "liver"}``, ``{"liver": 1}`` or
    ``{"whole tumour": [1, 2]}``, without the background. Anything else but an object, such as a
    note in words, says nothing.

    Raises:
        FormatError: an object that does not name labels; names `source`.
    """
    listed = next((v for k in ("targets", "labels") if isinstance(v := facts.get(k), dict)), {})
    names: dict[str, tuple[int, ...]] = {}
    try:
        for key, value in listed.items():
            if isinstance(value, str) and key.strip("*") == "":
                continue  # "*": every value is an object of the same kind
            if isinstance(value, str):
                names[value] = (*names.get(value, ()), int(key))
            else:
                names[key] = tuple(int(v) for v in (value if isinstance(value, list) else [value]))
    except (ValueError, TypeError) as error:
        raise FormatError(
            f"{source} does not name labels ({error}); write them as "
            '{"labels": {"background": 0, "liver": 1}}.'
        ) from error
    positive = {name: tuple(v for v in values if v > 0) for name, values in names.items()}
    return {n: values for n, values in positive.items() if values and n.lower() not in _NO_OBJECT}


def value_names(facts: Mapping[str, Any]) -> dict[str, str]:
    """Names by value as text, from ``targets``, else from ``labels`` without the background."""
    targets = {k: v for k, v in texts(facts.get("targets")).items() if k.isdigit()}
    listed = facts.get("labels")
    if targets or not isinstance(listed, dict):
        return targets
    pairs = [(str(k), v) if str(k).isdigit() else (str(v), k) for k, v in listed.items()]
    return {value: str(name) for value, name in pairs if value.isdigit() and value != "0"}


def channel_names(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of channels from nnU-Net's ``channel_names`` or Medical Decathlon's ``modality``."""
    listed = facts.get("channel_names") or facts.get("modality")
    return tuple(map(str, listed.values())) if isinstance(listed, dict) else ()


def modality_of(facts: Mapping[str, Any]) -> str:
    """In words; of nnU-Net's and Medical Decathlon's files the first channel's."""
    value = facts.get("modality") or facts.get("channel_names")
    if isinstance(value, dict):
        value = next(iter(value.values()), None)
    return str(value or "unknown")


def licence_of(facts: Mapping[str, Any]) -> str:
    """In words; empty where it is not said."""
    return str(facts.get("licence") or facts.get("license") or "")


def annotated_labels(value: Any) -> dict[str, frozenset[str]]:
    """Annotated labels by case, from ``cases``: ``{"case": {"targets": ["1"]}}``."""
    if not isinstance(value, dict):
        return {}
    return {
        str(name): frozenset(map(str, case["targets"]))
        for name, case in value.items()
        if isinstance(case, dict) and isinstance(case.get("targets"), list)
    }


def texts(value: Any) -> dict[str, str]:
    """An object of texts; anything else says nothing."""
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}
