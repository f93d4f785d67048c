"""The folded decoder is the published one, in another order of arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limner import runtime
from limner.models.imis.network import DIM, FoldedImisDecode, ImisDecode, ImisMaskDecoder
from limner.networks.blocks import folded
from limner.networks.blocks.folded import FoldedDecode
from limner.networks.blocks.mask_decoder import MaskDecoder, SamDecode
from limner.networks.blocks.prompt_encoder import PromptEncoder

GRID = 8
DEPTH = 32  # layers that a value passes: 2 blocks of 4 with projections, the last attention, 6 more


def parts(dim: int = 64) -> tuple[PromptEncoder, MaskDecoder]:
    """Both halves with random weights, none of them zero."""
    torch.manual_seed(0)
    made = PromptEncoder(dim, GRID, 16 * GRID), MaskDecoder(dim)
    for part in made:
        part.eval().requires_grad_(False)
        for name, tensor in part.state_dict().items():
            noise = torch.randn_like(tensor)
            tensor.copy_(1 + 0.3 * noise if "norm" in name and "weight" in name else 0.3 * noise)
    return made


def questions(prompts: int, points: int, dim: int = 64) -> list[torch.Tensor]:
    """Inputs of both decoders; every other prompt has a mask."""
    generator = torch.Generator().manual_seed(prompts + points)
    side = 4 * GRID
    return [
        torch.randn(1, dim, GRID, GRID, generator=generator),
        torch.rand(prompts, points, 2, generator=generator) * 16 * GRID,
        torch.randint(-1, 4, (prompts, points), generator=generator).float(),
        torch.randn(prompts, 1, side, side, generator=generator) * 5,
        (torch.arange(prompts) % 2).float(),
    ]


@pytest.mark.parametrize(("prompts", "points"), [(1, 2), (2, 1), (3, 7), (2, 0)])
def test_folding_changes_nothing(prompts: int, points: int) -> None:
    encoder, decoder = (part.double() for part in parts())
    asked = [tensor.double() for tensor in questions(prompts, points)]
    right = SamDecode(encoder, decoder)(*asked)
    for ours, wanted in zip(FoldedDecode(encoder, decoder)(*asked), right, strict=True):
        assert ours.shape == wanted.shape
        assert torch.allclose(ours, wanted, rtol=0, atol=1e-11 * float(wanted.std()))


def test_more_filters_are_added_to_all_masks() -> None:
    decoder = parts()[1].double()
    tokens, features = torch.randn(2, 7, 64).double(), torch.randn(2, 16 * GRID * GRID, 8).double()
    more = torch.randn(2, 8).double()
    apart, _ = folded.masks(decoder, tokens, features, GRID)
    added = folded.mask_maps(more[:, None], features, GRID)
    together, _ = folded.masks(decoder, tokens, features, GRID, more)
    assert torch.allclose(apart + added, together, rtol=0, atol=1e-11 * float(together.std()))


@pytest.mark.slow
def test_openvino_agrees_at_all_sizes(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path_factory.mktemp("cache")))
    side = 4 * GRID
    network = runtime.compile_module(
        lambda: FoldedDecode(*parts()),
        key="folded",
        inputs=[
            (1, 64, GRID, GRID),
            (None, None, 2),
            (None, None),
            (None, 1, side, side),
            (None,),
        ],
        device="cpu",
        precision="fp32",
    )
    single, double = SamDecode(*parts()), SamDecode(*(part.double() for part in parts()))
    for prompts, points in ((1, 2), (4, 3), (1, 12), (2, 0)):
        asked = questions(prompts, points)
        answers = network(*(t.numpy() for t in asked))
        for ours, rounded, true in zip(
            answers, single(*asked), double(*(t.double() for t in asked)), strict=True
        ):
            assert ours.shape == true.shape
            assert np.abs(ours - true.numpy()).max() < tolerance(rounded, true)


def tolerance(rounded: torch.Tensor, true: torch.Tensor) -> float:
    """How far another order of float32 operations may be from the true answer.

    Each operation rounds to half a unit in the last place; how such errors grow on their way is a
    property of the weights, and the error of PyTorch's own float32 shows it on the machine that the
    test runs on. Sums in another order (threads, vector width, fused multiplications, folding) are
    as good up to a small factor; to that comes what a single network of this depth rounds at least.
    """
    growth = float((rounded - true).abs().max())
    return 8 * growth + DEPTH * float(np.finfo(np.float32).eps) * float(true.abs().max())


@pytest.mark.parametrize("words", [0, 1])
def test_folding_changes_nothing_with_words_either(words: int) -> None:
    torch.manual_seed(1)
    decoder = ImisMaskDecoder().eval().requires_grad_(False)
    encoder = PromptEncoder(DIM, GRID, 16 * GRID).eval().requires_grad_(False)
    for tensor in (*decoder.state_dict().values(), *encoder.state_dict().values()):
        tensor.add_(0.05 * torch.randn_like(tensor))
    encoder, decoder = encoder.double(), decoder.double()
    asked = [t.double() for t in (*questions(2, 3, DIM), torch.randn(2, words, DIM))]
    ours = FoldedImisDecode(encoder, decoder)(*asked)
    for answer, wanted in zip(ours, ImisDecode(encoder, decoder)(*asked), strict=True):
        assert answer.shape == wanted.shape
        assert torch.allclose(answer, wanted, rtol=0, atol=1e-11 * float(wanted.std()))
