"""The promptable U-Net on an EfficientNet-Lite encoder as an ONNX graph; see
`limner.export.onnx_graph`.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from limner.export.onnx_graph import (
    INPUT,
    OUTPUTS,
    Graph,
    block,
    convolve,
    enlarged,
    folded_kernel,
    quality,
)
from limner.networks.blocks.efficientnet_lite import TAPS, ConvNorm, InvertedResidual
from limner.networks.fusion2d import NUM_CHANNELS, PREVIOUS
from limner.networks.lite_unet2d import WIDTHS, PromptableLiteUNet2d
from limner.networks.unet2d import FOLD

_SIX = 6.0  # of ReLU6


def write_network_lite(graph: Graph, network: PromptableLiteUNet2d) -> None:
    """`PromptableLiteUNet2d.forward`."""
    image = _channels(graph, INPUT, 0, PREVIOUS)
    prompts = _channels(graph, INPUT, PREVIOUS, NUM_CHANNELS)
    features = _encode(graph, network, image, _shown(graph, network, prompts))
    levels = len(WIDTHS) - 1
    x = convolve(graph, features[-1], f"lateral.{levels}", network.lateral[levels])
    deepest = x = block(graph, x, "top", network.top)
    for step, up in enumerate(network.up):
        level = levels - 1 - step
        wide = enlarged(graph, convolve(graph, x, f"lift.{step}", network.lift[step]))
        beside = convolve(graph, features[level], f"lateral.{level}", network.lateral[level])
        size = [2 ** (level + 1)] * 2
        seen = graph.add("AveragePool", prompts, kernel_shape=size, strides=size)
        prompted = convolve(graph, seen, f"prompted.{step}", network.prompted[step])
        wide = graph.add("Add", graph.add("Add", wide, beside), prompted)
        if level == 0:
            wide = graph.add("Add", wide, _folded(graph, INPUT, "fine", network.fine))
        x = block(graph, wide, f"up.{step}", up)
    folded = convolve(graph, x, "to_logits", network.to_logits)
    graph.add("DepthToSpace", folded, output=OUTPUTS[0], blocksize=FOLD, mode="CRD")
    quality(graph, deepest, x, folded)


def _encode(graph: Graph, network: PromptableLiteUNet2d, image: str, shown: str) -> list[str]:
    """`EfficientNetLite0.forward`."""
    encoder = network.encoder
    x = graph.add("Add", _conv_norm(graph, image, "encoder.stem", encoder.stem), shown)
    found = []
    for number, one in enumerate(encoder.blocks):
        assert isinstance(one, InvertedResidual)
        name, y = f"encoder.blocks.{number}", x
        if isinstance(one.expand, ConvNorm):
            y = _conv_norm(graph, y, f"{name}.expand", one.expand)
        y = _conv_norm(graph, y, f"{name}.depthwise", one.depthwise)
        y = _conv_norm(graph, y, f"{name}.project", one.project)
        x = graph.add("Add", x, y) if one.adds else y
        if number in TAPS:
            found.append(x)
    return found


def _shown(graph: Graph, network: PromptableLiteUNet2d, prompts: str) -> str:
    """What the prompts add to the stem."""
    first, _, last = network.prompt
    assert isinstance(first, nn.Conv2d)
    x = graph.add("Relu", _folded(graph, prompts, "prompt.0", first))
    return convolve(graph, x, "prompt.2", last)


def _folded(graph: Graph, x: str, name: str, layer: nn.Conv2d) -> str:
    """Pixels folded into channels, and a layer that sees them."""
    kernel = folded_kernel(graph, name, layer)
    return convolve(graph, graph.add("SpaceToDepth", x, blocksize=FOLD), name, layer, kernel)


def _channels(graph: Graph, x: str, first: int, end: int) -> str:
    bounds = [graph.constant(np.array([n])) for n in (first, end, 1)]
    return graph.add("Slice", x, *bounds)


def _conv_norm(graph: Graph, x: str, name: str, layer: ConvNorm) -> str:
    """`ConvNorm.forward`: the norm is folded into the kernel, from weights alone, so once."""
    conv, norm = layer.conv, layer.bn
    epsilon = graph.constant(np.array(norm.eps, np.float32))
    variance = graph.add("Add", graph.weight(f"{name}.bn.running_var"), epsilon)
    scale = graph.add("Div", graph.weight(f"{name}.bn.weight"), graph.add("Sqrt", variance))
    moved = graph.add("Mul", graph.weight(f"{name}.bn.running_mean"), scale)
    shift = graph.add("Sub", graph.weight(f"{name}.bn.bias"), moved)
    axes = graph.constant(np.array([1, 2, 3]))
    kernel = graph.weight(f"{name}.conv.weight")
    kernel = graph.add("Mul", kernel, graph.add("Unsqueeze", scale, axes))
    before, behind = layer.pads
    y = graph.add(
        "Conv",
        x,
        kernel,
        shift,
        kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride),
        pads=[before, before, behind, behind],
        group=conv.groups,
    )
    if not layer.active:
        return y
    ends = [graph.constant(np.array(n, np.float32)) for n in (0.0, _SIX)]
    return graph.add("Clip", y, *ends)
