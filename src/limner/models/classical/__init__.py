"""Segmentation without any weights: region growing, graph cut and random walk from the prompts.

This is what a user has today without a trained model, made as good as is reasonable; the benchmark
always shows it. Three of them share the reading of the prompts (`limner.adapters.markers`) and the
statistics of colour (`colour`); they differ in how they decide the pixels between:

- ``region`` grows from the seeds along similar colours and stops where the border of what it has
  has the strongest contrast.
- ``graphcut`` finds the mask of least energy (colour, place, contrast) exactly and repeats with the
  colours it found (GrabCut, Rother et al. 2004, https://doi.org/10.1145/1015706.1015720).
- ``randomwalk`` computes the probability that a walk which avoids edges ends on the object (Grady
  2005, random walker with priors, https://doi.org/10.1109/CVPR.2005.239).

Constants of colour and growth were checked on training images with `limner bench`, and
those of lone clicks also on phantoms; the others are older and were not chosen anew.
A correction changes the answer only where it was made (`limner.adapters.correction`).

``copy`` and ``flow`` propagate a drawn mask over the frames of a video or the slices of a volume
(`optical_flow`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from limner.adapters.correction import keep_local_correction
from limner.adapters.markers import Markers, enforce_marks, gather_markers, signed_distance
from limner.adapters.prompt_checks import check_understood
from limner.adapters.protocols import ModelCard, Segmentation, Variant, View
from limner.models.classical.colour import ColourBins, features_of
from limner.models.classical.graph_cut import contrast_links, minimum_cut
from limner.models.classical.optical_flow import VARIANTS as FOLLOWERS
from limner.models.classical.problem import SegmentationProblem, connected_parts
from limner.models.classical.random_walker import walk_randomly
from limner.models.classical.region_growing import grow_region
from limner.prompts.types import AREAS, MARKS, Area, Prompt

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Solver: TypeAlias = Callable[[SegmentationProblem], NDArray[np.float32]]

BACKGROUND_LOGIT = -8.0
MOST_PIXELS = 300_000  # solved at once; a larger window is solved on a coarser grid
_SURROUNDINGS = 0.25  # of the area's size: background from which the colours of the rest are learnt
_LEAST_SURROUNDINGS = 4  # pixels
_LINKS, _COLOUR = 1.5, 0.55  # energies of contrast and of colour; that of place is 1
_MOST_GROWTH = 2.5  # of the answer to clicks alone when it is asked for again
_ROUNDS = 4  # of learning the colours again
_HARD = 500.0  # energy of a pixel that is decided
_LARGEST_HOLE = 0.05  # of the object's size: smaller holes are noise, unless marked as background


@dataclass(frozen=True, eq=False)
class ClassicalEmbedding:
    """The smoothed channels of a view and its spacing in millimetres."""

    features: NDArray[np.float32]
    spacing: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape."""
        return self.features.shape[:-1]


