"""xmem: XMem, which propagates drawn masks through a video or the slices of a volume with a
memory of frames before (https://arxiv.org/abs/2207.07115, https://github.com/hkchengrex/XMem).

The user draws objects on one frame or on several (a mask, a line around, a brush); what is drawn
stays as it is. All objects are propagated together and exclude one another. As published, frames
are scaled to 480 pixels on the shorter side, colours are normalised, and sides are padded to
multiples of 16, on both sides; `XMem.adjusted` changes the scale and how much is remembered.

iMOS, which is this network trained on with medical sequences, is the family `imos`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from limner.adapters.prompt_checks import check_understood, draw_mask
from limner.adapters.protocols import (
    EncodedFrame,
    MemoryLimits,
    ModelCard,
    Segmentation,
    View,
)
from limner.adapters.published import Compiled, FileWeights, Part, Published, Weights
from limner.adapters.sam import resize_bilinear, sigmoid, to_eight_bit
from limner.checkpoints.cards import WeightsCard
from limner.prompts.types import Prompt

if TYPE_CHECKING:
    from torch import nn

    from limner.models.xmem.network import XMemNetwork
    from limner.runtime import Network

Floats = NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]

SHORTER_SIDE = 480  # of a frame as the network was shown it
STRIDE = 16
AT_ONCE = 4  # objects; each takes some 150 MB in the decoder, and more at once are no faster
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green, blue, 0…1
DRAWN = 10.0  # logit of what the user drew

CARD = ModelCard(
    name="xmem/base",
    summary="XMem: propagates drawn masks through videos and slices, by memory of frames before",
    ndim=(2,),
    prompts=frozenset({"lasso", "mask", "scribble"}),
    licence="MIT",
    source="https://arxiv.org/abs/2207.07115, https://github.com/hkchengrex/XMem",
    zoom=False,
    window={},
    published=True,
)
_RELEASE = "https://github.com/hkchengrex/XMem/releases/download/v1.0"
WEIGHTS = (
    WeightsCard(
        name="XMem.pth",
        sources=(f"{_RELEASE}/XMem.pth",),
        licence="MIT",
        note="trained on still images, then on DAVIS and YouTube-VOS",
    ),
    WeightsCard(
        name="XMem-s012.pth",
        sources=(f"{_RELEASE}/XMem-s012.pth",),
        licence="MIT",
        note="with BL30K in between, and trained longer on videos",
    ),
)


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """What the network needs again of a frame.

    Attributes:
        image: (1, 3, H, W), normalised and padded.
        deep: features at stride 16.
        shared: what the frame adds in the decoder.
        shape: of the view.
        inside: rows and columns that the view has on the network's grid.
        padding: rows above and columns to the left of it there.
    """

    image: Floats
    deep: Floats
    shared: tuple[Floats, ...]
    shape: tuple[int, int]
    inside: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True)
class XMemParts:
    """The network in parts; see `limner.models.xmem.network`."""

    frame: Network
    memory: Network
    decoder: Network


class XMem:
    """XMem's network with everything around it.

    Args:
        card: its facts.
        parts: the network.
        sensory_channels: of its sensory memory.
        memory: how much is remembered.
        side: pixels of a frame's shorter side; None: frames as they are.
    """

    def __init__(
        self,
        card: ModelCard,
        parts: XMemParts,
        sensory_channels: int,
        memory: MemoryLimits = MemoryLimits(),  # noqa: B008 - frozen
        side: int | None = SHORTER_SIDE,
    ) -> None:
        if side is not None and side < STRIDE:
            raise ValueError(f"A shorter side of {side} is too small; use {STRIDE} or more.")
        changed = {**asdict(memory), "side": side}
        usual = {**asdict(MemoryLimits()), "side": SHORTER_SIDE}
        notes = [f"{name}={value}" for name, value in changed.items() if value != usual[name]]
        runtime = "; ".join([parts.frame.description, *notes])  # so that manifests tell them
        self.card = replace(card, runtime=runtime)
        self.sensory_channels, self.memory, self.side = sensory_channels, memory, side
        self._parts = parts

    def adjusted(self, *, side: int | None = SHORTER_SIDE, **limits: Any) -> Self:
        """The same network with other settings.

        Args:
            side: pixels of a frame's shorter side; None: frames as they are.
            limits: of `MemoryLimits`, such as ``every=3``; the others stay.

        Raises:
            ValueError: limits that exclude each other.
            TypeError: no such limit.
        """
        changed = replace(self.memory, **limits)
        return type(self)(self.card, self._parts, self.sensory_channels, changed, side)

    # What the user draws.

    def embed(self, view: View) -> tuple[int, ...]:
        """Nothing is looked at where the user draws."""
        return view.shape

    def segment(
        self, embedding: Any, prompts: Sequence[Prompt], previous: Floats | None = None
    ) -> Segmentation:
        """What was drawn, on what there was before: exactly that.

        Args:
            embedding: the view's shape.
            prompts: a mask replaces everything, a line around adds, a brush adds or takes away.
            previous: as it was before.

        Raises:
            PromptError: another kind of prompt.
        """
        check_understood(self.card, prompts, embedding)
        mask = draw_mask(prompts, embedding, previous)
        logits = np.where(mask, np.float32(DRAWN), np.float32(-DRAWN))
        return Segmentation(logits, 1.0 if mask.any() else 0.0)

    # What is kept from frame to frame.

    def encode_frame(self, view: View) -> EncodedFrame:
        """A frame, once for all objects."""
        check_understood(self.card, (), view.shape)
        rows, columns = view.shape
        inside = scale_shape((rows, columns), self.side)
        colours = to_eight_bit(view).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
        normal = resize_bilinear((colours - mean) / std, inside)  # in this order, as published
        image, padding = pad_to_stride(normal[None])
        key, shrinkage, selection, deep, *shared = self._parts.frame(image)
        return EncodedFrame(
            grid=(key.shape[2], key.shape[3]),
            key=_rows(key[0]),
            shrinkage=shrinkage.ravel(),
            selection=_rows(selection[0]),
            features=FrameFeatures(image, deep, tuple(shared), (rows, columns), inside, padding),
        )

    def encode_memory(
        self, frame: EncodedFrame, probabilities: Floats, sensory: Floats
    ) -> tuple[Floats, Floats]:
        """What to remember of objects (N, H, W) on a frame: (Q, N, V); and their sensory memory
        (N, C, h, w) after a deep update.
        """
        seen: FrameFeatures = frame.features
        number = range(len(probabilities))
        others = [sum((probabilities[j] for j in number if j != i), _none(seen)) for i in number]
        masks = np.stack([probabilities, np.stack(others)], axis=1)
        value, after = _in_parts(partial(self._parts.memory, seen.image, seen.deep), masks, sensory)
        rows = value.reshape(*value.shape[:2], -1).transpose(2, 0, 1)
        return np.ascontiguousarray(rows), after

    def segment_frame(
        self, frame: EncodedFrame, readout: Floats, sensory: Floats
    ) -> tuple[Floats, Floats]:
        """Probabilities (N, H, W) of each object by itself from what memory says of it, (Q, N, V);
        and their sensory memory after that.
        """
        seen: FrameFeatures = frame.features
        maps = readout.transpose(1, 2, 0).reshape(*readout.shape[1:], *frame.grid)
        logits, after = _in_parts(partial(self._parts.decoder, *seen.shared), maps, sensory)
        return sigmoid(logits[:, 0]), after

    def to_grid(self, frame: EncodedFrame, mask: NDArray[np.bool_]) -> Floats:
        """A mask of the view's shape as 0 and 1 on the network's grid, by the nearest pixel. What
        is too small for that is all the pixels that it touches.
        """
        seen: FrameFeatures = frame.features
        index = (
            np.minimum((np.arange(new) * np.float32(old / new)).astype(int), old - 1)
            for old, new in zip(seen.shape, seen.inside, strict=True)
        )
        small = mask[np.ix_(*index)]
        if not small.any():
            scale = np.divide(seen.inside, seen.shape)
            small[tuple((np.argwhere(mask) * scale).astype(int).T)] = True
        return pad_to_stride(small.astype(np.float32))[0]

    def to_view(self, frame: EncodedFrame, probabilities: Floats) -> Floats:
        """Probabilities (…, H, W) on the network's grid, on the view's."""
        seen: FrameFeatures = frame.features
        (top, left), (rows, columns) = seen.padding, seen.inside
        return resize_bilinear(
            probabilities[..., top : top + rows, left : left + columns], seen.shape
        )


def _in_parts(network: Callable[..., tuple[Floats, ...]], *inputs: Floats) -> list[Floats]:
    """What a network says of N objects, some at a time, which bounds the memory that it needs."""
    parts = [
        network(*(np.ascontiguousarray(one[start : start + AT_ONCE]) for one in inputs))
        for start in range(0, len(inputs[0]), AT_ONCE)
    ]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def scale_shape(shape: tuple[int, int], side: int | None) -> tuple[int, int]:
    """Rows and columns of a frame whose shorter side becomes `side`, rounded as published."""
    if side is None or min(shape) == side:
        return shape
    longer = int(side * max(shape) / min(shape))
    return (side, longer) if shape[0] <= shape[1] else (longer, side)


def pad_to_stride(maps: Floats) -> tuple[Floats, tuple[int, int]]:
    """Planes (…, H, W) with zeros around so that sides are multiples of `STRIDE`; and how many rows
    are above, and columns to the left.
    """
    missing = [-size % STRIDE for size in maps.shape[-2:]]
    before = missing[0] // 2, missing[1] // 2
    widths = [(a, n - a) for a, n in zip(before, missing, strict=True)]
    return np.pad(maps, [(0, 0)] * (maps.ndim - 2) + widths), before


def _rows(maps: Floats) -> Floats:
    """(C, h, w) to (h * w, C)."""
    return np.ascontiguousarray(maps.reshape(len(maps), -1).T)


def _none(seen: FrameFeatures) -> Floats:
    return np.zeros(seen.image.shape[2:], np.float32)


def _shapes(path: Path) -> Shapes:
    """Shapes of the weights in a file, which are not read."""
    from limner.checkpoints.archive import open_archive, weights_file
    from limner.checkpoints.unwrap import unwrap

    found = unwrap(open_archive(weights_file(path)), frozenset(_WANTED))
    return {name: value.shape for name, value in found.tensors.items()}


_WANTED = ("key_encoder.conv1.weight", "key_proj.key_proj.weight", "decoder.pred.weight")


def network_of(path: Path) -> XMemNetwork:
    """The network with the weights of a file, of the sizes that they have."""
    return make_network(read_sizes(path), FileWeights(path, _WANTED))


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network; by default the published ones.

    Attributes:
        shapes: of weights in a file, which tell channels of keys, values, sensory memory, masks and
            adapters (`XMemNetwork.for_weights`); None for those below.
        key: channels of keys.
        value: of what is remembered.
        hidden: of the sensory memory.
        width: channels of the encoders' first layer.
        depths: blocks of the key encoder's stages.
        side: pixels of a frame's shorter side.
    """

    shapes: Shapes | None = None
    key: int = 64
    value: int = 512
    hidden: int = 64
    width: int = 64
    depths: tuple[int, int, int] = (3, 4, 6)
    side: int = SHORTER_SIDE


