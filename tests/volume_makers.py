"""Folders of small volumes and challenge files for the tests of the benchmark."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner import io
from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.labels import Labels
from limner.models import create_model
from limner.models.toy import Toy

SHAPE = (14, 32, 36)
SPACING = (2.0, 1.0, 1.0)


def volume(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two bright bodies on noise, one a cone, and their label map (1 and 2)."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[((z - 6) / 4) ** 2 + ((y - 10) / 6) ** 2 + ((x - 10) / 6) ** 2 < 1] = 1
    labels[(z >= 3) & (z < 12) & (np.hypot(y - 20, x - 26) < 2 + 0.5 * z)] = 2
    image = 40 + 30 * labels.astype(float) + rng.normal(0, 12, SHAPE)
    return np.clip(image, 0, 255).astype(np.uint8), labels


def write(path: Path, array: NDArray[Any], spacing: tuple[float, ...] = SPACING) -> None:
    """Write a volume or a label map as NIfTI, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    geometry = Geometry.from_spacing(array.shape, spacing)
    if "image" in path.parent.name:
        io.write_image(path, Image(array, geometry))
    else:
        io.write(path, Labels(geometry, array=array))


def make_set(
    folder: Path,
    stems: tuple[str, ...] = ("a", "b"),
    *,
    parts: tuple[str, str] = ("images", "labels"),
    **facts: Any,
) -> Path:
    """One set of volumes; `facts` become its ``dataset.json``."""
    for seed, stem in enumerate(stems):
        image, labels = volume(seed)
        write(folder / parts[0] / f"{stem}.nii.gz", image)
        write(folder / parts[1] / f"{stem}.nii.gz", labels)
    if facts:
        (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def boxes_of(labels: NDArray[Any]) -> list[dict[str, Any]]:
    """The boxes of a challenge file: closed, of NumPy's integers, on the middle slice."""
    found = []
    for label in np.unique(labels)[1:]:
        z, _, _ = np.nonzero(labels == label)
        middle = np.unique(z)[len(np.unique(z)) // 2]
        y, x = np.nonzero(labels[middle] == label)
        found.append(
            {
                "z_min": z.min(),
                "z_max": z.max(),
                "z_mid": middle,
                "z_mid_x_min": x.min(),
                "z_mid_y_min": y.min(),
                "z_mid_x_max": x.max(),
                "z_mid_y_max": y.max(),
            }
        )
    return found


class Flat(Toy):
    """The toy, as a model that works in 2D only."""

    def __init__(self, name: str = "flat", prompts: frozenset[str] | None = None) -> None:
        card = create_model("toy").card
        self.card = replace(card, name=name, ndim=(2,), prompts=prompts or card.prompts)
