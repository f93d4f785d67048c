"""A data root with ``splits.json``: many sets, and what each of them may be used for.

``splits.json`` lists the stems (or clips) of the sets by split (``sets``), the sets that models
may be trained on (``train_commercial_ok``; those of them that are not in ``sets`` as a whole), what
one object is (``unit``), sets of which nothing was and nothing like it may be trained on
(``test_only``, ``near_test_only``), and those that are no truth to score against (``never_scored``,
``fixtures``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from limner.datasets.files import read_json
from limner.datasets.plain_folders import check_unit
from limner.datasets.record import SPLITS, Case, Dataset, Standing
from limner.errors import FormatError

DESCRIPTION = "splits.json"

_log = logging.getLogger(__name__)


def sniff(folder: Path) -> bool:
    """Whether a folder is a data root."""
    return (folder / "splits.json").is_file()


def open_datasets(
    root: Path, open_dataset: Callable[[Path, str], Dataset | None]
) -> Iterator[Dataset]:
    """The sets that ``splits.json`` lists: those that may be trained on in its order, then the
    others by name. Of each, cases of no split are left out.

    Args:
        root: the data root.
        open_dataset: opens one set by folder and name; None where there is none.

    Raises:
        FormatError: ``splits.json`` or a description is damaged.
    """
    splits = _read_splits(root)
    permitted = list(splits.get("train_commercial_ok", ()))
    missing = []
    for name in dict.fromkeys([*permitted, *sorted(splits["sets"])]):
        found = open_dataset(root / name, name)
        if found is None:
            missing.append(name)
        else:
            yield _with_rules(found, splits)
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        _log.warning("%s: splits.json lists %s, not there.", root, names)


def _with_rules(dataset: Dataset, splits: Mapping[str, Any]) -> Dataset:
    """A set with its splits, its unit and what it may be used for."""
    name = dataset.name
    unseen, seen = name in splits.get("test_only", ()), name in splits["train_commercial_ok"]
    standing: Standing = "unseen" if unseen else "seen" if seen else "other"
    like_test = name in splits.get("near_test_only", ())
    guessed = name in splits.get("never_scored", ()) or name in splits.get("fixtures", ())
    is_pool = name not in splits["sets"]
    dataset = replace(
        dataset,
        unit=check_unit(name, splits.get("unit", {}).get(name, "label")),
        standing=standing,
        trainable=seen and not (unseen or like_test or guessed),
        scorable=not (guessed or is_pool),
    )
    return dataset.with_splits() if is_pool else _divide(dataset, splits["sets"][name])


def _divide(dataset: Dataset, lists: Mapping[str, Any]) -> Dataset:
    """The cases that are listed, in the order of the lists."""
    cases: dict[str, Case] = {}
    missing = []
    for split in SPLITS:
        for stem in lists.get(split, ()):
            if stem in dataset.cases:
                cases[stem] = replace(dataset.cases[stem], split=split)
            else:
                missing.append(stem)
    if missing:
        _log.warning(
            "%s: %d listed cases are missing: %s.", dataset.name, len(missing), sorted(missing)
        )
    return replace(dataset, cases=cases)


def _read_splits(root: Path) -> dict[str, Any]:
    """``splits.json`` with lists of stems by set and split.

    Raises:
        FormatError: it is damaged, or lists no sets.
    """
    source = root / "splits.json"
    splits = read_json(source)
    splits.setdefault("train_commercial_ok", [])
    listed = splits.get("sets")
    if not isinstance(listed, dict) or not all(isinstance(v, dict) for v in listed.values()):
        raise FormatError(f"{source} lists no sets; 'sets' has lists of stems by set and split.")
    return splits
