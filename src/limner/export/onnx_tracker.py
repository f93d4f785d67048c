"""The parts of a network that follows objects as ONNX graphs; see `limner.export.onnx_graph`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch import nn

from limner.export.onnx_graph import OUTPUTS, Graph, block, convolve, enlarged, folded_stem, quality
from limner.networks.fusion2d import LOGIT_SCALE, MASK_LOGIT
from limner.networks.tracker2d import FrameEncoder, MaskDecoder, MemoryEncoder, TrackerNetwork
from limner.networks.tracker_facts import (
    KEY,
    LEVEL,
    PLACE_AXES,
    PLACE_RANGE,
    STRIDE,
    VALUE,
    VALUE_LEARNT,
)

PARTS = ("frame", "memory", "reader", "decoder")

Ends = tuple[tuple[str, ...], tuple[str, ...]]

_FRAME: Ends = (("image",), ("key", "shrinkage", "selection", "features"))
_MEMORY: Ends = (("features", "mask", "given"), ("value",))
_READER: Ends = (("asked", "remembered", "known"), ("said",))
_DECODER: Ends = (("image", "before", "past", "readout"), OUTPUTS)


def written(network: TrackerNetwork) -> Iterator[tuple[Graph, Ends]]:
    """The parts, in the order of `PARTS`, with the names of their inputs and outputs."""
    frame, memory, decoder = network.frame, network.memory, network.decoder
    graphs = [Graph(part.state_dict()) for part in (frame, memory, decoder)]
    write_frame(graphs[0], frame)
    yield graphs[0], _FRAME
    write_memory(graphs[1], memory)
    yield graphs[1], _MEMORY
    write_reader(reader := Graph({}))
    yield reader, _READER
    write_decoder(graphs[2], decoder)
    yield graphs[2], _DECODER


def ports(network: TrackerNetwork) -> dict[str, list[int | str]]:
    """Shapes of all inputs and outputs by name."""
    grid, memory, terms = ["height", "width"], ["rows", "columns"], 2 * (KEY + PLACE_AXES) + 1
    return {
        "image": ["n", 3, *grid],
        "before": ["n", 1, *grid],
        "past": ["n", 3, *grid],
        "mask": ["n", 1, *grid],
        "given": ["n", 1, 1, 1],
        "key": ["n", KEY, *memory],
        "shrinkage": ["n", 1, *memory],
        "selection": ["n", KEY + PLACE_AXES, *memory],
        "features": ["n", network.frame.lift.out_channels, *memory],
        "value": ["n", VALUE, *memory],
        "asked": ["asked", terms],
        "remembered": [terms, "remembered"],
        "known": ["remembered", VALUE],
        "said": ["asked", VALUE],
        "readout": ["n", VALUE, *memory],
        OUTPUTS[0]: ["n", 1, *grid],
        OUTPUTS[1]: ["n"],
    }


def write_frame(graph: Graph, network: FrameEncoder) -> None:
    """`FrameEncoder.forward`."""
    x = folded_stem(graph, "image", network.stem)
    finer = x
    for i, level in enumerate(network.down):
        finer = x
        x = _level(graph, x, i, level)
    wide = enlarged(graph, convolve(graph, x, "lift", network.lift))
    graph.add("Relu", graph.add("Add", finer, wide), output="features")
    _head(graph, network, "to_key", "key")
    one = graph.constant(np.array(1, np.float32))
    raw = convolve(graph, "features", "to_shrinkage", network.to_shrinkage)
    graph.add("Add", graph.add("Mul", raw, raw), one, output="shrinkage")
    chosen = convolve(graph, "features", "to_selection", network.to_selection)
    scale = np.ones((1, KEY + PLACE_AXES, 1, 1), np.float32)
    scale[:, KEY:] = PLACE_RANGE
    shares = graph.add("Sigmoid", chosen)
    graph.add("Mul", shares, graph.constant(scale), output="selection")


def write_memory(graph: Graph, network: MemoryEncoder) -> None:
    """`MemoryEncoder.forward`."""
    two = graph.constant(np.array(2, np.float32))
    one = graph.constant(np.array(1, np.float32))
    folded = graph.add("SpaceToDepth", "mask", blocksize=STRIDE)
    shown = graph.add("Sub", graph.add("Mul", folded, two), one)
    # The flag is the same everywhere: what the fusing layer makes of it is a shift per channel.
    kernel, last = graph.weight("fuse.weight"), network.fuse.in_channels - 1
    bounds = [graph.constant(np.array([n])) for n in (0, last, last + 1, 1)]
    own = graph.add("Slice", kernel, bounds[0], bounds[1], bounds[3])
    flag = graph.add("Slice", kernel, bounds[1], bounds[2], bounds[3])
    x = convolve(graph, graph.add("Concat", "features", shown, axis=1), "fuse", network.fuse, own)
    shift = graph.add("Transpose", flag, perm=[1, 0, 2, 3])
    x = graph.add("Add", x, graph.add("Mul", shift, "given"))
    x = convolve(graph, block(graph, x, "block", network.block), "to_value", network.to_value)
    size = STRIDE // 2
    means = graph.add("AveragePool", "mask", kernel_shape=[size, size], strides=[size, size])
    label = graph.add("SpaceToDepth", means, blocksize=2)
    graph.add("Concat", x, label, axis=1, output="value")


def write_reader(graph: Graph) -> None:
    """`MemoryReader.forward`."""
    near = graph.add("MatMul", "asked", "remembered")
    graph.add("MatMul", graph.add("Softmax", near, axis=1), "known", output="said")


def write_decoder(graph: Graph, network: MaskDecoder) -> None:
    """`MaskDecoder.forward`."""
    bounds = [graph.constant(np.array([n])) for n in (VALUE_LEARNT, VALUE, 1)]
    label = graph.add("Slice", "readout", *bounds)
    quarter = graph.add("DepthToSpace", label, blocksize=2, mode="CRD")
    times = graph.constant(np.array([1, 1, STRIDE / 2, STRIDE / 2], np.float32))
    share = graph.add("Resize", quarter, "", times, mode="linear")
    two = graph.constant(np.array(2, np.float32))
    one = graph.constant(np.array(1, np.float32))
    prior = graph.add("Sub", graph.add("Mul", share, two), one)
    rough = graph.constant(np.array(math.tanh(MASK_LOGIT / LOGIT_SCALE), np.float32))
    before = graph.add("Mul", "before", rough)
    x = folded_stem(
        graph, graph.add("Concat", "image", before, prior, "past", axis=1), network.stem
    )
    skips = []
    for i, level in enumerate(network.down):
        x = _level(graph, x, i, level)
        if i == LEVEL:
            told = convolve(graph, "readout", "told", network.told)
            x = graph.add("Relu", graph.add("Add", x, told))
        skips.append(x)
    deepest = skips.pop()
    for i, (lift, up) in enumerate(zip(network.lift, network.up, strict=True)):
        wide = enlarged(graph, convolve(graph, x, f"lift.{i}", lift))
        x = block(graph, graph.add("Add", wide, skips.pop()), f"up.{i}", up)
    folded = convolve(graph, x, "to_logits", network.to_logits)
    graph.add("DepthToSpace", folded, output=OUTPUTS[0], blocksize=2, mode="CRD")
    quality(graph, deepest, x, folded)


def _level(graph: Graph, x: str, number: int, level: nn.Module) -> str:
    assert isinstance(level, nn.Sequential)
    for k, one in enumerate(level):
        x = block(graph, x, f"down.{number}.{k}", one)
    return x


def _head(graph: Graph, network: FrameEncoder, name: str, output: str) -> None:
    found = convolve(graph, "features", name, getattr(network, name))
    graph.add("Identity", found, output=output)
