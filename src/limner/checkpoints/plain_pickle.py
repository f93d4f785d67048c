"""Safe reader of pickled NumPy arrays: nothing is imported, constructed or called.

NumPy stores lists of dictionaries as a pickle of an array of objects. Of what a pickle can name
only NumPy's own arrays, numbers and types are understood here; anything else is refused.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from limner.checkpoints._pickle import _Damaged, _Machine

_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_NAMES = ("_reconstruct", "ndarray", "dtype", "scalar")
_TYPES = re.compile(r"[biuf][1248]|U\d{1,4}|O8?")
_MOST_VALUES = 1 << 20
_DEEPEST = 8  # lists in lists


class Refused(ValueError):
    """Something that is no plain value; the message completes "KEY …"."""


@dataclass(frozen=True)
class _Name:
    name: str


@dataclass(eq=False)
class _Type:
    code: str
    order: str = "|"


@dataclass(eq=False)
class _Array:
    values: Any = None


class _Reader(_Machine):
    """The stack machine with NumPy's few names."""

    def named(self, module: Any, name: Any) -> None:
        """GLOBAL, STACK_GLOBAL: NumPy's own names; others end the reading."""
        if module not in _MODULES or name not in _NAMES:
            raise Refused(f"names {module}.{name}, and nothing is run here")
        self.stack.append(_Name(name))

    def call(self, *, extra: int = 0) -> None:
        """REDUCE: an array, a type or a number."""
        target, arguments, *_ = self.pop(2 + extra)
        if not isinstance(target, _Name) or not isinstance(arguments, tuple):
            raise Refused("holds a call that NumPy does not write")
        match target.name, arguments:
            case "_reconstruct", _:
                self.stack.append(_Array())
            case "dtype", (str(code), *_) if _TYPES.fullmatch(code):
                self.stack.append(_Type(code))
            case "scalar", (_Type() as kind, bytes(content)):
                self.stack.append(_numbers(kind, content, 1)[0])
            case _:
                raise Refused(f"holds a {target.name} that is no plain value")

    def build(self) -> None:
        """BUILD: the values of an array, or the byte order of a type."""
        state = self.pop(1)[0]
        target = self.stack[-1] if self.stack else None
        match target, state:
            case _Type(), (_, str(order), *_) if order in ("<", ">", "|", "="):
                target.order = order
            case _Array(), (_, tuple(shape), _Type() as kind, _, content):
                target.values = _filled(shape, kind, content)
            case _:
                raise Refused("holds an object with a state of its own")

    def stored(self) -> None:
        """BINPERSID: nothing lies elsewhere."""
        raise Refused("points to something outside the file")

    def instance(self, name: str) -> None:
        """INST, OBJ: an object of an old kind."""
        raise Refused(f"holds {name}")


def read_plain(pickled: bytes) -> Any:
    """What an array of objects holds: lists, dictionaries, numbers, texts and None.

    Args:
        pickled: the content of an ``.npy`` file of objects behind its header.

    Raises:
        Refused: it is damaged, or holds anything else.
    """
    try:
        value = _Reader().run(io.BytesIO(pickled))
    except Refused:
        raise
    except (_Damaged, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise Refused(f"is damaged ({error or type(error).__name__})") from error
    return _plain(value, 0, [_MOST_VALUES])


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        raise Refused("holds too many values, or lists within lists")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, _Array):
        return _plain(value.values, depth, left)
    if isinstance(value, list | tuple):
        return [_plain(one, depth + 1, left) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one, depth + 1, left) for key, one in value.items()}
    raise Refused("holds something that is no list, dictionary, number or text")


def _filled(shape: tuple[Any, ...], kind: _Type, content: Any) -> Any:
    """Nested lists of the values of an array in C order; a single value for no axes."""
    if not all(type(n) is int and 0 <= n <= _MOST_VALUES for n in shape):
        raise Refused("holds an array with an impossible shape")
    size = int(np.prod(shape, dtype=np.int64))
    values = content if isinstance(content, list) else _numbers(kind, content, size)
    if len(values) != size or size > _MOST_VALUES:
        raise Refused("holds an array that does not fill its shape")
    for length in reversed(shape[1:]):
        values = [values[k : k + length] for k in range(0, len(values), length or 1)]
    return values if shape else values[0]


def _numbers(kind: _Type, content: Any, count: int) -> list[Any]:
    if kind.code.startswith("O") or not isinstance(content, bytes):
        raise Refused("holds an array without values")
    dtype = np.dtype(kind.code).newbyteorder("=" if kind.order == "|" else kind.order)  # type: ignore[arg-type]
    if len(content) != count * dtype.itemsize:
        raise Refused("holds an array that does not fill its shape")
    found: list[Any] = np.frombuffer(content, dtype=dtype).tolist()
    return found
