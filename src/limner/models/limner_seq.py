"""limner-seq: the built-in network that follows objects through videos and the slices of a volume;
its weights ship with the package.

One object at a time is followed in a window around it, by a memory of the frames that the user
annotated and of the last ones (`limner.networks.tracker2d`). On a frame with prompts the network of
limner-2d answers. The network, its training (recipes/limner-seq.yaml) and the weights are this
project's; what it learnt from and how well it does: ``weights/limner-seq.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.adapters.early_fusion import (
    EarlyFusionModel,
    FusionEmbedding,
    downsample,
    embed_view,
    upsample,
)
from limner.adapters.prompt_checks import check_understood
from limner.adapters.protocols import ModelCard, PreviousFrame, Segmentation, Variant, View
from limner.adapters.sam import sigmoid
from limner.adapters.shipped_tracker import TrackerParts, build_parts, build_random_parts
from limner.models import limner_2d
from limner.networks import tracker_facts as facts
from limner.networks.blocks.memory import memory_terms, query_terms
from limner.networks.motion import motion, moved
from limner.prompts.types import Prompt

Array = NDArray[Any]
Floats = NDArray[np.float32]

LARGEST_VIEW = 160  # pixels per side, as in training
MOST_ENLARGED = 4
STRIDE = 32  # of the network
# Chosen on development data (docs/notes/limner-seq.md).
CONFIDENCE = -0.2  # added to all logits
SURER = 15.0  # added to `facts.TRUST` where the frame before, moved along, fits what there is now
FIT = 0.1  # what is left of its contrast where that has fallen to a third
NEAR = 4  # pixels around, that are compared
MOST_GIVEN = 10  # annotated frames that are remembered at a time
MOST_RECENT = 6  # others
_PER_FRAME = ("place", "given", "count")  # of a memory's arrays

CARD = ModelCard(
    name="limner-seq",
    summary="built-in network that follows objects through videos and slices; any modality",
    ndim=(2,),
    prompts=limner_2d.CARD.prompts,
    licence="CC-BY-SA-4.0",  # some of the sets it learnt from are share-alike; see the card
    source="trained by this project; see src/limner/weights/limner-seq.md",
    zoom=True,
    predicts_quality=True,
    mask_is_answer=True,
    window={2: LARGEST_VIEW},
)


@dataclass(frozen=True, eq=False)
class TrackerView:
    """A view as the network has seen it.

    Attributes:
        image: (1, 3, H, W), -1…1, padded.
        shape: of the view.
        times: it was enlarged, along each axis.
        key: (Q, C + 2), with the place; Q pixels of memory, row by row.
        shrinkage: (Q,).
        selection: (Q, C + 2).
        features: (1, width, h, w).
    """

    image: Floats
    shape: tuple[int, ...]
    times: tuple[int, ...]
    key: Floats
    shrinkage: Floats
    selection: Floats
    features: Floats


class LimnerSeq:
    """The network with everything around it.

    Args:
        card: its facts.
        parts: of the network.
    """

    def __init__(self, card: ModelCard, parts: TrackerParts) -> None:
        self.card = replace(card, runtime=parts.frame.description)
        self._parts = parts

    # Prompts on a frame.

    def embed(self, view: View) -> FusionEmbedding:
        """As limner-2d."""
        return self._image_model.embed(view)

    def segment(
        self, embedding: FusionEmbedding, prompts: Sequence[Prompt], previous: Floats | None = None
    ) -> Segmentation:
        """As limner-2d; a mask that is the last thing said is the answer, as it is."""
        return self._image_model.segment(embedding, prompts, previous)

    @cached_property
    def _image_model(self) -> EarlyFusionModel:
        built = limner_2d.VARIANTS["limner-2d"].build()
        assert isinstance(built, EarlyFusionModel)
        return built

    # What is followed.

    def encode_window(self, view: View, origin: tuple[float, float]) -> TrackerView:
        """A window of a frame."""
        check_understood(self.card, (), view.shape)
        most = min(MOST_ENLARGED, max(1, LARGEST_VIEW // max(view.shape)))
        prior = embed_view(view, (most, most), (STRIDE, STRIDE))
        image = prior.image[None]
        key, shrinkage, selection, features = self._parts.frame(image)
        steps = most / facts.STRIDE
        start = np.multiply(origin, steps)
        along = [
            np.arange(n, dtype=np.float32) + np.float32(a)
            for n, a in zip(key.shape[2:], start, strict=True)
        ]
        place = np.stack(np.meshgrid(*along, indexing="ij"))
        return TrackerView(
            image,
            view.shape,
            (most, most),
            _rows(np.concatenate([key[0], place])),
            shrinkage.ravel(),
            _rows(selection[0]),
            features,
        )

    def remember(
        self,
        memory: Mapping[str, Array] | None,
        encoded: TrackerView,
        logits: Floats,
        *,
        place: int,
        given: bool,
    ) -> Mapping[str, Array]:
        """The memory with one frame more; of those that were not given, the last ones are kept."""
        mask = _on_grid(sigmoid(logits), encoded)
        flag = np.full((1, 1, 1, 1), float(given), np.float32)
        value = self._parts.memory(encoded.features, mask, flag)[0]
        new: dict[str, Array] = {
            "terms": memory_terms(encoded.key, encoded.shrinkage).T,
            "value": _rows(value[0]),
            "place": np.array([place]),
            "given": np.array([given]),
            "count": np.array([len(encoded.key)]),
        }
        if memory is None:
            return new
        keep = _kept(memory, place, given)
        pixels = np.repeat(keep, memory["count"])
        joined = {
            name: np.concatenate([old[keep], new[name]])
            for name, old in memory.items()
            if name in _PER_FRAME
        }
        joined["value"] = np.concatenate([memory["value"][pixels], new["value"]])
        joined["terms"] = np.concatenate([memory["terms"][:, pixels], new["terms"]], axis=1)
        return joined

    def track_object(
        self,
        memory: Mapping[str, Array],
        encoded: TrackerView,
        before: PreviousFrame | None,
        *,
        place: int | None = None,
    ) -> Segmentation:
        """The object on a view; the score is the predicted IoU."""
        query = query_terms(encoded.key, encoded.selection)
        (readout,) = self._parts.reader(query, memory["terms"], memory["value"])
        maps = np.ascontiguousarray(readout.T).reshape(1, -1, *encoded.features.shape[2:])
        prior = np.zeros((1, 1, *encoded.image.shape[2:]), np.float32)
        past = np.zeros_like(encoded.image)
        if before is not None:
            past = embed_view(before.view, encoded.times, (STRIDE, STRIDE)).image[None]
            mask = _on_grid(sigmoid(before.logits), encoded)
            found = motion(_grey(past), _grey(encoded.image))
            moved_on = moved(np.concatenate([past[0], mask[0]]), found)[None]
            past, prior = moved_on[:, :3], 2 * moved_on[:, 3:] - 1
        logits, quality = self._parts.decoder(encoded.image, prior, past, maps)
        inside = tuple(slice(n * t) for n, t in zip(encoded.shape, encoded.times, strict=True))
        trusted = prior[0, 0] * np.float32(facts.TRUST)
        if before is not None:
            fits = _alike(_grey(past), _grey(encoded.image))
            trusted += np.float32(SURER) * fits * prior[0, 0]
        answer = downsample((logits[0, 0] + trusted)[inside], encoded.times)
        answer += np.float32(CONFIDENCE)
        return Segmentation(answer, float(sigmoid(quality[0])))


def _kept(memory: Mapping[str, Array], place: int, given: bool) -> NDArray[np.bool_]:
    """Which frames stay when another one comes; one that comes again is replaced."""
    keep = memory["place"] != place
    same = memory["given"] == given
    most = MOST_GIVEN if given else MOST_RECENT
    stale = np.flatnonzero(keep & same)
    keep[stale[: max(0, len(stale) - most + 1)]] = False
    return np.asarray(keep)


def _on_grid(values: Floats, encoded: TrackerView) -> Floats:
    """A plane of the view's shape, (1, 1, H, W) as the network sees it; 0 in the padding."""
    large = upsample(values, encoded.times)
    missing = [(0, n - m) for n, m in zip(encoded.image.shape[2:], large.shape, strict=True)]
    return np.asarray(np.pad(large, missing), np.float32)[None, None]