class Classical:
    """One of the three methods as a promptable model; stateless.

    Args:
        card: its facts.
        solve: gives logits for a `SegmentationProblem`.
    """

    def __init__(self, card: ModelCard, solve: Solver) -> None:
        self.card = card
        self._solve = solve

    def embed(self, view: View) -> ClassicalEmbedding:
        """Normalise and smooth. NaN and infinities count as black and white."""
        pixels = np.nan_to_num(view.normalized(), nan=0.0, posinf=1.0, neginf=0.0)
        channels = pixels.reshape(*view.shape, -1)
        return ClassicalEmbedding(features_of(channels, len(view.shape)), view.spacing)

    def segment(
        self,
        embedding: ClassicalEmbedding,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """Answer all prompts.

        Args:
            embedding: from `embed`.
            prompts: all so far, in the view's index order. Where clicks conflict the later counts.
            previous: an earlier answer: its core and what is far from it stay, except around
                clicks that contradict it.
        """
        check_understood(self.card, prompts, embedding.shape)
        if previous is None and not any(isinstance(p, Area) for p in prompts):
            # A click alone tells few of the object's colours; a first answer tells more of them.
            # One that then grows out of all proportion has leaked.
            first = self._answered(embedding, prompts, None)
            second = self._answered(embedding, prompts, first.logits)
            sizes = [np.count_nonzero(answer.logits > 0) for answer in (first, second)]
            return second if sizes[1] <= _MOST_GROWTH * sizes[0] else first
        return self._answered(embedding, prompts, previous)

    def _answered(
        self,
        embedding: ClassicalEmbedding,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None,
    ) -> Segmentation:
        """One question to the method, and what it says of the whole view."""
        markers = gather_markers(prompts, embedding.shape, embedding.spacing, previous)
        logits = np.full(embedding.shape, BACKGROUND_LOGIT, dtype=np.float32)
        score = 0.0
        if not markers.is_empty and not markers.outside.all():
            window = _window(markers)
            problem = _problem(embedding, markers.crop(window), window)
            part = _tidied(self._solved(problem), problem.markers)
            if previous is not None:
                part = keep_local_correction(part, previous[window], problem.markers)
            logits[window] = part
            score = _score(part > 0, problem)
        return Segmentation(enforce_marks(logits, markers.marks), score)

    def _solved(self, problem: SegmentationProblem) -> NDArray[np.float32]:
        """Logits of the window, through a coarser grid where it is too large to solve at once."""
        shape = problem.shape
        step = int(np.ceil((np.prod(shape) / MOST_PIXELS) ** (1.0 / len(shape))))
        if step <= 1:
            return self._solve(problem)
        logits = self._solve(_coarser(problem, step))
        grid = [np.clip((np.arange(n) + 0.5) / step - 0.5, 0, None) for n in shape]
        places = np.meshgrid(*grid, indexing="ij")
        fine = ndimage.map_coordinates(logits, places, order=1, mode="nearest")
        return np.asarray(fine, dtype=np.float32)


def cut_graph(problem: SegmentationProblem) -> NDArray[np.float32]:
    """Least energy of colour, place and contrast, with the colours learnt again from the answer."""
    links = contrast_links(problem.features, problem.spacing, _LINKS)
    ratio = problem.first_ratio()
    prior = problem.prior_logit()
    inside, outside = problem.markers.inside, problem.markers.outside
    mask = np.zeros(problem.shape, dtype=np.bool_)
    for _ in range(_ROUNDS):
        unary = _COLOUR * ratio + prior
        unary = np.where(inside, _HARD, np.where(outside, -_HARD, unary))
        before, mask = mask, minimum_cut(unary, links)
        mask = connected_parts(mask, inside)
        if not mask.any() or np.array_equal(before, mask):
            break
        ratio = problem.ratio_of(mask)
    return np.asarray(np.clip(0.7 * signed_distance(mask, problem.spacing), -8.0, 8.0))


def _window(markers: Markers) -> tuple[slice, ...]:
    """Where the object may be, with surroundings to learn the colours of the rest from."""
    shape = markers.marks.shape
    if not markers.is_local:
        return (slice(None),) * len(shape)
    window = []
    for found, size in zip(np.nonzero(~markers.outside), shape, strict=True):
        low, high = int(found.min()), int(found.max()) + 1
        margin = max(_LEAST_SURROUNDINGS, round(_SURROUNDINGS * (high - low)))
        window.append(slice(max(0, low - margin), min(size, high + margin)))
    return tuple(window)


def _problem(
    embedding: ClassicalEmbedding, markers: Markers, window: tuple[slice, ...]
) -> SegmentationProblem:
    features = embedding.features[window]
    return SegmentationProblem(features, embedding.spacing, markers, ColourBins(features))


def _coarser(problem: SegmentationProblem, step: int) -> SegmentationProblem:
    """The same question about blocks of `step` pixels per axis; marks survive in their block."""
    markers = problem.markers
    marks = _blocks(markers.marks.astype(np.float32), step)
    inside, outside = (
        _blocks(m.astype(np.float32), step) for m in (markers.inside, markers.outside)
    )
    prior = None if markers.prior is None else _blocks(markers.prior, step)
    coarse = Markers(
        np.sign(marks).astype(np.int8),
        (inside >= 0.5) | (marks > 0),
        ((outside >= 0.5) | (marks < 0)) & ~(marks > 0),
        prior,
    )
    channels = [_blocks(problem.features[..., k], step) for k in range(problem.features.shape[-1])]
    features = np.stack(channels, axis=-1)
    spacing = tuple(s * step for s in problem.spacing)
    return SegmentationProblem(features, spacing, coarse, ColourBins(features))


def _blocks(values: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Means of blocks; the last block of an axis may be smaller."""
    result = values.astype(np.float64)
    for axis, size in enumerate(values.shape):
        starts = np.arange(0, size, step)
        counts = np.diff(np.append(starts, size))
        sums = np.add.reduceat(result, starts, axis=axis)
        result = sums / counts.reshape([-1 if k == axis else 1 for k in range(values.ndim)])
    return result.astype(np.float32)


def _tidied(logits: NDArray[np.float32], markers: Markers) -> NDArray[np.float32]:
    """Without islands that no seed asked for and without small holes that no mark made."""
    mask = connected_parts(logits > 0, markers.inside)
    logits = np.where((logits > 0) & ~mask, np.float32(-1.0), logits)
    holes = ndimage.binary_fill_holes(mask) & ~mask
    labels, count = ndimage.label(holes)
    if not count:
        return logits
    sizes = np.bincount(labels.ravel())
    filled = sizes <= _LARGEST_HOLE * mask.sum()
    filled[np.unique(labels[markers.marks < 0])] = False
    filled[0] = False
    return np.where(filled[labels], np.maximum(logits, np.float32(0.5)), logits)


def _score(mask: Mask, problem: SegmentationProblem) -> float:
    """How well colours tell the two sides of the border apart, 0…1: chance level is 0.5.

    A heuristic: it knows nothing of what the user means, only whether the mask ends at a change.
    """
    if not mask.any() or mask.all():
        return 0.0
    depth = signed_distance(mask, problem.spacing)
    likely = 0.5 * (1.0 + np.tanh(0.5 * problem.ratio_of(mask)))
    inner, outer = likely[_near_border(depth)], likely[_near_border(-depth)]
    return float(np.clip(0.5 * (inner.mean() + 1.0 - outer.mean()), 0.0, 1.0))


def _near_border(depth: Array) -> Mask:
    """The pixels of positive depth within four steps of the finest axis from the border; where none
    is as near, as across thick slices, the nearest ones.
    """
    inside: Mask = depth > 0
    near: Mask = (depth < 4) | (depth <= depth[inside].min())
    return inside & near


def _variant(name: str, summary: str, solve: Solver) -> Variant:
    card = ModelCard(
        name=f"classical/{name}",
        summary=summary,
        ndim=(2, 3),
        prompts=MARKS | AREAS,
        licence="Apache-2.0",
        source="this package, with SciPy and scikit-image; no weights",
        zoom=True,
        window={2: 256, 3: 64},
    )

    def build(
        *, weights: Path | None = None, device: str = "auto", exact: bool = False
    ) -> Classical:
        return Classical(card, solve)

    return Variant(card, build)


SOLVERS = {
    "region": _variant("region", "seeded region growing; no weights", grow_region),
    "graphcut": _variant("graphcut", "minimum cut of colour and contrast; no weights", cut_graph),
    "randomwalk": _variant("randomwalk", "random walker with priors; no weights", walk_randomly),
}
VARIANTS = SOLVERS | FOLLOWERS
