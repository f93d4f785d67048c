"""Model card: the facts about a model that sessions, command line, server and benchmark read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(f"ModelCard.{old} is now {new}.", DeprecationWarning, stacklevel=3)


@dataclass(frozen=True)
class ModelCard:
    """The facts about a model that sessions, command line, server and benchmark read.

    Attributes:
        name: as given to `create_model`, such as ``"classical/region"``.
        summary: one line.
        ndim: spatial axes it understands: ``(2,)``, ``(3,)`` or ``(2, 3)``.
        prompts: kinds of prompt it understands, keys of `limner.prompts.types.KINDS`.
        licence: SPDX identifier of the weights, or of the code where there are none.
        source: paper, page or package.
        zoom: whether sessions look twice by default (whole image, then a window around the object).
        window: the most pixels per axis, per number of axes, that the model works well on, such as
            ``{2: 256, 3: 96}``, or ``{3: (64, 128, 128)}`` for slices, rows and columns; sessions
            shrink and crop to it when they zoom.
        mask_is_answer: whether a mask that is the newest prompt is the answer, to the pixel: of
            models that propagate what was drawn. Others take it as a rough guess.
        predicts_quality: whether the score is a learnt prediction of the mask's quality, which
            compares answers on different views.
        published: whether its answers are its authors', as they have them: sessions merge no
            corrections (`limner.sessions.answers.merge`).
        weights_sha256: hash of the weights file, None where there are no weights.
        runtime: what computes the answers of a built model and how precisely, such as ``"OpenVINO
            2026.3, bf16"``; None where it is plain NumPy.
        labels: of a model that needs no prompts, the names of what it finds by label value, from 1,
            in the order of its channels. Empty for promptable models, and where the weights say.
        overlapping: whether its labels may overlap: each channel then decides for itself, and there
            is none for the background.
        channels: of the images that it takes; promptable models take any.
        spacing: millimetres per step that it works at, in index order; images are resampled to it.
            None: at whatever they have.
    """

    name: str
    summary: str
    ndim: tuple[int, ...]
    prompts: frozenset[str]
    licence: str
    source: str
    zoom: bool
    window: Mapping[int, int | tuple[int, ...]]
    predicts_quality: bool = False
    mask_is_answer: bool = False
    published: bool = False
    weights_sha256: str | None = None
    runtime: str | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    overlapping: bool = False
    channels: int | None = None
    spacing: tuple[float, ...] | None = None

    @property
    def judges(self) -> bool:
        """Old name of `predicts_quality`; goes with the next release."""
        _warn_renamed("judges", "predicts_quality")
        return self.predicts_quality

    @property
    def exact_masks(self) -> bool:
        """Old name of `mask_is_answer`; goes with the next release."""
        _warn_renamed("exact_masks", "mask_is_answer")
        return self.mask_is_answer

    def limits(self, ndim: int) -> tuple[int, ...] | None:
        """The most pixels per axis of a view with so many axes; None where there is no limit."""
        size = self.window.get(ndim)
        return (size,) * ndim if isinstance(size, int) else size

    def to_json(self) -> dict[str, Any]:
        """The card as JSON values."""
        return {
            "name": self.name,
            "summary": self.summary,
            "ndim": list(self.ndim),
            "prompts": sorted(self.prompts),
            "licence": self.licence,
            "source": self.source,
            "zoom": self.zoom,
            "window": {str(k): v if isinstance(v, int) else [*v] for k, v in self.window.items()},
            "weights_sha256": self.weights_sha256,
            "runtime": self.runtime,
            "labels": {str(value): name for value, name in self.labels.items()},
            "overlapping": self.overlapping,
            "channels": self.channels,
            "spacing": None if self.spacing is None else list(self.spacing),
        }
