"""Automatic segmentation: image in, labels out, no prompts.

The image is turned as a reader would see it, resampled to the model's spacing, labelled, and the
answer resampled back onto exactly the image's grid before a label is decided, slab by slab, so that
logits of all labels at full size are never in memory at once (unless they are wanted).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limner.adapters.intensity import resolve_window
from limner.adapters.protocols import AutomaticModel, ModelCard, SamplingModel, SlabModel
from limner.adapters.resample import resample_linear, resample_slabs
from limner.errors import SessionError
from limner.io.image import Image
from limner.io.labels import Labels
from limner.models import create_model
from limner.pipeline.model_view import ModelView
from limner.pipeline.statistics import LabelStatistics, measure_labels
from limner.sessions.history.manifest import Options, header
from limner.sessions.open import as_image

Floats = NDArray[np.float32]
Found = NDArray[Any] | dict[int, NDArray[np.bool_]]
Progress: TypeAlias = Callable[[int, int], None]

SAMPLES = 16  # of a sampling model, where no number is named
MOST_SAMPLES = 1000


@dataclass(frozen=True, eq=False)
class AutomaticSegmentation:
    """What an automatic model found in an image.

    Attributes:
        image: the image.
        card: of the model, with its weights' hash.
        labels: on the image's grid, with names and manifest; overlaps are kept.
        names: of the labels that were asked for, by value, also of those that were not found.
        statistics: one entry per label asked for.
        logits: float16 ``(channel, *image axes)``, where they were asked for; of a sampling model
            mean probabilities (less a half where labels may overlap).
        uncertainty: float32 of the image's shape, 0 (sure) to 1, of sampling models: the entropy of
            the mean probabilities, as a share of the largest possible.
    """

    image: Image
    card: ModelCard
    labels: Labels
    names: Mapping[int, str]
    statistics: tuple[LabelStatistics, ...]
    logits: NDArray[np.float16] | None = None
    uncertainty: Floats | None = None

    def to_json(self) -> dict[str, Any]:
        """The statistics as JSON values, with what they were made of."""
        geometry = self.image.geometry
        return {
            "image": None if self.image.path is None else str(self.image.path),
            "kind": self.image.kind,
            "shape": list(geometry.shape),
            "spacing_mm": list(geometry.spacing) if geometry.has_spacing else None,
            "model": self.card.name,
            "weights_sha256": self.card.weights_sha256,
            "labels": [facts.to_json() for facts in self.statistics],
            "overlapping_pixels": self.labels.num_overlapping(),
            "notice": "Research use only; not a medical device.",
        }


def segment_automatically(
    image: Image | ArrayLike | str | Path,
    model: str | AutomaticModel | SamplingModel,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    exact: bool = False,
    labels: Sequence[str | int] | None = None,
    window: str | Sequence[float] | None = None,
    samples: int | None = None,
    seed: int = 0,
    keep_logits: bool = False,
    progress: Progress | None = None,
) -> AutomaticSegmentation:
    """Label a whole image without prompts.

    Args:
        image: as for `limner.open_session`; a model of slices labels volumes and videos slice by
            slice.
        model: a name (see ``limner models``), or an object with the verbs of `AutomaticModel` or
            `SamplingModel`.
        weights: the model's weights file, for a name.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``, for a name.
        exact: compute in float32, operation by operation, for a name.
        labels: only these, by name or value; the others count as background. Default: all.
        window: CT window by name or as ``(low, high)``, for models that look at black and white;
            those with a normalisation of their own ignore it.
        samples: of a sampling model, how many segmentations are drawn; default 16.
        seed: of the drawing.
        keep_logits: return the logits as well; they take memory for every label.
        progress: told how many windows, slices or samples of how many are done.

    Raises:
        SessionError: the model does not work on this kind of image, or takes prompts.
        CheckpointError: the weights file does not exist or does not fit.
        FormatError: the image has another number of channels than the model takes.
        ValueError: unknown model, device, window or label; samples of a model that draws none.
        TypeError: no image or no model.

    Examples:
        >>> import limner, numpy
        >>> image = numpy.zeros((64, 64)); image[20:30, 20:30] = 1
        >>> found = limner.segment_automatically(image, "toy-automatic/bands")
        >>> [(label.name, label.voxels) for label in found.statistics]
        [('grey', 0), ('bright', 100)]
    """
    opened = as_image(image)
    chosen = _model_of(model, weights=weights, device=device, exact=exact)
    names = choose_labels(chosen.card, labels)
    limits = resolve_window(window)
    view = ModelView(opened, chosen.card, limits)
    count = SAMPLES if samples is None else samples
    uncertainty: Floats | None = None
    if isinstance(chosen, AutomaticModel):
        if samples is not None:
            raise ValueError(
                f"{chosen.card.name} has one answer and draws no samples; leave out samples "
                "(--samples, --uncertainty)."
            )
        slabs = _predict(chosen, view, progress)
    else:
        rng = np.random.default_rng(seed)
        slabs, uncertainty = _sample(chosen, view, count, rng, progress)
    kept: list[NDArray[np.float16]] = []
    found = _decide(_keep(slabs, kept) if keep_logits else slabs, view.shape, chosen.card, names)
    path = None if weights is None else str(Path(weights).resolve())
    options = Options(zoom=False, window=limits, weights=path, device=device, exact=exact)
    facts = header(opened, chosen.card, options) | {"method": "automatic"}
    if uncertainty is not None:
        facts |= {"samples": count, "seed": seed}
    stored = _as_stored(found, view, names, facts)
    return AutomaticSegmentation(
        opened,
        chosen.card,
        stored,
        names,
        measure_labels(stored, opened, names),
        view.undo_channels(np.concatenate(kept, axis=1)) if keep_logits else None,
        None if uncertainty is None else np.ascontiguousarray(view.undo(uncertainty)),
    )


def choose_labels(card: ModelCard, labels: Sequence[str | int] | None) -> dict[int, str]:
    """The names by value of the labels asked for, in the card's order; None: all.

    Raises:
        ValueError: one is unknown.
    """
    if labels is None:
        return dict(card.labels)
    values = {name.lower(): value for value, name in card.labels.items()}
    wanted = set()
    for label in labels:
        text = str(label).strip().lower()
        value = values.get(text, int(text) if text.isdecimal() else 0)
        if value not in card.labels:
            known = ", ".join(f"{name} ({value})" for value, name in card.labels.items())
            raise ValueError(f"{card.name} has no label {label!r}; it has {known}.")
        wanted.add(value)
    return {value: name for value, name in card.labels.items() if value in wanted}


def compute_uncertainty(probabilities: Floats, *, overlapping: bool) -> Floats:
    """The entropy of probabilities, as a share of the largest possible.

    Args:
        probabilities: ``(channel, *axes)``, 0…1; of labels that exclude one another they add up
            to 1.
        overlapping: each channel stands for itself; the most unsure one counts.

    Returns:
        float32 ``(*axes)``, 0…1.
    """
    p = np.clip(probabilities, 1e-7, 1.0)
    if not overlapping:
        return np.asarray(-(p * np.log(p)).sum(axis=0) / np.log(max(len(p), 2)), np.float32)
    q = np.clip(1.0 - probabilities, 1e-7, 1.0)
    return np.asarray(-(p * np.log(p) + q * np.log(q)).min(axis=0) / np.log(2), np.float32)


def _model_of(
    model: str | AutomaticModel | SamplingModel, **options: Any
) -> AutomaticModel | SamplingModel:
    """A model from its name or itself."""
    if not isinstance(model, str) and options["weights"] is not None:
        raise TypeError("weights= goes with a model's name, not with a model object.")
    made: Any = create_model(model, **options) if isinstance(model, str) else model
    if isinstance(made, AutomaticModel | SamplingModel):
        return made
    if not hasattr(made, "card"):
        raise TypeError(f"A model is a name or an object with card and predict: {made!r}.")
    raise SessionError(
        f"{made.card.name} answers prompts and labels nothing by itself: use limner segment "
        "(limner.open_session), or a model without prompts (limner models)."
    )


def _predict(model: AutomaticModel, view: ModelView, progress: Progress | None) -> Iterator[Floats]:
    """Logits on the image's grid, turned as the model sees it, slab by slab."""
    for number, part in enumerate(view.parts()):
        if isinstance(model, SlabModel):
            tell = None if view.by_slices else progress
            slabs = model.predict_slabs(part, progress=tell)
        else:
            slabs = iter([model.predict(part)])
        resampled = resample_slabs(slabs, part.shape, view.part_shape)
        if not view.by_slices:
            yield from resampled
            continue
        yield np.concatenate(list(resampled), axis=1)[:, None]
        if progress is not None:
            progress(number + 1, view.num_parts)


