"""Run-length codes: our own runs, and COCO's against its reference implementation."""

from __future__ import annotations

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from limner import rle

MASKS_2D = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20))


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=1, max_dims=4, max_side=7)))
def test_runs_round_trip(mask: np.ndarray) -> None:
    counts = rle.encode(mask)
    assert sum(counts) == mask.size
    assert all(n > 0 for n in counts[1:])
    again = rle.decode(counts, mask.shape)
    assert again.dtype == bool
    np.testing.assert_array_equal(again, mask)


def test_runs_begin_with_background() -> None:
    assert rle.encode([[1, 1], [0, 1]]) == [0, 2, 1, 1]
    assert rle.encode(np.zeros((2, 3))) == [6]
    assert rle.encode(np.ones((2, 3))) == [0, 6]
    assert rle.encode(np.zeros((0, 3))) == []


@pytest.mark.parametrize(
    ("counts", "shape"),
    [
        ([3], (2, 2)),
        ([5], (2, 2)),
        ([-1, 5], (2, 2)),
        ([], (1,)),
        ([6], (-2, -3)),
        ([1], (2, "x")),
        ([10**30], (10**30,)),
    ],
)
def test_wrong_runs_are_refused(counts: list[int], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        rle.decode(counts, shape)


@given(MASKS_2D)
def test_coco_equals_pycocotools(mask: np.ndarray) -> None:
    from pycocotools import mask as coco

    ours = rle.coco_encode(mask)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert ours["size"] == list(theirs["size"])
    assert ours["counts"] == theirs["counts"].decode("ascii")
    np.testing.assert_array_equal(rle.coco_decode(theirs), mask)
    np.testing.assert_array_equal(rle.coco_decode(ours), mask)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12))
def test_coco_long_runs(counts: list[int]) -> None:
    """Large numbers and falling differences need several characters and a sign."""
    text = rle.coco_compress(counts)
    assert rle.coco_decompress(text) == counts


def test_coco_uncompressed_counts() -> None:
    value = {"size": [2, 3], "counts": [1, 2, 3]}
    np.testing.assert_array_equal(rle.coco_decode(value), [[0, 1, 0], [1, 0, 0]])


def test_coco_refuses_volumes() -> None:
    with pytest.raises(ValueError, match="2D"):
        rle.coco_encode(np.zeros((2, 2, 2)))


@given(st.text(string.printable + "é€", max_size=20), st.integers(0, 9), st.integers(0, 9))
def test_corrupt_coco_strings_raise_value_error_only(text: str, rows: int, columns: int) -> None:
    try:
        mask = rle.coco_decode({"size": [rows, columns], "counts": text})
    except ValueError:
        return
    assert mask.shape == (rows, columns)


@given(st.binary(max_size=20))
def test_corrupt_coco_bytes_raise_value_error_only(text: bytes) -> None:
    try:
        mask = rle.coco_decode({"size": [5, 4], "counts": text})
    except ValueError:
        return
    assert mask.shape == (5, 4)


@given(MASKS_2D, st.data())
def test_truncated_coco_strings_are_refused(mask: np.ndarray, data: st.DataObject) -> None:
    value = rle.coco_encode(mask)
    cut = data.draw(st.integers(0, len(value["counts"]) - 1))
    value["counts"] = value["counts"][:cut]
    with pytest.raises(ValueError):
        rle.coco_decode(value)


def test_endless_number_is_refused() -> None:
    with pytest.raises(ValueError, match="Malformed"):
        rle.coco_decode({"size": [5, 4], "counts": "o" * 100})
