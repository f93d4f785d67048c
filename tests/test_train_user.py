"""The simulated user on batches, the views it looks at, and what is done to pictures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from limner.datasets import find_training_sets
from limner.networks.fusion2d import CLICK_RADIUS
from limner.train.data import pack
from limner.train.data.augment import augment_images
from limner.train.data.images import read_images
from limner.train.data.pack import COARSE, FINE, PackedImages
from limner.train.data.rng import BatchRandom, box_mean
from limner.train.data.synthetic import draw_shapes, paint
from limner.train.data.targets import MOST_IDS, TargetTable
from limner.train.data.views import DeviceImages, draw_views, plain_views
from limner.train.losses import answer_loss, dice, iou
from limner.train.simulate import strokes
from limner.train.simulate.interactions import (
    prompt_with_box,
    prompt_with_click,
    simulate_correction,
    simulate_first_prompts,
)
from train_makers import make_data

SIZE = 64


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedImages:
    out = tmp_path_factory.mktemp("pack")
    pack.write_pack(
        out, read_images(find_training_sets(make_data(tmp_path_factory.mktemp("data"))))
    )
    return pack.open_pack(out)


def _batch_rng(number: int, seed: int = 0) -> BatchRandom:
    return BatchRandom(number, torch.Generator().manual_seed(seed))


def _masks() -> torch.Tensor:
    """A disc, a ring, a thin line, one pixel, two parts of unlike size, everything, nothing."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    away = ((rows - 30) ** 2 + (columns - 34) ** 2).float().sqrt()
    masks = [away < 14, (away > 12) & (away < 20), (rows - columns).abs() < 2, away < 1]
    masks += [(away < 12) | ((rows < 6) & (columns < 6)), away < 999, away < 0]
    return torch.stack(masks)[:, None].float()


def test_some_samples_are_changed_and_the_others_left() -> None:
    values = torch.zeros(5, 1, 4, 4)
    chosen = torch.tensor([1, 0, 0, 1, 0]).bool().view(-1, 1, 1, 1)
    changed = _batch_rng(5).some(values, chosen, lambda part, batch_rng: part + batch_rng.number)
    assert changed.mean(dim=(1, 2, 3)).tolist() == [2, 0, 0, 2, 0]
    assert (values == 0).all()
    assert _batch_rng(5).some(values, ~chosen & chosen, lambda part, _: part + 1) is values


def test_a_box_is_shown_with_its_ellipse_and_a_lasso_with_all_of_it() -> None:
    target = _masks()[:1].repeat(64, 1, 1, 1)
    said = simulate_first_prompts(target, torch.ones_like(target), _batch_rng(64), 0.0)
    for region, previous in zip(said.region, said.previous, strict=True):
        if region.any():
            guess = previous > 0
            assert (guess & (region == 0)).sum() == 0
            assert guess.sum() > 0.7 * region.sum()
    boxed = prompt_with_box(target[:1])
    assert float((boxed.previous > 0).sum() / boxed.region.sum()) == pytest.approx(0.785, abs=0.03)


def test_running_means_are_means() -> None:
    values = torch.rand((2, 3, 9, 9), generator=torch.Generator().manual_seed(0))
    for radius in (0, 1, 3):
        expected = torch.nn.functional.avg_pool2d(values, 2 * radius + 1, 1, radius)
        torch.testing.assert_close(box_mean(values, radius), expected, rtol=1e-4, atol=1e-5)


def test_the_deepest_pixel_is_in_the_middle_of_the_largest_part() -> None:
    masks = _masks()
    at = strokes.draw_pixel(masks, _batch_rng(len(masks)), deep=strokes.compute_depth(masks))
    assert ((at[0] - torch.tensor([30, 34])).abs() <= 3).all()
    assert ((at[4] - torch.tensor([30, 34])).abs() <= 4).all()
    assert at[3].tolist() == [30, 34]
    assert at[6].tolist() == [-1, -1]
    inside = masks[torch.arange(6), 0, at[:6, 0], at[:6, 1]]
    assert (inside == 1).all()


def test_random_pixels_are_spread_over_the_mask() -> None:
    mask = _masks()[:1].expand(200, -1, -1, -1)
    at = strokes.draw_pixel(mask, _batch_rng(200)).float()
    assert (mask[0, 0][tuple(at.long().T)] == 1).all()
    assert (at.std(dim=0) > 4).all()


