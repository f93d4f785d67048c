"""One record for every data set: cases with images, labels, names, split, group and licence.

Whatever a folder is laid out like, `limner.datasets.open_datasets` gives `Dataset`s of `Case`s.
Listing them opens no pixels; `Case.read_image` and `Case.read_labels` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from limner.errors import FormatError, GeometryError
from limner.io import read, read_labels
from limner.io.image import Image
from limner.io.inversion import invert_for_display
from limner.io.labels import Labels

Kind: TypeAlias = Literal["image", "volume", "video"]
Split: TypeAlias = Literal["train", "val", "test"]
Unit: TypeAlias = Literal["label", "instance", "component", "whole"]
Standing: TypeAlias = Literal["seen", "unseen", "other"]
LabelNames: TypeAlias = Mapping[str, tuple[int, ...]]

UNITS: tuple[Unit, ...] = ("label", "instance", "component")
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_HELD_OUT = 20  # one group in so many is for validation where nobody divided the cases


@dataclass(frozen=True)
class Case:
    """One image, volume or video, with its annotation if there is any.

    Attributes:
        name: unique in its data set: mostly the stem of its files.
        dataset: name of the data set.
        kind: ``"image"`` (2D), ``"volume"`` or ``"video"``.
        images: the file (or folder of DICOM files or frames), or one file per channel; empty where
            there are labels only, to paint images from.
        labels: file of the label map (of videos the folder of masks); None: not annotated.
        instances: likewise of the map with one value per object.
        split: what it may be used for; None: not said.
        group: patient, animal or specimen, which is never divided between splits; the name where
            it is not known.
        channels: names of the channels where known, such as ``("T1", "FLAIR")``.
        label_names: values of each named label, such as ``{"whole tumour": (1, 2)}``.
        annotated: values that were annotated here, as text, where only some of the set's were: what
            has no such label is not known to be background. None: all.
        annotated_frames: of videos, likewise by name of the frame; empty where it is not said.
        annotator: who drew the labels, where known.
        licence: of the image and its labels, in words; empty where not known.
        modality: as the data set describes it, such as ``"CT (HU)"``.
        spacing: millimetres per step in index order, where the data set states it; None: as the
            file says.
        series: which DICOM series, where a folder holds several.
    """

    name: str
    dataset: str
    kind: Kind
    images: tuple[Path, ...]
    labels: Path | None = None
    instances: Path | None = None
    split: Split | None = None
    group: str = ""
    channels: tuple[str, ...] = ()
    label_names: LabelNames = field(default_factory=dict)
    annotated: frozenset[str] | None = None
    annotated_frames: Mapping[str, frozenset[str]] = field(default_factory=dict)
    annotator: str | None = None
    licence: str = ""
    modality: str = "unknown"
    spacing: tuple[float, ...] | None = None
    series: str | None = None

    @property
    def is_labelled(self) -> bool:
        """Whether there is a label map or a map of instances."""
        return self.labels is not None or self.instances is not None

    def read_image(self, *, channel: int | None = None) -> Image:
        """The image: its header now, its pixels when they are wanted.

        Args:
            channel: only this one of several files, counted from 0; None: all of them, as the last
                axis of one image.

        Raises:
            FormatError: there is none, a file cannot be read, or there is no such channel.
            GeometryError: the channels lie on different grids.
        """
        if not self.images:
            raise FormatError(f"{self.dataset} {self.name} has labels only, no image.")
        if channel is not None and not 0 <= channel < len(self.images):
            raise FormatError(
                f"{self.dataset} {self.name} has {len(self.images)} files of channels; there is no "
                f"channel {channel}."
            )
        if channel is not None or len(self.images) == 1:
            image = _open(self.images[channel or 0], self.series)
        else:
            image = _stack_channels([_open(path) for path in self.images], self)
        if self.spacing is not None and not image.geometry.has_spacing:
            image.geometry = type(image.geometry).from_spacing(image.geometry.shape, self.spacing)
        return image

    def read_labels(self, *, like: Image | None = None, instances: bool = False) -> Labels:
        """The label map.

        Args:
            like: the image, whose grid the map must have.
            instances: the map with one value per object instead.

        Raises:
            FormatError: there is none, or it cannot be read.
            GeometryError: it lies on another grid than `like`.
        """
        path = self.instances if instances else self.labels
        if path is None:
            what = "map of instances" if instances else "mask"
            raise FormatError(
                f"{self.dataset} has no {what} of {self.name}; a mask has the stem of its image."
            )
        return read_labels(path, like=like)


@dataclass(frozen=True)
class Dataset:
    """Cases that belong together.

    Attributes:
        name: such as ``"2d/ct_btcv"``; of a single folder its own name.
        folder: where it is.
        kind: what the cases are.
        cases: by name, in order; those of the chosen splits after `select`.
        unit: what one object is: all pixels of a ``"label"``, each value of the ``"instance"`` map,
            each 8-connected (26-connected) ``"component"`` of a label or the ``"whole"``
            foreground.
        label_names: values of each named label.
        value_names: names by value as text, ``{"1": "liver"}``.
        modality: as the data set describes it.
        licence: in words; empty where not known.
        standing: ``"seen"``: built-in models may be trained on other cases of this set;
            ``"unseen"``: on nothing like it; ``"other"``: not said.
        trainable: whether cases of it may be trained on.
        scorable: whether its labels are good enough to score against.
        teaching: train cases and val cases by name, whatever was selected.
    """

    name: str
    folder: Path
    kind: Kind
    cases: Mapping[str, Case]
    unit: Unit = "label"
    label_names: LabelNames = field(default_factory=dict)
    value_names: Mapping[str, str] = field(default_factory=dict)
    modality: str = "unknown"
    licence: str = ""
    standing: Standing = "other"
    trainable: bool = True
    scorable: bool = True
    teaching: tuple[Mapping[str, Case], Mapping[str, Case]] = ({}, {})

    @property
    def dimensions(self) -> Literal[2, 3]:
        """2 of images, 3 of volumes and videos."""
        return 2 if self.kind == "image" else 3

    @property
    def has_instances(self) -> bool:
        """Whether there are maps with one value per object."""
        return any(case.instances is not None for case in self.cases.values())

    @property
    def has_splits(self) -> bool:
        """Whether somebody divided the cases into splits."""
        return any(case.split is not None for case in self.cases.values())

    @property
    def modality_name(self) -> str:
        """The modality without what stands in brackets, such as ``"CT"``."""
        return self.modality.partition(" (")[0]

    def select(self, *splits: Split) -> Dataset:
        """The set with the cases of some splits, in the order of the splits."""
        by_split = {s: {n: c for n, c in self.cases.items() if c.split == s} for s in SPLITS}
        cases = {name: case for split in splits for name, case in by_split[split].items()}
        return replace(self, cases=cases, teaching=(by_split["train"], by_split["val"]))

    def with_splits(self) -> Dataset:
        """The set with every case in a split: where nobody divided them, one group in 20 is for
        validation (none where there are fewer groups) and the others are for training.
        """
        if self.has_splits:
            return self
        groups = sorted({case.group for case in self.cases.values()})
        held = set(groups[_HELD_OUT // 2 :: _HELD_OUT]) if len(groups) >= _HELD_OUT else set()
        cases = {
            name: replace(case, split="val" if case.group in held else "train")
            for name, case in self.cases.items()
        }
        return replace(self, cases=cases)


@runtime_checkable
class Layout(Protocol):
    """A way in which data sets lie in folders: one module of this package each."""

    DESCRIPTION: str  # for messages, such as "images/ and masks/"

    def sniff(self, folder: Path) -> bool:
        """Whether the folder is one data set of this layout; opens no image."""

    def open_dataset(self, folder: Path, name: str) -> Dataset:
        """List the cases of the folder; opens no image.

        Raises:
            FormatError: a description is damaged.
        """


def _open(path: Path, series: str | None = None) -> Image:
    """An image with brighter pixels larger, as models see it."""
    return invert_for_display(read(path, series=series))


def _stack_channels(images: list[Image], case: Case) -> Image:
    """Images of one grid as the channels of one; read when they are wanted."""
    first = images[0]
    for image in images[1:]:
        if image.geometry.shape != first.geometry.shape:
            raise GeometryError(
                f"{case.dataset} {case.name}: its channels have the shapes "
                f"{first.geometry.shape} and {image.geometry.shape}; they must be of one grid."
            )

    def load() -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        return np.stack([np.asarray(image.array) for image in images], axis=-1)

    return Image(
        load,
        first.geometry,
        kind=first.kind,
        modality=first.modality,
        dtype=np.result_type(*(image.dtype for image in images)),
        num_channels=len(images),
        path=first.path,
        format=first.format,
    )
