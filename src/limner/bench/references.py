"""Reference images of in-context models: which other images of a set show what to find.

Those of its train part, and of its val part where the first are too few; a set without these parts
gives the other images that are scored. Never the image itself, nor one of the same patient, volume
or animal where the set names them.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from limner.bench.disturb import disturb_image
from limner.datasets.objects import Reference, read_objects
from limner.datasets.record import Case, Dataset
from limner.datasets.selection import open_image
from limner.errors import LimnerError
from limner.prompts.types import Example

KEPT_BYTES = 256 * 2**20  # of pictures with masks between one case and the next

_log = logging.getLogger(__name__)


class References:
    """The pictures of one set that may be shown, read when they are first needed.

    Args:
        data_set: by label, see `sets.by_label`.
        disturb: of the pictures, a key of `config.DISTURBANCES`: the set is taken to be stored that
            way. A picture that it does not apply to is shown as it is.
    """

    def __init__(self, data_set: Dataset, *, disturb: str = "none") -> None:
        tiers = [tier for tier in data_set.teaching if tier] or [data_set.cases]
        every: dict[str, Case] = {}
        for tier in tiers:
            every |= tier
        self.data_set = data_set
        self._source = replace(data_set, cases=every)
        self._tiers = [sorted(tier) for tier in tiers]
        self._disturb = disturb
        self._labels: dict[str, frozenset[str]] = {}  # that are large enough, by stem
        self._kept: OrderedDict[tuple[str, str], Reference] = OrderedDict()
        self._kept_bytes = 0

    def draw(
        self, stem: str, label: str, count: int, rng: np.random.Generator
    ) -> tuple[Reference, ...]:
        """Some of the pictures that hold a label, at random.

        Args:
            stem: of the picture that is asked about.
            label: which all of them hold, as an object's id.
            count: at most so many; of the same seed fewer are the first of more.
            rng: source of the random order.
        """
        found: list[Reference] = []
        for tier in self._tiers:
            others = self._others(tier, stem)
            for k in rng.permutation(len(others)):
                if len(found) == count:
                    break
                reference = self._reference(others[k], label)
                found += [] if reference is None else [reference]
        return tuple(found)

    def _others(self, tier: Collection[str], stem: str) -> list[str]:
        cases = {**self._source.cases, **self.data_set.cases}
        return [n for n in tier if n != stem and cases[n].group != cases[stem].group]

    def _reference(self, stem: str, label: str) -> Reference | None:
        """A picture with the label; None where it does not hold it, or cannot be read."""
        if stem in self._labels and label not in self._labels[stem]:
            return None
        key = stem, label
        if key not in self._kept:
            reference = self._read(stem, label)
            if reference is None:
                return None
            self._kept[key] = reference
            self._kept_bytes += _size(reference)
        self._kept.move_to_end(key)
        found = self._kept[key]
        while self._kept_bytes > KEPT_BYTES and self._kept:
            self._kept_bytes -= _size(self._kept.popitem(last=False)[1])
        return found

    def _read(self, stem: str, label: str) -> Reference | None:
        try:
            image = open_image(self._source, stem)
            objects = read_objects(self._source, stem, image)
            self._labels[stem] = frozenset(objects.ids)
            if label not in objects.ids:
                return None
            shown = disturb_image(image, self._disturb) or image
            example = Example(shown.array, objects.mask(label))
        except (LimnerError, OSError) as error:
            self._labels[stem] = frozenset()
            _log.warning("%s %s is no example: %s", self._source.name, stem, error)
            return None
        return Reference(stem, example, _hash(example))


def _size(reference: Reference) -> int:
    return reference.example.image.nbytes + reference.example.mask.nbytes


def _hash(example: Example) -> str:
    digest = hashlib.sha256(f"{example.image.shape}{example.image.dtype.str}".encode())
    digest.update(np.ascontiguousarray(example.image).data)
    digest.update(np.packbits(example.mask).tobytes())
    return digest.hexdigest()