def test_disks_have_their_radius_and_missing_ones_are_empty() -> None:
    drawn = strokes.paint_disks(torch.tensor([[10, 20], [-1, -1], [0, 0]]), SIZE, CLICK_RADIUS)
    assert drawn[0].sum() == 21
    assert drawn[0, 0, 10, 20] == 1
    assert drawn[1].sum() == 0
    assert drawn[2].sum() == 8


def test_strokes_touch_their_mask_and_are_much_smaller() -> None:
    masks = _masks()
    for seed in range(8):
        drawn = strokes.draw_scribble(
            masks, strokes.compute_depth(masks), _batch_rng(len(masks), seed)
        )
        touched = (drawn * masks).sum(dim=(1, 2, 3))
        assert (touched[:6] > 0).all()
        assert drawn[6].sum() == 0
        assert ((drawn == 0) | (drawn == 1)).all()
        assert drawn[0].sum() < 0.7 * masks[0].sum()


def test_tight_boxes_are_tight_and_loose_ones_are_near() -> None:
    masks = _masks()
    exact = prompt_with_box(masks).region
    for mask, box in zip(masks[:6], exact[:6], strict=True):
        where = torch.nonzero(mask[0])
        low, high = where.min(0).values, where.max(0).values
        assert box.sum() == (high - low + 1).prod()
        assert box[0, low[0], low[1]] == 1
        assert box[0, high[0], high[1]] == 1
    assert exact[6].sum() == 0
    for seed in range(5):
        batch_rng = _batch_rng(len(masks), seed)
        loose = strokes.draw_box(masks, batch_rng, loose=batch_rng.bernoulli(1.0))
        assert (iou(loose, exact)[[0, 1, 4]] > 0.4).all()


def test_lassos_hold_the_mask_and_rough_masks_resemble_it() -> None:
    masks = _masks()[[0, 1, 4]]
    for seed in range(5):
        around = strokes.draw_outline(masks, _batch_rng(3, seed))
        assert (around >= masks).all()
        assert (dice(around, masks) > 0.5).all()
        rough = strokes.draw_rough_mask(masks, _batch_rng(3, seed))
        assert (dice(rough, masks) > 0.25).all()
        assert not torch.equal(rough, masks)


def test_conversations_begin_with_something_about_the_target() -> None:
    masks = _masks()[:6].repeat(20, 1, 1, 1)
    said = simulate_first_prompts(masks, torch.ones_like(masks), _batch_rng(len(masks)), wrong=0.0)
    spoken = (said.positive + said.region + (said.previous > 0).float()).amax(dim=(1, 2, 3))
    assert (spoken > 0).all()
    about = ((said.positive + said.region + (said.previous > 0).float()) * masks).amax((1, 2, 3))
    assert about.mean() > 0.97
    assert (said.negative * masks).sum() == 0


def test_corrections_go_where_the_answer_is_wrong() -> None:
    masks = _masks()[[0, 1, 4, 0, 0]]
    answer = masks.clone()
    answer[0] = 0  # all missing
    answer[1, :, :, 40:] = 1  # too much
    answer[2, :, :8, :8] = 0  # the small part is missing
    answer[4] = masks[4]  # right, and so is the fourth
    logits = answer * 8 - 4
    before = prompt_with_click(masks, _batch_rng(5))
    inside = torch.ones_like(masks)
    after = simulate_correction(
        before, logits, masks, inside, _batch_rng(5), 0.0, strokes_too=False
    )
    more, less = after.positive - before.positive, after.negative - before.negative
    assert more[0].sum() >= 0
    assert less[1].sum() == 21
    assert (less[1] * (1 - masks[1])).sum() > 10
    assert (more[2][:, :10, :10]).sum() > 5
    assert more[3:].sum() + less.sum() - less[1].sum() == 0
    assert torch.equal(after.previous, logits)
    assert torch.equal(after.region, before.region)


