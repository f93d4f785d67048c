"""Safe reader of pickled weights: tensors are found, nothing is imported, constructed or called.

A pickle is a program for a small stack machine whose instructions can call any function by name.
This is that machine without the power: a name is searched in a short table of what
``torch.save`` writes for tensors, and everything else becomes an `Opaque`, which holds nothing and
does nothing. So a checkpoint with a live optimiser, a configuration object or malice inside gives
up its tensors, and only these. PyTorch is not needed here; tensors are described, not built.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from limner.errors import CheckpointError

_MOST_OPCODES = 5_000_000  # some seconds; an optimiser of a thousand parameters makes 100,000
_MOST_AXES = 64  # PyTorch's own limit

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
DTYPES = frozenset(_STORAGES.values())
_DTYPE_WORDS = {name: name for name in DTYPES} | {"half": "float16", "float": "float32"}


@dataclass(frozen=True, eq=False)
class Opaque:
    """Whatever is not data. Holds nothing but the name it went by, for messages."""

    name: str


@dataclass(frozen=True, eq=False)
class Storage:
    """Where values of a tensor lie.

    Attributes:
        key: of the storage in its file.
        dtype: ``"float32"`` and so on; ``"uint8"`` for untyped ones.
        size: number of values.
        start: values of the storage before the first one, in files of very old versions.
    """

    key: str
    dtype: str
    size: int
    start: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor that is described but not read.

    Attributes:
        storage: of its values.
        dtype: of its values.
        offset: into the storage, in values.
        shape: of the tensor.
        stride: values from one index to the next, per axis.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Known:
    """A name from the table: what a call of it with these arguments stands for."""

    name: str
    call: Callable[[tuple[Any, ...]], Any]


class _Damaged(Exception):
    """The instructions make no sense."""


_MARKED = object()


def read_pickle(file: IO[bytes]) -> tuple[Any, dict[str, str]]:
    """The value that a pickle describes, up to and including its last instruction.

    Args:
        file: at the beginning of a pickle; afterwards just behind it.

    Returns:
        Numbers, texts, bytes, None, tuples, lists, dictionaries with plain keys, `Tensor`,
        `Storage` and `Opaque`; may contain itself. And the types of all storages by key, those of
        tensors inside opaque values, too.

    Raises:
        CheckpointError: damaged or cut off; the message completes "FILE is …".
    """
    try:
        machine = _Machine()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of odd escapes in old texts
            return machine.run(file), machine.storages
    except (_Damaged, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"damaged or cut off: its index cannot be read ({reason})") from error


class _Machine:
    """The stack machine of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, str] = {}

    def run(self, file: IO[bytes]) -> Any:
        """Follow the instructions to the end."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if count > _MOST_OPCODES:
                raise _Damaged("too many instructions")
            if name in _PUSHED:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _MEMO_WRITES:
                place = argument if isinstance(argument, int) else len(self.memo)
                self.memo[place] = self.stack[-1]
            elif name in _MEMO_READS:
                self.stack.append(self.memo[int(argument or 0)])
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name not in _IGNORED:
                raise _Damaged(f"instruction {name}")
        raise _Damaged("no end")

    def pop_marked(self) -> list[Any]:
        """What lies above the last mark; it and the mark are taken off."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARKED:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise _Damaged("no mark")

    def pop(self, count: int) -> list[Any]:
        """The uppermost values, lowest first."""
        if len(self.stack) < count:
            raise _Damaged("empty stack")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def tuple_of(self, count: int) -> None:
        """TUPLE1 to TUPLE3."""
        self.stack.append(tuple(self.pop(count)))

    def append(self, items: list[Any]) -> None:
        """APPEND, APPENDS; on an opaque value nothing happens."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise _Damaged("append to no list")

    def set_items(self, items: list[Any]) -> None:
        """SETITEM, SETITEMS; on an opaque value nothing happens."""
        target = self.stack[-1]
        if isinstance(target, dict):
            _put(target, items)
        elif not isinstance(target, Opaque):
            raise _Damaged("item of no dictionary")

    def call(self, *, extra: int = 0) -> None:
        """REDUCE, NEWOBJ and, with `extra` values above the arguments, NEWOBJ_EX."""
        target, arguments, *_ = self.pop(2 + extra)
        if not isinstance(arguments, tuple):
            raise _Damaged("arguments that are no tuple")
        self.stack.append(_called(target, arguments))

    def build(self) -> None:
        """BUILD: the state of an object goes nowhere."""
        self.pop(1)
        if not self.stack:
            raise _Damaged("empty stack")

    def named(self, module: Any, name: Any) -> None:
        """GLOBAL, STACK_GLOBAL: never an import."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise _Damaged("a name that is no text")
        self.stack.append(_lookup(module, name))

    def stored(self) -> None:
        """BINPERSID: a storage."""
        value = _stored(self.pop(1)[0])
        if isinstance(value, Storage):
            self.storages[value.key] = value.dtype
        self.stack.append(value)

    def instance(self, name: str) -> None:
        """INST, OBJ: an object of an old kind."""
        self.pop_marked()
        self.stack.append(Opaque(name))


