"""The promptable network for volumes: what it takes from that of the plane, and its parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from limner.networks import unet2d
from limner.networks.unet3d import CrossSliceConv, InPlaneConv, PromptableUNet3d, fuse, inflate

SIZES = {"widths": (8, 16, 24), "depths": (1, 2, 1)}


def _random(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval()


def test_inflated_weights_answer_on_equal_slices_as_on_one() -> None:
    torch.manual_seed(0)
    flat = _random(unet2d.PromptableUNet2d(**SIZES))
    solid = PromptableUNet3d(**SIZES).eval()
    missing, unexpected = solid.load_state_dict(inflate(flat.state_dict()), strict=False)
    assert not unexpected
    assert missing
    assert all(key.endswith(".across.weight") for key in missing)
    plane = torch.randn(2, 7, 16, 24)
    with torch.inference_mode():
        logits, quality = solid(plane[:, :, None].repeat(1, 1, 4, 1, 1))
        expected, judged = flat(plane)
    assert expected.abs().max() > 0.1
    for k in range(4):
        assert torch.allclose(logits[:, :, k], expected, atol=1e-4)
    assert torch.allclose(quality, judged, atol=1e-4)


def test_a_slice_hears_of_its_neighbours() -> None:
    torch.manual_seed(1)
    network = _random(PromptableUNet3d(**SIZES))
    fused = torch.randn(1, 7, 8, 8, 8)
    other = fused.clone()
    other[:, :, 3] += 1.0
    with torch.inference_mode():
        change = (network(other)[0] - network(fused)[0]).abs().amax(dim=(0, 1, 3, 4))
    assert (change > 1e-4).all()


def test_convolutions_are_those_of_volumes() -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 8, 4, 6, 10)
    for layer in (
        InPlaneConv(8, 16, 3, stride=2),
        InPlaneConv(8, 4, 1),
        _random(CrossSliceConv(8)),
    ):
        expected = functional.conv3d(x, layer.weight, layer.bias, layer.stride, layer.padding)
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_input_sizes_are_multiples_of_the_stride() -> None:
    network = PromptableUNet3d(widths=(8, 8, 8, 8, 8), depths=(1,) * 5).eval()
    assert network.stride == (8, 32, 32)
    with torch.inference_mode():
        logits, quality = network(torch.zeros(1, 7, *network.stride))
    assert logits.shape == (1, 1, 8, 32, 32)
    assert quality.shape == (1,)


def test_channels_are_those_of_the_plane() -> None:
    torch.manual_seed(3)
    shape = (2, 1, 3, 4, 5)
    image, *marks = torch.rand(2, 3, 3, 4, 5), *(torch.randn(shape) for _ in range(4))
    fused = fuse(image, *marks)
    assert fused.shape == (2, 7, 3, 4, 5)
    plane = unet2d.fuse(image[:, :, 1], *(m[:, :, 1] for m in marks))
    assert torch.equal(fused[:, :, 1], plane)


@pytest.mark.parametrize(
    "sizes",
    [
        {"widths": (8,), "depths": (1,)},
        {"widths": (8, 12), "depths": (1, 1)},
        {"widths": (8, 16), "depths": (1, 0)},
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"levels|multiples of 8"):
        PromptableUNet3d(**sizes)
