"""resenc-unet: automatic segmentation by a residual-encoder U-Net that you have trained.

`limner train recipes/resenc-unet.yaml` writes its weights; the file says which labels, channels,
spacing, patch and normalisation it is for (`limner.adapters.network_plan`). No weights ship with
the package. The network is that of nnU-Net's ResEnc presets (https://arxiv.org/abs/2404.09556).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from limner.adapters.automatic_network import AutomaticNetwork
from limner.adapters.network_plan import NetworkPlan
from limner.adapters.protocols import ModelCard, Variant
from limner.adapters.weights import hash_weights
from limner.checkpoints.cards import WeightsCard

if TYPE_CHECKING:
    from torch import nn

CARD = ModelCard(
    name="resenc-unet",
    summary="residual-encoder U-Net that limner train has trained; labels whole images",
    ndim=(2, 3),
    prompts=frozenset(),
    licence="that of the data it was trained on",
    source="https://arxiv.org/abs/2404.09556",
    zoom=False,
    window={},
)
WEIGHTS = WeightsCard(
    name="resenc-unet.safetensors",
    sources=(),
    licence="that of the data it was trained on",
    note="limner train recipes/resenc-unet.yaml --data FOLDER --out RUN makes one",
)


def network_of(plan: NetworkPlan) -> nn.Module:
    """The network of a plan, with random weights."""
    from limner.networks.resenc_unet import ResEncUNet

    return ResEncUNet(
        len(plan.normalization),
        plan.num_outputs,
        widths=plan.widths,
        blocks=plan.blocks,
        strides=plan.strides,
        kernels=plan.kernels,
        decoder_convs=plan.decoder_convs,
    )


def _build(
    *, weights: Path | None = None, device: str = "auto", exact: bool = False
) -> AutomaticNetwork:
    """The model of a weights file.

    Raises:
        CheckpointError: there is none, or it is of something else.
    """
    from limner import runtime
    from limner.checkpoints.load import read_weights

    digest = hash_weights(weights, CARD.name, f"a file that limner train wrote ({WEIGHTS.note})")
    assert weights is not None
    _, facts = read_weights(weights)
    plan = NetworkPlan.from_json(facts.get("plan"), weights)
    network = runtime.compile_module(
        partial(_filled, plan, weights),
        key=f"resenc-unet {digest}",
        inputs=[(None, len(plan.normalization), *plan.patch)],
        device=device,
        exact=exact,
        precision="fp32",  # nobody has measured bf16 with these weights
    )
    return AutomaticNetwork(network, replace(CARD, weights_sha256=digest), plan)


def _filled(plan: NetworkPlan, path: Path) -> nn.Module:
    from limner.checkpoints.load import fill, read_weights

    network = network_of(plan)
    fill(network, read_weights(path)[0], path)
    return network


VARIANTS = {"resenc-unet": Variant(CARD, _build, (WEIGHTS,))}
