"""The weightless models: exact cuts, seeds that are obeyed, corrections that help."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from limner import phantoms
from limner.adapters.markers import enforce_marks, gather_markers
from limner.models import View, create_model
from limner.models.classical import MOST_PIXELS, SOLVERS
from limner.models.classical.colour import ColourBins, features_of, noise_level
from limner.models.classical.graph_cut import contrast_links, minimum_cut, shifted_pair
from limner.prompts import Box, Click, Lasso, MaskPrompt, Prompt, Scribble
from rounds import times

METHODS = [v.card.name for v in SOLVERS.values()]
every_method = pytest.mark.parametrize("name", METHODS)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / max(first.sum() + second.sum(), 1))


def view_of(phantom: phantoms.Phantom) -> View:
    limits = (
        (-160.0, 240.0)
        if phantom.image.modality == "CT"
        else (0.0, float(np.percentile(phantom.image.array, 99.5)))
    )
    return View(phantom.image.array, phantom.image.spacing, limits)


def deepest(mask: np.ndarray) -> tuple[int, ...]:
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))
    return tuple(int(k) - 1 for k in np.unravel_index(depth.argmax(), depth.shape))


def disk(shape: tuple[int, int], at: tuple[float, float], radius: float) -> np.ndarray:
    row, column = np.ogrid[: shape[0], : shape[1]]
    return (row - at[0]) ** 2 + (column - at[1]) ** 2 < radius**2


# --- the minimum cut ---------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=times(25), deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(3, 4), (2, 6), (1, 9), (2, 2, 3)]))
def test_the_cut_is_the_best_of_all_masks(seed: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    unary = rng.normal(0, 1, shape)
    features = rng.random((*shape, 1)).astype(np.float32)
    spacing = tuple(rng.uniform(0.5, 3, len(shape)).tolist())
    links = contrast_links(features, spacing, 1.5)

    def energy(mask: np.ndarray) -> float:
        cut = 0.0
        for offset, weight in links:
            here, there = shifted_pair(shape, offset)
            cut += float((weight * (mask[here] != mask[there])).sum())
        return cut - float(unary[mask].sum())

    masks = (
        np.array(bits, dtype=bool).reshape(shape)
        for bits in itertools.product((0, 1), repeat=unary.size)
    )
    best = min(energy(m) for m in masks)
    assert energy(minimum_cut(unary, links)) == pytest.approx(best, abs=0.15)  # rounded capacities


def test_links_are_weak_across_edges_and_along_long_steps() -> None:
    features = np.zeros((4, 6, 1), np.float32)
    features[:, 3:] = 1.0
    links = dict(contrast_links(features, (3.0, 1.0), 1.0))
    across = links[(0, 1)]
    assert across[0, 2] < 0.1 * across[0, 0]
    assert links[(1, 0)][0, 0] == pytest.approx(across[0, 0] / 3)


# --- colours -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_colours_tell_two_tissues_apart(channels: int) -> None:
    rng = np.random.default_rng(2)
    target = disk((60, 60), (30, 30), 15)
    pixels = np.where(target[..., None], 0.6, 0.4) + rng.normal(0, 0.03, (60, 60, channels))
    bins = ColourBins(features_of(np.clip(pixels, 0, 1).astype(np.float32), 2))
    ratio = bins.log_ratio(target, ~target)
    assert np.abs(ratio).max() <= 4
    assert np.median(ratio[target]) > 1
    assert np.median(ratio[~target]) < -1


def test_nothing_learnt_says_nothing() -> None:
    bins = ColourBins(np.full((5, 5, 1), 0.5, np.float32))
    assert np.allclose(bins.log_ratio(np.zeros((5, 5)), np.zeros((5, 5))), 0)


def test_noise_is_measured_and_edges_are_not_noise() -> None:
    rng = np.random.default_rng(0)
    step = np.where(disk((100, 100), (50, 50), 30), 0.8, 0.2)[..., None]
    assert noise_level(step, 2) == pytest.approx(0, abs=1e-6)
    assert noise_level(step + rng.normal(0, 0.05, step.shape), 2) == pytest.approx(0.05, rel=0.1)
    assert noise_level(np.zeros((5, 2, 1)), 2) == 0


# --- seeds -------------------------------------------------------------------------------------


def test_the_later_mark_counts() -> None:
    yes, no = Click((5, 5)), Click((5, 5), positive=False)
    assert gather_markers([yes, no], (40, 40), (1, 1)).marks[5, 5] == -1
    seeds = gather_markers([no, yes], (40, 40), (1, 1))
    assert seeds.marks[5, 5] == 1
    assert seeds.inside[5, 5]
    assert not (seeds.inside & seeds.outside).any()


def test_a_click_never_covers_its_neighbour() -> None:
    seeds = gather_markers([Click((5, 5), positive=False), Click((5, 6))], (40, 40), (1, 1))
    assert seeds.outside[5, 5]
    assert seeds.inside[5, 6]


def test_a_box_bounds_the_object_and_a_flat_one_leaves_its_axis_open() -> None:
    seeds = gather_markers([Box((4, 10, 10), (9, 30, 30))], (16, 40, 40), (1, 1, 1))
    assert seeds.outside[0].all()
    assert not seeds.outside[6, 20, 20]
    flat = gather_markers([Box((6, 10, 10), (7, 30, 30))], (16, 40, 40), (1, 1, 1))
    assert not flat.outside[9, 20, 20]
    assert flat.outside[:, 5, 5].all()
    assert flat.prior is not None
    assert flat.prior[6, 20, 20] > flat.prior[9, 20, 20] > flat.prior[15, 20, 20]


def test_a_lasso_on_any_axis_of_a_volume_is_understood() -> None:
    for axis in range(3):
        points = [list(p) for p in ((8, 8), (8, 22), (22, 22), (22, 8))]
        for p in points:
            p.insert(axis, 15)
        seeds = gather_markers([Lasso(points)], (30, 30, 30), (1, 1, 1))
        assert seeds.prior is not None
        assert seeds.prior[15, 15, 15] > 0.9
        moved = [15, 15, 15]
        moved[axis] = 18
        assert 0.05 < seeds.prior[tuple(moved)] < seeds.prior[15, 15, 15]


def test_a_mask_is_certain_in_its_core_and_far_away_but_for_contradictions() -> None:
    mask = disk((80, 80), (40, 40), 20)
    plain = gather_markers([MaskPrompt(mask)], (80, 80), (1, 1))
    assert plain.inside[40, 40]
    assert plain.outside[2, 2]
    wrong = gather_markers([MaskPrompt(mask), Click((40, 40), positive=False)], (80, 80), (1, 1))
    assert wrong.outside[40, 40]
    assert not wrong.inside[40, 46]
    missing = gather_markers([MaskPrompt(mask), Click((40, 75))], (80, 80), (1, 1))
    assert missing.inside[40, 75]
    assert not missing.outside[40, 68]


def test_marks_win_over_any_logits() -> None:
    marks = np.array([[1, -1, 0, 1]], np.int8)
    result = enforce_marks(np.array([[np.nan, np.inf, -3.0, -np.inf]]), marks)
    assert np.isfinite(result).all()
    assert (np.sign(result) == [[1, -1, -1, 1]]).all()


# --- the methods -------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("color", [False, True])
def test_a_click_finds_an_organ(name: str, color: bool) -> None:
    phantom = phantoms.image(4, (160, 160), color=color)
    model = create_model(name)
    embedding = model.embed(view_of(phantom))
    for label in (3, 4):
        target = phantom.truth == label
        found = model.segment(embedding, [Click(deepest(target))])
        assert dice(found.logits > 0, target) > 0.7, phantom.names[label]
        assert found.score > 0.6


@every_method
def test_corrections_help(name: str) -> None:
    """A disk beside another of the same colour, joined by a bridge: a click separates them."""
    shape = (100, 140)
    target, other = disk(shape, (50, 45), 22), disk(shape, (50, 95), 22)
    bridge = np.zeros(shape, bool)
    bridge[46:55, 60:80] = True
    rng = np.random.default_rng(1)
    pixels = np.where(target | other | bridge, 170.0, 70.0) + rng.normal(0, 6, shape)
    model = create_model(name)
    embedding = model.embed(View(pixels, (1.0, 1.0), (0.0, 255.0)))
    prompts: list[Prompt] = [Click((50, 45))]
    first = model.segment(embedding, prompts)
    prompts += [Click((50, 95), positive=False), Click((50, 72), positive=False)]
    second = model.segment(embedding, prompts, first.logits)
    assert dice(second.logits > 0, target) > max(0.85, dice(first.logits > 0, target) - 0.02)


@every_method
@pytest.mark.parametrize("kind", ["scribble", "lasso", "mask", "previous"])
def test_every_kind_of_area_finds_the_disk(name: str, kind: str) -> None:
    target = disk((120, 120), (60, 55), 24)
    rng = np.random.default_rng(4)
    pixels = np.where(target, 150.0, 90.0) + rng.normal(0, 8, target.shape)
    model = create_model(name)
    embedding = model.embed(View(pixels, (1.0, 1.0), (0.0, 255.0)))
    rough = disk((120, 120), (63, 50), 20)
    prompts: dict[str, list[Prompt]] = {
        "scribble": [Scribble(((50, 50), (70, 60)))],
        "lasso": [Lasso(((30, 25), (30, 85), (90, 85), (90, 25)))],
        "mask": [MaskPrompt(rough)],
        "previous": [],
    }
    previous = np.where(rough, 4.0, -4.0).astype(np.float32) if kind == "previous" else None
    found = model.segment(embedding, prompts[kind], previous)
    assert dice(found.logits > 0, target) > 0.9


@every_method
def test_thick_slices_are_understood(name: str) -> None:
    phantom = phantoms.volume(5, (20, 64, 64), spacing=(8.0, 2.0, 2.0))
    target = phantom.truth == 4
    found = np.nonzero(target)
    box = Box([f.min() for f in found], [f.max() + 1 for f in found])
    model = create_model(name)
    answer = model.segment(model.embed(view_of(phantom)), [box])
    assert dice(answer.logits > 0, target) > 0.8


@pytest.mark.slow
@every_method
def test_large_views_are_solved_on_a_coarser_grid(name: str) -> None:
    shape = (900, 1000)
    assert shape[0] * shape[1] > 2 * MOST_PIXELS
    target = disk(shape, (450, 500), 200)
    pixels = np.where(target, 180, 60).astype(np.uint8)
    model = create_model(name)
    embedding = model.embed(View(pixels, (1.0, 1.0), (0.0, 255.0)))
    click, rejected = Click((451, 501)), Click((1, 997), positive=False)
    found = model.segment(embedding, [click, rejected]).logits > 0
    assert dice(found, target) > 0.97
    assert found[451, 501]
    assert not found[1, 997]


@every_method
def test_an_island_is_kept_only_where_a_seed_asked_for_it(name: str) -> None:
    shape = (90, 150)
    left, right = disk(shape, (45, 40), 18), disk(shape, (45, 110), 18)
    pixels = np.where(left | right, 170.0, 70.0) + np.random.default_rng(0).normal(0, 5, shape)
    model = create_model(name)
    embedding = model.embed(View(pixels, (1.0, 1.0), (0.0, 255.0)))
    one = model.segment(embedding, [Click((45, 40))]).logits > 0
    assert not (one & right).any()
    both = model.segment(embedding, [Click((45, 40)), Click((45, 110))]).logits > 0
    assert dice(both, left | right) > 0.9


@every_method
def test_a_border_across_thick_slices_only_has_a_score(name: str) -> None:
    pixels = np.repeat([70.0] * 3 + [170.0] * 4 + [70.0] * 3, 2).reshape(-1, 2)
    model = create_model(name)
    embedding = model.embed(View(pixels, (9.0, 0.5), (0.0, 255.0)))
    answer = model.segment(embedding, [MaskPrompt(pixels > 100)])
    assert np.array_equal(answer.logits > 0, pixels > 100)
    assert 0.5 < answer.score <= 1.0


@settings(max_examples=times(20), deadline=None)
@given(st.data())
def test_no_combination_of_prompts_breaks_or_disobeys(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    ndim = data.draw(st.sampled_from([2, 3]))
    shape = tuple(int(n) for n in rng.integers(1, 30 if ndim == 2 else 12, ndim))
    array = rng.integers(0, data.draw(st.sampled_from([1, 2, 255])), shape, endpoint=True)
    spacing = tuple(rng.uniform(0.3, 5, ndim).tolist())
    view = View(array.astype(np.int16), spacing, (0.0, 255.0))
    latest: dict[tuple[int, ...], bool] = {}
    prompts: list[Prompt] = []
    for kind in data.draw(st.lists(st.sampled_from(["click", "box", "mask"]), max_size=6)):
        if kind == "click":
            at = tuple(int(rng.integers(n)) for n in shape)
            prompts.append(Click(at, bool(rng.random() < 0.5)))
            latest[at] = prompts[-1].positive
        elif kind == "box":
            low = np.array([rng.integers(n) for n in shape])
            prompts.append(Box(low, low + rng.integers(1, 20, ndim)))
        else:
            prompts.append(MaskPrompt(rng.random(shape) < rng.random()))
    previous = rng.normal(0, 5, shape).astype(np.float32) if rng.random() < 0.5 else None
    for name in METHODS:
        model = create_model(name)
        answer = model.segment(model.embed(view), prompts, previous)
        assert np.isfinite(answer.logits).all()
        assert 0 <= answer.score <= 1
        for at, positive in latest.items():
            assert (answer.logits[at] > 0) == positive


@every_method
@pytest.mark.parametrize("positive", [False, True])
def test_a_correction_leaves_what_is_far_from_it_alone(name: str, positive: bool) -> None:
    shape = (90, 200)
    left, right = disk(shape, (45, 40), 18), disk(shape, (45, 150), 18)
    pixels = np.where(left | right, 170.0, 70.0) + np.random.default_rng(0).normal(0, 5, shape)
    model = create_model(name)
    embedding = model.embed(View(pixels, (1.0, 1.0), (0.0, 255.0)))
    rough = disk(shape, (48, 44), 14) | disk(shape, (45, 150), 15)
    previous = np.where(rough, 4.0, -4.0).astype(np.float32)
    wrong = Click((45, 30)) if positive else Click((60, 44), positive=False)
    assert rough[tuple(int(x) for x in wrong.at)] != positive
    answer = model.segment(embedding, [Click((45, 150)), Click((45, 44)), wrong], previous)
    mask = answer.logits > 0
    assert mask[tuple(int(x) for x in wrong.at)] == positive
    assert np.array_equal(mask[:, 100:], rough[:, 100:])
    assert not (rough & ~mask).any() if positive else not (mask & ~rough).any()


def test_a_new_box_drops_what_lies_beyond_it_unless_it_was_clicked() -> None:
    earlier = disk((60, 120), (30, 30), 10) | disk((60, 120), (30, 90), 10)
    previous = np.where(earlier, 4.0, -4.0).astype(np.float32)
    box = Box((18, 18), (43, 43))
    assert gather_markers([box], (60, 120), (1, 1), previous).outside[30, 90]
    clicked = gather_markers([box, Click((30, 90))], (60, 120), (1, 1), previous)
    assert not clicked.outside[earlier].any()