SMALL = Sizes(key=8, value=16, hidden=8, width=8, depths=(1, 1, 1), side=64)


def read_sizes(path: Path) -> Sizes:
    """The sizes that the weights in a file have."""
    shapes = _shapes(path)
    value = shapes.get("value_encoder.fuser.block2.conv2.weight", (512,))[0]
    hidden = max(1, shapes.get("decoder.hidden_update.transform.weight", (0,))[0] // 3)
    return Sizes(shapes, value=value, hidden=hidden)


def make_network(sizes: Sizes, weights: Weights) -> XMemNetwork:
    """The network with its weights."""
    from limner.models.xmem.network import XMemNetwork

    if sizes.shapes is not None:
        network = XMemNetwork.for_weights(sizes.shapes)
    else:
        network = XMemNetwork(
            sizes.key, sizes.value, sizes.hidden, width=sizes.width, depths=sizes.depths
        )
    weights.fill(network)
    return network


def _part(sizes: Sizes, which: str, weights: Weights) -> nn.Module:
    from limner.models.xmem import network as parts

    made = {
        "frame": parts.FrameEncoder,
        "memory": parts.MemoryEncoder,
        "decoder": parts.MaskDecoder,
    }
    return made[which](make_network(sizes, weights))


def _parts(sizes: Sizes) -> Sequence[Part]:
    # float32 until bf16 has been shown to leave masks as they are: with random weights, the only
    # ones measured so far, Dice is 0.96, 0.96 and 0.83 for a small object (`docs/notes/xmem.md`).
    one, several = partial(_Input, 1), partial(_Input, None)
    deep, wide, narrow = 16 * sizes.width, 8 * sizes.width, 4 * sizes.width
    shared = [one(wide, 16), one(wide, 16), one(wide, 8), one(narrow, 4)]
    hidden = several(sizes.hidden, 16)
    inputs = {
        "frame": [one(3, 1)],
        "memory": [one(3, 1), one(deep, 16), several(2, 1), hidden],
        "decoder": [*shared, several(sizes.value, 16), hidden],
    }
    return [
        Part(
            which,
            partial(_part, sizes, which),
            [size.shape for size in sized],
            examples=[size.example for size in sized],
        )
        for which, sized in inputs.items()
    ]


@dataclass(frozen=True)
class _Input:
    """An input: its number (None: open), its channels, its stride."""

    number: int | None
    channels: int
    stride: int

    @property
    def shape(self) -> tuple[int | None, ...]:
        return self.number, self.channels, None, None

    @property
    def example(self) -> tuple[int, ...]:
        return self.number or 3, self.channels, 96 // self.stride, 160 // self.stride


def _model(compiled: Compiled[Sizes]) -> XMem:
    parts = XMemParts(compiled["frame"], compiled["memory"], compiled["decoder"])
    return XMem(compiled.card, parts, compiled.sizes.hidden, side=compiled.sizes.side)


XMEM = Published(
    CARD,
    WEIGHTS,
    network="xmem",
    sizes=Sizes(),
    small=SMALL,
    parts=_parts,
    model=_model,
    wanted=_WANTED,
    read_sizes=read_sizes,
)
VARIANTS = {"base": XMEM.variant()}
