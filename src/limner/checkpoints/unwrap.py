"""Unwrapping of a checkpoint: which entry holds the weights, and their names without prefixes.

People save weights bare, beside an optimiser, under half a dozen names, and from parallel training
with ``module.`` before every name; all of that is the same network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from limner.checkpoints._pickle import Opaque, Tensor
from limner.checkpoints.archive import Archive
from limner.errors import CheckpointError

_DEPTH = 3  # dictionaries in dictionaries
_PREFIXES = ("module.", "_orig_mod.")  # of parallel training, of torch.compile
# Where two sets of weights are equally large, such as those of training and their average.
_USUAL = ("", "model", "state_dict", "model_state_dict", "net", "network", "weights")
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class UnwrappedWeights:
    """The weights of an archive, by name without wrapping, and what was done to find them."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def unwrap(archive: Archive, wanted: frozenset[str] | None) -> UnwrappedWeights:
    """Find the weights.

    Args:
        archive: an opened file.
        wanted: names that they are known to have, or None.

    Raises:
        CheckpointError: there are none, or only inside objects that are not built.
    """
    best: tuple[tuple[int, int, int], str, dict[str, Tensor], tuple[str, ...]] | None = None
    for where, content in _dictionaries(archive.value):
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if not tensors:
            continue
        tensors, notes = _without_prefixes(tensors, wanted)
        left = [f"{k} ({v.name})" for k, v in content.items() if isinstance(v, Opaque)]
        if left:
            notes = (*notes, f"left out what is no tensor: {', '.join(left[:_SHOWN])}")
        hits = 0 if wanted is None else len(wanted & tensors.keys())
        usual = -_USUAL.index(where) if where in _USUAL else -len(_USUAL)
        rank = hits, len(tensors), usual
        if best is None or rank > best[0]:
            best = rank, where, tensors, notes
    if best is None:
        raise CheckpointError(_nothing(archive))
    _, where, tensors, notes = best
    return UnwrappedWeights(tensors, (f"weights are under {where!r}", *notes) if where else notes)


def _dictionaries(value: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """All dictionaries down to some depth with their places, ``"a.b"``; each once."""
    seen: set[int] = set()
    waiting = [(where, value, depth)]
    while waiting:
        where, value, depth = waiting.pop(0)
        if not isinstance(value, dict) or id(value) in seen:
            continue
        seen.add(id(value))
        yield where, value
        if depth < _DEPTH:
            inner = [(str(k), v) for k, v in value.items() if isinstance(v, dict)]
            waiting += [(f"{where}.{k}" if where else k, v, depth + 1) for k, v in inner]


def _without_prefixes(
    tensors: dict[str, Tensor], wanted: frozenset[str] | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    notes: list[str] = []
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        notes.append(f"took {prefix!r} off all names")
    inside = [name for name in tensors if "._orig_mod." in name]
    if inside:
        tensors = {name.replace("._orig_mod.", "."): value for name, value in tensors.items()}
        notes.append(f"took '_orig_mod.' out of {len(inside)} names")
    hiding = "" if wanted is None else _hiding(tensors, wanted)
    if hiding:
        tensors = {name.removeprefix(hiding): value for name, value in tensors.items()}
        notes.append(f"took {hiding!r} off all names")
    return tensors, tuple(notes)


def _hiding(tensors: dict[str, Tensor], wanted: frozenset[str]) -> str:
    """The shortest beginning of all names behind which the wanted ones are; empty for none."""
    parts = next(iter(tensors)).split(".")[:-1]
    for count in range(len(parts) + 1):
        prefix = "".join(f"{part}." for part in parts[:count])
        if not all(name.startswith(prefix) for name in tensors):
            return ""
        if any(name.removeprefix(prefix) in wanted for name in tensors):
            return prefix
    return ""


def _nothing(archive: Archive) -> str:
    """What to do about a file without weights that can be had."""
    held = [archive.value] if isinstance(archive.value, Opaque) else []
    for _, content in _dictionaries(archive.value):
        held += [value for value in content.values() if isinstance(value, Opaque)]
    if held and archive.places:
        return (
            f"{archive.path} holds its weights inside objects of Python ({held[0].name}), which "
            "are not built, since that would run code from the file. In the environment that made "
            "it, load it and write torch.save(model.state_dict(), 'weights.pth')."
        )
    return f"{archive.path} holds no weights by name."
