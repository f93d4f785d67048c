"""Conversion of PyTorch modules for OpenVINO, once; later starts need neither them nor PyTorch.

By OpenVINO's front end for PyTorch itself; its `convert_model` does the same and tells Google.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import errors
from limner.runtime import _openvino

if TYPE_CHECKING:
    import torch

Shape = tuple[int | None, ...]

# Sizes that stand in for open ones while a module is recorded: apart from one another and from 1,
# so that nothing is taken for a constant or for broadcasting that is not meant so.
_BATCH, _COUNT, _SIDE = 2, 3, 64

_LARGE = 1 << 12  # elements; smaller weights are not worth the trouble
_MULTIPLIES = {"MatMul", "Convolution", "GroupConvolution"}  # transposed ones stay in float32

# What sets files that define networks, their sizes and parts, or convert them, apart from others.
_DEFINES = re.compile(
    rb"^(import|from) torch\b|^ *class \w+\(.*Module\b|\bnn\.Module\b|TorchScript"
    rb"|\bPart\(|\bmake_network\b|^class (Sizes|Plan)\b",
    re.MULTILINE,
)


def load(
    build: Callable[[], torch.nn.Module],
    key: str,
    inputs: Sequence[Shape],
    precision: str,
    *,
    lazy: bool = False,
    examples: Sequence[tuple[int, ...]] | None = None,
) -> _openvino.OpenVinoNetwork:
    """A module in OpenVINO, from the cache if it was converted before.

    Args:
        build: makes the module with its weights, on the CPU.
        key: names what the module depends on, apart from limner's code.
        inputs: shapes, None for an open size.
        precision: ``"fp32"`` or ``"bf16"``.
        lazy: read or convert it at the first input; what is raised is raised there.
        examples: shapes to record with; None: sizes that are apart from one another.

    Raises:
        MissingDependency: it was not converted before and PyTorch is not installed.
    """
    entry = _openvino.cache_key("module", key, repr([tuple(s) for s in inputs]), precision, code())
    make = partial(_compile, build, entry, inputs, precision, examples)
    return _openvino.OpenVinoNetwork(make, precision, lazy=lazy)


def _compile(
    build: Callable[[], torch.nn.Module],
    entry: str,
    inputs: Sequence[Shape],
    precision: str,
    examples: Sequence[tuple[int, ...]] | None,
) -> _openvino.Compiled:
    found = _openvino.imported(entry, precision)
    if found is not None:
        return found
    errors.require("torch", extra="torch", purpose="use this model for the first time")
    made = _made(build, inputs, precision, examples)
    if not _openvino.keep(entry, made):
        return made
    # The kept one needs less memory. The module goes first, which is part of cycles.
    del made
    gc.collect()
    again = _openvino.imported(entry, precision)
    if again is None:  # dropped by another process in this moment
        return _made(build, inputs, precision, examples)
    return again


def _made(
    build: Callable[[], torch.nn.Module],
    inputs: Sequence[Shape],
    precision: str,
    examples: Sequence[tuple[int, ...]] | None,
) -> _openvino.Compiled:
    model = _converted(build(), inputs, examples or [_example(shape) for shape in inputs])
    if precision == "bf16":
        _round_weights(model)
    return _openvino.compiled(model, precision)


def _converted(
    module: torch.nn.Module, inputs: Sequence[Shape], examples: Sequence[tuple[int, ...]]
) -> Any:
    """OpenVINO's form of a module, which shares its weights."""
    library = _openvino.openvino()  # first, since the front end imports it
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from limner.runtime import _tracing

    recorded = _tracing.trace(module, examples)
    reader = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(recorded)  # named, or it is gone before it is asked
    model = reader.convert(reader.load(decoder))
    for port, shape in zip(model.inputs, inputs, strict=True):
        node = port.get_node()
        node.set_element_type(library.Type.f32)
        node.set_partial_shape(library.PartialShape([-1 if n is None else n for n in shape]))
    model.validate_nodes_and_infer_types()
    return model


def _round_weights(model: Any) -> None:
    """Hold in bf16 the weights that are only ever multiplied in bf16.

    The answers are the same to the bit; the kept network, its memory and the time to read it are
    half of what they were.
    """
    import torch

    library = _openvino.openvino()
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != library.Type.f32:
            continue
        users = [port.get_node().get_type_name() for port in node.output(0).get_target_inputs()]
        if node.data.size < _LARGE or not set(users) <= _MULTIPLIES:
            continue
        rounded = torch.from_numpy(node.data.copy()).bfloat16().view(torch.int16).numpy()
        tensor = library.Tensor(rounded, list(rounded.shape), library.Type.bf16)
        constant = library.op.Constant(tensor, shared_memory=False)
        widened = opset13.convert(constant, library.Type.f32)
        widened.get_rt_info()["decompression_0"] = ""  # or it is computed while compiling
        for port in node.output(0).get_target_inputs():
            port.replace_source_output(widened.output(0))
    model.validate_nodes_and_infer_types()


def _example(shape: Shape) -> tuple[int, ...]:
    instead = (_BATCH, _COUNT)
    return tuple(
        n if n is not None else instead[axis] if axis < len(instead) else _SIDE
        for axis, n in enumerate(shape)
    )


@functools.cache
def code() -> str:
    """Hash of the code that defines networks, so that a changed one is converted again."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for folder in ("networks", "adapters", "models", "runtime"):
        for path in sorted((package / folder).rglob("*.py")):
            text = path.read_bytes()
            if _DEFINES.search(text):
                digest.update(path.relative_to(package).as_posix().encode() + text)
    return digest.hexdigest()
