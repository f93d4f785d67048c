"""The simulated user: what it may say, and that a seed fixes it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.prompts import simulate
from limner.prompts.convert import check_inside
from limner.prompts.perturb import perturb_prompt
from limner.prompts.raster import rasterize
from limner.prompts.simulate import (
    STYLES,
    box,
    click,
    corrective_click,
    corrective_scribble,
    first_prompt,
    lasso,
    random_click,
    rough_mask,
    rounds,
    scribble,
)
from limner.prompts.types import (
    Box,
    Click,
    Example,
    Lasso,
    MaskPrompt,
    Prompt,
    Scribble,
    TextPrompt,
)
from rounds import times

KINDS = ("click", "random_click", "box", "scribble", "lasso", "mask")
SHAPES = ((50, 60), (1, 1), (1, 30), (40, 1), (3, 3), (12, 30, 20), (1, 20, 30), (20, 1, 15))


def blob(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One or several smooth parts, never empty, often at the border."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.3, 4))
    return field >= np.quantile(field, rng.uniform(0.3, 0.98))


@st.composite
def targets(draw: st.DrawFn, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> np.ndarray:
    return blob(draw(st.sampled_from(shapes)), draw(st.integers(0, 10**6)))


SEEDS = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def painted(prompt: Prompt, shape: tuple[int, ...]) -> np.ndarray:
    maps = rasterize([prompt], shape, click_radius=0)
    return next(m for m in vars(maps).values() if m is not None)


@pytest.mark.parametrize("kind", KINDS)
@given(target=targets(), rng=SEEDS)
def test_first_prompts_are_inside_the_image_and_fit_the_target(
    kind: Any, target: np.ndarray, rng: np.random.Generator
) -> None:
    prompt = first_prompt(target, rng, kind=kind)
    check_inside(prompt, target.shape)
    low, high = prompt.extent()
    if kind != "scribble":  # whose brush may reach over the edge in `extent`, though not painted
        assert (low >= 0).all()
        assert (high <= target.shape).all()
    where = painted(prompt, target.shape)
    assert where.any()
    match prompt:
        case Click() | Scribble():
            assert prompt.positive
            assert target[where].all()
        case Box():
            assert where[target].all()
            tight = [
                np.flatnonzero(target.any(axis=tuple({*range(target.ndim)} - {a})))
                for a in range(target.ndim)
            ]
            assert prompt.low == tuple(float(t[0]) for t in tight)
            assert prompt.high == tuple(float(t[-1] + 1) for t in tight)
        case Lasso():
            if target.ndim == 3:
                slices = where.any(axis=(1, 2))
                assert slices.sum() == 1
                where, target = where[slices], target[slices]
            assert where[target].all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_the_prompt(kind: Any) -> None:
    target = np.hypot(*(np.indices((60, 70)) - 32)) < 20
    said = [first_prompt(target, np.random.default_rng(5), kind=kind) for _ in range(2)]
    assert said[0] == said[1]
    if kind not in ("box", "click"):
        assert first_prompt(target, np.random.default_rng(6), kind=kind) != said[0]


def test_no_global_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    target, rng = blob((40, 40), 1), np.random.default_rng(0)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("global random state")

    for name in ("rand", "randn", "random", "normal", "uniform", "randint", "choice"):
        monkeypatch.setattr(np.random, name, forbidden)
    monkeypatch.setattr(np.random, "default_rng", forbidden)
    for kind in KINDS:
        assert first_prompt(target, rng, kind=kind).kind == kind.removeprefix("random_")


@pytest.mark.parametrize("kind", KINDS)
def test_empty_targets_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        first_prompt(np.zeros((5, 5)), np.random.default_rng(0), kind=kind)


def test_wrong_arguments_are_refused() -> None:
    target, rng = np.ones((5, 5)), np.random.default_rng(0)
    with pytest.raises(ValueError, match="cannot be simulated"):
        first_prompt(target, rng, kind="text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2D and 3D"):
        click(np.ones(5), rng)
    with pytest.raises(ValueError, match="spacing"):
        click(target, rng, spacing=(1, 1, 1))
    with pytest.raises(ValueError, match="spacing"):
        click(target, rng, spacing=(1, 0))
    with pytest.raises(ValueError, match="jitter"):
        box(target, rng, jitter=-1)
    with pytest.raises(ValueError, match="style"):
        scribble(target, rng, style="zigzag")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="axis"):
        scribble(np.ones((3, 3, 3)), rng, axis=5)
    with pytest.raises(ValueError, match="roughness"):
        lasso(target, rng, roughness=2)
    with pytest.raises(ValueError, match="roughness"):
        rough_mask(target, rng, roughness=float("nan"))
    with pytest.raises(ValueError, match="sigma"):
        perturb_prompt(Click((1, 1)), -1, rng, shape=(5, 5))
    with pytest.raises(ValueError, match="2 axes"):
        perturb_prompt(Click((1, 1)), 1, rng, shape=(5, 5, 5))
    with pytest.raises(ValueError, match="does not fit"):
        corrective_click(target, np.ones((5, 6)), rng)
    with pytest.raises(ValueError, match="rule"):
        corrective_click(target, ~target.astype(bool), rng, rule="guess")  # type: ignore[arg-type]


@given(targets(), SEEDS)
def test_click_is_the_farthest_from_the_edge(target: np.ndarray, rng: np.random.Generator) -> None:
    from scipy import ndimage

    spacing = tuple(rng.uniform(0.3, 3, target.ndim))
    at = click(target, rng, spacing=spacing).at
    depth = ndimage.distance_transform_edt(np.pad(target, 1), sampling=spacing)
    depth = depth[(slice(1, -1),) * target.ndim]
    assert depth[tuple(int(x) for x in at)] == pytest.approx(depth.max(), rel=1e-5)


def test_ties_are_broken_by_the_generator() -> None:
    target = np.zeros((20, 40), dtype=bool)
    target[5:8, 5:35] = True  # the whole middle row is equally deep
    rng = np.random.default_rng(0)
    columns = {click(target, rng).at[1] for _ in range(200)}
    assert len(columns) > 20
    assert {click(target, rng).at[0] for _ in range(20)} == {6.0}


def test_random_click_reaches_every_pixel() -> None:
    target = np.zeros((4, 5), dtype=bool)
    target[1:3, 2:4] = True
    rng = np.random.default_rng(0)
    seen = {random_click(target, rng).at for _ in range(200)}
    assert seen == {(1, 2), (1, 3), (2, 2), (2, 3)}


def test_large_regions_are_looked_at_sparsely(monkeypatch: pytest.MonkeyPatch) -> None:
    from limner.prompts import regions

    monkeypatch.setattr(regions, "MAX_VOXELS", 1000)
    rng = np.random.default_rng(0)
    ball = np.indices((40, 40, 40)) - 20.0
    target = (ball**2).sum(axis=0) <= 15**2
    at = np.array(click(target, rng).at)
    assert np.linalg.norm(at - 20) <= 4
    sheet = np.zeros((40, 40, 40), dtype=bool)
    sheet[np.arange(40), np.arange(40), 0] = True
    assert sheet[tuple(int(x) for x in click(sheet, rng).at)]
    mask = rough_mask(target, rng).mask
    assert 2 * (mask & target).sum() / (mask.sum() + target.sum()) > 0.7


@given(targets(), SEEDS, st.sampled_from((0.0, 0.1, 0.5, 3.0)))
def test_boxes_move_by_at_most_the_jitter(
    target: np.ndarray, rng: np.random.Generator, jitter: float
) -> None:
    tight, moved = box(target, rng), box(target, rng, jitter=jitter)
    check_inside(moved, target.shape)
    for k, size in enumerate(target.shape):
        side = tight.high[k] - tight.low[k]
        assert 0 <= moved.low[k] < moved.high[k] <= size
        if jitter <= 0.1:
            assert abs(moved.low[k] - tight.low[k]) <= jitter * side + 0.5
            assert abs(moved.high[k] - tight.high[k]) <= jitter * side + 0.5


@pytest.mark.parametrize("style", STYLES)
@given(target=targets(), rng=SEEDS, axis=st.sampled_from((0, 1, 2, None)))
def test_scribbles_stay_in_their_region(
    style: Any, target: np.ndarray, rng: np.random.Generator, axis: int | None
) -> None:
    prompt = scribble(target, rng, style=style, positive=False, radius=4, axis=axis)
    assert not prompt.positive
    assert prompt.radius <= 4
    where = painted(prompt, target.shape)
    assert where.any()
    assert target[where].all()


@pytest.mark.parametrize("style", STYLES)
def test_scribbles_are_strokes_not_dots(style: Any) -> None:
    target = np.hypot(*(np.indices((120, 140)) - 65)) < 50
    rng = np.random.default_rng(2)
    lengths, radii = [], []
    for _ in range(20):
        prompt = scribble(target, rng, style=style)
        points = np.array(prompt.points)
        lengths.append(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
        radii.append(prompt.radius)
    assert np.median(lengths) > 20
    assert np.median(radii) > 0.5


def test_centreline_runs_along_a_vessel() -> None:
    rows = np.arange(200)
    target = np.zeros((200, 100), dtype=bool)
    middle = 50 + 30 * np.sin(rows / 30)
    for r in rows[5:195]:
        target[r, int(middle[r]) - 4 : int(middle[r]) + 5] = True
    prompt = scribble(target, np.random.default_rng(0), style="centreline", radius=0)
    points = np.array(prompt.points)
    assert np.ptp(points[:, 0]) > 80
    assert target[painted(prompt, target.shape)].all()


def test_lasso_margin_and_several_parts() -> None:
    target = np.zeros((100, 100), dtype=bool)
    target[20:30, 20:30] = target[60:70, 70:80] = True
    rng = np.random.default_rng(0)
    close = painted(lasso(target, rng, margin=0.1), target.shape)
    wide = painted(lasso(target, rng, margin=1.0), target.shape)
    assert close[target].all()
    assert close[45, 50]  # between the parts
    assert wide.sum() > close.sum()


@given(targets(), SEEDS)
def test_rough_masks_resemble_their_target(target: np.ndarray, rng: np.random.Generator) -> None:
    mask = rough_mask(target, rng, roughness=0.0 if target.size < 50 else 0.2).mask
    assert mask.shape == target.shape
    assert mask.any()
    assert (mask & _grown(target, 12)).sum() == mask.sum()


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    from scipy import ndimage

    return ndimage.binary_dilation(mask, np.ones((3,) * mask.ndim), iterations=steps)


def test_rough_mask_is_rough_but_close() -> None:
    target = np.hypot(*(np.indices((120, 140)) - 65)) < 45
    rng = np.random.default_rng(0)
    overlaps = []
    for _ in range(20):
        mask = rough_mask(target, rng).mask
        overlaps.append(2 * (mask & target).sum() / (mask.sum() + target.sum()))
    assert min(overlaps) > 0.75
    assert max(overlaps) < 1.0


@pytest.mark.parametrize("rule", ["separate", "cvpr2025"])
@given(target=targets(), seed=st.integers(0, 10**6), rng=SEEDS)
def test_corrective_clicks_are_where_it_is_wrong(
    rule: Any, target: np.ndarray, seed: int, rng: np.random.Generator
) -> None:
    prediction = blob(target.shape, seed)
    said = corrective_click(target, prediction, rng, rule=rule)
    if said is None:
        np.testing.assert_array_equal(target, prediction)
        return
    at = tuple(int(x) for x in said.at)
    assert target[at] != prediction[at]
    assert said.positive == target[at]


def test_the_largest_error_is_corrected_first() -> None:
    target, prediction = np.zeros((2, 60, 60), dtype=bool)
    target[5:15, 5:15] = True  # missed: 100
    prediction[30:50, 30:50] = True  # spilled: 400
    rng = np.random.default_rng(0)
    said = corrective_click(target, prediction, rng)
    assert said is not None
    assert not said.positive
    assert all(39 <= x <= 40 for x in said.at)
    said = corrective_click(target, target & False, rng)
    assert said is not None
    assert said.positive
    stroke = corrective_scribble(target, prediction, rng)
    assert stroke is not None
    assert not stroke.positive
    assert prediction[painted(stroke, target.shape)].all()


def test_rules_differ_where_errors_touch() -> None:
    """A prediction that is shifted misses on one side and spills on the other."""
    target, prediction = np.zeros((2, 40, 60), dtype=bool)
    target[10:30, 10:20] = True
    target[10:30, 20:26] = True
    prediction[10:30, 26:40] = True
    rng = np.random.default_rng(0)
    separate = corrective_click(target, prediction, rng)
    together = corrective_click(target, prediction, rng, rule="cvpr2025")
    assert separate is not None
    assert together is not None
    assert separate.positive  # 320 missed against 280 spilled
    assert 17 <= separate.at[1] <= 18
    assert 19 <= together.at[1] <= 30  # in the middle of both


def test_image_border_counts_as_edge() -> None:
    target = np.zeros((21, 40), dtype=bool)
    target[:, :11] = True
    said = corrective_click(target, np.zeros_like(target), np.random.default_rng(0))
    assert said is not None
    assert said.at[1] == 5.0


def test_diagonal_neighbours_belong_together() -> None:
    target = np.zeros((20, 20), dtype=bool)
    target[np.arange(12), np.arange(12)] = True  # 12 pixels, touching at corners
    target[15:18, 2:5] = True  # 9
    said = corrective_click(target, np.zeros_like(target), np.random.default_rng(0))
    assert said is not None
    assert said.at[0] == said.at[1]


@given(targets(), st.integers(0, 10**6), SEEDS)
def test_corrective_scribbles_stay_in_the_error(
    target: np.ndarray, seed: int, rng: np.random.Generator
) -> None:
    prediction = blob(target.shape, seed)
    said = corrective_scribble(target, prediction, rng)
    if said is None:
        np.testing.assert_array_equal(target, prediction)
        return
    where = painted(said, target.shape)
    assert where.any()
    assert (target[where] == said.positive).all()
    assert (prediction[where] != said.positive).all()


def test_nothing_to_correct() -> None:
    target, rng = blob((30, 30), 0), np.random.default_rng(0)
    assert corrective_click(target, target, rng) is None
    assert corrective_click(target, target, rng, rule="cvpr2025") is None
    assert corrective_scribble(target, target, rng) is None
    empty = np.zeros((5, 5))
    assert corrective_click(empty, empty, rng) is None
    spilled = corrective_click(empty, np.ones((5, 5)), rng)
    assert spilled == Click((2, 2), positive=False)


@pytest.mark.slow
@given(targets(), SEEDS, st.floats(0, 30))
@settings(max_examples=times(60))
def test_noise_keeps_prompts_in_the_image(
    target: np.ndarray, rng: np.random.Generator, sigma: float
) -> None:
    for kind in KINDS:
        prompt = first_prompt(target, rng, kind=kind)  # type: ignore[arg-type]
        moved = perturb_prompt(prompt, sigma, rng, shape=target.shape)
        assert type(moved) is type(prompt)
        check_inside(moved, target.shape)
        assert painted(moved, target.shape).any()
        if sigma == 0:
            assert moved == prompt


def test_noise_moves_by_sigma() -> None:
    rng = np.random.default_rng(0)
    moved = [
        perturb_prompt(Click((500, 500)), 3.0, rng, shape=(1000, 1000)).at for _ in range(2000)
    ]  # type: ignore[union-attr]
    assert np.std(np.array(moved)) == pytest.approx(3.0, rel=0.05)
    assert np.mean(np.array(moved)) == pytest.approx(500, abs=0.3)
    text = TextPrompt("liver")
    assert perturb_prompt(text, 3.0, rng, shape=(9, 9)) is text
    example = Example(np.zeros((3, 3)), np.ones((3, 3)))
    assert perturb_prompt(example, 3.0, rng, shape=(9, 9)) is example
    empty = MaskPrompt(np.zeros((9, 9)))
    assert perturb_prompt(empty, 3.0, rng, shape=(9, 9)) is empty


def obedient(target: np.ndarray) -> Callable[[Prompt], np.ndarray]:
    """A model that gets the neighbourhood of every prompt right and nothing else."""
    answer = np.zeros_like(target)

    def predict(prompt: Prompt) -> np.ndarray:
        near = _grown(painted(prompt, target.shape), 4)
        answer[near] = target[near]
        return answer.copy()

    return predict


@pytest.mark.parametrize("correction", ["click", "scribble"])
def test_rounds_end_when_nothing_is_wrong(correction: Any) -> None:
    target = np.zeros((30, 40), dtype=bool)
    target[5:20, 8:25] = True
    done = list(
        rounds(
            target,
            obedient(target),
            np.random.default_rng(0),
            num_rounds=200,
            first="random_click",
            correction=correction,
        )
    )
    assert 2 <= len(done) < 60
    assert [r.number for r in done] == list(range(len(done)))
    np.testing.assert_array_equal(done[-1].prediction, target)
    errors = [(r.prediction != target).sum() for r in done]
    assert all(b < a for a, b in pairwise(errors))


@pytest.mark.parametrize(("spacing", "flat"), [(None, False), ((10.0, 1.0), True)])
def test_corrections_are_most_inner_in_millimetres(spacing: Any, flat: bool) -> None:
    target = np.zeros((50, 60), dtype=bool)
    target[5:12, 5:55] = True  # a bar of 7 rows: in pixels not as deep as
    target[12:45, 5:14] = True  # one of 9 columns, but deeper where rows are thick
    missed = np.zeros_like(target)
    rng = np.random.default_rng(0)
    done = list(rounds(target, lambda _: missed, rng, num_rounds=2, spacing=spacing))
    for step in done:
        assert isinstance(step.prompt, Click)
        assert (step.prompt.at[0] < 12) is flat


def test_rounds_give_up() -> None:
    target = blob((20, 20), 0)
    stubborn = np.zeros((20, 20), dtype=bool)
    rng = np.random.default_rng(0)
    done = list(rounds(target, lambda _: stubborn, rng, num_rounds=4))
    assert len(done) == 4
    assert all(isinstance(r.prompt, Click) and r.prompt.positive for r in done)
    with pytest.raises(ValueError, match="does not fit"):
        list(rounds(target, lambda _: stubborn[:3], rng, num_rounds=4))


def test_real_masks(shared_data: Any) -> None:
    import nibabel
    from PIL import Image

    rng = np.random.default_rng(0)
    masks = [
        np.asarray(Image.open(path)) > 0
        for path in sorted((shared_data / "2d/photo_foot_ulcer/masks").glob("*.png"))[:3]
    ]
    path = sorted((shared_data / "3d/hippocampus_mr/labels").glob("*.nii.gz"))[0]
    masks.append(np.asarray(nibabel.load(path).dataobj) > 0)
    for target in masks:
        for kind in simulate.Kind.__args__:
            prompt = first_prompt(target, rng, kind=kind)
            check_inside(prompt, target.shape)
            if isinstance(prompt, Click | Scribble):
                assert target[painted(prompt, target.shape)].all()
