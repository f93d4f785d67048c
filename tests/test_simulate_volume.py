"""The simulated user in volumes: the challenge's click by hand, and which slices are marked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from limner.prompts import simulate_volume
from limner.prompts.simulate import corrective_click
from limner.prompts.simulate_volume import (
    challenge_click,
    inmost_places,
    largest_slice,
    spread_slices,
)


def first(count: int) -> int:
    return 0


def blank(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=bool)


def test_the_click_is_in_the_middle_of_the_error() -> None:
    target, prediction = blank(20, 30, 30), blank(20, 30, 30)
    target[4:11, 5:16, 6:17] = True
    click = challenge_click(target, prediction, first)
    assert click is not None
    assert (click.at[0], click.positive) == (7.0, True)  # of 7 slices the fourth: depth 4
    assert all(8 <= x <= 13 for x in click.at[1:])
    spilled = challenge_click(prediction, target, first)
    assert spilled is not None
    assert (spilled.at, spilled.positive) == (click.at, False)
    assert challenge_click(target, target, first) is None


def test_corners_connect_and_the_largest_component_counts() -> None:
    target = blank(12, 12, 12)
    target[0:3, 0:3, 0:3] = True  # 27 voxels
    target[6:8, 6:8, 6:8] = True  # 8 + 27, touching at a corner
    target[8:11, 8:11, 8:11] = True
    click = challenge_click(target, blank(12, 12, 12), first)
    assert click is not None
    assert click.at == (9.0, 9.0, 9.0)


def test_missed_and_spilled_voxels_that_touch_are_one_error() -> None:
    target, prediction = blank(5, 5, 40), blank(5, 5, 40)
    target[:, :, 2:9] = True
    prediction[:, :, 9:14] = True
    click = challenge_click(target, prediction, first)
    assert click is not None
    assert all(x == 2 for x in click.at[:2])
    assert 4 <= click.at[2] <= 11  # at depth 3 from all sides of both together


def test_the_border_of_the_volume_is_an_edge_and_spacing_does_not_count() -> None:
    target = blank(3, 21, 21)
    target[:] = True
    places = np.argwhere(inmost_places(target))
    assert set(places[:, 0]) == {1}  # depth 2 in the middle slice, wherever
    assert places[:, 1].min() == 1
    assert places[:, 1].max() == 19
    rng = np.random.default_rng(0)
    said = corrective_click(target, ~target, rng, rule="cvpr2025", spacing=(9.0, 1.0, 1.0))
    assert said is not None
    assert said.at[0] == 1


def test_ties_are_broken_by_who_chooses() -> None:
    target = blank(4, 9, 9)
    target[1, 4, 2:7] = True  # a line: all five voxels are equally deep
    seen = [challenge_click(target, target & False, lambda n, k=k: k % n) for k in range(5)]
    assert [click.at[2] for click in seen if click] == [2, 3, 4, 5, 6]


@given(seed=st.integers(0, 10**6))
def test_the_depth_is_that_of_a_distance_transform(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=rng.integers(3, 14, 3)), 1.0) > 0
    if not noise.any():
        return
    component = noise[ndimage.find_objects(noise.astype(int))[0]]
    exact = ndimage.distance_transform_edt(np.pad(component, 1))[1:-1, 1:-1, 1:-1]
    np.testing.assert_array_equal(inmost_places(component), exact >= exact.max() - 1e-6)


def test_very_large_errors_are_measured_at_half_the_resolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(rng.normal(size=(19, 26, 31)), 3) > 0
    component = noise[ndimage.find_objects(noise.astype(int))[0]]
    monkeypatch.setattr(simulate_volume, "MOST_EXACT", 1)
    rims = [int(0.25 * n) for n in component.shape]
    padded = np.pad(component, [(r, r + (n + 2 * r) % 2) for r, n in zip(rims, component.shape)])  # noqa: B905
    a, b, c = (n // 2 for n in padded.shape)
    blocks = padded.reshape(a, 2, b, 2, c, 2).any(axis=(1, 3, 5))
    distance = ndimage.distance_transform_edt(blocks)
    for axis in range(3):
        distance = distance.repeat(2, axis=axis)
    distance = distance[tuple(slice(r, r + n) for r, n in zip(rims, component.shape))]  # noqa: B905
    distance = distance * component
    np.testing.assert_array_equal(inmost_places(component), distance >= distance.max() - 1e-6)
    assert (inmost_places(component) <= component).all()


def test_only_the_errors_box_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = simulate_volume.depth

    def counted(region: np.ndarray, *rest: object) -> np.ndarray:
        sizes.append(region.size)
        return plain(region, *rest)

    monkeypatch.setattr(simulate_volume, "depth", counted)
    target = blank(80, 80, 80)
    target[40:46, 10:16, 70:76] = True
    assert challenge_click(target, blank(80, 80, 80), first) is not None
    assert sizes == [6**3]


def test_which_slices_are_marked() -> None:
    target = blank(30, 10, 10)
    target[5:21, 4:6, 4:6] = True
    target[12, 2:8, 2:8] = True
    assert largest_slice(target) == 12
    assert spread_slices(target, 1) == [12]
    assert spread_slices(target, 2) == [5, 20]
    assert spread_slices(target, 4) == [5, 10, 15, 20]
    assert spread_slices(target, 99) == list(range(5, 21))
    target[6:20] = False
    assert spread_slices(target, 3) == [5, 20]  # in between there is nothing to mark
    target[:] = True
    assert largest_slice(target) in (14, 15)  # all are equal: the middle
    with pytest.raises(ValueError, match="not empty"):
        spread_slices(target & False, 3)
    with pytest.raises(ValueError, match="at least 1"):
        spread_slices(target, 0)
