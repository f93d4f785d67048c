"""Labelled images as a supervised network learns from them: read once, turned, resampled to one
spacing, normalised, and kept in the folder of the run; with the plan that inference repeats.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Axes, canonical
from limner.adapters.network_plan import NetworkPlan, Normalization
from limner.adapters.resample import resample_linear, resample_nearest, resampled_shape
from limner.atomic import atomic_bytes
from limner.datasets import find_training_sets
from limner.datasets.record import Case
from limner.errors import FormatError, LimnerError
from limner.geometry import Geometry
from limner.networks.resenc_unet import plan_stages
from limner.train.data.patches import PreparedCase, is_prepared, read_case, write_case
from limner.train.segmentation_losses import IGNORED

Array = NDArray[Any]
Kind = Literal["auto", "zscore", "fixed"]

IGNORE = "ignore"  # the name of a label that does not count, as in nnU-Net's dataset.json
_SAMPLED = 20_000  # labelled pixels per case and channel, for statistics
_PERCENTILES = (0.5, 99.5)
_UNNAMED = np.iinfo(np.int16).max

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """What is chosen for a network before data are looked at.

    Attributes:
        patch: pixels per axis.
        spacing: millimetres per step; empty: the median of the cases.
        widths: channels per stage; later stages are left out where the patch is too small.
        blocks: residual blocks per stage.
        decoder_convs: convolutions per stage of the decoder.
        normalization: ``"auto"`` is ``"fixed"`` for CT and ``"zscore"`` for everything else.
    """

    patch: tuple[int, ...]
    spacing: tuple[float, ...] = ()
    widths: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    decoder_convs: int = 1
    normalization: Kind = "auto"


def find_cases(data: Path, leave_out: Sequence[str] = ()) -> tuple[list[Case], dict[int, str]]:
    """The labelled cases of a data set that may be trained on or validated with, and the names of
    its labels by value; no names where none are known.

    Raises:
        FormatError: the folder holds no such set, or several.
    """
    found = []
    for dataset in find_training_sets(data, leave_out):
        usable = (c for c in dataset.cases.values() if c.labels and c.images)
        cases = [case for case in usable if case.split != "test"]
        if cases:
            found.append((dataset, cases))
    if len(found) != 1:
        listed = ", ".join(dataset.name for dataset, _ in found) or "none"
        raise FormatError(
            f"Label maps are learnt from one data set with labels, and {data} holds {listed}; name "
            "the folder of one."
        )
    ((dataset, cases),) = found
    names = {int(value): name for value, name in dataset.value_names.items() if int(value) > 0}
    for values in dataset.label_names.values():  # of regions that share values
        names |= {v: f"label {v}" for v in values if v > 0 and v not in names}
    return cases, names


def prepare_cases(
    cases: Sequence[Case], names: Mapping[int, str], layout: Layout, folder: Path
) -> tuple[NetworkPlan, list[PreparedCase], str]:
    """Read all cases, or find them where an earlier call has kept them.

    Args:
        cases: to train on; those of the split ``"val"`` are to validate with.
        names: of the labels by value; empty: all values that occur. One called ``ignore`` does not
            count.
        layout: of the network.
        folder: for what is prepared.

    Returns:
        The plan, the cases, and a digest of both.

    Raises:
        FormatError: nothing to train on, labels without a name, or channels that differ. Cases that
            cannot be read, or whose labels do not fit, are named in warnings and left out.
    """
    if all(case.split == "val" for case in cases):
        raise FormatError("There is no labelled image to train on.")
    digest = _digest(cases, names, layout)
    known, folder = folder / "plan.json", folder / digest
    plan = _read_plan(known, digest)
    if plan is None:
        try:
            plan = _prepare_all(_leave_out_unreadable(cases), names, layout, folder)
        except LimnerError:  # nothing is left of what cannot be used; what was stopped goes on
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()
            raise
        atomic_bytes(known, json.dumps({"digest": digest, "plan": plan.to_json()}).encode())
    kept = [case for case in cases if is_prepared(folder, _file_name(case))]
    prepared = [read_case(folder, _file_name(c), validates=c.split == "val") for c in kept]
    return plan, prepared, digest


def _prepare_all(
    cases: Sequence[Case], names: Mapping[int, str], layout: Layout, folder: Path
) -> NetworkPlan:
    """Make the plan and prepare each case that is not prepared yet."""
    _check_axes(cases, len(layout.patch))
    names = names or _find_names(cases)
    if not any(value > 0 for value in names):
        raise FormatError(
            "No label map holds a label above 0; there is nothing to learn. Draw some labels, "
            "or name them in dataset.json."
        )
    plan = make_plan(cases, names, layout)
    ignored = [value for value, name in names.items() if name.lower() == IGNORE]
    for number, case in enumerate(cases, 1):
        if not is_prepared(folder, _file_name(case)):
            _prepare(case, plan, ignored, folder)
        if number % 20 == 0 or number == len(cases):
            _log.info("%d of %d cases are prepared", number, len(cases))
    return plan


def _leave_out_unreadable(cases: Sequence[Case]) -> list[Case]:
    """The cases that can be read and whose labels fit; the others are all named at once.

    Raises:
        FormatError: none is left to train on.
    """
    usable, failed = [], []
    for number, case in enumerate(cases, 1):
        try:
            read_turned(case)
            usable.append(case)
        except (LimnerError, OSError) as error:
            failed.append(f"{case.name} is left out: {error}")
        if number % 50 == 0:
            _log.info("%d of %d cases are checked", number, len(cases))
    for line in failed:
        _log.warning("%s", line)
    if all(case.split == "val" for case in usable):
        raise FormatError(f"No case can be trained on. {failed[0] if failed else ''}".strip())
    return usable


def make_plan(cases: Sequence[Case], names: Mapping[int, str], layout: Layout) -> NetworkPlan:
    """What the network is for: the spacing and the intensities are those of the training cases.

    Raises:
        FormatError: the patch cannot be halved, or channels differ.
    """
    learnt = [case for case in cases if case.split != "val"]
    ndim = len(layout.patch)
    spacing: tuple[float, ...] | None = layout.spacing or None
    if spacing is None:
        spacing = _median_spacing(learnt, ndim)
    labels = {value: name for value, name in sorted(names.items()) if name.lower() != IGNORE}
    try:
        steps = spacing or (1.0,) * ndim
        strides, kernels = plan_stages(layout.patch, steps, len(layout.widths))
    except ValueError as error:
        raise FormatError(str(error)) from error
    stages = len(strides)
    return NetworkPlan(
        labels={value: name for value, name in labels.items() if value > 0},
        normalization=_find_normalization(learnt, layout.normalization),
        spacing=spacing,
        patch=layout.patch,
        widths=layout.widths[:stages],
        blocks=layout.blocks[:stages],
        strides=tuple(strides),
        kernels=tuple(kernels),
        decoder_convs=layout.decoder_convs,
    )


def read_turned(case: Case) -> tuple[Array, Array, tuple[float, ...], bool]:
    """Pixels ``(*axes, channel)`` and labels as models see them, the spacing, and whether it is
    known.

    Raises:
        FormatError: a file cannot be read.
        GeometryError: image and labels lie on different grids.
    """
    image = case.read_image()
    axes = _axes_of(image.geometry)
    labels = np.asarray(case.read_labels(like=image).to_array())
    pixels = image.array if image.num_channels is not None else image.array[..., None]
    spacing = axes.sizes(image.geometry.spacing)
    return axes.apply(pixels), axes.apply(labels), spacing, image.geometry.has_spacing


def _check_axes(cases: Sequence[Case], ndim: int) -> None:
    """Refuse 2D images for a network of volumes; one of slices learns from volumes, too."""
    for case in cases:
        shape = case.read_image().geometry.shape
        if len(shape) < ndim:
            raise FormatError(
                f"{case.images[0]} is a 2D image, and the recipe's patch has {ndim} axes; give it "
                "2 axes (patch: [256, 256]) or train on volumes."
            )


def _axes_of(geometry: Geometry) -> Axes:
    return canonical(geometry) if geometry.ndim == 3 else Axes.same(geometry.ndim)


def _prepare(case: Case, plan: NetworkPlan, ignored: Sequence[int], folder: Path) -> None:
    """Read one case and keep it."""
    pixels, labels, spacing, measured = read_turned(case)
    channels = np.full(max(int(labels.max(initial=0)), *plan.labels) + 1, _UNNAMED, np.int16)
    channels[[0, *plan.labels]] = range(len(plan.labels) + 1)
    channels[[v for v in ignored if v < len(channels)]] = IGNORED
    places = channels[labels]
    if (places == _UNNAMED).any():
        strange = sorted(set(np.unique(labels).tolist()) - {0, *plan.labels, *ignored})
        raise FormatError(
            f"{case.labels} holds the labels {', '.join(map(str, strange))}, which have no name; "
            f"known are {', '.join(f'{v} ({n})' for v, n in plan.labels.items())}."
        )
    if case.annotated is not None and not set(map(str, plan.labels)) <= case.annotated:
        places[places == 0] = IGNORED  # may be one of those that were not annotated
    shape = resampled_shape(labels.shape, spacing, plan.spacing if measured else None)
    if pixels.shape[-1] != len(plan.normalization):
        raise FormatError(
            f"{case.images[0]}: {pixels.shape[-1]} channel(s), and other cases have "
            f"{len(plan.normalization)}. Add the files of the missing channels, or take the case "
            "out."
        )
    normalized = plan.normalize(resample_linear(pixels, shape), labels.ndim)
    rng = np.random.default_rng(0)
    write_case(folder, _file_name(case), normalized, resample_nearest(places, shape), rng)


def _median_spacing(cases: Sequence[Case], ndim: int) -> tuple[float, ...] | None:
    """Per axis, as models see it; None where a case has no spacing."""
    found = []
    for case in cases:
        geometry = case.read_image().geometry
        if not geometry.has_spacing:
            return None
        found.append(_axes_of(geometry).sizes(geometry.spacing)[-ndim:])
    return tuple(float(f"{v:.4g}") for v in np.median(found, axis=0))


def _find_normalization(cases: Sequence[Case], kind: Kind) -> tuple[Normalization, ...]:
    """Per channel, from the labelled pixels of the cases where it is to be fixed."""
    fixed = kind == "fixed" or (kind == "auto" and all(map(_is_ct, cases)))
    samples: list[Array] = []
    for case in cases if fixed else cases[:1]:
        pixels, labels, _, _ = read_turned(case)
        values = pixels[labels > 0]
        samples.append(values[:: max(1, len(values) // _SAMPLED)])
    counts = {int(values.shape[-1]) for values in samples}
    if len(counts) > 1:
        raise FormatError(f"Cases have {' or '.join(map(str, sorted(counts)))} channels.")
    values = np.concatenate(samples).astype(np.float64)
    if not fixed or not len(values):
        number: int = counts.pop()
        return (Normalization(),) * number
    made = []
    for channel in values.T:
        low, high = np.percentile(channel, _PERCENTILES)
        mean, std = float(channel.mean()), float(channel.std())
        made.append(Normalization("fixed", float(low), float(high), mean, max(std, 1e-8)))
    return tuple(made)


def _is_ct(case: Case) -> bool:
    return re.match(r"\s*CT\b", case.modality) is not None


def _find_names(cases: Sequence[Case]) -> dict[int, str]:
    """Names for all values that occur."""
    values: set[int] = set()
    for case in cases:
        values.update(case.read_labels().ids)
    return {value: f"label {value}" for value in sorted(values)}


def _read_plan(path: Path, digest: str) -> NetworkPlan | None:
    """The plan of an earlier call about the same; None if there is none."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return NetworkPlan.from_json(kept["plan"], path) if kept["digest"] == digest else None


def _digest(cases: Sequence[Case], names: Mapping[int, str], layout: Layout) -> str:
    """Of what decides the prepared cases; files count by name and size."""
    facts: list[Any] = [repr(layout), sorted(names.items())]
    for case in cases:
        files = [*case.images, case.labels] if case.labels else [*case.images]
        sizes = [(path.name, path.stat().st_size) for path in files]
        facts.append((case.name, case.modality, case.split == "val", sizes))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _file_name(case: Case) -> str:
    return re.sub(r"[^\w.-]", "_", case.name)
