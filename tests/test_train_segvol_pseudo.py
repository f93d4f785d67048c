"""Pseudo labels: regions as a plain program finds them, and scikit-image in a plane."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from limner.train.data import supervoxels
from limner.train.simulate.segvol import clean_mask, list_pseudo_objects, prompt_pseudo_object


def _plain(
    volume: NDArray[np.float32], scale: float, least: int, limit: float | None = None
) -> NDArray[np.int64]:
    """As published, one edge after the other, regions as sets."""
    region = {at: {at} for at in product(*map(range, volume.shape))}
    inside = {id(members): 0.0 for members in region.values()}
    edges = []
    for k, step in enumerate([(0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, -1), (1, 0, 0)]):
        for at in product(*map(range, volume.shape)):
            other = tuple(a + s for a, s in zip(at, step, strict=True))
            if other in region:
                edges.append((abs(volume[at] - volume[other]), k, at, other))
    edges.sort(key=lambda e: (e[0], e[1], e[2]))

    def join(a: tuple[int, ...], b: tuple[int, ...], cost: float) -> None:
        both = region[a] | region[b]
        inside[id(both)] = cost
        kept.append(both)
        for at in both:
            region[at] = both

    kept: list[set[tuple[int, ...]]] = []  # so that no id is used again
    kept += region.values()
    for cost, _, a, b in edges:
        if region[a] is not region[b]:
            bounds = [inside[id(region[x])] + scale / len(region[x]) for x in (a, b)]
            if cost <= (min(bounds) if limit is None else limit):
                join(a, b, float(cost))
    for cost, _, a, b in edges:
        if region[a] is not region[b] and min(len(region[a]), len(region[b])) < least:
            join(a, b, float(cost))
    ids = np.zeros(volume.shape, dtype=np.int64)
    seen: dict[int, int] = {}
    for at in product(*map(range, volume.shape)):
        ids[at] = seen.setdefault(id(region[at]), len(seen))
    return ids


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [0, 6])
def test_regions_are_those_of_the_plain_algorithm(
    seed: int, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervoxels, "_CHUNK", 37)  # so that there are several
    rng = np.random.default_rng(seed)
    volume = rng.uniform(0, 255, (3, 7, 6)).astype(np.float32)
    if levels:  # many ties
        volume = np.round(volume / 255 * levels).astype(np.float32)
    for scale, least in ((0.5, 1), (4.0, 1), (60.0, 1), (300.0, 4), (2.0, 5)):
        found = supervoxels.segment(volume, scale=scale, sigma=0, min_size=least)
        assert np.array_equal(found, _plain(volume, scale, least)), (scale, least)


def test_the_fixed_threshold_is_a_quantile_of_the_costs() -> None:
    volume = np.random.default_rng(2).uniform(0, 255, (2, 6, 7)).astype(np.float32)
    costs = supervoxels.find_edges(volume).cost
    limit = float(np.percentile(costs[costs > 0], 25))
    found = supervoxels.segment(volume, rule="threshold", sigma=0, min_size=3)
    assert np.array_equal(found, _plain(volume, 0, 3, limit))
    assert 1 < found.max() < volume.size // 3
    assert supervoxels.segment(np.ones((2, 3, 4)), rule="threshold", min_size=1).max() == 0


def test_in_a_plane_regions_are_those_of_scikit_image() -> None:
    from skimage.segmentation import felzenszwalb

    rng = np.random.default_rng(1)
    picture = rng.uniform(0, 1, (60, 50))
    picture[20:45, 10:30] += 1.5
    for scale, sigma, least in ((100, 0.8, 20), (30, 0.5, 5), (400, 0, 50)):
        theirs = felzenszwalb(picture, scale=scale, sigma=sigma, min_size=least)
        # Theirs divides the scale by 255, and joins below the bound, not at it.
        ours = supervoxels.segment(picture[None], scale=scale / 255, sigma=sigma, min_size=least)[0]
        assert np.array_equal(ours, supervoxels.renumber(theirs)), (scale, sigma, least)


def test_small_regions_are_gone_and_labels_are_pasted_over() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(100, 8, (4, 32, 32)).astype(np.float32)
    volume[1:3, 8:20, 8:20] += 100
    found = supervoxels.segment(volume, min_size=200)
    assert np.bincount(found.ravel()).min() >= 200
    inner = np.bincount(found[1:3, 9:19, 9:19].ravel()).argmax()
    assert (found[1:3, 9:19, 9:19] == inner).mean() > 0.9
    assert inner not in found[0]
    labels = np.zeros(volume.shape, dtype=np.uint8)
    labels[:, 10:14, 2:12] = 7
    pasted = supervoxels.paste(found, labels)
    assert len(np.unique(pasted[labels == 7])) == 1
    assert pasted[labels == 7][0] not in pasted[labels == 0]
    assert np.array_equal(np.unique(pasted), np.arange(pasted.max() + 1))


def test_pseudo_regions_are_cleaned_and_boxes_mean_what_is_in_them() -> None:
    mask = np.zeros((8, 32, 32), dtype=bool)
    mask[2:6, 8:20, 8:20] = True
    mask[0, 30, 30] = True
    tidy = clean_mask(mask)
    assert tidy[3, 8:20, 10:18].all()
    assert not tidy[0].any()
    assert not clean_mask(np.zeros_like(mask)).any()
    regions = np.where(mask, 1, 0)
    regions[2:6, 11:17, 11:17] = 2  # wholly in the box of 1
    regions[:, :, 31] = -1
    choices = list_pseudo_objects(regions)
    assert choices == [0, 1, 2]
    for seed in range(8):
        found = prompt_pseudo_object(regions, [1, 2], "box", np.random.default_rng(seed))
        assert found is not None
        told_mask, told = found
        both = told_mask[2:6, 8:20, 8:20]
        assert both.mean() > 0.9 or told_mask.sum() <= 4 * 6 * 6
        low, high = told.box.astype(int)
        assert told_mask[
            low[0] : high[0] + 1, low[1] : high[1] + 1, low[2] : high[2] + 1
        ].sum() == (told_mask.sum())
    found = prompt_pseudo_object(regions, [2], "point", np.random.default_rng(0))
    assert found is not None
    points, labels = found[1].points, found[1].labels
    assert 5 <= (labels == 1).sum() <= 11
    assert (labels == 0).sum() <= 10
    for point, label in zip(points.astype(int), labels, strict=True):
        if label >= 0:
            assert found[0][tuple(point)] == (label == 1)
