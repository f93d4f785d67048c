"""Resampling of images, labels and logits over the same extent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.adapters.resample import resample_linear, resample_nearest, resample_slabs

sizes = st.tuples(*[st.integers(1, 12)] * 3)


@settings(max_examples=40, deadline=None)
@given(source=sizes, target=sizes, cut=st.integers(1, 12))
def test_slabs_give_what_the_whole_gives(
    source: tuple[int, ...], target: tuple[int, ...], cut: int
) -> None:
    array = np.random.default_rng(0).normal(size=(2, *source)).astype(np.float32)
    slabs = [array[:, k : k + cut] for k in range(0, source[0], cut)]
    parts = list(resample_slabs(slabs, source, target))
    whole = np.stack([resample_linear(channel, target) for channel in array])
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def test_a_ramp_in_space_stays_one_whether_finer_or_coarser() -> None:
    ramp = np.linspace(0, 1, 60, dtype=np.float32)[:, None] * np.ones((1, 5), np.float32)
    for size in (20, 40, 90, 131):
        places = ((np.arange(size) + 0.5) * 60 / size - 0.5) / 59
        inner = slice(size // 8, -size // 8)
        found = resample_linear(ramp, (size, 5))
        np.testing.assert_allclose(found[inner, 2], places[inner], atol=1e-3)


def test_shrinking_averages_and_channels_stay() -> None:
    checks = np.indices((16, 16)).sum(axis=0) % 2
    image = np.stack([checks, 5 * np.ones_like(checks)], axis=-1)
    small = resample_linear(image, (4, 4))
    assert small.shape == (4, 4, 2)
    np.testing.assert_allclose(small[..., 0], 0.5, atol=0.05)
    np.testing.assert_allclose(small[..., 1], 5.0, atol=1e-5)


def test_labels_are_taken_and_never_mixed() -> None:
    labels = np.array([[0, 7], [3, 3]], np.uint8)
    found = resample_nearest(labels, (4, 6))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[:2], [[0, 0, 0, 7, 7, 7]] * 2)
    np.testing.assert_array_equal(resample_nearest(found, (2, 2)), labels)


def test_nothing_is_copied_where_nothing_changes() -> None:
    array = np.zeros((3, 4), np.float32)
    assert resample_linear(array, (3, 4)) is array


def test_slabs_come_before_all_have_arrived() -> None:
    def slabs():
        for k in range(10):
            arrived.append(k)
            yield np.full((1, 4, 2, 2), k, np.float32)

    arrived: list[int] = []
    first = next(resample_slabs(slabs(), (40, 2, 2), (80, 2, 2)))
    assert first.shape[1] > 0
    assert arrived[-1] == pytest.approx(0, abs=1)
