"""The promptable 2D network."""

from __future__ import annotations

import pytest
import torch

from limner.networks.fusion2d import LOGIT_SCALE, NEGATIVE, NUM_CHANNELS, POSITIVE, PREVIOUS, REGION
from limner.networks.unet2d import PromptableUNet2d, fuse


@pytest.fixture
def network() -> PromptableUNet2d:
    torch.manual_seed(0)
    return PromptableUNet2d((8, 16, 24), (1, 2, 1)).eval()


def _fused(shape: tuple[int, int], number: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    one = torch.rand((number, 4, *shape), generator=generator)
    return fuse(one[:, :3], one[:, 3:] * 8, *(one[:, 3:] > 0.9 for _ in range(3)))


@pytest.mark.parametrize("shape", [(8, 8), (32, 48), (64, 8)])
def test_logits_have_the_views_shape(network: PromptableUNet2d, shape: tuple[int, int]) -> None:
    with torch.no_grad():
        logits, quality = network(_fused(shape))
    assert logits.shape == (2, 1, *shape)
    assert quality.shape == (2,)
    assert torch.isfinite(logits).all()
    assert torch.isfinite(quality).all()


def test_stride_is_that_of_folding_and_levels(network: PromptableUNet2d) -> None:
    assert network.stride == 8
    with pytest.raises(RuntimeError):
        network(_fused((12, 16)))


@pytest.mark.slow
def test_samples_of_a_batch_do_not_touch_each_other(network: PromptableUNet2d) -> None:
    fused = _fused((16, 16), 3)
    with torch.no_grad():
        together, alone = network(fused), network(fused[1:2])
    torch.testing.assert_close(together[0][1:2], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1][1:2], alone[1], rtol=1e-4, atol=1e-5)


def test_training_and_inference_are_the_same_function(network: PromptableUNet2d) -> None:
    fused = _fused((16, 16))
    with torch.no_grad():
        first, second = network(fused), network.train()(fused)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_every_channel_of_the_input_matters(network: PromptableUNet2d) -> None:
    fused = _fused((16, 16)).requires_grad_()
    network(fused)[0].square().sum().backward()
    assert fused.grad is not None
    assert (fused.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


def test_judging_does_not_change_the_answer(network: PromptableUNet2d) -> None:
    network(_fused((16, 16)))[1].sum().backward()
    assert all(p.grad is None for p in network.parameters() if p is network.to_logits.weight)
    assert network.stem.weight.grad is None
    assert network.to_quality.weight.grad is not None


def test_fused_channels_are_in_the_documented_order() -> None:
    image = torch.full((1, 3, 4, 4), 0.75)
    planes = [torch.full((1, 1, 4, 4), v) for v in (LOGIT_SCALE, 0.0, 1.0, 0.0)]
    planes[3][..., 1:3, 1:3] = 1.0
    fused = fuse(image, *planes)
    assert fused.shape == (1, NUM_CHANNELS, 4, 4)
    assert (fused[:, :3] == 0.5).all()
    torch.testing.assert_close(fused[0, PREVIOUS, 0, 0], torch.tanh(torch.tensor(1.0)))
    assert (fused[:, POSITIVE] == 0).all()
    assert (fused[:, NEGATIVE] == 1).all()
    assert fused[:, REGION].sum() == 4


def test_bf16_autocast_stays_close(network: PromptableUNet2d) -> None:
    fused = _fused((32, 32))
    with torch.no_grad():
        exact = network(fused)[0]
        with torch.autocast("cpu", torch.bfloat16):
            short = network(fused)[0].float()
    assert (exact - short).abs().max() < 0.05 * exact.abs().max() + 0.02


@pytest.mark.parametrize(
    ("widths", "depths"), [((8,), (1,)), ((8, 16), (1,)), ((8, 12), (1, 1)), ((8, 16), (1, 0))]
)
def test_impossible_sizes_are_refused(widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"give one of each|multiples of 8"):
        PromptableUNet2d(widths, depths)


def test_the_recipes_network_is_small_enough() -> None:
    with torch.device("meta"):
        network = PromptableUNet2d((32, 64, 128, 192, 256), (1, 2, 2, 2, 2))
    assert sum(p.numel() for p in network.parameters()) <= 10_000_000
