"""Model protocols: the card, what a session shows a model, and what it gets back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from limner.adapters.axes import Axes
from limner.checkpoints.cards import WeightsCard
from limner.prompts.types import Prompt

Array = NDArray[Any]


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


@dataclass(frozen=True, eq=False)
class View:
    """What a session shows a model: the whole image or a window of it, on a regular grid.

    Attributes:
        array: ``(row, column[, channel])`` or ``(slice, row, column[, channel])``; intensities as
            stored. Sessions turn volumes as `limner.adapters.axes.canonical` says.
        spacing: millimetres per step of this view, in index order.
        intensity: the intensities ``(low, high)`` that an adapter may map to black and white: the
            window the user asked for (CT), else robust limits of the whole image, the same for all
            its views. One pair for all channels.
        modality: DICOM's term where known.
        windowed: whether `intensity` is a window that the user asked for.
        directions: of a volume, 3×3: column ``k`` is the LPS unit vector along the view's axis
            ``k``; None in 2D and where the orientation is unknown.
        turned: how a session turned a volume from the order in which it is stored; None for not.
    """

    array: Array
    spacing: tuple[float, ...]
    intensity: tuple[float, float]
    modality: str | None = None
    windowed: bool = False
    directions: Array | None = None
    turned: Axes | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape."""
        return self.array.shape[: len(self.spacing)]

    def normalized(self) -> NDArray[np.float32]:
        """The pixels as float32, `intensity` mapped to 0…1 and clipped."""
        low, high = self.intensity
        scale = 1.0 / max(high - low, 1e-30)
        exact = np.result_type(self.array.dtype, np.float32)  # float64 where 24 bits are too few
        values = (self.array.astype(exact) - exact.type(low)) * exact.type(scale)
        return np.asarray(np.clip(values, 0.0, 1.0), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A model's answer on one view.

    Attributes:
        logits: float32 of the view's spatial shape, above 0 inside the object.
        score: predicted quality (IoU or Dice), 0…1.
        memory: what the model wants to see again with the next question about the same object on
            the same view, such as its logits before they were resized; None for nothing. Sessions
            hand it back (`Question.memory`) and never look into it.
    """

    logits: NDArray[np.float32]
    score: float
    memory: Any = None


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked about one object on a view.

    Attributes:
        prompts: all that the user said so far, oldest first, positions in the view's index order.
        previous: logits of the round before, of the view's shape, or None.
        memory: `Segmentation.memory` of the round before, if that was about the same view.
    """

    prompts: Sequence[Prompt]
    previous: NDArray[np.float32] | None = None
    memory: Any = None


@runtime_checkable
class PromptableModel(Protocol):
    """A model that answers prompts on one view. Stateless: the session remembers."""

    @property
    def card(self) -> ModelCard:
        """Facts about the model."""

    def embed(self, view: View) -> Any:
        """The expensive half, once per view: whatever `segment` wants to see again."""

    def segment(
        self,
        embedding: Any,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """The cheap half.

        Args:
            embedding: from `embed`.
            prompts: all that the user said so far, oldest first, positions in the view's index
                order.
            previous: logits of the round before, of the view's shape, or None.
        """


@runtime_checkable
class BatchModel(PromptableModel, Protocol):
    """A model that answers several questions about one view together, and that may remember.

    Sessions ask it through `segment_batch` only; `segment` is the same for one question.
    """

    def segment_batch(
        self, embedding: Any, questions: Sequence[Question]
    ) -> Sequence[Segmentation]:
        """Answers in the order of the questions, each as if it had been asked alone."""


class BatchAnswers:
    """`segment` for models that answer in batches."""

    def segment_batch(
        self, embedding: Any, questions: Sequence[Question]
    ) -> Sequence[Segmentation]:
        """Answers in the order of the questions, each as if it had been asked alone."""
        raise NotImplementedError

    def segment(
        self,
        embedding: Any,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """One question; see `segment_batch`."""
        return self.segment_batch(embedding, [Question(prompts, previous)])[0]


@runtime_checkable
class EncodingModel(PromptableModel, Protocol):
    """A model that can encode several views together. Sessions that know which slices or frames
    come next let it, where it says that this is faster.
    """

    @property
    def views_at_once(self) -> int:
        """How many views are worth encoding together here; 1 where nothing is gained."""

    def embed_batch(self, views: Sequence[View]) -> Sequence[Any]:
        """What `embed` says of each view, in order."""


@runtime_checkable
class ProposingModel(PromptableModel, Protocol):
    """A model that has several answers to a question that leaves open what is meant."""

    def propose(
        self, embedding: Any, questions: Sequence[Question], least: float = 0.0
    ) -> Sequence[Sequence[Segmentation]]:
        """All answers to each question, in the order of the questions, each with its own score; but
        those whose score is below `least` may be left out.
        """


@runtime_checkable
class CheckingModel(PromptableModel, Protocol):
    """A model that understands only some prompts of a kind, such as the words of a list."""

    def check(self, prompt: Prompt) -> None:
        """Refuse a prompt before anything is computed.

        Raises:
            PromptError: the model knows nothing of the sort; the message says what it knows.
        """


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


@runtime_checkable
class AutomaticModel(Protocol):
    """A model that needs no prompts: it labels the whole of an image. Stateless.

    Logits have one channel for the background and one for each of `ModelCard.labels`, in their
    order, and the highest one wins; where labels may overlap (`ModelCard.overlapping`) there is no
    background, and a channel counts where it is above 0.
    """

    @property
    def card(self) -> ModelCard:
        """Facts about the model, with the names of its labels."""

    def predict(self, view: View) -> NDArray[np.float32]:
        """Logits ``(channel, *view.shape)`` of a whole image at `ModelCard.spacing`."""


@runtime_checkable
class SlabModel(AutomaticModel, Protocol):
    """An automatic model whose logits can be had slab by slab, so that not all are in memory."""

    def predict_slabs(
        self, view: View, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """The logits of `predict` in parts along the first spatial axis, first to last.

        Args:
            view: the whole image.
            progress: told how many windows of how many are done.
        """


@runtime_checkable
class SamplingModel(Protocol):
    """A model that draws segmentations from a distribution, of which mean and spread tell where it
    is unsure.
    """

    @property
    def card(self) -> ModelCard:
        """Facts about the model, with the names of its labels."""

    def sample(self, view: View, n: int, rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
        """Draw segmentations one by one.

        Args:
            view: a whole image at `ModelCard.spacing`.
            n: how many.
            rng: the only source of randomness.

        Yields:
            Probabilities ``(channel, *view.shape)``, 0…1, or masks as 0 and 1; channels as of
            `AutomaticModel`.
        """


AnyModel: TypeAlias = PromptableModel | AutomaticModel | SamplingModel


@dataclass(frozen=True)
class Variant:
    """One model of a family file.

    Attributes:
        card: its facts.
        build: called as ``build(weights=path_or_None, device=name, exact=bool)``. The built model's
            card has the hash of the weights that it was given.
        weights: where its weights can be had, best first; empty where they ship with the package or
            there are none.
        keeps_embeddings: whether `build` takes ``keep_embeddings=bool`` as well: encoded images
            are kept on disk (`limner.runtime.compile_module`, ``remember``).
        build_random: called as ``build_random(seed, device=name, exact=bool)``; see `random`.
    """

    card: ModelCard
    build: Callable[..., AnyModel]
    weights: tuple[WeightsCard, ...] = ()
    keeps_embeddings: bool = False
    build_random: Callable[..., AnyModel] | None = None

    def random(self, seed: int = 0, *, device: str = "auto", exact: bool = False) -> AnyModel:
        """The model with random weights and at a reduced size: small, deterministic, without a
        file. Answers mean nothing, but everything else about them holds. A model without weights is
        itself.

        Args:
            seed: of the weights.
            device: as for `limner.create_model`.
            exact: likewise.

        Raises:
            NotImplementedError: the family needs a file and says of no reduced network.
        """
        if self.build_random is not None:
            return self.build_random(seed, device=device, exact=exact)
        if self.weights:
            raise NotImplementedError(
                f"{self.card.name} has no reduced network; give its Variant a build_random."
            )
        return self.build(device=device, exact=exact)