def _put(target: dict[Any, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise _Damaged("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Others have no business in a checkpoint, and hashing deep tuples can end the process.
        if isinstance(key, str | int | float):
            target[key] = value


def _called(target: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(target, _Known):
        return target.call(arguments)
    if not isinstance(target, Opaque):
        raise _Damaged("a call of what is no name")
    first = arguments[0] if arguments else None
    made = isinstance(first, Opaque) and target.name.startswith(("copyreg.", "copy_reg."))
    return first if made else target


def _lookup(module: str, name: str) -> _Known | Opaque:
    known = _KNOWN.get((module, name))
    if known is not None:
        return known
    if module == "torch" and name in _DTYPE_WORDS:
        return _Known(name, _no_call)
    if module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES:
        return _Known(name, _no_call)
    return Opaque(f"{module}.{name}")


def _no_call(arguments: tuple[Any, ...]) -> Opaque:
    return Opaque("torch")


def _stored(identity: Any) -> Storage | Opaque:
    """BINPERSID: ``("storage", kind, key, device, size)``, in old files also a view of it."""
    if not isinstance(identity, tuple) or not identity or identity[0] != "storage":
        return Opaque("a persistent object")
    _, kind, key, _, size, *view = identity
    if not isinstance(kind, _Known) or kind.name not in _STORAGES:
        return Opaque(kind.name if isinstance(kind, Opaque) else "a storage")
    start = 0
    if view and view[0] is not None:
        _, start, size = view[0]
    if not isinstance(key, str) or not _counts((size, start)):
        raise _Damaged("a storage without a size")
    return Storage(key, _STORAGES[kind.name], size, start)


def _counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(v) is int and 0 <= v < 2**48 for v in values)


def _tensor(arguments: tuple[Any, ...]) -> Tensor | Opaque:
    """``(storage, offset, shape, stride, …)``"""
    storage, offset, shape, stride, *_ = arguments
    if not isinstance(storage, Storage):
        return Opaque("a tensor without values")
    if not (_counts((offset,)) and _counts(shape) and _counts(stride)):
        raise _Damaged("a tensor without a shape")
    if len(shape) != len(stride) or len(shape) > _MOST_AXES:
        raise _Damaged("a tensor with too many axes")
    return Tensor(storage, storage.dtype, offset, shape, stride)


def _typed_tensor(arguments: tuple[Any, ...]) -> Tensor | Opaque:
    """As above, the storage untyped, and the type of the values as the seventh argument."""
    tensor, dtype = _tensor(arguments), arguments[6]
    if isinstance(tensor, Opaque) or not isinstance(dtype, _Known):
        return Opaque("a tensor of an unusual type")
    return Tensor(
        tensor.storage, _DTYPE_WORDS[dtype.name], tensor.offset, tensor.shape, tensor.stride
    )


def _first(arguments: tuple[Any, ...]) -> Any:
    """A parameter is its tensor."""
    return arguments[0]


def _subclassed(arguments: tuple[Any, ...]) -> Any:
    """``(function, class, its arguments, state)``: a tensor of a class of its own."""
    function, _, inner, *_ = arguments
    return _called(function, inner) if isinstance(inner, tuple) else Opaque("a tensor")


def _shape(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arguments[0]) if arguments else ()


def _dictionary(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Empty, or of a list of pairs; items follow as instructions of their own."""
    found: dict[Any, Any] = {}
    pairs = arguments[0] if arguments else None
    for key, value in pairs if isinstance(pairs, list) else ():
        _put(found, [key, value])
    return found


_KNOWN = {
    (module, name): _Known(name, call)
    for module, name, call in (
        ("torch._utils", "_rebuild_tensor", _tensor),
        ("torch._utils", "_rebuild_tensor_v2", _tensor),
        ("torch._utils", "_rebuild_tensor_v3", _typed_tensor),
        ("torch._utils", "_rebuild_parameter", _first),
        ("torch._utils", "_rebuild_parameter_with_state", _first),
        ("torch._tensor", "_rebuild_from_type_v2", _subclassed),
        ("torch", "Size", _shape),
        ("collections", "OrderedDict", _dictionary),
        ("collections", "defaultdict", lambda arguments: {}),
    )
}

_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_BYTES = {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"}
_PUSHED = _NUMBERS | _BYTES | _TEXTS
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Opaque("a set"),
    "MARK": lambda: _MARKED,
    "EXT1": lambda: Opaque("an extension"),
    "EXT2": lambda: Opaque("an extension"),
    "EXT4": lambda: Opaque("an extension"),
    "PERSID": lambda: Opaque("a persistent object"),
    "NEXT_BUFFER": lambda: Opaque("a buffer"),
}
_MEMO_WRITES = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_MEMO_READS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_IGNORED = frozenset(("PROTO", "FRAME", "READONLY_BUFFER"))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _put(made, items)
    return made


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "POP": lambda m, _: m.pop(1),
    "POP_MARK": lambda m, _: m.pop_marked(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_marked())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "LIST": lambda m, _: m.stack.append(m.pop_marked()),
    "DICT": lambda m, _: m.stack.append(_pairs(m.pop_marked())),
    "FROZENSET": lambda m, _: m.instance("a set"),
    "APPEND": lambda m, _: m.append(m.pop(1)),
    "APPENDS": lambda m, _: m.append(m.pop_marked()),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_marked()),
    "ADDITEMS": lambda m, _: m.pop_marked(),
    "GLOBAL": lambda m, text: m.named(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.named(*m.pop(2)),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "NEWOBJ_EX": lambda m, _: m.call(extra=1),
    "BUILD": lambda m, _: m.build(),
    "INST": lambda m, text: m.instance(text.replace(" ", ".")),
    "OBJ": lambda m, _: m.instance("an object"),
    "BINPERSID": lambda m, _: m.stored(),
}
