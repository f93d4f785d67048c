"""Blocks of the SAM family: what they compute, their names, and that they can be traced."""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import parity

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from limner.networks.blocks.mask_decoder import MaskDecoder, Sam, SamDecode  # noqa: E402
from limner.networks.blocks.norm import LayerNorm2d  # noqa: E402
from limner.networks.blocks.prompt_encoder import PromptEncoder, RandomPositions  # noqa: E402
from limner.networks.blocks.two_way_transformer import TwoWayTransformer  # noqa: E402
from limner.networks.blocks.vit import Block, GridAttention, ImageEncoder, join, split  # noqa: E402
from limner.runtime import compile_module  # noqa: E402

DIM, GRID, SIZE = 32, 4, 64


def random(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in evaluation mode, every weight drawn."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.randn(tensor.shape, generator=generator) * 0.3
    return module.eval().requires_grad_(False)


def small_decode() -> SamDecode:
    decode = random(SamDecode(PromptEncoder(DIM, GRID, SIZE), MaskDecoder(DIM, iou_hidden=16)))
    assert isinstance(decode, SamDecode)
    return decode


def questions(batch: int, points: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch * 10 + points)
    return (
        torch.randn((1, DIM, GRID, GRID), generator=torch.Generator().manual_seed(1)),
        torch.rand((batch, points, 2), generator=generator) * SIZE,
        torch.randint(-1, 4, (batch, points), generator=generator).float(),
        torch.randn((batch, 1, 4 * GRID, 4 * GRID), generator=generator),
        (torch.arange(batch) % 2).float(),
    )


def test_norm_is_over_the_channels_of_each_pixel() -> None:
    norm = random(LayerNorm2d(5))
    x = torch.randn(2, 5, 3, 4)
    expected = functional.layer_norm(
        x.permute(0, 2, 3, 1), (5,), norm.weight, norm.bias, eps=1e-6
    ).permute(0, 3, 1, 2)
    assert torch.allclose(norm(x), expected, atol=1e-6)


@pytest.mark.parametrize(("grid", "window"), [(6, 3), (7, 3), (4, 14)])
def test_windows_are_cut_and_joined(grid: int, window: int) -> None:
    x = torch.randn(2, grid, grid, 3)
    parts = split(x, grid, window)
    across = -(-grid // window)
    assert parts.shape == (2 * across**2, window, window, 3)
    assert torch.equal(join(parts, grid, window), x)
    side = min(window, grid)
    assert torch.equal(parts[0, :side, :side], x[0, :side, :side])
    assert parts.sum() == pytest.approx(float(x.sum()), abs=1e-3)  # the padding is zeros


def test_relative_positions_use_the_unscaled_query() -> None:
    side, heads = 3, 2
    layer = random(GridAttention(8, heads, side))
    x = torch.randn(1, side, side, 8)
    qkv = layer.qkv(x).reshape(side * side, 3, heads, 4)
    out = torch.zeros(side * side, heads, 4)
    for head in range(heads):
        q, k, v = (qkv[:, part, head] for part in range(3))
        logits = (q / 4**0.5) @ k.T
        for a, b in product(range(side * side), repeat=2):
            rows, columns = a // side - b // side, a % side - b % side
            logits[a, b] += q[a] @ layer.rel_pos_h[rows + side - 1]
            logits[a, b] += q[a] @ layer.rel_pos_w[columns + side - 1]
        out[:, head] = logits.softmax(1) @ v
    expected = layer.proj(out.reshape(1, side, side, 8))
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_an_adapter_sees_what_the_mlp_sees_and_is_added() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    plain = random(Block(8, 2, 4, window=3))
    adapted = Block(8, 2, 4, window=3, adapter=Twice())
    assert adapted.state_dict().keys() - plain.state_dict().keys() == {"Adapter.factor"}
    adapted.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 4, 4, 8)
    normal = x + join(plain.attn(split(plain.norm1(x), 4, 3)), 4, 3)
    with torch.no_grad():
        assert torch.allclose(adapted(x), plain(x) + 2 * plain.norm2(normal), atol=1e-6)


def test_encoders_of_other_sizes_and_epsilons() -> None:
    encoder = ImageEncoder(
        64, dim=16, depth=2, heads=2, whole=(1,), window=3, out_channels=8, eps=1e-5
    )
    random(encoder)
    image = torch.randn(1, 3, 64, 64)
    assert encoder.tokens(image).shape == (1, 16, 4, 4)
    assert encoder(image).shape == (1, 8, 4, 4)
    assert {m.eps for m in encoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    assert encoder.blocks[0].attn.rel_pos_h.shape == (5, 8)
    assert encoder.blocks[1].attn.rel_pos_h.shape == (7, 8)


def test_positions_of_a_grid_are_those_of_its_centres() -> None:
    positions = random(RandomPositions(6))
    grid = positions.grid(4)
    at = torch.tensor([2.5 / 4, 1.5 / 4])  # x, y of row 1, column 2
    assert torch.allclose(grid[0, :, 1, 2], positions(at), atol=1e-6)


def test_points_mean_what_their_labels_say() -> None:
    encoder = random(PromptEncoder(DIM, GRID, SIZE))
    coords = torch.tensor([[[3.0, 5.0]] * 5])
    labels = torch.tensor([[-1.0, 0.0, 1.0, 2.0, 3.0]])
    tokens = encoder.sparse(coords, labels)[0]
    place = encoder.pe_layer((coords[0, 0] + 0.5) / SIZE)
    assert torch.allclose(tokens[0], encoder.not_a_point_embed.weight[0])
    for kind in range(4):
        expected = place + encoder.point_embeddings[kind].weight[0]
        assert torch.allclose(tokens[kind + 1], expected, atol=1e-6)


def test_masks_count_only_where_there_are_some() -> None:
    encoder = random(PromptEncoder(DIM, GRID, SIZE))
    mask = torch.randn(2, 1, 4 * GRID, 4 * GRID)
    dense = encoder.dense(mask, torch.tensor([0.0, 1.0]))
    assert torch.equal(dense[0, :, 2, 3], encoder.no_mask_embed.weight[0])
    assert torch.equal(dense[1], encoder.mask_downscaling(mask)[1])


def test_the_first_block_replaces_the_tokens() -> None:
    layers = random(TwoWayTransformer(DIM, 8, 64)).layers
    assert [layer.first for layer in layers] == [True, False]
    tokens, picture, nothing = torch.randn(1, 3, DIM), torch.randn(1, 16, DIM), torch.zeros(1)
    for layer in layers:
        layer.cross_attn_token_to_image = layer.cross_attn_image_to_token = nn.Identity()
        layer.cross_attn_token_to_image.forward = lambda *_: nothing
        layer.mlp = nn.Identity()
        layer.mlp.forward = lambda _: nothing
    alone = layers[0].self_attn(tokens, tokens, tokens)
    places = torch.randn(1, 3, DIM)
    result, _ = layers[0](tokens, picture, places, nothing)
    expected = layers[0].norm3(layers[0].norm2(layers[0].norm1(alone)))
    assert torch.allclose(result, expected, atol=1e-6)
    placed = tokens + places
    added = tokens + layers[1].self_attn(placed, placed, tokens)
    result, _ = layers[1](tokens, picture, places, nothing)
    expected = layers[1].norm3(layers[1].norm2(layers[1].norm1(added)))
    assert torch.allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize(("batch", "points"), [(3, 2), (1, 0)])
def test_a_batch_answers_as_each_alone(batch: int, points: int) -> None:
    decode = small_decode()
    features, *asked = questions(batch, points)
    logits, quality = decode(features, *asked)
    assert logits.shape == (batch, 4, 4 * GRID, 4 * GRID)
    assert quality.shape == (batch, 4)
    for k in range(batch):
        alone, judged = decode(features, *(part[k : k + 1] for part in asked))
        assert torch.allclose(alone[0], logits[k], atol=1e-5)
        assert torch.allclose(judged[0], quality[k], atol=1e-5)


@pytest.mark.slow
def test_decoding_can_be_traced_for_any_number_of_questions_and_points() -> None:
    decode = small_decode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(decode, questions(2, 3), check_trace=False)
    for batch, points in ((2, 3), (1, 1), (5, 4), (3, 0)):
        inputs = questions(batch, points)
        for ours, other in zip(decode(*inputs), traced(*inputs), strict=True):
            assert torch.allclose(ours, other, atol=1e-6)


@pytest.mark.slow
def test_openvino_answers_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))
    decode, side = small_decode(), 4 * GRID
    shapes = [(1, DIM, GRID, GRID), (None, None, 2), (None, None), (None, 1, side, side), (None,)]
    network = compile_module(lambda: decode, key="small", inputs=shapes, precision="fp32")
    for batch, points in ((2, 3), (5, 1), (1, 0), (3, 0)):
        inputs = questions(batch, points)
        for ours, theirs in zip(
            decode(*inputs), network(*(x.numpy() for x in inputs)), strict=True
        ):
            assert np.abs(ours.numpy() - theirs).max() < 1e-4


