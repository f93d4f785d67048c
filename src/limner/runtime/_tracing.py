"""Tracing of a PyTorch module by shapes, without computing it.

`torch.jit.trace` runs the module once to see its operations; for a ViT-B that is ten seconds and
2.8 GB on a laptop for a result that nobody uses. Here all that depends on the inputs is only
given its shape. What depends on the weights alone, such as a resized table of positions, is
computed, since the record may hold it as a constant.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

_log = logging.getLogger(__name__)


class _CannotSkip(Exception):
    """Something asks for a value that was not computed."""


def trace(module: torch.nn.Module, shapes: Sequence[tuple[int, ...]]) -> Any:
    """Record a module's operations.

    Args:
        module: float32 tensors in, a tensor or a tuple of them out; put into evaluation mode.
        shapes: of the inputs. Sizes that differ from one another are told apart in the record.

    Returns:
        The recorded module (`torch.jit.ScriptModule`), which shares the weights of the given one.
    """
    module.eval()
    try:
        with _Shapes() as mode, _plain_convolutions():
            inputs = tuple(mode.unknown(torch.empty(shape)) for shape in shapes)
            recorded = _record(module, inputs)
        if not mode.left_in(recorded.inlined_graph):
            return recorded
        _log.info("Values of the inputs are part of the record; it is made by running once.")
    except Exception as error:  # of the trick, or the module's own, which then comes again
        _log.info("Recorded by running once, since %s: %s", type(error).__name__, error)
    return _record(module, tuple(torch.zeros(shape) for shape in shapes))


def _record(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that Python's branches are not recorded; deprecation
        record: Any = torch.jit.trace  # which has no types
        return record(module, inputs, check_trace=False, strict=False)


class _Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Leaves out the computation of all that depends on tensors marked as unknown."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept: list[torch.Tensor] = []  # so that no other tensor gets the place of one
        self._places: set[int] = set()
        # Sizes asked for in the recording thread would be recorded.
        self._aside = ThreadPoolExecutor(1)

    def unknown(self, tensor: torch.Tensor) -> torch.Tensor:
        """Mark a tensor as one whose values do not count."""
        self._kept.append(tensor)
        self._places.add(tensor.untyped_storage().data_ptr())
        return tensor

    def left_in(self, graph: Any) -> bool:
        """Whether a record holds a constant that was not computed."""
        constants = graph.findAllNodes("prim::Constant")
        held = [c for c in constants if c.hasAttribute("value") and c.kindOf("value") == "t"]
        return any(self._is_unknown(node.t("value")) for node in held)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._aside.shutdown()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One operation, without the ones it consists of."""
        kwargs = kwargs or {}
        skipped, result = self._aside.submit(self._skip, func, args, kwargs).result()
        return result if skipped else func(*args, **kwargs)

    def _is_unknown(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._places

    def _skip(self, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[bool, Any]:
        """Whether to leave an operation out, and its result if so."""
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if torch.is_tensor(leaf)]
        if func.is_view or not any(self._is_unknown(tensor) for tensor in tensors):
            return False, None
        if torch.Tag.data_dependent_output in func.tags:
            raise _CannotSkip(str(func))
        changed = [a for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
        if changed:
            if len(changed) > 1 or changed[0].name != "self":
                raise _CannotSkip(str(func))
            return True, self.unknown(args[0])
        with torch.no_grad():
            args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
            if "device" in kwargs:
                kwargs["device"] = torch.device("meta")
            return True, tree_map_only(torch.Tensor, self._empty, func(*args, **kwargs))

    def _empty(self, shape: torch.Tensor) -> torch.Tensor:
        # Memory that is never touched takes no room. One element more: empty ones have no place.
        made = torch.empty(_extent(shape) + 1, dtype=shape.dtype)
        return self.unknown(made).as_strided(shape.size(), shape.stride())


def _extent(tensor: torch.Tensor) -> int:
    """Elements between the first and the last of a tensor, both included."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return 0 if tensor.numel() == 0 else 1 + sum((n - 1) * step for n, step in pairs)


@contextlib.contextmanager
def _plain_convolutions() -> Iterator[None]:
    """PyTorch records a convolution by an inner step, which is not reached when it is left out;
    so that step is called at once.
    """
    functional: Any = torch.nn.functional
    names = {f"conv{n}d": (n, False) for n in (1, 2, 3)}
    names |= {f"conv_transpose{n}d": (n, True) for n in (1, 2, 3)}
    before = {name: getattr(functional, name) for name in names}
    for name, (ndim, transposed) in names.items():
        setattr(functional, name, _convolution(before[name], ndim, transposed))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(functional, name, function)


def _convolution(original: Any, ndim: int, transposed: bool) -> Any:
    def each(value: Any) -> list[int]:
        return [value] * ndim if isinstance(value, int) else list(value)

    def forward(x: Any, weight: Any, bias: Any = None, *rest: Any, **named: Any) -> Any:
        order = ("stride", "padding") + (("output_padding", "groups", "dilation") if transposed
                                         else ("dilation", "groups"))  # fmt: skip
        given = dict(zip(order, rest, strict=False)) | named
        if isinstance(given.get("padding", 0), str):
            return original(x, weight, bias, **given)
        return torch._convolution(
            x, weight, bias,
            each(given.get("stride", 1)), each(given.get("padding", 0)),
            each(given.get("dilation", 1)), transposed, each(given.get("output_padding", 0)),
            given.get("groups", 1), False, False, False, False,
        )  # fmt: skip

    return forward
