"""Videos that are easy to follow objects in, and three models that do: from mask to mask, by a
memory of each object, by a memory of all. Each says which frames it was asked about.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import limner
from limner.models import (
    EncodedFrame,
    MemoryLimits,
    PreviousFrame,
    Segmentation,
    View,
    create_model,
)
from limner.prompts import MaskPrompt, Prompt

CELL = 4


def moving(
    frames: int = 12, *, absent: Sequence[int] = (), kind: str = "video"
) -> tuple[limner.Image, np.ndarray]:
    """Two squares of their own brightness that move; the number of a frame is in its corner.

    Args:
        frames: how many.
        absent: frames on which the first square is not there.
        kind: ``"video"`` or ``"volume"``.

    Returns:
        The image, and its label map.
    """
    labels = np.zeros((frames, 32, 48), np.uint8)
    for k in range(frames):
        column = 4 * min(k % 16, 16 - k % 16)
        if k not in absent:
            labels[k, 4:12, column : column + 8] = 1
        labels[k, 20:28, 36 - column : 44 - column] = 2
    array = np.choose(labels, [20, 120, 220]).astype(np.uint8)
    array[:, 0, 0] = np.arange(frames) % 256
    geometry = limner.Geometry.from_spacing(array.shape)
    return limner.Image(array, geometry, kind=kind), labels  # type: ignore[arg-type]


class _Drawn:
    """A card, and the answer to a mask: as it is drawn. A click means all that is as bright."""

    def __init__(self, *kinds: str, pause: float = 0.0) -> None:
        card = create_model("toy").card
        prompts = frozenset(kinds or ("mask", "click"))
        name = f"tests/{type(self).__name__.lower()}"
        self.card = replace(card, name=name, prompts=prompts, ndim=(2,), zoom=False, window={})
        self.seen: list[int] = []
        self._pause = pause

    def _see(self, view: View) -> None:
        self.seen.append(int(view.array[0, 0]))
        time.sleep(self._pause)

    def embed(self, view: View) -> View:
        return view

    def segment(
        self, view: View, prompts: Sequence[Prompt], previous: np.ndarray | None = None
    ) -> Segmentation:
        mask = np.zeros(view.shape, bool) if previous is None else previous > 0
        for prompt in prompts:
            if isinstance(prompt, MaskPrompt):
                mask = prompt.mask.copy()
            elif isinstance(prompt, limner.Click):
                value = view.array[tuple(round(x) for x in prompt.at)]
                same = np.abs(view.array.astype(int) - int(value)) < 20
                mask = mask | same if prompt.positive else mask & ~same
        return Segmentation(np.where(mask, 9, -9).astype(np.float32), 1.0)


class Walker(_Drawn):
    """What is as bright as what is bright in the mask that it is shown."""

    def segment(
        self, view: View, prompts: Sequence[Prompt], previous: np.ndarray | None = None
    ) -> Segmentation:
        self._see(view)
        found = super().segment(view, prompts, previous)
        shown = found.logits > 0
        if not isinstance(prompts[-1], MaskPrompt) or not (shown & (view.array > 60)).any():
            return found if not isinstance(prompts[-1], MaskPrompt) else _nothing(view)
        value = np.median(view.array[shown & (view.array > 60)])
        same = np.abs(view.array.astype(int) - int(value)) < 20
        return Segmentation(np.where(same, 9, -9).astype(np.float32), 0.9)


def _nothing(view: View) -> Segmentation:
    return Segmentation(np.full(view.shape, -9, np.float32), 0.0)


class Follower(_Drawn):
    """Remembers how bright the object is, and on how many frames it was seen."""

    def encode_window(self, view: View, origin: tuple[float, float]) -> View:
        self._see(view)
        return view

    def remember(
        self,
        memory: Mapping[str, np.ndarray] | None,
        looked: View,
        logits: np.ndarray,
        *,
        place: int,
        given: bool,
    ) -> Mapping[str, np.ndarray]:
        mask = logits > 0
        if memory is None:
            memory = {"value": np.float32([0]), "steps": np.int64([0])}
        value = memory["value"]
        if mask.any():
            value = np.float32([0.5 * value[0] + 0.5 * looked.array[mask].mean()])
            value = np.float32([looked.array[mask].mean()]) if given else value
        return {"value": value, "steps": memory["steps"] + 1}

    def track_object(
        self,
        memory: Mapping[str, np.ndarray],
        looked: View,
        before: PreviousFrame | None,
        *,
        place: int | None = None,
    ) -> Segmentation:
        same = np.abs(looked.array - memory["value"][0]) < 20
        same[0, 0] = False
        same[-1, : int(memory["steps"][0]) % 5] = True  # so that what is remembered is seen
        return Segmentation(np.where(same, 9, -9).astype(np.float32), 0.8)


class Colours(_Drawn):
    """Remembers the grey value of each cell, and whether it was the object's."""

    sensory_channels = 1

    def __init__(self, pause: float = 0.0, **limits: Any) -> None:
        super().__init__("mask", pause=pause)
        self.memory = MemoryLimits(**{"every": 2, "top": 4, **limits})

    def encode_frame(self, view: View) -> EncodedFrame:
        self._see(view)
        rows, columns = (n // CELL for n in view.shape)
        cells = view.array.reshape(rows, CELL, columns, CELL).mean(axis=(1, 3)) / 10
        key = cells.reshape(-1, 1).astype(np.float32)
        ones = np.ones(len(key), np.float32)
        return EncodedFrame((rows, columns), key, ones, np.ones_like(key), view.shape)

    def encode_memory(
        self, frame: EncodedFrame, probabilities: np.ndarray, sensory: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = frame.grid
        cells = probabilities.reshape(-1, rows, CELL, columns, CELL).mean(axis=(2, 4))
        return cells.reshape(len(cells), -1).T[:, :, None].copy(), sensory * np.float32(0.7) + 1

    def segment_frame(
        self, frame: EncodedFrame, readout: np.ndarray, sensory: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        cells = readout[:, :, 0].T.reshape(-1, *frame.grid)
        large = cells.repeat(CELL, axis=1).repeat(CELL, axis=2)
        large = large * (0.9 + 0.01 * np.sin(sensory[:, :1, :1, :1].mean()))
        return np.clip(large, 0.01, 0.99).astype(np.float32), sensory * np.float32(0.9) + 0.1

    def to_grid(self, frame: EncodedFrame, mask: np.ndarray) -> np.ndarray:
        return mask.astype(np.float32)

    def to_view(self, frame: EncodedFrame, probabilities: np.ndarray) -> np.ndarray:
        return probabilities
