"""Inference runtimes: networks as functions from arrays to arrays, on whatever runs them best.

An exported file runs in OpenVINO on the CPU, a PyTorch module in PyTorch or, converted once, in
OpenVINO as well (`compile_module`). This package is the only place that imports OpenVINO; importing
it costs NumPy and nothing else.

On processors with bf16 instructions OpenVINO computes in bf16 unless set otherwise, and silently.
Here the precision is always stated, and bf16 is taken only where somebody has measured that the
masks stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from limner.runtime import _devices
from limner.runtime._cache import cache_folder
from limner.runtime._devices import HINT as DEVICE_HINT
from limner.runtime._devices import is_device, is_gpu
from limner.runtime._network import Network

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEVICE_HINT",
    "LEAST_AGREEMENT",
    "Network",
    "cache_folder",
    "choose_precision",
    "compile",
    "compile_module",
    "facts",
    "is_device",
    "is_gpu",
]

LEAST_AGREEMENT = 0.99  # mean Dice of masks against those of fp32, below which bf16 is not chosen


def compile(  # `runtime.compile(...)` is how it is called
    source: Path | torch.nn.Module,
    *,
    device: str = "auto",
    precision: str = "auto",
    agreement: Mapping[str, float] | None = None,
    example: Sequence[tuple[int, ...]] | None = None,
) -> Network:
    """Make a network ready to run.

    Args:
        source: an exported network, ``.onnx`` or OpenVINO's ``.xml``; or a PyTorch module, which
            is put into evaluation mode and moved to the device.
        device: ``"auto"``, ``"cpu"``, or, for a module, ``"mps"``, ``"cuda"`` or ``"cuda:N"``. For
            a module, auto means the GPU where there is one.
        precision: ``"fp32"``, ``"bf16"``, or ``"auto"``: see `choose_precision`.
        agreement: mean Dice of the masks against those of fp32, by precision, as measured with
            these weights; from the model's card.
        example: shapes of the inputs to run once on zeros before returning, so that the first
            answer takes no longer than the next.

    Raises:
        ValueError: unknown device or precision, or one that this machine does not have.
        CheckpointError: the file is missing, damaged or no network.
        MissingDependency: OpenVINO or PyTorch is not installed.
    """
    if isinstance(source, Path):
        from limner.runtime import _openvino

        if device not in ("auto", "cpu"):
            raise ValueError(
                f"Device {device!r} for {source.name}: an exported network runs on the CPU. Use "
                "auto or cpu, or give the PyTorch network."
            )
        native = _openvino.has_bf16()
        network: Network = _openvino.load(source, choose_precision(precision, agreement, native))
    else:
        from limner.runtime import _torch

        where = _devices.device_of(device)
        chosen = choose_precision(precision, agreement, _torch.has_bf16(where))
        network = _torch.load(source, where, chosen)
    if example is not None:
        network(*(np.zeros(shape, np.float32) for shape in example))
    return network


def compile_module(
    build: Callable[[], torch.nn.Module],
    *,
    key: str,
    inputs: Sequence[tuple[int | None, ...]],
    device: str = "auto",
    exact: bool = False,
    precision: str = "auto",
    remember: bool = False,
    examples: Sequence[tuple[int, ...]] | None = None,
) -> Network:
    """Make a published network ready to run, on the CPU by way of OpenVINO.

    The first time, the module is built and converted, and the result kept (`cache_folder`); from
    then on neither the module nor PyTorch nor the weights file are needed.

    Args:
        build: makes the module with its weights, on the CPU, in float32; float32 tensors in, a
            tensor or a tuple of them out. Called only where there is nothing kept, possibly again
            later. It should hold a path rather than weights.
        key: names everything that the module depends on apart from limner's own code: the hash of
            the weights file, which part of the network, options.
        inputs: a shape per input, None for a size that may change. Branches of Python code are
            taken as for the sizes (2, 3, 64, 64, …) in the places of None.
        device: ``"auto"``, ``"cpu"``, ``"mps"``, ``"cuda"`` or ``"cuda:N"``; auto means the GPU
            where there is one that PyTorch can use, else OpenVINO on the CPU.
        exact: compute as the authors do: PyTorch, operation by operation, float32.
        precision: ``"fp32"``, ``"bf16"``, or ``"auto"``: bf16 where the device has it. Only for
            networks whose answers were measured to stay the same, such as image encoders.
        remember: keep its answers on disk, each by the exact pixels it belongs to. In OpenVINO the
            network is then read only when it is asked something new.
        examples: shapes to take in place of (2, 3, 64, 64, …), for inputs whose open sizes depend
            on one another.

    Raises:
        ValueError: unknown device or precision, one that this machine does not have, or bf16
            together with `exact`.
        MissingDependency: PyTorch is needed and not installed, or OpenVINO is not.
        CheckpointError: from `build`.
    """
    if exact and precision == "bf16":
        raise ValueError("bf16 and exact exclude each other; exact means float32.")
    agreement = {} if exact else {"bf16": 1.0}
    if not exact and device in ("auto", "cpu") and not (device == "auto" and _devices.find_gpu()):
        from limner.runtime import _modules, _openvino

        chosen = choose_precision(precision, agreement, _openvino.has_bf16())
        network: Network = _modules.load(
            build, key, inputs, chosen, lazy=remember, examples=examples
        )
    else:
        from limner.runtime import _torch

        where = _devices.device_of(device)
        chosen = choose_precision(precision, agreement, _torch.has_bf16(where))
        network = _torch.load(build(), where, chosen, as_it_is=True)
    if remember:
        from limner.runtime import _embeddings

        return _embeddings.CachedEncoder(network, key)
    return network


def choose_precision(requested: str, agreement: Mapping[str, float] | None, has_bf16: bool) -> str:
    """``"fp32"`` or ``"bf16"``: the same on every start, and never bf16 without evidence.

    Args:
        requested: ``"fp32"``, ``"bf16"`` or ``"auto"``, which is bf16 where the processor has it
            and the masks were measured to stay the same.
        agreement: mean Dice of the masks against those of fp32, by precision.
        has_bf16: whether the device computes in bf16 natively.

    Raises:
        ValueError: unknown precision, or bf16 asked for where the device does not have it.
    """
    if requested not in ("auto", "fp32", "bf16"):
        raise ValueError(f"Unknown precision {requested!r}; use auto, fp32 or bf16.")
    if requested == "bf16" and not has_bf16:
        raise ValueError("This device does not compute in bf16; use fp32 or auto.")
    if requested == "auto":
        agreed = (agreement or {}).get("bf16", 0.0) >= LEAST_AGREEMENT
        return "bf16" if has_bf16 and agreed else "fp32"
    return requested


def facts() -> dict[str, str]:
    """What runs networks here, for people: version, processor, precision, cache folder and how
    much is in it.

    Raises:
        MissingDependency: OpenVINO is not installed.
    """
    from limner.runtime import _embeddings, _openvino

    shelves = {"networks": _openvino.DISK_CACHE, "embeddings": _embeddings.DISK_CACHE}
    kept = (
        f"{s.size() / 1e6:,.0f} of {s.most_bytes / 1e6:,.0f} MB {n}" for n, s in shelves.items()
    )
    return {**_openvino.facts(), "kept": ", ".join(kept)}
