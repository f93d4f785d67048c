"""limner-3d: the built-in promptable network for volumes; its weights ship with the package.

`limner.networks.unet3d` sees image and prompts together, so every answer is one pass over a window
of at most 300,000 voxels; sessions choose it and grow it while the object reaches its border
(nnInteractive's AutoZoom, https://arxiv.org/abs/2503.08373, and SegVol's zoom-out-zoom-in,
https://arxiv.org/abs/2311.13385, are the same idea). Its weights began as those of limner-2d and
were trained on volumes by recipes/limner-3d.yaml; on what and with what result says
``weights/limner-3d.md``.

Prompts may be in 3D or drawn on a slice along any axis. OpenVINO runs the ONNX file; PyTorch does
where a GPU is requested or where the weights are given as safetensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limner.adapters.early_fusion import Factors, FusionOptions
from limner.adapters.protocols import ModelCard, View
from limner.adapters.shipped import ShippedFamily
from limner.prompts.types import AREAS, MARKS

if TYPE_CHECKING:
    from torch import nn

# Slices, rows, columns; sessions shrink larger views. Twice the voxels on each axis are no better
# after a box, worse after clicks and take three times as long (docs/notes/limner-3d.md).
LARGEST_VIEW = (32, 96, 96)
MOST_ENLARGED = 4  # times, as in training

CARD = ModelCard(
    name="limner-3d",
    summary="built-in network for volumes; any modality",
    ndim=(3,),
    prompts=MARKS | AREAS,
    licence="CC-BY-SA-4.0",  # two of the sets it learnt from are share-alike; see the card
    source="trained by this project; see src/limner/weights/limner-3d.md",
    zoom=True,
    predicts_quality=True,
    window={3: LARGEST_VIEW},
)


def _upsampling(view: View) -> Factors:
    """As large as fits, the same within slices; across them no more than that, and no finer."""
    slices, *in_plane = view.shape
    within = min(MOST_ENLARGED, max(1, LARGEST_VIEW[1] // max(in_plane)))
    across = min(within, max(1, LARGEST_VIEW[0] // slices))
    return across, within, within


def _network(config: dict[str, Any]) -> nn.Module:
    from limner.networks.unet3d import PromptableUNet3d

    return PromptableUNet3d(config["widths"], config["depths"])


# Chosen on volumes that are not tested on (docs/notes/limner-3d.md).
OPTIONS = FusionOptions(
    stride=(8, 32, 32), upsampling=_upsampling, logit_bias=0.1, region_bias=0.75
)

VARIANTS = {"limner-3d": ShippedFamily(CARD, OPTIONS, _network).variant()}
