"""A trained promptable 2D network as an ONNX file.

The graph is written by hand, layer by layer, not traced, because both tracers were tried: tracing
cannot prove that heights and widths may vary, and it writes group normalisation as one operation,
which OpenVINO 2026.4 runs slowly, and with fixed sizes crashes on. A test holds the two
descriptions of the network together.

Weights are kept in half precision, exactly those of the safetensors file, and widened by the graph:
half the size, and the computation is still in single precision where nothing else is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from limner import errors
from limner.checkpoints.load import fill, read_weights
from limner.errors import CheckpointError, FormatError
from limner.io._atomic import atomic_bytes
from limner.layers.fusion2d import NUM_CHANNELS
from limner.layers.unet2d import FOLD, PromptableUNet2d, ResidualBlock
from limner.train import checkpoint

INPUT, OUTPUTS = "fused", ("logits", "quality")

_OPSET, _IR_VERSION = 18, 8  # of 2022: every runtime in use reads them
_LARGEST_HALF = 65504.0
_LEAST_WEIGHT = 1e-3  # as in `layers.unet2d`: an empty answer has no inside to average over


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        weights: safetensors in half precision.
        graph: the ONNX file.
        facts: JSON: ``step``, ``pack`` and ``config`` of the run, ``sha256`` of both files, and
            ``agreement``, which is empty until it is measured (benchmarks/precision.py).
    """

    weights: Path
    graph: Path
    facts: Path


def export(source: Path, folder: Path) -> Exported:
    """Write a run's result as ``NAME.safetensors``, ``NAME.onnx`` and ``NAME.json``.

    The same source gives the same bytes.

    Args:
        source: folder of a run, finished or not, or its weights file.
        folder: made if needed; older files of the name are replaced.

    Raises:
        CheckpointError: no weights there, damaged ones, or of another network.
        FormatError: the folder cannot be written.
        MissingDependency: onnx or safetensors is not installed.
    """
    for package in ("onnx", "safetensors"):
        errors.require(package, extra="train", purpose="export a network")
    path = _weights_file(source)
    weights, facts = read_weights(path)
    try:
        config = facts["config"]
        network = PromptableUNet2d(config["widths"], config["depths"])
        name = str(config["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not say what network it is of ({error}).") from error
    fill(network, weights, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"Cannot make the folder {folder}: {error.strerror}.") from error
    written = [folder / f"{name}{suffix}" for suffix in (".safetensors", ".onnx", ".json")]
    checkpoint.write_weights(written[0], network.state_dict(), facts)
    hashes = {written[0].name: hashlib.sha256(written[0].read_bytes()).hexdigest()}
    inside = {**facts, "weights_sha256": hashes[written[0].name]}
    export_onnx(network, written[1], facts=inside)
    hashes[written[1].name] = hashlib.sha256(written[1].read_bytes()).hexdigest()
    told = {**facts, "sha256": hashes, "agreement": {}}
    atomic_bytes(written[2], (json.dumps(told, indent=2, sort_keys=True) + "\n").encode())
    return Exported(*written)


def export_onnx(
    network: PromptableUNet2d, path: Path, *, facts: Mapping[str, Any] | None = None
) -> Path:
    """Write a network as ONNX; the same weights and facts give the same bytes.

    The input ``fused`` is (N, 7, H, W) of `limner.layers.unet2d.fuse`, H and W multiples of
    `network.stride`; the outputs are ``logits`` (N, 1, H, W) and ``quality`` (N,), the logit of the
    predicted IoU. All float32.

    Args:
        network: its weights are rounded to half precision in the file.
        path: ends in ``.onnx``.
        facts: JSON values by name, kept inside.

    Raises:
        CheckpointError: a weight is not finite in half precision.
        MissingDependency: onnx is not installed.
    """
    onnx = errors.require("onnx", extra="train", purpose="export a network")
    graph = _Graph(network.state_dict())
    _write_network(graph, network)
    sizes: list[int | str] = ["n", NUM_CHANNELS, "height", "width"]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "promptable_unet2d",
            [_port(INPUT, sizes)],
            [_port("logits", ["n", 1, "height", "width"]), _port("quality", ["n"])],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="limner",
    )
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (facts or {}).items()}
    onnx.helper.set_model_props(model, dict(sorted(texts.items())))
    onnx.checker.check_model(model, full_check=True)
    atomic_bytes(path, model.SerializeToString(deterministic=True))
    return path


def _weights_file(source: Path) -> Path:
    if not source.is_dir():
        if not source.exists():
            raise CheckpointError(f"There is no run or weights file {source}.")
        return source
    found = sorted(source.glob("*.safetensors")) or [
        p for p in sorted(source.glob("*.pt")) if p.name != "checkpoint.pt"
    ]
    if len(found) != 1:
        raise CheckpointError(f"{source} holds {len(found)} weights files; name the one to export.")
    return found[0]


def _port(name: str, shape: Sequence[int | str]) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


