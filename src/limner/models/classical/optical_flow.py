"""Propagation of a drawn mask without any weights: copied, or moved by the optical flow.

What is drawn stays as it is. ``copy`` never reads the frames; ``flow`` moves the mask of the
frame before by the dense motion between the two (iterative Lucas and Kanade, Le Besnerais and
Champagnat 2005, https://doi.org/10.1109/ICIP.2005.1529706, as scikit-image has it). What a learnt
model gains over them is what it knows of objects. ILK was chosen by measurement, on volumes and
clips that may be trained on, against OpenCV's DIS and Farneback (`docs/benchmark.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limner.adapters.prompt_checks import check_understood, draw_mask
from limner.adapters.protocols import ModelCard, PreviousFrame, Segmentation, Variant, View
from limner.prompts.types import Prompt

Array = NDArray[Any]
Floats: TypeAlias = NDArray[np.float32]
Motion: TypeAlias = Callable[[Floats, Floats], Floats]

DRAWN = 10.0  # logit of what the user drew
MOST_GIVEN = 3  # annotated frames that are kept beside the last frame
RADIUS = 4  # pixels around each, that are taken to move alike
WARPS = 3  # per level of the pyramid; 10 gain nothing
MARGIN = 0.5  # of the object's size around it, in which motion is measured
LEAST_MARGIN = 24  # pixels: as far as an object may move from one frame to the next
_DARKER = 5.0  # how fast the score falls with the difference of grey, which is 0…1


@dataclass(frozen=True, eq=False)
class FlowFrame:
    """A frame.

    Attributes:
        grey: (row, column), 0…1.
        origin: of its first pixel, row and column.
    """

    grey: Floats
    origin: tuple[float, float]


@dataclass(frozen=True, eq=False)
class _FlowState:
    """A frame that is remembered, with the object on it."""

    grey: Floats
    logits: Floats
    origin: Array
    given: Array

    def on(self, encoded: FlowFrame) -> tuple[Floats, Floats]:
        """Grey values and logits where another window is; beyond its own edge the nearest grey, and
        nothing of the object.
        """
        shift = np.rint(np.subtract(encoded.origin, self.origin)).astype(int)
        if self.grey.shape == encoded.grey.shape and not shift.any():
            return self.grey, self.logits
        size = self.grey.shape
        places = [np.arange(n) + k for n, k in zip(encoded.grey.shape, shift.tolist(), strict=True)]
        inside = [(p >= 0) & (p < n) for p, n in zip(places, size, strict=True)]
        near = np.ix_(*(np.clip(p, 0, n - 1) for p, n in zip(places, size, strict=True)))
        there = inside[0][:, None] & inside[1][None, :]
        return self.grey[near], np.where(there, self.logits[near], np.float32(-DRAWN))


class MaskFlow:
    """A mask that is copied, or moved with what is under it; stateless.

    Args:
        card: its facts.
        motion: from two frames the motion (row, column, 2) that leads from each pixel of the second
            to where it was on the first; None: nothing moves.
    """

    def __init__(self, card: ModelCard, motion: Motion | None = None) -> None:
        self.card = card
        self._motion = motion

    def embed(self, view: View) -> tuple[int, ...]:
        """Nothing is looked at where the user draws."""
        return view.shape

    def segment(
        self,
        embedding: tuple[int, ...],
        prompts: Sequence[Prompt],
        previous: Floats | None = None,
    ) -> Segmentation:
        """What was drawn, on what there was before: exactly that.

        Raises:
            PromptError: another kind of prompt.
        """
        check_understood(self.card, prompts, embedding)
        mask = draw_mask(prompts, embedding, previous)
        return Segmentation(_logits(mask.astype(np.float32)), 1.0 if mask.any() else 0.0)

    def encode_window(self, view: View, origin: tuple[float, float]) -> FlowFrame:
        """A frame as grey values."""
        pixels = np.nan_to_num(view.normalized(), nan=0.0, posinf=1.0, neginf=0.0)
        grey = pixels.mean(axis=-1) if pixels.ndim == 3 else pixels
        return FlowFrame(np.asarray(grey, np.float32), origin)

    def remember(
        self,
        memory: Mapping[str, Array] | None,
        encoded: FlowFrame,
        logits: Floats,
        *,
        place: int,
        given: bool,
    ) -> Mapping[str, Array]:
        """The last frame, and a few annotated ones: `track_object` may be asked about either."""
        before = [] if memory is None else _read(memory)
        last = _FlowState(encoded.grey, logits, np.asarray(encoded.origin), np.asarray(given))
        older = [kept for kept in before if kept.given][:MOST_GIVEN]
        return {
            f"{number}.{name}": value
            for number, kept in enumerate([last, *older])
            for name, value in vars(kept).items()
        }

    def track_object(
        self,
        memory: Mapping[str, Array],
        encoded: FlowFrame,
        before: PreviousFrame | None,
        *,
        place: int | None = None,
    ) -> Segmentation:
        """The object where it moved to, from the remembered frame that shows it like `before`."""
        remembered = [kept.on(encoded) for kept in _read(memory)]
        grey, logits = remembered[0]
        if before is not None and len(remembered) > 1:
            wanted = before.logits > 0
            overlaps = [_overlap(logits > 0, wanted) for _, logits in remembered]
            grey, logits = remembered[int(np.argmax(overlaps))]
        soft = np.clip(logits / (2 * DRAWN) + 0.5, 0, 1).astype(np.float32)
        if not (logits > 0).any():
            return Segmentation(_logits(np.zeros_like(soft)), 0.0)
        window = _around(logits > 0)
        moved, was = soft[window], grey[window]
        if self._motion is not None:
            moved, was = _moved(self._motion(was, encoded.grey[window]), moved, was)
        found = np.zeros_like(soft)
        found[window] = moved
        mask = moved > 0.5
        if not mask.any():
            return Segmentation(_logits(found), 0.0)
        wrong = np.abs(was - encoded.grey[window])[mask].mean()
        return Segmentation(_logits(found), float(np.exp(-_DARKER * wrong)))


def lucas_kanade(before: Floats, after: Floats) -> Floats:
    """Motion (row, column, 2) from each pixel of the second frame to where it was on the first."""
    from skimage.registration import optical_flow_ilk

    size = [max(0, 2 * RADIUS + 1 - n) for n in after.shape]
    if any(size):  # smaller than what moves alike
        after, before = (np.pad(f, [(0, n) for n in size], mode="edge") for f in (after, before))
    measure: Callable[..., Array] = optical_flow_ilk
    flow = measure(after, before, radius=RADIUS, num_warp=WARPS, gaussian=True)
    rows, columns = (n - k for n, k in zip(after.shape, size, strict=True))
    return np.asarray(np.moveaxis(flow, 0, -1)[:rows, :columns], np.float32)


def _moved(motion: Floats, *maps: Floats) -> list[Floats]:
    """Planes of the first frame, on the second."""
    from scipy import ndimage

    places = np.indices(motion.shape[:2], dtype=np.float32) + np.moveaxis(motion, -1, 0)
    return [ndimage.map_coordinates(p, places, order=1, mode="nearest") for p in maps]


def _read(memory: Mapping[str, Array]) -> list[_FlowState]:
    """The remembered frames, the last one first."""
    names = ("grey", "logits", "origin", "given")
    count = len(memory) // len(names)
    return [_FlowState(*(memory[f"{k}.{name}"] for name in names)) for k in range(count)]


def _overlap(mask: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> float:
    total = int(mask.sum()) + int(wanted.sum())
    return 2 * int((mask & wanted).sum()) / max(1, total)


def _logits(soft: Floats) -> Floats:
    """Logits of a soft mask 0…1; `Drift.find` reads it back from them."""
    return np.asarray((soft - np.float32(0.5)) * np.float32(2 * DRAWN))


def _around(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box of a mask with the margin in which its motion is measured."""
    window = []
    for axis, size in enumerate(mask.shape):
        found = np.flatnonzero(mask.any(axis=1 - axis))
        low, high = int(found[0]), int(found[-1]) + 1
        margin = max(LEAST_MARGIN, round(MARGIN * (high - low)))
        window.append(slice(max(0, low - margin), min(size, high + margin)))
    return tuple(window)


def _variant(name: str, summary: str, motion: Motion | None) -> Variant:
    card = ModelCard(
        name=f"classical/{name}",
        summary=summary,
        ndim=(2,),
        prompts=frozenset({"lasso", "mask", "scribble"}),
        licence="Apache-2.0",
        source="this package, with scikit-image; no weights",
        zoom=False,
        window={2: 1024},
    )

    def build(
        *, weights: Path | None = None, device: str = "auto", exact: bool = False
    ) -> MaskFlow:
        return MaskFlow(card, motion)

    return Variant(card, build)


VARIANTS = {
    "copy": _variant("copy", "copies a drawn mask to all frames or slices; no weights", None),
    "flow": _variant("flow", "moves a drawn mask by the optical flow; no weights", lucas_kanade),
}
