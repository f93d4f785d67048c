"""Packs for training: opened, and made first where a folder of data sets is given."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from limner.datasets import Dataset, find_training_sets
from limner.errors import FormatError
from limner.train.data import pack, pack3d
from limner.train.data.archive import finished_sets
from limner.train.data.images import read_images
from limner.train.data.pack import PackedImages, open_pack, write_pack
from limner.train.data.pack3d import PackedVolumes, open_volumes, write_volumes
from limner.train.data.pack_settings import PackSettings
from limner.train.data.volumes import read_volumes

_log = logging.getLogger(__name__)


def write_packs(
    data: Path, folder: Path, *, with_volumes: bool, settings: PackSettings | None = None
) -> list[dict[str, Any]]:
    """Gather what may be trained on into one small folder that travels.

    Args:
        data: data sets of any layout, see `limner.datasets.open_datasets`.
        folder: of the pack; made if needed.
        with_volumes: volumes as such, not as slices; slices are then kept only where there is no
            other 2D image.
        settings: how many slices and volumes are kept; None: the defaults.

    Returns:
        Facts about each pack that was written.

    Raises:
        FormatError: there is nothing to train on.
    """
    settings = settings or PackSettings()
    datasets = find_training_sets(data)
    kinds = {dataset.kind for dataset in datasets}
    if with_volumes and "volume" not in kinds:
        raise FormatError(f"{data} holds no volumes, and the recipe is for volumes.")
    slices = not with_volumes or "image" not in kinds
    seed, source = settings.seed, _hash_source(datasets, settings, slices)
    left = _without_finished(datasets, folder, pack.SUMMARY, seed, source)
    images = read_images(left, settings, slices=slices)
    summaries = [write_pack(folder, images, seed=seed, source=source)]
    if with_volumes:
        left = _without_finished(datasets, folder, pack3d.SUMMARY, seed, source)
        volumes = read_volumes(left, settings)
        summaries.append(write_volumes(folder, volumes, seed=seed, source=source))
    return summaries


def _without_finished(
    datasets: Sequence[Dataset], folder: Path, summary: str, seed: int, source: str
) -> list[Dataset]:
    """The data sets that an earlier call, which was stopped, has not packed."""
    done = finished_sets(folder, summary, seed=seed, source=source)
    if done:
        _log.info("going on: %d of %d data sets are packed", len(done), len(datasets))
    return [dataset for dataset in datasets if dataset.name not in done]


def _hash_source(datasets: Sequence[Dataset], settings: PackSettings, slices: bool) -> str:
    """SHA-256 of what is packed: settings, cases, and size and time of their files."""
    digest = hashlib.sha256(f"{settings.model_dump_json()} {slices}".encode())
    for dataset in datasets:
        for case in dataset.cases.values():
            digest.update(f"{dataset.name} {dataset.unit} {case.name} {case.split}".encode())
            for path in filter(None, (*case.images, case.labels, case.instances)):
                with suppress(OSError):  # which is said where it is read
                    facts = path.stat()
                    digest.update(f"{path} {facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()


def open_slices(data: Path, out: Path, leave_out: tuple[str, ...]) -> PackedImages:
    """Open images and slices of volumes.

    Args:
        data: a pack, or data sets, which are packed first.
        out: folder of the run, where a pack that is made is kept.
        leave_out: sets to pass over.

    Raises:
        FormatError: there is nothing to train on, or the pack is damaged.
    """
    return open_pack(_find_pack(data, out, with_volumes=False), leave_out)


def open_volumes_and_images(
    data: Path, out: Path, leave_out: tuple[str, ...]
) -> tuple[PackedVolumes, PackedImages]:
    """Open volumes, and the images that are none of their slices; see `open_slices`."""
    folder = _find_pack(data, out, with_volumes=True)
    return open_volumes(folder, leave_out), open_pack(folder, leave_out, slices=False)


def _find_pack(data: Path, out: Path, *, with_volumes: bool) -> Path:
    """The folder of the pack: the data, or made of them once and kept with the run."""
    if any((data / name).exists() for name in (pack.SUMMARY, pack3d.SUMMARY)):
        return data
    folder = out / "pack"
    if not (folder / (pack3d.SUMMARY if with_volumes else pack.SUMMARY)).exists():
        _log.info("packing %s into %s", data, folder)
        write_packs(data, folder, with_volumes=with_volumes)
    return folder
