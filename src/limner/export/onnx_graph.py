"""Promptable networks as ONNX graphs, written by hand, layer by layer.

Not traced, because both tracers were tried: tracing cannot prove that sizes may vary, and it writes
group normalisation as one operation, which OpenVINO 2026.4 runs slowly, and with fixed sizes
crashes on. A test holds the two descriptions of each network together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from limner.errors import CheckpointError
from limner.networks.fusion2d import NUM_CHANNELS
from limner.networks.unet2d import FOLD, PromptableUNet2d, ResidualBlock
from limner.networks.unet3d import PromptableUNet3d, ResidualBlock3d

INPUT, OUTPUTS = "fused", ("logits", "quality")
_LARGEST_HALF = 65504.0
_LEAST_WEIGHT = 1e-3  # as in `layers.unet2d`: an empty answer has no inside to average over


class Graph:
    """Nodes and constants in the order of their use; tensors are known by name.

    Args:
        weights: of the network, by name.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._weights = weights

    def add(
        self, operation: str, *inputs: str, output: str | None = None, **attributes: Any
    ) -> str:
        """A node; its one output."""
        from onnx import helper

        output = output or f"{operation}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, inputs, [output], output, **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        """A constant as it is."""
        return self._keep(value, f"constant_{len(self.constants)}")

    def weight(self, name: str, shape: tuple[int, ...] | None = None) -> str:
        """A weight of the network, kept in half precision in the order of the network's own, and
        in single precision for whoever uses it.

        Raises:
            CheckpointError: it is not finite in half precision.
        """
        from onnx import TensorProto

        full = self._weights[name].detach().cpu().float()
        full = full if shape is None else full.reshape(shape)
        if not bool((full.abs() <= _LARGEST_HALF).all()):
            raise CheckpointError(f"The weight {name} is not finite in half precision.")
        self._keep(full.half().numpy(), name)
        return self.add("Cast", name, output=f"{name}.wide", to=TensorProto.FLOAT)

    def reordered(
        self, x: str, parts: Sequence[int], order: Sequence[int], shape: Sequence[int]
    ) -> str:
        """A weight with its axes split into parts, put in another order and joined: what every
        runtime does once, as it reads the graph.
        """
        x = self.add("Reshape", x, self.constant(np.array(parts)))
        x = self.add("Transpose", x, perm=list(order))
        return self.add("Reshape", x, self.constant(np.array(shape)))

    def _keep(self, value: NDArray[Any], name: str) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def write_network_2d(graph: Graph, network: PromptableUNet2d) -> None:
    """`PromptableUNet2d.forward`."""
    x = folded_stem(graph, INPUT, network.stem)
    deepest, finest = _down_and_up(graph, x, network)
    folded = convolve(graph, finest, "to_logits", network.to_logits)
    graph.add("DepthToSpace", folded, output=OUTPUTS[0], blocksize=FOLD, mode="CRD")
    quality(graph, deepest, finest, folded)


def folded_stem(graph: Graph, x: str, stem: nn.Conv2d) -> str:
    """Pixels folded into channels, and the first layer.

    ONNX folds pixels block first, PyTorch channel first: the stem's kernel is turned to match.
    """
    kernel = folded_kernel(graph, "stem", stem)
    return convolve(graph, graph.add("SpaceToDepth", x, blocksize=FOLD), "stem", stem, kernel)


def folded_kernel(graph: Graph, name: str, layer: nn.Conv2d) -> str:
    """The kernel of a layer that sees folded pixels, for ONNX's order of them."""
    width, channels, *size = layer.weight.shape
    parts = (width, channels // FOLD**2, FOLD**2, *size)
    return graph.reordered(
        graph.weight(f"{name}.weight"), parts, (0, 2, 1, 3, 4), (width, channels, *size)
    )


def write_network_3d(graph: Graph, network: PromptableUNet3d) -> None:
    """`PromptableUNet3d.forward`.

    ONNX folds pixels in 2D only. Here the stem's kernel is spread over the pixels that were
    folded, with twice its stride, and unfolding is a transposed convolution with ones.
    """
    width, _, _, *size = network.stem.weight.shape
    wide = (width, NUM_CHANNELS, 1, *(FOLD * n for n in size))
    kernel = graph.reordered(
        graph.weight("stem.weight"),
        (width, NUM_CHANNELS, FOLD, FOLD, *size),
        (0, 1, 4, 2, 5, 3),
        wide,
    )
    pads = [0, FOLD, FOLD] * 2
    x = graph.add(
        "Conv",
        INPUT,
        kernel,
        graph.weight("stem.bias"),
        kernel_shape=list(wide[2:]),
        strides=[1, FOLD, FOLD],
        pads=pads,
    )
    deepest, finest = _down_and_up(graph, x, network)
    folded = convolve(graph, finest, "to_logits", network.to_logits)
    ones = np.eye(FOLD**2, dtype=np.float32).reshape(FOLD**2, 1, 1, FOLD, FOLD)
    graph.add(
        "ConvTranspose",
        folded,
        graph.constant(ones),
        output=OUTPUTS[0],
        kernel_shape=[1, FOLD, FOLD],
        strides=[1, FOLD, FOLD],
    )
    quality(graph, deepest, finest, folded, axes=(2, 3, 4))


def _down_and_up(
    graph: Graph, x: str, network: PromptableUNet2d | PromptableUNet3d
) -> tuple[str, str]:
    """Features of the coarsest level, and of the finest on the way back."""
    skips, halved = [], []
    for i, level in enumerate(network.down):
        assert isinstance(level, nn.Sequential)
        halved.append(isinstance(getattr(level[0], "thin", None), nn.AvgPool3d))
        for k, one in enumerate(level):
            x = block(graph, x, f"down.{i}.{k}", one)
        skips.append(x)
    deepest = skips.pop()
    for i, (lift, up) in enumerate(zip(network.lift, network.up, strict=True)):
        y = convolve(graph, x, f"lift.{i}", lift)
        y = enlarged(graph, y, isinstance(network, PromptableUNet3d), slices=halved.pop())
        x = block(graph, graph.add("Add", y, skips.pop()), f"up.{i}", up)
    return deepest, x


def enlarged(graph: Graph, x: str, solid: bool = False, *, slices: bool = False) -> str:
    """Twice the rows and columns, linear; each slice repeated where there are twice as many."""
    scales = [1, 1, 1, 2, 2] if solid else [1, 1, 2, 2]
    double = graph.constant(np.array(scales, np.float32))
    x = graph.add("Resize", x, "", double, mode="linear")  # half_pixel is the default
    if not slices:
        return x
    repeated = graph.constant(np.array([1, 1, 2, 1, 1], np.float32))
    return graph.add(
        "Resize",
        x,
        "",
        repeated,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def convolve(graph: Graph, x: str, name: str, layer: nn.Module, kernel: str | None = None) -> str:
    """A convolution with the weights of that name, or with another kernel."""
    assert isinstance(layer, nn.Conv2d | nn.Conv3d)
    inputs = [x, kernel or graph.weight(f"{name}.weight")]
    if layer.bias is not None:
        inputs.append(graph.weight(f"{name}.bias"))
    pads = [int(p) for p in layer.padding]
    return graph.add(
        "Conv",
        *inputs,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=[*pads, *pads],
    )


def block(graph: Graph, x: str, name: str, block: nn.Module) -> str:
    """`ResidualBlock.forward` and `ResidualBlock3d.forward`."""
    assert isinstance(block, ResidualBlock | ResidualBlock3d)
    solid = isinstance(block, ResidualBlock3d)
    if isinstance(block, ResidualBlock3d) and isinstance(block.thin, nn.AvgPool3d):
        x = _pooled(graph, x, block.thin)
    y = convolve(graph, x, f"{name}.conv1", block.conv1)
    y = graph.add("Relu", _normalize(graph, y, f"{name}.norm1", block.norm1, solid=solid))
    if isinstance(block, ResidualBlock3d):
        beside = convolve(graph, y, f"{name}.across", block.across)
        y = graph.add("Relu", graph.add("Add", y, beside))
    y = convolve(graph, y, f"{name}.conv2", block.conv2)
    y = _normalize(graph, y, f"{name}.norm2", block.norm2, solid=solid)
    if isinstance(block.shortcut, nn.Sequential):
        pool, layer = block.shortcut
        if not isinstance(pool, nn.Identity):
            x = _pooled(graph, x, pool)
        x = convolve(graph, x, f"{name}.shortcut.1", layer)
    return graph.add("Relu", graph.add("Add", y, x))


def _pooled(graph: Graph, x: str, pool: nn.Module) -> str:
    """The mean of each window, which are side by side."""
    assert isinstance(pool, nn.AvgPool2d | nn.AvgPool3d)
    size = pool.kernel_size
    sizes = [int(n) for n in size] if isinstance(size, tuple) else [int(size)] * 2
    return graph.add("AveragePool", x, kernel_shape=sizes, strides=sizes)


def _normalize(graph: Graph, x: str, name: str, norm: nn.GroupNorm, *, solid: bool) -> str:
    """Group normalisation without reshaping, which would take the image out of the memory layout
    that convolutions want: means per channel, mixed within each group by a small 1x1 convolution.
    """
    channels, groups = norm.num_channels, norm.num_groups
    size = channels // groups
    ones = (1, 1, 1) if solid else (1, 1)
    mix = graph.constant(np.full((channels, size, *ones), 1 / size, np.float32))
    mean = graph.add("Conv", graph.add("GlobalAveragePool", x), mix, group=groups)
    centred = graph.add("Sub", x, mean)
    squares = graph.add("GlobalAveragePool", graph.add("Mul", centred, centred))
    variance = graph.add("Conv", squares, mix, group=groups)
    epsilon = graph.constant(np.array(norm.eps, np.float32))
    deviation = graph.add("Sqrt", graph.add("Add", variance, epsilon))
    scale = graph.add("Div", graph.weight(f"{name}.weight", (1, channels, *ones)), deviation)
    shift = graph.weight(f"{name}.bias", (1, channels, *ones))
    return graph.add("Add", graph.add("Mul", centred, scale), shift)


def quality(
    graph: Graph, deepest: str, finest: str, folded: str, axes: tuple[int, ...] = (2, 3)
) -> None:
    """`PromptableUNet2d._quality` and that of volumes."""
    spatial, channel = graph.constant(np.array(axes)), graph.constant(np.array([1]))
    inside = graph.add("Sigmoid", graph.add("ReduceMean", folded, channel, keepdims=1))
    one = graph.constant(np.array(1, np.float32))
    rim = graph.add("Mul", inside, graph.add("Sub", one, inside))
    parts = [graph.add("ReduceMean", deepest, spatial, keepdims=0)]
    least = graph.constant(np.array(_LEAST_WEIGHT, np.float32))
    for weights in (inside, rim):
        total = graph.add("Max", graph.add("ReduceSum", weights, spatial, keepdims=0), least)
        weighed = graph.add("Mul", finest, weights)
        parts.append(graph.add("Div", graph.add("ReduceSum", weighed, spatial, keepdims=0), total))
    judged = graph.add("Relu", _linear(graph, graph.add("Concat", *parts, axis=1), "judge.0"))
    graph.add("Squeeze", _linear(graph, judged, "to_quality"), channel, output=OUTPUTS[1])


def _linear(graph: Graph, x: str, name: str) -> str:
    return graph.add(
        "Gemm", x, graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias"), transB=1
    )