def _alike(moved_on: Floats, now: Floats) -> Floats:
    """How well a frame that was moved fits where it was moved to, 0…1: what is left beside the
    contrast that there is around.
    """
    from scipy import ndimage

    def around(values: Floats) -> Floats:
        return np.asarray(ndimage.uniform_filter(values, 2 * NEAR + 1, mode="nearest"))

    left = around(np.square(moved_on - now))
    mean = around(now)
    contrast = np.maximum(around(np.square(now)) - np.square(mean), 0) + np.float32(1e-4)
    return np.asarray(np.exp(-left / (FIT * contrast)), np.float32)


def _grey(image: Floats) -> Floats:
    """(1, 3, H, W) of -1…1 as (H, W) of 0…1."""
    return np.asarray((image[0].mean(axis=0) + 1) / 2, np.float32)


def _rows(maps: Floats) -> Floats:
    """(C, h, w) to (h * w, C)."""
    return np.ascontiguousarray(maps.reshape(len(maps), -1).T)


def build(*, weights: Path | None = None, device: str = "auto", exact: bool = False) -> LimnerSeq:
    """The model, with the weights of the package or with others of the same family.

    Raises:
        CheckpointError: a file is damaged or of something else.
    """
    parts, digest = build_parts(CARD.name, weights=weights, device=device, exact=exact)
    return LimnerSeq(replace(CARD, weights_sha256=digest), parts)


def _build_random(seed: int, *, device: str = "auto", exact: bool = False) -> LimnerSeq:
    return LimnerSeq(CARD, build_random_parts(seed, device=device))


VARIANTS = {"limner-seq": Variant(CARD, build, build_random=_build_random)}
