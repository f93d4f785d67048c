"""Protocols of models that propagate masks over frames and slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from limner.adapters.promptable_protocols import PromptableModel, Segmentation
from limner.adapters.view import View
from limner.prompts.types import Prompt

Array = NDArray[Any]


@runtime_checkable
class MaskCarrier(PromptableModel, Protocol):
    """A model that says itself how its answer on one slice or frame is carried to the next."""

    def next_prompts(
        self, view: View, before: Segmentation, prompts: Sequence[Prompt]
    ) -> Sequence[Prompt]:
        """What to ask on the next slice or frame; nothing where the object has ended.

        Args:
            view: of the next one.
            before: the answer on the last one, on a view of the same shape.
            prompts: of the one that the user prompted.
        """


@dataclass(frozen=True)
class MemoryLimits:
    """How much a propagation remembers, and how often; the defaults are those of XMem.

    Attributes:
        every: steps from one frame that is remembered to the next.
        deep_every: steps from one deep update of the sensory memory to the next; None: with every
            frame that is remembered.
        most_frames: when there are so many frames, one permanent one counted, older ones are
            condensed.
        least_frames: what is kept of them then, counted likewise.
        prototypes: elements that they are condensed to each time.
        most_elements: of condensed memory.
        most_permanent: annotated frames that are remembered at a time.
        top: how many elements of memory a pixel of a frame sees; None for all.
        long_term: condense older frames; otherwise they are forgotten.
    """

    every: int = 5
    deep_every: int | None = None
    most_frames: int = 10
    least_frames: int = 5
    prototypes: int = 128
    most_elements: int = 10_000
    most_permanent: int = 10
    top: int | None = 30
    long_term: bool = True

    def __post_init__(self) -> None:
        for name in ("every", "least_frames", "prototypes", "most_permanent"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be 1 at least.")
        if self.most_frames <= self.least_frames:
            raise ValueError(
                f"most_frames={self.most_frames} has to be above least_frames={self.least_frames}."
            )
        if self.most_elements < self.prototypes:
            raise ValueError(
                f"most_elements={self.most_elements} has to hold the {self.prototypes} prototypes "
                "of one time at least."
            )
        for name in ("deep_every", "top"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be 1 at least, or None.")


@dataclass(frozen=True, eq=False)
class EncodedFrame:
    """A frame as a propagating model sees it.

    Attributes:
        grid: (h, w) of what memory is made of; Q = h * w elements, row by row.
        key: float32 (Q, C), what memory is asked with and remembered under.
        shrinkage: (Q,), 1 and more.
        selection: (Q, C), 0…1.
        features: the model's own.
    """

    grid: tuple[int, int]
    key: NDArray[np.float32]
    shrinkage: NDArray[np.float32]
    selection: NDArray[np.float32]
    features: Any


@runtime_checkable
class MemoryModel(PromptableModel, Protocol):
    """A model that carries masks over frames by a memory of those before, all objects together.

    Sessions keep the memory and decide what is remembered; the model is stateless. N objects are
    told apart by their order alone.
    """

    @property
    def memory(self) -> MemoryLimits:
        """How much is remembered."""

    @property
    def sensory_channels(self) -> int:
        """Channels of what is handed from frame to frame, (N, channels, h, w)."""

    def encode_frame(self, view: View) -> EncodedFrame:
        """A frame, once for all objects."""

    def encode_memory(
        self,
        frame: EncodedFrame,
        probabilities: NDArray[np.float32],
        sensory: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What to remember of objects (N, H, W) on a frame: (Q, N, V); and their sensory memory
        after a deep update.
        """

    def segment_frame(
        self, frame: EncodedFrame, readout: NDArray[np.float32], sensory: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities (N, H, W) of each object by itself, from what memory says of it, (Q, N, V);
        and their sensory memory after that.
        """

    def to_grid(self, frame: EncodedFrame, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """A mask of the view's shape as 0 and 1 on the network's grid (H, W)."""

    def to_view(
        self, frame: EncodedFrame, probabilities: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Probabilities (…, H, W) on the network's grid, on the view's."""


@dataclass(frozen=True, eq=False)
class PreviousFrame:
    """The frame before, seen in the same window.

    Attributes:
        view: of the same shape and scale.
        logits: of its shape, above 0 where the object was.
    """

    view: View
    logits: NDArray[np.float32]


@runtime_checkable
class TrackerModel(PromptableModel, Protocol):
    """A model that carries one object over frames by a memory of its own making.

    Sessions keep the memory, choose the views and the order of frames, and hand everything back;
    the model is stateless. A memory is a mapping of names to arrays, so that a propagation can be
    written down and gone on with; it is bounded however many frames were remembered.
    """

    def encode_window(self, view: View, origin: tuple[float, float]) -> Any:
        """A frame, or a window of it, once; several objects may be followed on the same look.

        Args:
            view: what is seen.
            origin: of its first pixel, as row and column in pixels of the view: the same place on
                all frames has the same position while the view's scale stays.
        """

    def remember(
        self,
        memory: Mapping[str, Array] | None,
        encoded: Any,
        logits: NDArray[np.float32],
        *,
        place: int,
        given: bool,
    ) -> Mapping[str, Array]:
        """The memory with one frame more; the old one is not changed.

        Args:
            memory: so far; None for none.
            encoded: of `encode_window`.
            logits: of the view's shape, above 0 inside the object.
            place: the frame's number.
            given: whether the user said so; such frames are not forgotten.
        """

    def track_object(
        self,
        memory: Mapping[str, Array],
        encoded: Any,
        before: PreviousFrame | None,
        *,
        place: int | None = None,
    ) -> Segmentation:
        """The object on a frame, by memory; its score is low where it is likely to be wrong.

        Args:
            memory: with one frame at least.
            encoded: of `encode_window`.
            before: the frame before; None where the object was not on it.
            place: the frame's number; None: the one after that which was remembered last.
        """
