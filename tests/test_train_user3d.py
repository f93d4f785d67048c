"""The simulated user in volumes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from limner.networks.fusion2d import CLICK_RADIUS, MASK_LOGIT
from limner.train.data.rng import BatchRandom, block_mean
from limner.train.losses import answer_loss, dice, iou, quality_loss
from limner.train.simulate import strokes3d
from limner.train.simulate.interactions import SimulatedPrompts
from limner.train.simulate.interactions3d import (
    prompt_with_box,
    prompt_with_click,
    simulate_correction,
    simulate_first_prompts,
)

SHAPE = (16, 64, 64)
AXES = (2, 3, 4)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _batch_rng(number: int, seed: int = 0) -> BatchRandom:
    return BatchRandom(number, torch.Generator().manual_seed(seed), axes=3)


def _masks() -> torch.Tensor:
    """A ball, a shell, a tube, one voxel, two parts of unlike size, everything, nothing."""
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in SHAPE), indexing="ij"))
    away = (places - torch.tensor([8, 30, 34]).view(3, 1, 1, 1)).float()
    away = (away * torch.tensor([2.0, 1, 1]).view(3, 1, 1, 1)).square().sum(0).sqrt()
    tube = (places[1] - places[2]).abs() + (places[0] - 7).abs() < 3
    corner = (places < torch.tensor([4, 6, 6]).view(3, 1, 1, 1)).all(dim=0)
    masks = [away < 13, (away > 10) & (away < 15), tube, away < 1, (away < 12) | corner]
    masks += [away < 999, away < 0]
    return torch.stack(masks)[:, None].float()


def test_block_means_are_means() -> None:
    values = torch.rand((2, 3, 6, 9, 9), generator=torch.Generator().manual_seed(0))
    for radius in ((0, 0, 0), (1, 1, 1), (0, 2, 3)):
        size = [2 * r + 1 for r in radius]
        expected = torch.nn.functional.avg_pool3d(values, size, 1, radius)
        torch.testing.assert_close(block_mean(values, radius), expected, rtol=1e-4, atol=1e-5)
    ones = torch.zeros(1, 1, 4, 8, 8)
    ones[..., 4, 4] = 1
    assert (block_mean(ones, (1, 2, 2)) > 0).sum() == 4 * 25  # nothing is left over by rounding


def test_the_deepest_voxel_is_in_the_middle_of_the_largest_part() -> None:
    masks = _masks()
    at = strokes3d.draw_voxel(masks, _batch_rng(len(masks)), deep=strokes3d.compute_depth(masks))
    assert ((at[0] - torch.tensor([8, 30, 34])).abs() <= torch.tensor([2, 4, 4])).all()
    assert ((at[4] - torch.tensor([8, 30, 34])).abs() <= torch.tensor([2, 4, 4])).all()
    assert at[3].tolist() == [8, 30, 34]
    assert at[6].tolist() == [-1, -1, -1]
    for k in range(6):
        assert masks[k, 0][tuple(at[k])] == 1


def test_depth_knows_any_number_of_slices() -> None:
    for slices in (8, 12, 16, 40):
        mask = torch.zeros(1, 1, slices, 32, 96)
        mask[:, :, slices // 4 : slices // 2, 8:24, 40:80] = 1
        deep = strokes3d.compute_depth(mask)
        assert deep.shape == mask.shape
        assert (deep[mask == 0] == 0).all()
        assert deep.max() > 0


def test_random_voxels_are_spread_over_the_mask() -> None:
    mask = _masks()[:1].expand(60, -1, -1, -1, -1)
    at = strokes3d.draw_voxel(mask, _batch_rng(60))
    assert (mask[0, 0][tuple(at.T)] == 1).all()
    assert (at.float().std(dim=0) > torch.tensor([2.0, 4.0, 4.0])).all()


def test_balls_have_their_radius_and_missing_ones_are_empty() -> None:
    at = torch.tensor([[8, 10, 20], [-1, -1, -1], [0, 0, 0]])
    drawn = strokes3d.paint_balls(at, torch.Size(SHAPE), CLICK_RADIUS)
    assert drawn[0].sum() == 81
    assert drawn[0, 0, 8].sum() == 21  # as in the plane
    assert drawn[0, 0, 10, 10, 20] == 1
    assert drawn[0, 0, 11, 10, 20] == 0
    assert drawn[1].sum() == 0
    assert 0 < drawn[2].sum() < 40


def test_what_is_drawn_by_hand_is_on_one_slice_across_any_axis() -> None:
    masks = _masks()[[0, 1, 4]].repeat(12, 1, 1, 1, 1)
    batch_rng = _batch_rng(len(masks), 1)
    at = strokes3d.draw_voxel(masks, batch_rng)
    drawn, slices = strokes3d.draw_on_slice(masks, at, batch_rng, strokes3d.draw_stroke)
    axes = set()
    for k in range(len(masks)):
        assert drawn[k].any()
        assert (drawn[k] <= slices[k]).all()
        assert (drawn[k] * masks[k]).any()
        full = [int(slices[k, 0].sum()) == slices[k, 0].numel() // n for n in SHAPE]
        axis = next(a for a in range(3) if slices[k, 0].select(a, int(at[k, a])).all())
        assert full[axis]
        axes.add(axis)
    assert axes == {0, 1, 2}
    nothing, none = strokes3d.draw_on_slice(
        torch.zeros_like(masks[:2]), torch.full((2, 3), -1), _batch_rng(2), strokes3d.draw_stroke
    )
    assert nothing.sum() == none.sum() == 0


def test_rough_masks_resemble_the_mask() -> None:
    masks = _masks()[[0, 1, 4]]
    for seed in range(4):
        rough = strokes3d.draw_rough_mask(masks, _batch_rng(3, seed))
        assert (dice(rough, masks) > 0.25).all()
        assert not torch.equal(rough, masks)


def test_boxes_are_tight_jittered_or_loose_and_never_empty() -> None:
    masks = _masks()
    said = prompt_with_box(masks[:6])
    for mask, region in zip(masks[:6], said.region, strict=True):
        where = torch.nonzero(mask[0])
        low, high = where.min(0).values, where.max(0).values
        assert region.sum() == (high - low + 1).prod()
        assert region[0][tuple(low)] == region[0][tuple(high)] == 1
    exact = said.region[[0, 1, 4]]
    for seed in range(6):
        batch_rng = _batch_rng(3, seed)
        for share in (0.0, 1.0):
            boxes = strokes3d.draw_box(
                masks[[0, 1, 4]], batch_rng, loose=batch_rng.bernoulli(share)
            )
            filled = strokes3d.paint_box(boxes, torch.Size(SHAPE))
            assert (iou(filled, exact) > 0.35).all()
            single = strokes3d.draw_box(masks[3:4], _batch_rng(1, seed), loose=torch.tensor(False))
            assert (single[..., 1] > single[..., 0]).all()


def test_a_box_of_the_middle_slice_reaches_over_all_slices() -> None:
    mask = torch.zeros(1, 1, *SHAPE)
    mask[:, :, 2:13, 20:30, 20:30] = 1
    mask[:, :, 3, 10:50, 10:50] = 1
    assert strokes3d.box_of_middle_slice(mask)[0].tolist() == [[2, 13], [20, 30], [20, 30]]
    mask[:, :, 7] = 0  # nothing in the middle: the whole box
    assert strokes3d.box_of_middle_slice(mask)[0].tolist() == [[2, 13], [10, 50], [10, 50]]


def test_a_box_is_shown_with_its_ellipsoid() -> None:
    said = prompt_with_box(_masks()[[0]])
    share = float((said.previous > 0).sum() / said.region.sum())
    assert share == pytest.approx(0.5236, abs=0.05)
    assert ((said.previous > 0) & (said.region == 0)).sum() == 0
    assert set(said.previous.unique().tolist()) == {-MASK_LOGIT, MASK_LOGIT}


@pytest.mark.slow
def test_conversations_begin_with_something_about_the_target() -> None:
    masks = _masks()[:6].repeat(8, 1, 1, 1, 1)
    said = simulate_first_prompts(masks, torch.ones_like(masks), _batch_rng(len(masks)), wrong=0.0)
    about = (said.positive + said.region + (said.previous > 0).float()).clamp(max=1)
    assert (about.amax(AXES) > 0).all()
    assert (about * masks).amax(AXES).mean() > 0.97
    assert (said.negative * masks).sum() == 0
    assert (said.negative.amax(AXES) > 0).float().mean() > 0.05
    for marks in (said.positive, said.negative, said.region):
        assert set(marks.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.slow
def test_what_is_said_about_a_slice_is_no_guess_about_others() -> None:
    masks = _masks()[:1].repeat(90, 1, 1, 1, 1)
    said = simulate_first_prompts(masks, torch.ones_like(masks), _batch_rng(90, 2), wrong=0.0)
    in_space, on_slices = 0, 0
    for region, previous in zip(said.region[:, 0], said.previous[:, 0], strict=True):
        if not previous.any():
            continue
        if (previous != 0).all():
            in_space += 1
            continue
        on_slices += 1
        known = [
            int((previous.amax(dim=[a for a in range(3) if a != axis]) != 0).sum() == 1)
            for axis in range(3)
        ]
        assert sum(known) == 1
        assert (region[previous == 0] == 0).all()
        guess = previous > 0
        if region.any():
            assert guess.sum() >= 0.6 * region.sum()
    assert in_space > 20
    assert on_slices > 5


def test_clicks_on_nothing_are_not_made() -> None:
    masks = _masks()[6:].repeat(20, 1, 1, 1, 1)
    said = simulate_first_prompts(masks, torch.ones_like(masks), _batch_rng(20), wrong=0.5)
    assert said.positive.sum() == said.region.sum() == said.previous.abs().sum() == 0
    assert prompt_with_click(masks[:1], _batch_rng(1)).positive.sum() == 0


def test_corrections_go_where_the_answer_is_wrong() -> None:
    masks = _masks()[[0, 1, 4, 0]]
    answer = masks.clone()
    answer[0] = 0  # all missing
    answer[1, :, :, :, 48:] = 1  # too much
    answer[2, :, :4, :8, :8] = 0  # the small part is missing; the last is right
    logits = answer * 8 - 4
    before = prompt_with_click(masks, _batch_rng(4))
    inside = torch.ones_like(masks)
    after = simulate_correction(
        before, logits, masks, inside, _batch_rng(4), 0.0, strokes_too=False
    )
    more, less = after.positive - before.positive, after.negative - before.negative
    assert more[1].sum() == 0
    assert less[1].sum() > 40
    assert (less[1] * (1 - masks[1])).sum() > 0.5 * less[1].sum()
    assert more[2, 0, :6, :10, :10].sum() > 10
    assert more[2].sum() == more[2, 0, :6, :10, :10].sum()
    assert more[3].sum() + less[[0, 2, 3]].sum() == 0
    assert torch.equal(after.previous, logits)
    assert torch.equal(after.region, before.region)


def test_corrections_are_sometimes_strokes_on_a_slice() -> None:
    masks = _masks()[:1].repeat(40, 1, 1, 1, 1)
    nothing = SimulatedPrompts(*(torch.zeros_like(masks) for _ in range(4)))
    logits = torch.full_like(masks, -4.0)
    said = simulate_correction(nothing, logits, masks, torch.ones_like(masks), _batch_rng(40), 0.0)
    spread = [
        min(int((m[0].amax(dim=[a for a in range(3) if a != axis])).sum()) for axis in range(3))
        for m in said.positive
    ]
    assert 2 <= sum(s == 1 for s in spread) <= 24
    assert all(s in (1, 3, 4, 5) for s in spread)


def test_the_loss_works_on_volumes() -> None:
    target = _masks()[:1]
    inside, nothing = torch.ones_like(target), torch.zeros_like(target)
    right, wrong = target * 12 - 6, 6 - target * 12
    assert answer_loss(right, target, inside, nothing) < 0.05
    assert answer_loss(wrong, target, inside, nothing) > 1.5
    marked = nothing.clone()
    marked[..., 28:32, 32:36] = 1
    disobeys = torch.where(marked > 0, -6.0, right)
    plain = answer_loss(disobeys, target, inside, nothing)
    assert answer_loss(disobeys, target, inside, marked) > plain + 0.5
    assert iou(target, target).tolist() == [1.0]
    sure = quality_loss(torch.tensor([6.0]), right, target, inside)
    assert sure < quality_loss(torch.tensor([-6.0]), right, target, inside)
