"""The promptable 2D networks by the keys of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limner.networks.lite_unet2d import ENCODER, PromptableLiteUNet2d
from limner.networks.unet2d import PromptableUNet2d


def make_network_2d(config: Mapping[str, Any]) -> PromptableUNet2d | PromptableLiteUNet2d:
    """A new network, with random weights.

    Args:
        config: ``encoder``, one of "unet" (if it is missing) and "efficientnet-lite0"; the first
            has ``widths`` and ``depths``, too.

    Raises:
        KeyError: `config` has no widths or depths.
        ValueError: unknown encoder, or levels that no network has.
    """
    encoder = config.get("encoder", "unet")
    if encoder == ENCODER:
        return PromptableLiteUNet2d()
    if encoder != "unet":
        raise ValueError(f"encoder={encoder!r}; use one of unet, {ENCODER}.")
    return PromptableUNet2d(config["widths"], config["depths"])
