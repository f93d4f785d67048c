"""Names of Segment Anything's weights: the authors', and Hugging Face's mapped to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")

_PE = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
# Hugging Face's names, in part or whole, and the published ones, replaced in this order.
_HUGGING_FACE = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^vision_encoder\.", "image_encoder."),
        (r"^(image_encoder)\.layers\.", r"\1.blocks."),
        (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
        (r"\.neck\.conv1\.", ".neck.0."),
        (r"\.neck\.layer_norm1\.", ".neck.1."),
        (r"\.neck\.conv2\.", ".neck.2."),
        (r"\.neck\.layer_norm2\.", ".neck.3."),
        (r"^prompt_encoder\.shared_embedding\.positional_embedding$", _PE),
        (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
        (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
        (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
        (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
        (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
        (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
        (r"\.upscale_conv1\.", ".output_upscaling.0."),
        (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
        (r"\.upscale_conv2\.", ".output_upscaling.3."),
        (r"(_mlps\.\d+|_head)\.layers\.0\.", r"\1.layers.1."),
        (r"(_mlps\.\d+|_head)\.proj_in\.", r"\1.layers.0."),
        (r"(_mlps\.\d+|_head)\.proj_out\.", r"\1.layers.2."),
        (r"\.layer_norm(\d|_final_attn)\.", r".norm\1."),
    )
)
_COPY = "shared_image_embedding.positional_embedding"  # Hugging Face's second copy of the positions
_CONSTANTS = ("pixel_mean", "pixel_std")  # which some tools save
_WANTED = ("pos_embed", "neck.0.weight", "neck.conv1.weight")
WANTED = tuple(f"{encoder}.{n}" for encoder in ("image_encoder", "vision_encoder") for n in _WANTED)


def remap(state: Mapping[str, Entry]) -> dict[str, Entry]:
    """Published names from those of any known layout: the authors' or Hugging Face's."""
    names = {name: value for name, value in state.items() if name not in _CONSTANTS}
    if not any(name.startswith("vision_encoder.") for name in names):
        return names
    positions = names.pop(_COPY, None)
    renamed = {_published(name): value for name, value in names.items()}
    if positions is not None:
        renamed.setdefault(_PE, positions)
    return renamed


def _published(name: str) -> str:
    for pattern, published in _HUGGING_FACE:
        name = pattern.sub(published, name)
    return name