def test_targets_are_drawn_from_the_split_and_lie_in_their_boxes(packed: PackedImages) -> None:
    for split in (0, 1):
        table = TargetTable(packed, split=split, unlabelled_fraction=0.3)
        targets = table.draw(64, np.random.default_rng(split))
        assert (packed.images[targets.images, 1] == split).all()
        assert targets.ids.shape == (64, MOST_IDS)
        assert (targets.ids > 0).all()
        assert (targets.boxes[:, 2:] > targets.boxes[:, :2]).all()
    named, unnamed = (TargetTable(packed, split=0, unlabelled_fraction=f) for f in (0.0, 1.0))
    assert set(named.draw(99, np.random.default_rng(0)).layers)
    invented = unnamed.draw(99, np.random.default_rng(0))
    pictured = packed.images[invented.images, 5] > 0
    assert np.isin(invented.layers[pictured], (FINE, COARSE)).all()


def test_views_show_the_target(packed: PackedImages) -> None:
    rng = np.random.default_rng(2)
    device_data = DeviceImages(packed, torch.device("cpu"))
    targets = TargetTable(packed, split=0, unlabelled_fraction=0.2).draw(48, rng)
    views = draw_views(packed, targets, SIZE, rng)
    samples = device_data.cut_view(targets, views, SIZE, torch.Generator().manual_seed(0))
    shown = samples.target.sum(dim=(1, 2, 3))
    assert (shown > 0).float().mean() > 0.95
    assert (samples.target <= samples.inside).all()
    assert samples.image.shape == (48, 3, SIZE, SIZE)
    assert samples.image.min() >= 0
    assert samples.image.max() <= 1
    assert (samples.image * (1 - samples.inside)).max() < 0.8  # rims of half pixels only


def test_plain_views_reproduce_the_plane(packed: PackedImages) -> None:
    index = packed.names.index("2d/discs")
    table = TargetTable(packed, split=1, unlabelled_fraction=0.0)
    targets = table.named(index, 1, np.random.default_rng(0))
    views = plain_views(packed, targets, 64)
    views.centres[:], views.steps[:] = 32.0, np.eye(2)
    device_data = DeviceImages(packed, torch.device("cpu"))
    samples = device_data.cut_view(targets, views, 64, torch.Generator().manual_seed(0))
    place, first = packed.images[targets.images[0], [7, 6]]
    labels = packed.layers[targets.layers[0]][place : place + 64 * 64].reshape(64, 64)
    assert np.array_equal(samples.target[0, 0].numpy() > 0, labels == targets.ids[0, 0])
    pixels = packed.pixels[first : first + 64 * 64].reshape(64, 64) / 255
    away = np.abs(samples.image[0, 0].numpy() - pixels)[4:-4, 4:-4]
    assert away.mean() < 0.04  # sampled at half pixels and averaged: a slight blur of the noise
    assert torch.equal(samples.image[:, 0], samples.image[:, 2])


def test_disturbed_pictures_stay_pictures_and_differ() -> None:
    image = torch.rand((16, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    found = augment_images(image, _batch_rng(16))
    assert found.shape == image.shape
    assert torch.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert ((found - image).abs().amax(dim=(1, 2, 3)) > 0.01).sum() >= 8
    assert torch.equal(found, augment_images(image, _batch_rng(16)))


def test_painted_regions_are_even_and_made_up_shapes_are_there() -> None:
    regions, target = draw_shapes(SIZE, _batch_rng(24))
    assert regions.shape == (24, SIZE, SIZE)
    assert (target.float().mean(dim=(1, 2, 3)) > 0).float().mean() > 0.9
    assert all((regions[k][target[k, 0]] == 7).all() for k in range(24))
    image = paint(regions, _batch_rng(24))
    assert image.shape == (24, 3, SIZE, SIZE)
    one = image[0, 0][regions[0] == regions[0, 5, 5]]
    assert one.std() < 0.25


def test_the_loss_prefers_the_truth_and_obedience() -> None:
    target = _masks()[:1]
    inside, nothing = torch.ones_like(target), torch.zeros_like(target)
    right, wrong = target * 12 - 6, 6 - target * 12
    assert answer_loss(right, target, inside, nothing) < 0.05
    assert answer_loss(wrong, target, inside, nothing) > 2
    disobeys = right.clone()
    disobeys[..., 28:32, 32:36] = -6
    marked = nothing.clone()
    marked[..., 28:32, 32:36] = 1
    plain = answer_loss(disobeys, target, inside, nothing)
    assert answer_loss(disobeys, target, inside, marked) > plain + 1
    half = torch.zeros_like(target)
    half[..., :32] = 1
    outside = right.clone()
    outside[..., 32:] = 9.0
    halved = answer_loss(outside, target, half, nothing)
    assert halved < 0.05
