"""Volumes as a run sees them: turned, normalised and cut as SegVol's adapter does it, kept on disk
beside the run and mapped into memory, so that there may be more of them than there is memory.

A case is four files, the facts last: a preparation that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Axes, facing
from limner.atomic import atomic_bytes, atomic_path
from limner.datasets import Case
from limner.errors import FormatError
from limner.models.segvol import ORIENTATION
from limner.models.segvol.volume import Volume, picked, prepare_volume
from limner.train.data import supervoxels

Array = NDArray[Any]
Names = dict[str, tuple[int, ...]]  # of objects, with the values that are theirs

_VERSION = 1
_GREYS = 255.0  # what the scale of pseudo labels is for
_PLACES = 2000  # voxels of each object that crops may be around

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PseudoLabelOptions:
    """How pseudo labels are made; see `supervoxels.segment`.

    Attributes:
        size: of the grid, (D, H, W).
        rule: when neighbours are joined.
        scale: of the adaptive rule.
        sigma: of the Gaussian before.
        min_size: voxels of the smallest region.
    """

    size: tuple[int, ...]
    rule: supervoxels.Rule
    scale: float
    sigma: float
    min_size: int


@dataclass(frozen=True)
class PreparedCase:
    """One volume. Its arrays are mapped anew each time, since thousands of mapped files would be
    more than a process may have.

    Attributes:
        name: of its source.
        stem: of its files.
        names: of the objects that occur, with their values.
        has_labels: whether there is a label map.
        has_pseudo: whether there are pseudo labels.
        digest: SHA-256 of the arrays.
    """

    name: str
    stem: Path
    names: Names
    has_labels: bool
    has_pseudo: bool
    digest: str

    @property
    def image(self) -> NDArray[np.float16]:
        """(D, H, W), 0…1, without the background around it."""
        return np.asarray(self._mapped("image"))

    @property
    def labels(self) -> Array | None:
        """Likewise, unsigned integers; None without labels."""
        return self._mapped("labels") if self.has_labels else None

    @property
    def pseudo(self) -> NDArray[np.int32] | None:
        """Regions on a coarse grid over all of the volume, from 0; None without."""
        return self._mapped("pseudo") if self.has_pseudo else None

    @property
    def places(self) -> NDArray[np.int32]:
        """(N, 4): an object's number in `names` and a voxel of it."""
        return np.asarray(self._mapped("places")) if self.names else np.zeros((0, 4), np.int32)

    def _mapped(self, name: str) -> Array:
        array: Array = np.load(self.stem.with_suffix(f".{name}.npy"), mmap_mode="r")
        return array


