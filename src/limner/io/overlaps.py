"""Overlapping objects: which pairs share pixels, and which of them a label map shows there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Cropped: TypeAlias = tuple[tuple[slice, ...], NDArray[Any]]  # where, and the mask there
Pair: TypeAlias = tuple[int, int]  # object ids, the lower one first

RULE = (
    "where objects overlap, a label map holds the one with the lower id, or the one of which more "
    "than half lies in the other, unless a priority says otherwise"
)
_MOST_PAIRS = 5  # that a message names


def count_shared(masks: Mapping[int, Cropped]) -> dict[Pair, int]:
    """How many pixels each pair of objects shares; pairs that share none are left out."""
    ids = sorted(i for i, (_, inside) in masks.items() if inside.size)
    if len(ids) < 2:
        return {}
    low = np.array([[part.start for part in masks[i][0]] for i in ids])
    high = np.array([[part.stop for part in masks[i][0]] for i in ids])
    found: dict[Pair, int] = {}
    for k, one in enumerate(ids):
        first, last = np.maximum(low[k], low[k + 1 :]), np.minimum(high[k], high[k + 1 :])
        for n in np.flatnonzero((first < last).all(axis=1)):
            other = ids[k + 1 + n]
            windows = [
                inside[tuple(slice(a - p.start, b - p.start) for a, b, p in zip(*box, strict=True))]
                for place, inside in (masks[one], masks[other])
                for box in [(first[n], last[n], place)]
            ]
            shared = int(np.count_nonzero(windows[0] & windows[1]))
            if shared:
                found[one, other] = shared
    return found


def order_objects(
    sizes: Mapping[int, int], shared: Mapping[Pair, int], priority: Sequence[int] = ()
) -> tuple[int, ...]:
    """The objects as they lie over one another in a label map, the uppermost first.

    Those of `priority` lie above all others, in its order. Of the others a lower id lies above a
    higher one, unless more than half of the latter lies in the former, as a tumour in its organ.

    Args:
        sizes: pixels by object id.
        shared: of `count_shared`.
        priority: object ids, the uppermost first; those that are not there are left out.
    """
    above = [i for i in dict.fromkeys(priority) if i in sizes]
    rest: list[int] = []
    partners: dict[int, list[Pair]] = {}
    for (one, other), count in shared.items():
        partners.setdefault(other, []).append((one, count))
    for i in sorted(sizes):
        if i in above:
            continue
        holders = {one for one, count in partners.get(i, ()) if 2 * count > sizes[i] < sizes[one]}
        at = next((k for k, one in enumerate(rest) if one in holders), len(rest))
        rest.insert(at, i)
    return (*above, *rest)


def describe_overlaps(
    shared: Mapping[Pair, int], order: Sequence[int], names: Mapping[int, str], empty: Iterable[int]
) -> str:
    """Who keeps how many shared pixels from whom, and who has none left, in one sentence.

    Args:
        shared: of `count_shared`; not empty.
        order: of `order_objects`.
        names: of the objects.
        empty: objects with pixels of which the label map shows none.
    """
    rank = {object_id: k for k, object_id in enumerate(order)}
    largest = sorted(shared.items(), key=lambda item: (-item[1], item[0]))
    parts = []
    for pair, count in largest[:_MOST_PAIRS]:
        upper, lower = sorted(pair, key=rank.__getitem__)
        parts.append(f"{_say(upper, names)} keeps {count:,} from {_say(lower, names)}")
    if len(largest) > _MOST_PAIRS:
        parts.append(f"and so on for {len(largest) - _MOST_PAIRS} more pairs")
    text = "; ".join(parts)
    gone = [_say(i, names) for i in empty]
    if gone:
        text += f"; nothing is left of {', '.join(gone)}"
    return text


def _say(object_id: int, names: Mapping[int, str]) -> str:
    name = names.get(object_id)
    return f"object {object_id}" if name is None else f"{name} ({object_id})"