def test_a_decoder_can_have_more_tokens() -> None:
    class More(MaskDecoder):
        def __init__(self) -> None:
            super().__init__(DIM, iou_hidden=16)
            self.more_tokens = nn.Embedding(2, DIM)

        def own_tokens(self) -> torch.Tensor:
            return torch.cat([super().own_tokens(), self.more_tokens.weight])

    decoder = random(More())
    encoder = random(PromptEncoder(DIM, GRID, SIZE))
    features, coords, labels, mask, has_mask = questions(2, 1)
    tokens, upscaled = decoder.decode(
        features,
        encoder.positions(),
        encoder.sparse(coords, labels),
        encoder.dense(mask, has_mask),
    )
    assert tokens.shape == (2, 1 + 4 + 2 + 1, DIM)
    assert decoder.masks(tokens, upscaled)[0].shape == (2, 4, 4 * GRID, 4 * GRID)


def test_names_and_shapes_are_the_published_ones() -> None:
    published = parity.system("medsam").spec["keys"]
    with torch.device("meta"):
        network = Sam(ImageEncoder(), PromptEncoder(), MaskDecoder())
    ours = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert ours == {name: entry["shape"] for name, entry in published.items()}
    assert sum(int(np.prod(shape)) for shape in ours.values()) == 93_735_728


def test_epsilons_are_the_published_ones() -> None:
    with torch.device("meta"):
        network = Sam(ImageEncoder(), PromptEncoder(), MaskDecoder())
    norms = (nn.LayerNorm, LayerNorm2d)
    encoder = {m.eps for m in network.image_encoder.modules() if isinstance(m, norms)}
    transformer = {m.eps for m in network.mask_decoder.transformer.modules() if hasattr(m, "eps")}
    assert encoder == {1e-6}
    assert transformer == {1e-5}
    assert network.mask_decoder.output_upscaling[1].eps == 1e-6
