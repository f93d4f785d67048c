"""Videos as folders of clips: ``CLIP/frames/`` and ``CLIP/masks/``, a file per frame.

A frame without a mask is not annotated. ``dataset.json`` may say which labels were annotated on
which frames: ``{"clips": {"CLIP": {"annotated": {"007": ["1"]}}}}``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limner.datasets import files
from limner.datasets.plain_folders import check_unit
from limner.datasets.record import Case, Dataset

NAME = "clips"
DESCRIPTION = "CLIP/frames/ and CLIP/masks/ (frames/ and masks/)"


def sniff(folder: Path) -> bool:
    """Whether a folder holds clips."""
    return folder.is_dir() and any(_is_clip(path) for path in folder.iterdir())


def open_dataset(folder: Path, name: str) -> Dataset:
    """List the clips of a folder. See `record.Layout`."""
    facts = files.read_description(folder)
    names = files.label_names(facts, folder / "dataset.json")
    annotated, group = _annotated_frames(facts.get("clips")), files.texts(facts.get("group"))
    modality, licence = files.modality_of(facts), files.licence_of(facts)
    cases = {
        clip.name: Case(
            clip.name,
            name,
            "video",
            (clip / "frames",),
            clip / "masks",
            group=group.get(clip.name, clip.name),
            label_names=names,
            annotated_frames=annotated.get(clip.name, {}),
            licence=licence,
            modality=modality,
        )
        for clip in sorted(path for path in folder.iterdir() if _is_clip(path))
    }
    unit = check_unit(name, facts.get("unit", "label"))
    values = files.value_names(facts)
    return Dataset(name, folder, "video", cases, unit, names, values, modality, licence)


def _is_clip(folder: Path) -> bool:
    return all((folder / name).is_dir() for name in ("frames", "masks"))


def _annotated_frames(value: Any) -> dict[str, dict[str, frozenset[str]]]:
    """Annotated labels by clip and frame; anything else instead of the labels by frame, such as
    ``"all"``, says nothing.
    """
    if not isinstance(value, dict):
        return {}
    by_clip = {str(k): v.get("annotated") for k, v in value.items() if isinstance(v, dict)}
    return {
        clip: {str(frame): frozenset(map(str, labels)) for frame, labels in frames.items()}
        for clip, frames in by_clip.items()
        if isinstance(frames, dict) and all(isinstance(v, list) for v in frames.values())
    }
