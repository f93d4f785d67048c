"""limner-2d: the built-in promptable network for images, slices and frames; its weights ship with
the package.

A U-Net on an encoder that has learnt from photographs (`limner.networks.lite_unet2d`). It sees
image and prompts together, so every answer is one pass of some twenty milliseconds on a laptop's
CPU and there is nothing to embed first but the pixels. The idea of fusing early is ScribblePrompt's
(https://arxiv.org/abs/2312.07381) and nnInteractive's (https://arxiv.org/abs/2503.08373); the
network, its training (recipes/limner-2d.yaml) and the weights are this project's, but for the
encoder's start, EfficientNet-Lite0 on ImageNet. What it learnt from and how well it does:
``weights/limner-2d.md``.

OpenVINO runs its graph; PyTorch does where a GPU is requested or where the weights are given as
safetensors, such as those of a fine-tuning run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limner.adapters.early_fusion import Factors, FusionOptions
from limner.adapters.protocols import ModelCard, View
from limner.adapters.shipped import ShippedFamily
from limner.prompts.types import AREAS, MARKS

if TYPE_CHECKING:
    from torch import nn

LARGEST_VIEW = 192  # pixels per side; sessions shrink larger views, smaller ones are enlarged
MOST_ENLARGED = 4  # times, as in training

CARD = ModelCard(
    name="limner-2d",
    summary="built-in network for images, slices and frames; any modality",
    ndim=(2,),
    prompts=MARKS | AREAS,
    licence="CC-BY-SA-4.0",  # some of the sets it learnt from are share-alike; see the card
    source="trained by this project; see src/limner/weights/limner-2d.md",
    zoom=True,
    predicts_quality=True,
    window={2: LARGEST_VIEW},
)


def _upsampling(view: View) -> Factors:
    """As large as fits, the same along both axes."""
    factor = min(MOST_ENLARGED, max(1, LARGEST_VIEW // max(view.shape)))
    return factor, factor


def _network(config: dict[str, Any]) -> nn.Module:
    from limner.networks.promptable2d import make_network_2d

    return make_network_2d(config)


# The mean with the mirror image is worth its cost, and so is the share of a first box's ellipse,
# which the network still needs for large soft objects (docs/notes/second-generation.md).
OPTIONS = FusionOptions(
    stride=(32, 32), upsampling=_upsampling, logit_bias=0.0, region_bias=0.75, mirrored=True
)

VARIANTS = {"limner-2d": ShippedFamily(CARD, OPTIONS, _network).variant()}
