"""SAM 2's memory bank of one object, a mapping of arrays that is bounded.

``given`` and ``found`` are the numbers of the frames that the user answered for and of the others,
in the order in which they were remembered. Each has ``…_features``, bits of bfloat16 (K, T, 64),
and ``…_pointers``, float32 (K, 256); features of found frames are kept of the last of them only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]

MOST_GIVEN = 10  # the authors keep all; each is as long to look at as a found one
MOST_FEATURES, MOST_POINTERS = 6, 15  # of found frames, those before the one that is asked about
GIVEN_SLOT = MOST_FEATURES  # in the network's table of times


@dataclass(frozen=True, eq=False)
class MemoryTokens:
    """What is looked at of a memory; see `limner.models.medsam2.network.MemoryAttention`."""

    features: Floats
    slots: Floats
    pointers: Floats
    ago: Floats


def add_frame(
    memory: Mapping[str, Array] | None,
    place: int,
    features: Floats,
    pointer: Floats,
    *,
    given: bool,
) -> dict[str, Array]:
    """The memory with one frame more; what was known of that frame is replaced.

    Args:
        memory: so far, or None.
        place: number of the frame.
        features: (T, 64).
        pointer: (256,).
        given: whether the user answered for it. Of more than `MOST_GIVEN` such frames the one that
            is farthest from this one goes.
    """
    made: dict[str, Array] = {}
    for kind in ("given", "found"):
        places, kept, pointers = _without(memory, kind, place, features, pointer)
        if (kind == "given") == given:
            places = np.append(places, place)
            kept = np.concatenate([kept, narrowed(features)[None]])
            pointers = np.concatenate([pointers, pointer[None]])
        if kind == "found":
            places, pointers = places[-MOST_POINTERS:], pointers[-MOST_POINTERS:]
            kept = kept[-MOST_FEATURES:]
        elif len(places) > MOST_GIVEN:
            stays = np.arange(len(places)) != np.argmax(np.abs(places - place))
            places, kept, pointers = places[stays], kept[stays], pointers[stays]
        made |= {kind: places, f"{kind}_features": kept, f"{kind}_pointers": pointers}
    return made


def _without(
    memory: Mapping[str, Array] | None, kind: str, place: int, features: Floats, pointer: Floats
) -> tuple[Array, Array, Array]:
    """Frames of a kind but one: numbers, features, pointers."""
    if memory is None:
        nothing = np.zeros(0, np.int64), np.zeros((0, *features.shape), np.uint16)
        return *nothing, np.zeros((0, *pointer.shape), np.float32)
    places, kept = memory[kind], memory[f"{kind}_features"]
    stays = places != place
    recent = stays[len(places) - len(kept) :]
    return places[stays], kept[recent], memory[f"{kind}_pointers"][stays]


def read_memory(memory: Mapping[str, Array], place: int | None) -> MemoryTokens:
    """What to look at on a frame, as the authors choose it: all given frames; of found ones the six
    before it, and the pointers of fifteen; pointers of given ones that lie before it.

    Args:
        memory: with one given frame at least.
        place: number of the frame; None: the one after the last, see `whereabouts`.
    """
    now, step = whereabouts(memory, place)
    given, found = memory["given"], memory["found"]
    since = (now - found) * step  # frames ago
    near = (since >= 1) & (since <= MOST_POINTERS)
    kept = memory["found_features"]
    recent = since[len(found) - len(kept) :]
    used = (recent >= 1) & (recent <= MOST_FEATURES)
    past = (now - given) * step
    features = np.concatenate([memory["given_features"], kept[used]])
    slots = np.concatenate([np.full(len(given), GIVEN_SLOT), recent[used] - 1])
    pointers = [memory["given_pointers"][past >= 0], memory["found_pointers"][near]]
    ago = np.concatenate([past[past >= 0], since[near]])
    return MemoryTokens(
        widened(features),
        slots.astype(np.float32),
        np.concatenate(pointers).astype(np.float32),
        ago.astype(np.float32),
    )


def whereabouts(memory: Mapping[str, Array], place: int | None) -> tuple[int, int]:
    """The number of the frame that is asked about, and the direction, 1 or -1.

    Args:
        memory: with one frame at least.
        place: the number where known. Else it is the frame after the last one that was found, or
            after the given one that was remembered first; given frames on the way are passed over.
    """
    given, found = ([int(k) for k in memory[kind]] for kind in ("given", "found"))
    if place is not None:
        last = found[-1] if found else min(given, key=lambda k: abs(place - k))
        return place, 1 if place >= last else -1
    last = found[-1] if found else given[0]
    others = [k for k in given if k != last]
    ahead = others[0] - last if others else 1
    if found:  # it came from a given frame or from one that was found
        ahead = last - (found[-2] if len(found) > 1 else min(given, key=lambda k: abs(last - k)))
    step = 1 if ahead >= 0 else -1
    now = last + step
    while now in given:
        now += step
    return now, step


def narrowed(values: Floats) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16, as the authors keep what is remembered."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + (np.uint32(0x7FFF) + even)) >> np.uint32(16)).astype(np.uint16)


def widened(bits: NDArray[np.uint16]) -> Floats:
    """The numbers that bits of bfloat16 stand for."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