def _sample(
    model: SamplingModel,
    view: ModelView,
    samples: int,
    rng: np.random.Generator,
    progress: Progress | None,
) -> tuple[Iterator[Floats], Floats]:
    """Mean probabilities on the image's grid, as slabs, and how unsure the model is."""
    if not 1 <= samples <= MOST_SAMPLES:
        raise ValueError(f"samples={samples}; it is from 1 to {MOST_SAMPLES}.")
    total = samples * view.num_parts
    means, maps = [], []
    for number, part in enumerate(view.parts()):
        mean: Any = 0.0
        for k, sample in enumerate(model.sample(part, samples, rng)):
            mean = mean + sample / np.float32(samples)
            if progress is not None:
                progress(number * samples + k + 1, total)
        spread = compute_uncertainty(mean, overlapping=model.card.overlapping)
        if model.card.overlapping:
            mean = mean - np.float32(0.5)  # above 0 inside, as logits are
        resampled = np.concatenate(list(resample_slabs([mean], part.shape, view.part_shape)), 1)
        means.append(resampled[:, None] if view.by_slices else resampled)
        maps.append(resample_linear(spread, view.part_shape))
    return iter(means), np.stack(maps) if view.by_slices else maps[0]


def _keep(slabs: Iterator[Floats], into: list[NDArray[np.float16]]) -> Iterator[Floats]:
    for slab in slabs:
        into.append(slab.astype(np.float16))
        yield slab


