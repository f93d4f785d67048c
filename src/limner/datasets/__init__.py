"""Data sets on disk as records, one module per layout; `open_datasets` finds those of a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from limner.datasets import clips, cvpr_npz, msd, nnunet_raw, plain_folders, project
from limner.datasets.record import Case, Dataset, Kind, Layout, Split, Unit
from limner.errors import FormatError

__all__ = [
    "LAYOUTS",
    "Case",
    "Dataset",
    "Kind",
    "Layout",
    "Split",
    "Unit",
    "find_training_sets",
    "open_dataset",
    "open_datasets",
]

LAYOUTS: tuple[Layout, ...] = (
    msd,
    nnunet_raw,
    plain_folders,
    cvpr_npz,
    clips,
)  # in the order of asking


def open_dataset(folder: Path, name: str | None = None) -> Dataset | None:
    """Open a folder that is one data set; None where it is none. Opens no image.

    Args:
        folder: of the set.
        name: of the set; None: that of its folder.

    Raises:
        FormatError: a description in it is damaged.
    """
    layout = next((layout for layout in LAYOUTS if layout.sniff(folder)), None)
    if layout is None:
        return None
    return layout.open_dataset(folder, name or folder.resolve().name)


def open_datasets(data: Path) -> list[Dataset]:
    """Open the data sets of a folder: a data root with ``splits.json``, one data set, or a folder
    of data sets (up to two levels down). Opens no image.

    Returns:
        In order of their folders; of a data root those that may be trained on first, in the order
        of its ``splits.json``. Sets without cases are left out.

    Raises:
        FormatError: there is no such folder, or a description in it is damaged.
    """
    if not data.is_dir():
        raise FormatError(f"There is no folder {data}; name one with {describe_layouts()}.")
    return [dataset for dataset in _walk(data) if dataset.cases]


def find_training_sets(data: Path, leave_out: Sequence[str] = ()) -> list[Dataset]:
    """The data sets of a folder that may be trained on, every case in a split.

    Args:
        data: see `open_datasets`.
        leave_out: names of sets to pass over.

    Raises:
        FormatError: there are none, `leave_out` names a set that is not there, or as for
            `open_datasets`.
    """
    found = [dataset.with_splits() for dataset in open_datasets(data) if dataset.trainable]
    names = [dataset.name for dataset in found]
    unknown = sorted(set(leave_out) - set(names))
    if unknown:
        raise FormatError(f"leave_out names {unknown}; known are {', '.join(names)}.")
    kept = [dataset for dataset in found if dataset.name not in leave_out]
    if not kept:
        raise FormatError(
            f"{data} holds nothing to train on; name a folder with {describe_layouts()}."
        )
    return kept


def describe_layouts() -> str:
    """All layouts in words, for messages."""
    return f"{', '.join(layout.DESCRIPTION for layout in LAYOUTS)}, or such folders"


def _walk(data: Path) -> Iterator[Dataset]:
    if project.sniff(data):
        yield from project.open_datasets(data, open_dataset)
        return
    alone = open_dataset(data)
    if alone is not None:
        yield alone
        return
    for folder in sorted(p for depth in ("*", "*/*") for p in data.glob(depth) if p.is_dir()):
        found = open_dataset(folder, folder.relative_to(data).as_posix())
        if found is not None:
            yield found
