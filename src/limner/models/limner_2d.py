"""limner-2d: the built-in promptable network for pictures, slices and frames; its weights ship with
the package.

A U-Net that sees image and prompts together (`limner.layers.unet2d`), so every answer is one pass
of some ten milliseconds on a laptop's CPU and there is nothing to embed first but the pixels. The
idea of fusing early is ScribblePrompt's (https://arxiv.org/abs/2312.07381) and nnInteractive's
(https://arxiv.org/abs/2503.08373); the network, its training (recipes/limner-2d.yaml) and the
weights are this project's. What it learnt from and how well it does: ``weights/limner-2d.md``.

OpenVINO runs it from the ONNX file; PyTorch does where a GPU is asked for or where the weights are
given as safetensors, such as those of a fine-tuning run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import CheckpointError
from limner.layers import fusion2d as fusion
from limner.models._correct import near_marks
from limner.models._family import ModelCard, Segmentation, Variant, View
from limner.models._reading import check_understood, footprint
from limner.prompts.convert import map_positions
from limner.prompts.raster import rasterize
from limner.prompts.types import Box, Click, Lasso, MaskPrompt, Prompt, Scribble

if TYPE_CHECKING:
    from limner.runtime import Network

Array = NDArray[Any]
Picture = NDArray[np.float32]

LARGEST_VIEW = 160  # pixels per side; sessions shrink larger views, smaller ones are enlarged
MOST_ENLARGED = 4  # times, as in training
# Added to all logits, and to those inside a first box's ellipse (taken away outside it): the
# network doubts itself too much about kinds of object that it has not learnt. Chosen on pictures
# that are neither trained nor tested on, see docs/notes/limner-2d.md.
CONFIDENCE, TRUST = 0.4, 0.75
MARK_REACH = 3.0  # pixels of the view: a change so near to a click belongs to it
STRIDE = 32  # the sides of what the network sees are multiples of it
_WEIGHTS = Path(__file__).parents[1] / "weights"
_FACTS = _WEIGHTS / "limner-2d.json"

CARD = ModelCard(
    name="limner-2d",
    summary="built-in network for pictures, slices and frames; any modality",
    ndim=(2,),
    prompts=frozenset({"click", "box", "scribble", "lasso", "mask"}),
    licence="CC-BY-SA-4.0",  # two of the sets it learnt from are share-alike; see the card
    source="trained by this project; see src/limner/weights/limner-2d.md",
    zoom=True,
    judges=True,
    window={2: LARGEST_VIEW},
)


@dataclass(frozen=True, eq=False)
class Embedding:
    """A view as the network sees it, without prompts.

    Attributes:
        image: float32 ``(3, row, column)``, -1…1, enlarged and padded.
        shape: of the view.
        enlarged: pixels of `image` per pixel of the view, along each axis.
    """

    image: Picture
    shape: tuple[int, ...]
    enlarged: int


class Limner2d:
    """The network with everything around it: enlarging, padding, painting prompts.

    Args:
        network: answers ``(1, 7, H, W)`` with logits ``(1, 1, H, W)`` and the quality's ``(1,)``.
        card: its facts.
    """

    def __init__(self, network: Network, card: ModelCard) -> None:
        self.card = replace(card, runtime=network.description)
        self._network = network

    def embed(self, view: View) -> Embedding:
        """Pixels as three channels, enlarged if the view is small, padded with black."""
        check_understood(self.card, (), view.shape)
        enlarged = min(MOST_ENLARGED, max(1, LARGEST_VIEW // max(view.shape)))
        channels = [_enlarge(c, enlarged) for c in _three_channels(view.normalized())]
        image = _padded(np.stack(channels))
        return Embedding((image - fusion.IMAGE_CENTRE) * fusion.IMAGE_SCALE, view.shape, enlarged)

    def segment(
        self,
        embedding: Embedding,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """One pass.

        A mask among the prompts is shown as a rough answer when it is the newest prompt, or when
        there is no answer before.
        """
        check_understood(self.card, prompts, embedding.shape)
        times = embedding.enlarged
        shape = tuple(n * times for n in embedding.shape)
        fused = np.zeros((1, fusion.NUM_CHANNELS, *embedding.image.shape[1:]), np.float32)
        fused[0, : fusion.PREVIOUS] = embedding.image
        painted = fused[0, fusion.PREVIOUS :, : shape[0], : shape[1]]
        drawn = [_larger(p, times) for p in prompts if p.kind != "mask"]
        before = _before(prompts, previous)
        guess = _guess(drawn, shape) if before is None else _enlarge(before, times)
        if guess is not None:
            painted[0] = np.tanh(guess / fusion.LOGIT_SCALE)
        _paint(painted, drawn)
        logits, quality = self._network(fused)
        answer = _reduce(logits[0, 0, : shape[0], : shape[1]], times) + CONFIDENCE
        if before is None and guess is not None:
            answer += TRUST / fusion.MASK_LOGIT * _reduce(guess, times)
        if previous is not None:
            answer = _kept_near(answer, previous, prompts)
        _obey(answer, prompts)
        return Segmentation(answer, float(1.0 / (1.0 + np.exp(-quality[0]))))


def _before(prompts: Sequence[Prompt], previous: Picture | None) -> Picture | None:
    """What is shown as the answer of the round before."""
    masks = [p for p in prompts if isinstance(p, MaskPrompt)]
    if not masks or (previous is not None and prompts[-1] is not masks[-1]):
        return previous
    return _rough(masks[-1].mask)


def _guess(prompts: Sequence[Prompt], shape: tuple[int, ...]) -> Picture | None:
    """What boxes and lassos say by themselves: inscribed ellipses, and all that is encircled."""
    inside = np.zeros(shape, dtype=np.bool_)
    for prompt in prompts:
        if isinstance(prompt, Box):
            low, high = np.asarray(prompt.low), np.asarray(prompt.high)
            middle, half = (low + high - 1) / 2, (high - low) / 2
            rows, columns = np.ogrid[: shape[0], : shape[1]]
            place = (rows - middle[0]) / half[0], (columns - middle[1]) / half[1]
            inside |= place[0] ** 2 + place[1] ** 2 < 1
        elif isinstance(prompt, Lasso):
            inside |= footprint(prompt, shape)
    return _rough(inside) if inside.any() else None


def _rough(mask: NDArray[np.bool_]) -> Picture:
    return np.where(mask, fusion.MASK_LOGIT, -fusion.MASK_LOGIT).astype(np.float32)


def _paint(channels: Picture, prompts: Sequence[Prompt]) -> None:
    """Marks and regions into channels 1 to 3 of ``(4, row, column)``, in place."""
    maps = rasterize(prompts, channels.shape[1:], click_radius=fusion.CLICK_RADIUS)
    first = fusion.PREVIOUS
    for channel, drawn in (
        (fusion.POSITIVE, (maps.positive,)),
        (fusion.NEGATIVE, (maps.negative,)),
        (fusion.REGION, (maps.box, maps.lasso)),
    ):
        for mask in drawn:
            if mask is not None:
                np.maximum(channels[channel - first], mask, out=channels[channel - first])


def _kept_near(answer: Picture, previous: Picture, prompts: Sequence[Prompt]) -> Picture:
    """A correction, kept to the neighbourhood of marks where a region has said how far the object
    reaches. After clicks alone the first answers are often much too small, and everything may
    change.
    """
    marks = [p for p in prompts if isinstance(p, Click | Scribble)]
    if len(marks) in (0, len(prompts)) or prompts[-1] is not marks[-1]:
        return answer
    if not (previous > 0).any():
        return answer
    maps = rasterize(marks, answer.shape, click_radius=MARK_REACH)
    near = np.zeros(answer.shape, dtype=np.bool_)
    for layer in (maps.positive, maps.negative):
        if layer is not None:
            near |= layer
    return near_marks(answer, previous, near)


def _obey(logits: Picture, prompts: Sequence[Prompt]) -> None:
    """What the user has marked is as the user said, in place, the later mark where two conflict;
    the network nearly always agrees.
    """
    for prompt in prompts:
        if isinstance(prompt, Click | Scribble):
            marked = footprint(prompt, logits.shape)
            if prompt.positive:
                logits[marked] = np.maximum(logits[marked], fusion.MASK_LOGIT)
            else:
                logits[marked] = np.minimum(logits[marked], -fusion.MASK_LOGIT)


def _larger(prompt: Prompt, times: int) -> Prompt:
    """A prompt on the enlarged view; strokes are as wide as those in training at least."""
    if isinstance(prompt, Box):
        return Box(tuple(times * a for a in prompt.low), tuple(times * b for b in prompt.high))
    moved = map_positions(prompt, lambda at: tuple((a + 0.5) * times - 0.5 for a in at))
    if isinstance(moved, Scribble):
        radius = max(moved.radius * times, fusion.LEAST_STROKE_RADIUS)
        return Scribble(moved.points, moved.positive, radius)
    return moved


def _three_channels(pixels: Picture) -> Picture:
    """``(3, row, column)``: grey repeated, a third channel mixed from two, the first three."""
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.broadcast_to(pixels.reshape(pixels.shape[:2]), (3, *pixels.shape[:2]))
    if pixels.shape[2] == 2:
        pixels = np.concatenate([pixels, pixels.mean(axis=2, keepdims=True)], axis=2)
    return np.moveaxis(pixels[..., :3], 2, 0)


def _enlarge(pixels: Picture, times: int) -> Picture:
    """Whole times as large along both axes, interpolated linearly."""
    if times == 1:
        return pixels
    from PIL import Image

    rows, columns = pixels.shape
    picture = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    size = (columns * times, rows * times)
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR), dtype=np.float32)


def _reduce(logits: Picture, times: int) -> Picture:
    """Inverse of enlarging: the mean of each square."""
    rows, columns = (n // times for n in logits.shape)
    squares = logits.reshape(rows, times, columns, times)
    return np.asarray(squares.mean(axis=(1, 3), dtype=np.float32))


def _padded(image: Picture) -> Picture:
    """Black below and to the right, up to multiples of the stride."""
    rows, columns = (-n % STRIDE for n in image.shape[1:])
    return np.pad(image, ((0, 0), (0, rows), (0, columns)))


def _build(*, weights: Path | None = None, device: str = "auto", exact: bool = False) -> Limner2d:
    if weights is None:
        return _shipped(device, exact)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    card = replace(CARD, weights_sha256=digest)
    return Limner2d(_network(weights, device, "fp32", {}), card)


def _shipped(device: str, exact: bool) -> Limner2d:
    """With the weights in the package; whichever file is run, the card names the same hash."""
    facts = json.loads(_FACTS.read_text(encoding="utf-8"))
    path = _WEIGHTS / ("limner-2d.safetensors" if device.startswith("cuda") else "limner-2d.onnx")
    if hashlib.sha256(path.read_bytes()).hexdigest() != facts["sha256"][path.name]:
        raise CheckpointError(f"{path} is damaged: its hash is not the one listed. Reinstall.")
    precision = "fp32" if exact else "auto"
    network = _network(path, device, precision, facts["agreement"])
    return Limner2d(network, replace(CARD, weights_sha256=facts["sha256"]["limner-2d.safetensors"]))


def _network(path: Path, device: str, precision: str, agreement: dict[str, float]) -> Network:
    from limner import runtime

    compiled = partial(runtime.compile, device=device, precision=precision, agreement=agreement)
    if path.suffix == ".onnx":
        return compiled(path)
    from limner.checkpoints.load import fill, read_weights

    weights, facts = read_weights(path)
    from limner.layers.unet2d import PromptableUNet2d

    try:
        network = PromptableUNet2d(facts["config"]["widths"], facts["config"]["depths"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not say the widths and depths of a limner-2d network; "
            "use a file that limner train wrote."
        ) from error
    fill(network, weights, path)
    return compiled(network)


VARIANTS = {"limner-2d": Variant(CARD, _build)}