class _Graph:
    """Nodes and constants in the order they are asked for; tensors are known by name.

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
        """A weight of the network, in single precision for whoever uses it."""
        value = self._weights[name]
        return self.widened(name, value if shape is None else value.reshape(shape))

    def widened(self, name: str, value: Tensor) -> str:
        """A weight that is kept in half precision.

        Raises:
            CheckpointError: it is not finite in half precision.
        """
        from onnx import TensorProto

        full = value.detach().cpu().float()
        if not bool((full.abs() <= _LARGEST_HALF).all()):
            raise CheckpointError(f"The weight {name} is not finite in half precision.")
        self._keep(full.half().numpy(), name)
        return self.add("Cast", name, output=f"{name}.wide", to=TensorProto.FLOAT)

    def _keep(self, value: NDArray[Any], name: str) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def _write_network(graph: _Graph, network: PromptableUNet2d) -> None:
    """`PromptableUNet2d.forward`."""
    # ONNX folds pixels block first, PyTorch channel first: the stem's kernel is turned to match.
    kernel = network.stem.weight
    width, _, *size = kernel.shape
    kernel = kernel.reshape(width, NUM_CHANNELS, FOLD**2, *size).transpose(1, 2).flatten(1, 2)
    x = graph.add("SpaceToDepth", INPUT, blocksize=FOLD)
    x = _convolve(graph, x, "stem", network.stem, graph.widened("stem.weight", kernel))
    skips = []
    for i, level in enumerate(network.down):
        assert isinstance(level, nn.Sequential)
        for k, block in enumerate(level):
            x = _block(graph, x, f"down.{i}.{k}", block)
        skips.append(x)
    deepest = skips.pop()
    double = graph.constant(np.array([1, 1, 2, 2], np.float32))
    for i, (lift, block) in enumerate(zip(network.lift, network.up, strict=True)):
        y = _convolve(graph, x, f"lift.{i}", lift)
        y = graph.add("Resize", y, "", double, mode="linear")  # half_pixel is the default
        x = _block(graph, graph.add("Add", y, skips.pop()), f"up.{i}", block)
    folded = _convolve(graph, x, "to_logits", network.to_logits)
    graph.add("DepthToSpace", folded, output=OUTPUTS[0], blocksize=FOLD, mode="CRD")
    _quality(graph, deepest, x, folded)


def _convolve(graph: _Graph, x: str, name: str, layer: nn.Module, kernel: str | None = None) -> str:
    assert isinstance(layer, nn.Conv2d)
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


def _block(graph: _Graph, x: str, name: str, block: nn.Module) -> str:
    """`ResidualBlock.forward`."""
    assert isinstance(block, ResidualBlock)
    y = _convolve(graph, x, f"{name}.conv1", block.conv1)
    y = graph.add("Relu", _normalize(graph, y, f"{name}.norm1", block.norm1))
    y = _convolve(graph, y, f"{name}.conv2", block.conv2)
    y = _normalize(graph, y, f"{name}.norm2", block.norm2)
    if isinstance(block.shortcut, nn.Sequential):
        pool, layer = block.shortcut
        if isinstance(pool, nn.AvgPool2d):
            size = [int(block.conv1.stride[0])] * 2
            x = graph.add("AveragePool", x, kernel_shape=size, strides=size)
        x = _convolve(graph, x, f"{name}.shortcut.1", layer)
    return graph.add("Relu", graph.add("Add", y, x))


def _normalize(graph: _Graph, x: str, name: str, norm: nn.GroupNorm) -> str:
    """Group normalisation without reshaping, which would take the picture out of the memory layout
    that convolutions want: means per channel, mixed within each group by a small 1x1 convolution.
    """
    channels, groups = norm.num_channels, norm.num_groups
    size = channels // groups
    mix = graph.constant(np.full((channels, size, 1, 1), 1 / size, np.float32))
    mean = graph.add("Conv", graph.add("GlobalAveragePool", x), mix, group=groups)
    centred = graph.add("Sub", x, mean)
    squares = graph.add("GlobalAveragePool", graph.add("Mul", centred, centred))
    variance = graph.add("Conv", squares, mix, group=groups)
    epsilon = graph.constant(np.array(norm.eps, np.float32))
    deviation = graph.add("Sqrt", graph.add("Add", variance, epsilon))
    scale = graph.add("Div", graph.weight(f"{name}.weight", (1, channels, 1, 1)), deviation)
    shift = graph.weight(f"{name}.bias", (1, channels, 1, 1))
    return graph.add("Add", graph.add("Mul", centred, scale), shift)


def _quality(graph: _Graph, deepest: str, finest: str, folded: str) -> None:
    """`PromptableUNet2d._quality`."""
    plane, channel = graph.constant(np.array([2, 3])), graph.constant(np.array([1]))
    inside = graph.add("Sigmoid", graph.add("ReduceMean", folded, channel, keepdims=1))
    one = graph.constant(np.array(1, np.float32))
    rim = graph.add("Mul", inside, graph.add("Sub", one, inside))
    parts = [graph.add("ReduceMean", deepest, plane, keepdims=0)]
    least = graph.constant(np.array(_LEAST_WEIGHT, np.float32))
    for weights in (inside, rim):
        total = graph.add("Max", graph.add("ReduceSum", weights, plane, keepdims=0), least)
        weighed = graph.add("Mul", finest, weights)
        parts.append(graph.add("Div", graph.add("ReduceSum", weighed, plane, keepdims=0), total))
    judged = graph.add("Relu", _linear(graph, graph.add("Concat", *parts, axis=1), "judge.0"))
    graph.add("Squeeze", _linear(graph, judged, "to_quality"), channel, output=OUTPUTS[1])


def _linear(graph: _Graph, x: str, name: str) -> str:
    return graph.add(
        "Gemm", x, graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias"), transB=1
    )
