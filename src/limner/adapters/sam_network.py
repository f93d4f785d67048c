"""Networks of Segment Anything's kind in two parts for the runtime: image encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from limner.adapters.published import Part, Weights

if TYPE_CHECKING:
    from torch import nn

    from limner.networks.blocks.mask_decoder import Sam


def sam_parts(
    network: Callable[[], Sam], side: int, grid: int, *, low_res: int, channels: int
) -> tuple[Part, Part]:
    """The encoder, and the decoder, folded where speed counts.

    Args:
        network: makes it, without weights.
        side: of its input in pixels.
        grid: side of the embedding.
        low_res: side of masks that go in and come out.
        channels: of the embedding.
    """

    def filled(weights: Weights) -> Sam:
        whole = network()
        weights.fill(whole)
        return whole

    def encoder(weights: Weights) -> nn.Module:
        return filled(weights).image_encoder

    def decoder(weights: Weights) -> nn.Module:
        return filled(weights).decode()

    def folded(weights: Weights) -> nn.Module:
        from limner.networks.blocks.folded import FoldedDecode

        whole = filled(weights)
        return FoldedDecode(whole.prompt_encoder, whole.mask_decoder)

    prompts = [(None, None, 2), (None, None), (None, 1, low_res, low_res), (None,)]
    return (
        Part("encoder", encoder, [(1, 3, side, side)], precision="auto", encodes=True),
        Part(
            "decoder",
            folded,
            [(1, channels, grid, grid), *prompts],
            published=decoder,
            precision="fp32",  # bf16 would add 2 % of error to the encoder's 1 %
        ),
    )
