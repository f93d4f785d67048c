"""PyTorch runtime: modules as they are, on the CPU or a GPU."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner import errors

if TYPE_CHECKING:
    import torch

# Images that a GPU encodes together. On CPUs nothing is gained: see docs/published.md.
AT_ONCE = 4


class TorchNetwork:
    """A module in evaluation mode.

    Args:
        module: tensors in, a tensor or a tuple of them out.
        device: it is moved there.
        precision: ``"fp32"`` or ``"bf16"``, which is autocast.
        as_it_is: leave tensors in their usual order in memory; else channels come last, which is
            faster, but for networks that take views of tensors.

    Attributes:
        description: version, device and precision.
        at_once: how many images are worth passing together.
    """

    def __init__(
        self, module: torch.nn.Module, device: torch.device, precision: str, as_it_is: bool
    ) -> None:
        torch = _torch()
        self.description = f"PyTorch {torch.__version__} on {device}, {precision}"
        self.at_once = 1 if device.type == "cpu" else AT_ONCE
        self._module = module.eval().to(device)
        self._arranged = _contiguous if as_it_is else _channels_last
        for parameter in self._module.parameters():
            parameter.data = self._arranged(parameter.data)
        self._device = device
        self._precision = precision

    def __call__(self, *inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """See `limner.runtime.Network`."""
        torch = _torch()
        for array in inputs:
            if array.dtype != np.float32:
                raise ValueError(f"An input is of type {array.dtype}; networks take float32.")
        tensors = [
            self._arranged(torch.from_numpy(np.ascontiguousarray(array)).to(self._device))
            for array in inputs
        ]
        low = torch.autocast(self._device.type, torch.bfloat16)
        with torch.inference_mode(), low if self._precision == "bf16" else contextlib.nullcontext():
            outputs = self._module(*tensors)
        if isinstance(outputs, torch.Tensor):
            outputs = (outputs,)
        return tuple(np.ascontiguousarray(output.float().cpu().numpy()) for output in outputs)


def load(
    module: torch.nn.Module, device: torch.device, precision: str, *, as_it_is: bool = False
) -> TorchNetwork:
    """Put a module to use; see `TorchNetwork`."""
    return TorchNetwork(module, device, precision, as_it_is)


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 natively."""
    if device.type == "cuda":
        return bool(_torch().cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return False  # nobody has measured it
    from limner.runtime import _openvino  # PyTorch does not tell instructions from imitation

    return _openvino.has_bf16()


def _torch() -> Any:
    return errors.require("torch", extra="torch", purpose="run this network")


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous()


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    torch = _torch()
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(tensor.ndim, torch.preserve_format)
    return tensor.contiguous(memory_format=wanted) if tensor.ndim in formats else tensor