def prepare_cases(
    sources: Sequence[Case], folder: Path, pseudo: PseudoLabelOptions | None = None
) -> tuple[list[PreparedCase], str]:
    """Prepare what is not prepared yet, and open all of it.

    Args:
        sources: not empty.
        folder: where prepared volumes are kept.
        pseudo: how pseudo labels are made, None for none.

    Returns:
        The cases, without those in which no object occurs, and a digest of them all.

    Raises:
        FormatError: a file is no volume, or is damaged; no object occurs in any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for k, source in enumerate(sources):
        wanted = {"version": _VERSION, **_origin(source, pseudo)}
        facts = _facts(folder / f"{k:05d}.json", wanted)
        if facts is None:
            facts = _prepare(source, pseudo, folder / f"{k:05d}") | {"origin": wanted}
            atomic_bytes(folder / f"{k:05d}.json", json.dumps(facts).encode())
            _log.info("prepared %s (%d of %d)", source.name, k + 1, len(sources))
        case = _open(source, facts, folder / f"{k:05d}")
        if source.labels is not None and not case.names:
            _log.warning("%s: none of its labels has a name and voxels; left out.", source.name)
            continue
        cases.append(case)
    if not cases:
        raise FormatError(
            "No object occurs in any label map; compare the labels in dataset.json with the files."
        )
    return cases, hashlib.sha256("".join(c.digest for c in cases).encode()).hexdigest()


def _origin(source: Case, pseudo: PseudoLabelOptions | None) -> dict[str, Any]:
    """What a prepared case follows from, as JSON gives it back."""
    files = [path for path in (*source.images, source.labels) if path is not None]
    stamps = [[str(p), s.st_size, s.st_mtime_ns] for p in files for s in (p.stat(),)]
    value = {
        "files": stamps,
        "series": source.series,
        "names": dict(source.label_names),
        "pseudo": None if pseudo is None else vars(pseudo),
    }
    return json.loads(json.dumps(value))  # type: ignore[no-any-return]


def _facts(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = (path.with_suffix(f".{name}.npy") for name in facts.get("arrays", ()))
    return facts if facts.get("origin") == wanted and all(f.is_file() for f in files) else None


def _prepare(source: Case, pseudo: PseudoLabelOptions | None, stem: Path) -> dict[str, Any]:
    """Write a case's arrays; returns names of its objects and the digest."""
    stem.with_suffix(".json").unlink(missing_ok=True)
    image = source.read_image(channel=0)
    pixels = np.asarray(image.array)
    if image.geometry.ndim != 3:
        raise FormatError(
            f"{source.images[0]} is a picture, not a volume; take it out of the folder."
        )
    if pixels.ndim > 3:
        pixels = pixels.mean(axis=-1, dtype=np.float32)
    if pixels.dtype.kind == "f":
        pixels = np.nan_to_num(pixels)
    axes = facing(image.geometry.direction if image.geometry.has_spacing else None, ORIENTATION)
    volume = prepare_volume(axes.apply(pixels))
    arrays: dict[str, Array] = {"image": volume.normalized(volume.kept).astype(np.float16)}
    names: Names = {}
    labels = None
    if source.labels is not None:
        labels, names = _labels(source, image, axes, volume)
        arrays["labels"] = labels
        arrays["places"] = _places(labels, names)
    if pseudo is not None:
        arrays["pseudo"] = _pseudo(arrays["image"], labels, pseudo)
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
        with atomic_path(stem.with_suffix(f".{name}.npy")) as temporary:
            np.save(temporary, array)
    return {"names": names, "arrays": list(arrays), "digest": digest.hexdigest()}


def _labels(source: Case, image: Any, axes: Axes, volume: Volume) -> tuple[Array, Names]:
    """The part of a label map that is kept, and the objects that occur in it."""
    found = source.read_labels(like=image)
    turned = axes.apply(np.asarray(found.to_array()))
    kept = turned[tuple(slice(a, a + n) for a, n in zip(volume.low, volume.shape, strict=True))]
    names = dict(source.label_names) or {found.name(i): (i,) for i in found.ids}
    values = set(np.unique(kept).tolist())
    present = {name: v for name, v in names.items() if values & set(v)}
    return np.ascontiguousarray(kept), present


def _places(labels: Array, names: Names) -> NDArray[np.int32]:
    rows = []
    for k, values in enumerate(names.values()):
        voxels = np.flatnonzero(np.isin(labels, values))
        chosen = voxels[np.linspace(0, len(voxels) - 1, min(len(voxels), _PLACES)).astype(int)]
        places = np.stack(np.unravel_index(chosen, labels.shape), axis=1)
        rows.append(np.insert(places, 0, k, axis=1))
    return np.concatenate(rows).astype(np.int32) if rows else np.zeros((0, 4), np.int32)


def _pseudo(image: Array, labels: Array | None, pseudo: PseudoLabelOptions) -> NDArray[np.int32]:
    grid = np.ix_(
        *(picked(n, m, exact=True) for n, m in zip(image.shape, pseudo.size, strict=True))
    )
    regions = supervoxels.segment(
        image[grid].astype(np.float32) * _GREYS,
        rule=pseudo.rule,
        scale=pseudo.scale,
        sigma=pseudo.sigma,
        min_size=pseudo.min_size,
    )
    return regions if labels is None else supervoxels.paste(regions, labels[grid])


def _open(source: Case, facts: dict[str, Any], stem: Path) -> PreparedCase:
    return PreparedCase(
        source.name,
        stem,
        {name: tuple(values) for name, values in facts["names"].items()},
        has_labels=source.labels is not None,
        has_pseudo=bool(facts["origin"]["pseudo"]),
        digest=facts["digest"],
    )
