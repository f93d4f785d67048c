"""limner-2d: the built-in promptable network for images, slices and frames; its weights ship with
the package.

A U-Net that sees image and prompts together (`limner.networks.unet2d`), so every answer is one pass
of some ten milliseconds on a laptop's CPU and there is nothing to embed first but the pixels. The
idea of fusing early is ScribblePrompt's (https://arxiv.org/abs/2312.07381) and nnInteractive's
(https://arxiv.org/abs/2503.08373); the network, its training (recipes/limner-2d.yaml) and the
weights are this project's. What it learnt from and how well it does: ``weights/limner-2d.md``.

OpenVINO runs it from the ONNX file; PyTorch does where a GPU is requested or where the weights are
given as safetensors, such as those of a fine-tuning run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limner.adapters.early_fusion import Factors, FusionOptions
from limner.adapters.protocols import ModelCard, View
from limner.adapters.shipped import ShippedFamily
from limner.prompts.types import AREAS, MARKS

if TYPE_CHECKING:
    from torch import nn

LARGEST_VIEW = 160  # pixels per side; sessions shrink larger views, smaller ones are enlarged
MOST_ENLARGED = 4  # times, as in training

CARD = ModelCard(
    name="limner-2d",
    summary="built-in network for images, slices and frames; any modality",
    ndim=(2,),
    prompts=MARKS | AREAS,
    licence="CC-BY-SA-4.0",  # two of the sets it learnt from are share-alike; see the card
    source="trained by this project; see src/limner/weights/limner-2d.md",
    zoom=True,
    predicts_quality=True,
    window={2: LARGEST_VIEW},
)


def _upsampling(view: View) -> Factors:
    """As large as fits, the same along both axes."""
    factor = min(MOST_ENLARGED, max(1, LARGEST_VIEW // max(view.shape)))
    return factor, factor


def _network(widths: Any, depths: Any) -> nn.Module:
    from limner.networks.unet2d import PromptableUNet2d

    return PromptableUNet2d(widths, depths)


# The network doubts itself too much about kinds of object that it has not learnt: hence confidence
# and trust, chosen on images that are neither trained nor tested on (docs/notes/limner-2d.md).
OPTIONS = FusionOptions(stride=(32, 32), upsampling=_upsampling, logit_bias=0.4, region_bias=0.75)

VARIANTS = {"limner-2d": ShippedFamily(CARD, OPTIONS, _network).variant()}
