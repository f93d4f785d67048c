"""Which processor runs a network: the graphics processor that PyTorch can use, or the CPU."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from typing import TYPE_CHECKING, Any

from limner import errors

if TYPE_CHECKING:
    import torch

HINT = "use auto, cpu, mps, cuda or cuda:N"
_KNOWN = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def is_device(name: str) -> bool:
    """Whether a device is called so, here or elsewhere."""
    return _KNOWN.fullmatch(name) is not None


def is_gpu(name: str) -> bool:
    """Whether a name asks for a graphics processor."""
    return name.startswith(("cuda", "mps"))


def find_gpu() -> str | None:
    """``"cuda"``, ``"mps"`` or None: what PyTorch can use, found out without importing PyTorch on
    machines that have neither.
    """
    if not (_has_cuda_driver() or _is_apple_silicon()):
        return None
    try:
        import torch
    except ImportError:
        return None
    return best_gpu(torch)


def best_gpu(library: Any) -> str | None:
    """``"cuda"``, ``"mps"`` or None, as PyTorch (`library`) says."""
    if library.cuda.is_available():
        return "cuda"
    return "mps" if library.backends.mps.is_available() else None


def device_of(name: str) -> torch.device:
    """The device, auto being the graphics processor where there is one.

    Raises:
        ValueError: no such device, or PyTorch cannot use it here.
    """
    library = errors.require("torch", extra="torch", purpose="run this network")
    if not is_device(name):
        raise ValueError(f"Unknown device {name!r}; {HINT}.")
    device: torch.device = library.device((best_gpu(library) or "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= library.cuda.device_count():
        count = library.cuda.device_count()
        raise ValueError(f"Device {name!r} asked for, but PyTorch sees {count} GPUs; use cpu.")
    if device.type == "mps" and not library.backends.mps.is_available():
        raise ValueError(f"Device {name!r} asked for, but PyTorch cannot use Metal here; use cpu.")
    return device


def _has_cuda_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _is_apple_silicon() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"
