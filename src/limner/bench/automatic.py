"""Automatic models in the benchmark: an image is labelled once, and every label that it holds is
scored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from limner.bench._peak_memory import PeakMemory
from limner.bench.config import BenchConfig
from limner.bench.interaction import score_answer
from limner.bench.measures import by_measure, score_nothing
from limner.bench.protocol import Exchange
from limner.bench.rows import encode_answer
from limner.datasets.objects import TargetObject
from limner.datasets.record import Dataset
from limner.datasets.selection import merge_by_label
from limner.io.image import Image
from limner.models import AnyModel, AutomaticModel, ModelCard, SamplingModel, create_model
from limner.pipeline.automatic import AutomaticSegmentation, segment_automatically

Labeller: TypeAlias = AutomaticModel | SamplingModel

_log = logging.getLogger(__name__)


def create_labellers(config: BenchConfig) -> list[Labeller]:
    """Build the models of a run. Errors as for `check_labellers` and `limner.create_model`."""
    weights = dict(config.weights)
    made = [create_model(n, weights=weights.get(n), device=config.device) for n in config.models]
    return check_labellers(made, config)


def check_labellers(models: Sequence[AnyModel], config: BenchConfig) -> list[Labeller]:
    """Refuse models that label nothing by themselves.

    Raises:
        ValueError: one takes prompts, or works on volumes only while images are scored.
    """
    found: list[Labeller] = []
    for model in models:
        if not isinstance(model, AutomaticModel | SamplingModel):
            raise ValueError(
                f"{model.card.name} answers prompts and labels nothing by itself; the protocol "
                "automatic needs a model without prompts (limner models)."
            )
        if config.dimensions == 2 and 2 not in model.card.ndim:
            raise ValueError(f"{model.card.name} works on volumes; pictures are scored here.")
        found.append(model)
    return found


def whole_labels(data_set: Dataset) -> Dataset:
    """The set with labels as objects, not their parts or instances."""
    if data_set.unit == "instance":
        return merge_by_label(data_set) if data_set.dimensions == 2 else data_set
    return replace(data_set, unit="label")


def label_objects(
    model: Labeller,
    image: Image,
    targets: Sequence[TargetObject],
    config: BenchConfig,
) -> Iterator[tuple[TargetObject, dict[str, Any]]]:
    """Label an image once and score labels of it: the fields of their rows that come from that.

    What the model raises is kept as text; the scores are then 0. The seconds are those of the whole
    image, in every row.

    Args:
        model: labels it.
        image: as it is shown.
        targets: of the image, each a label that the model has (`find_label`).
        config: of the run.
    """
    memory = PeakMemory() if config.dimensions == 3 else None
    began, error = time.perf_counter(), None
    found: AutomaticSegmentation | None = None
    if memory is not None:
        memory.begin()
    try:
        found = segment_automatically(image, model)
    except Exception as problem:  # a model may raise anything, and the others go on
        error = f"{type(problem).__name__}: {problem}"
        _log.debug("a model failed", exc_info=True)
    seconds = time.perf_counter() - began
    if memory is not None:
        memory.end()
    for target in targets:
        label = find_label(model.card, target)
        scores, answer = score_nothing(target.target.ndim), None
        if found is not None and label is not None:
            mask = found.labels.mask(label)
            scores, answer = score_answer(Exchange((), mask, seconds), target), encode_answer(mask)
        fields: dict[str, Any] = {
            "scores": by_measure([scores]),
            "seconds": [round(seconds, 5)],
            "prompts": [[]],
            "answer": answer,
            "error": error,
        }
        if memory is not None:
            way = "whole" if 3 in model.card.ndim else "slices"
            fields |= {"way": way, "peak_mb": memory.megabytes}
        yield target, fields


def find_label(card: ModelCard, target: TargetObject) -> int | None:
    """The label of a model that a target is: the one of the same name, or, where names are not
    known on either side, of the same value; None if there is none.
    """
    names = {name.casefold(): value for value, name in card.labels.items()}
    if target.target_name.casefold() in names:
        return names[target.target_name.casefold()]
    if not target.object_id.isdecimal() or int(target.object_id) not in card.labels:
        return None
    value = int(target.object_id)
    unnamed = not target.target_name or card.labels[value] == f"label {value}"
    return value if unnamed else None