def _decide(
    slabs: Iterator[Floats], shape: tuple[int, ...], card: ModelCard, names: Mapping[int, str]
) -> Found:
    """A label map, or masks of labels that may overlap, of what was asked for."""
    first = next(slabs)
    channels = len(card.labels) + (not card.overlapping)
    if first.shape[0] != channels:
        raise ValueError(
            f"{card.name} answers with {first.shape[0]} channels, and the labels on its card need "
            f"{channels}."
        )
    values = list(card.labels)
    table = np.array([0, *(i if i in names else 0 for i in values)])
    table = table.astype(np.min_scalar_type(int(table.max())))
    found = np.zeros(shape if not card.overlapping else 0, table.dtype)
    masks = {i: np.zeros(shape, np.bool_) for i in names if card.overlapping}
    done = 0
    for slab in chain([first], slabs):
        rows = slice(done, done + slab.shape[1])
        done = rows.stop
        for i, mask in masks.items():
            mask[rows] = slab[values.index(i)] > 0
        if not card.overlapping:
            found[rows] = table[slab.argmax(axis=0)]
    return masks if card.overlapping else found


def _as_stored(
    found: Found, view: ModelView, names: Mapping[int, str], facts: Mapping[str, Any]
) -> Labels:
    """Labels in the order in which the image is stored."""
    geometry = view.image.geometry
    if isinstance(found, dict):
        masks = {i: view.undo(mask) for i, mask in found.items()}
        return Labels(geometry, masks=masks, names=names, manifest=facts)
    array = np.ascontiguousarray(view.undo(found))
    return Labels(geometry, array=array, names=names, manifest=facts)
