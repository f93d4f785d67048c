"""OpenVINO runtime on the CPU: exported files, and what `_modules` converts."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner import errors
from limner.errors import CheckpointError
from limner.runtime import _cache

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_PATIENCE_MS = 100  # a Ctrl-C is answered within it, also in the middle of a long pass

# A file with weights, as ONNX graphs name it: a pair of protobuf strings, each after its length.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])([\x20-\xff]{1,127})")
_TELEMETRY = "openvino_telemetry"

# The published models in both precisions are some 4 GB; with less room the large ones would push
# one another out at every change of model.
DISK_CACHE = _cache.DiskCache(
    "compiled", ".compiled", 6 * 2**30, "every start compiles networks again"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Compiled:
    """A network of OpenVINO's, a request to run it, and the memory that it may point into."""

    network: Any
    request: Any
    memory: object = None


class OpenVinoNetwork:
    """A compiled network; calls from several threads wait for one another, as each uses all cores.

    Args:
        make: compiles it.
        precision: ``"fp32"`` or ``"bf16"``.
        lazy: compile it at the first call.

    Attributes:
        description: version and precision.
    """

    def __init__(self, make: Callable[[], Compiled], precision: str, *, lazy: bool = False) -> None:
        self.description = f"OpenVINO {version()}, {precision}"
        self._make = make
        self._compiled: Compiled | None = None if lazy else make()
        self._lock = threading.Lock()

    def __call__(self, *inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """See `limner.runtime.Network`."""
        arrays = [np.ascontiguousarray(array) for array in inputs]
        with self._lock:
            compiled = self._compiled or self._make()
            self._check(compiled, arrays)
            # A pass that fails or is interrupted leaves shapes behind in the compiled network, so
            # that the next one, of any request, fails or returns an old answer. Seen in 2026.4.
            self._compiled = None
            _finish(compiled.request, arrays)
            self._compiled = compiled
            return tuple(
                np.array(compiled.request.get_output_tensor(k).data, dtype=np.float32)
                for k in range(len(compiled.network.outputs))
            )

    @staticmethod
    def _check(compiled: Compiled, arrays: list[NDArray[Any]]) -> None:
        wanted = [port.partial_shape for port in compiled.network.inputs]
        if len(arrays) != len(wanted):
            raise ValueError(f"{len(arrays)} inputs given; the network takes {len(wanted)}.")
        for array, shape in zip(arrays, wanted, strict=True):
            if array.dtype != np.float32:
                raise ValueError(f"An input is of type {array.dtype}; networks take float32.")
            if not shape.compatible(openvino().PartialShape(array.shape)):
                raise ValueError(f"An input has shape {array.shape}; the network takes {shape}.")


def load(path: Path, precision: str) -> OpenVinoNetwork:
    """Read and compile a file, or take what was compiled before.

    Args:
        path: ``.onnx`` or ``.xml``.
        precision: ``"fp32"`` or ``"bf16"``.

    Raises:
        CheckpointError: missing, damaged or no network.
    """
    return OpenVinoNetwork(partial(_compile, path, precision), precision)


def _compile(path: Path, precision: str) -> Compiled:
    key = _key(path, precision)
    found = imported(key, precision)
    if found is not None:
        return found
    try:
        network = compiled(_read(path), precision)
    except Exception as error:  # its readers raise kinds of their own
        raise CheckpointError(
            f"{path} is damaged or no exported network: {_reason(error)}"
        ) from error
    keep(key, network)
    return network


def compiled(model: Any, precision: str) -> Compiled:
    """Compile a network that was read or converted."""
    network = _core().compile_model(model, "CPU", _properties(precision))
    return Compiled(network, network.create_infer_request())


def keep(key: str, compiled: Compiled) -> bool:
    """Put a compiled network into the cache; whether that was possible."""
    try:
        return DISK_CACHE.write(key, compiled.network.export_model)
    except RuntimeError as error:  # a network that cannot be exported only starts more slowly
        _log.info("A compiled network is not kept: %s", _reason(error))
        return False


def imported(key: str, precision: str) -> Compiled | None:
    """A network compiled before."""
    array = DISK_CACHE.read(key)
    if array is None:
        return None
    tensor = openvino().Tensor(array)
    try:
        network = _core().import_model(tensor, "CPU", _properties(precision))
    except RuntimeError as error:
        _log.info("A compiled network is of no use any more: %s", _reason(error))
        del tensor, array
        DISK_CACHE.forget(key)
        return None
    _cache.release(array)  # OpenVINO has its own form of the weights by now
    return Compiled(network, network.create_infer_request(), (tensor, array))


def has_bf16() -> bool:
    """Whether the processor has bf16 instructions; others would only imitate them."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def version() -> str:
    """Such as ``2026.4.1``."""
    return str(openvino().__version__).partition("-")[0]


def facts() -> dict[str, str]:
    """For people; see `limner.runtime.facts`."""
    return {
        "runtime": f"OpenVINO {version()}",
        "processor": str(_core().get_property("CPU", "FULL_DEVICE_NAME")).strip(),
        "precision": "fp32, bf16" if has_bf16() else "fp32",
        "cache": str(_cache.cache_folder() or "none: this user has no home folder"),
    }


@functools.cache
def openvino() -> Any:
    """The package, without what reports on its users.

    `import openvino` makes a file in the user's home and tells Google Analytics that it was
    imported, unless the package openvino_telemetry is missing; so, for that moment, it is missing.
    """
    modules: Any = sys.modules
    before = modules.get(_TELEMETRY, modules)
    modules[_TELEMETRY] = None
    try:
        return errors.require("openvino", extra="all", purpose="run a network on the CPU")
    finally:
        if before is modules:
            del modules[_TELEMETRY]
        else:
            modules[_TELEMETRY] = before


@functools.cache
def _core() -> Any:
    return openvino().Core()


def _read(path: Path) -> Any:
    """The uncompiled network.

    Not by `Core.read_model`, which tries all formats it knows on a damaged file, some of which
    write to the terminal.
    """
    from openvino.frontend import FrontEndManager

    reader = FrontEndManager().load_by_framework("ir" if path.suffix == ".xml" else "onnx")
    model = reader.convert(reader.load(path))
    if not model.inputs or not model.outputs:  # as of an empty file
        raise ValueError("it has no inputs or no outputs")
    return model


def _properties(precision: str) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",  # one request at a time, on all physical cores
        "NUM_STREAMS": 1,
        # Threads bound to cores gain nothing measurable and lose where a viewer shares them.
        "ENABLE_CPU_PINNING": False,
    }
    threads = _most_threads()
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    return properties


def _most_threads() -> int | None:
    """Threads where fewer are allowed than OpenVINO would use; None to let it choose.

    OpenVINO heeds the processors a process is bound to, but not the share of time that a container
    is given, nor the variable by which shared machines tell every program how many to use.
    """
    limits = [_quota(Path("/sys/fs/cgroup"))]
    variable = os.environ.get("OMP_NUM_THREADS", "")
    limits.append(int(variable) if variable.isascii() and variable.isdecimal() else None)
    allowed = [n for n in limits if n]
    bound = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    count = len(bound) or os.cpu_count() or 1
    return min(allowed) if allowed and min(allowed) < count else None


def _quota(root: Path) -> int | None:
    """Processors' worth of time that the control group allows, rounded up; None for no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((root / name).read_text() for name in names).split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # "max" is no number: no limit
            continue
        if quota > 0 and period > 0:
            return -(-quota // period)
    return None


def _key(path: Path, precision: str) -> str:
    """What a compiled network depends on.

    Raises:
        CheckpointError: the file cannot be read.
    """
    file, digest = path, hashlib.sha256()
    try:
        graph = path.read_bytes()
        digest.update(graph)
        for file in _weights_beside(path, graph):
            digest.update(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(
            f"{path} takes its weights from another folder; export it anew."
        ) from error
    except OSError as error:
        missing = "" if file == path else f", which holds the weights of {path.name}"
        raise CheckpointError(
            f"Cannot read the network {file}{missing}: {error.strerror}."
        ) from error
    return cache_key(digest.hexdigest(), path.suffix, precision)


def _weights_beside(path: Path, graph: bytes) -> list[Path]:
    """The files that a graph takes its weights from: OpenVINO's ``.bin``, ONNX's external data."""
    if path.suffix == ".xml":
        return [path.with_suffix(".bin")]
    found = {match[2][: match[1][0]] for match in _LOCATION.finditer(graph)}
    return [path.with_name(os.fsdecode(name)) for name in sorted(found)]


def cache_key(*parts: str) -> str:
    """The name of an entry: of the parts, this version of OpenVINO and this processor, since homes
    may be shared between machines.
    """
    name = _core().get_property("CPU", "FULL_DEVICE_NAME")
    whole = "|".join((openvino().__version__, str(name), *parts))
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def _finish(request: Any, arrays: list[NDArray[np.float32]]) -> None:
    """Run a request to its end, or stop it if the user interrupts."""
    try:
        request.start_async(dict(enumerate(arrays)), share_inputs=True)
        while not request.wait_for(_PATIENCE_MS):
            pass
        request.wait()  # raises what went wrong
    except RuntimeError as error:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"The network cannot take {shapes}: {_reason(error)}") from error
    except BaseException:
        request.cancel()
        with contextlib.suppress(RuntimeError):  # that it was cancelled
            request.wait()
        raise


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's message, which is the one that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
