"""Supervised training: losses of label maps, patches, and their changes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from limner.train.data.augment_patches import augment_patches  # noqa: E402
from limner.train.data.patches import (  # noqa: E402
    PreparedCase,
    draw_patch,
    find_places,
    is_prepared,
    read_case,
    write_case,
)
from limner.train.segmentation_losses import (  # noqa: E402
    IGNORED,
    deep_supervision,
    dice_cross_entropy,
    shrink_labels,
)


def sure(target: torch.Tensor, channels: int = 3) -> torch.Tensor:
    """Logits that are right and sure."""
    place = target.clamp_min(0)
    return 40.0 * torch.nn.functional.one_hot(place, channels).movedim(-1, 1).float()


def target_of(*shape: int) -> torch.Tensor:
    target = torch.zeros(shape, dtype=torch.long)
    target[..., : shape[-1] // 2] = 1
    target[:, 0] = 2
    return target


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 4, 6, 8)])
def test_a_perfect_answer_costs_nothing_and_a_wrong_one_both_parts(shape: tuple[int, ...]) -> None:
    target = target_of(*shape)
    assert dice_cross_entropy(sure(target), target).item() < 1e-4
    wrong = dice_cross_entropy(sure((target + 1) % 3), target)
    assert wrong.item() == pytest.approx(41.0, abs=0.1)  # 40 of entropy, 1 of Dice


def test_pixels_whose_label_nobody_knows_count_for_nothing() -> None:
    target = target_of(2, 4, 6)
    known = dice_cross_entropy(sure((target + 1) % 3), target)
    logits = sure(target)
    logits[:, :, 1:3] = torch.randn(2, 3, 2, 6)
    target[:, 1:3] = IGNORED
    assert dice_cross_entropy(logits, target).item() < 1e-4 < known.item()
    nobody = torch.full((2, 4, 6), IGNORED)
    assert dice_cross_entropy(torch.randn(2, 3, 4, 6), nobody).item() == 0


def test_a_label_that_is_not_there_leaves_the_dice_of_the_others() -> None:
    target = torch.zeros(1, 4, 6, dtype=torch.long)
    target[:, 1:3] = 1
    even = torch.zeros(1, 3, 4, 6)
    expected = math.log(3) + 1 - 2 * 12 / 3 / (24 / 3 + 12)
    assert dice_cross_entropy(even, target).item() == pytest.approx(expected, abs=1e-3)


def test_every_resolution_but_the_coarsest_is_learnt_from() -> None:
    target = target_of(1, 8, 8)
    logits = [torch.randn(1, 3, n, n, requires_grad=True) for n in (8, 4, 2)]
    deep_supervision(logits, target).backward()
    assert logits[0].grad is not None
    assert logits[1].grad is not None
    assert logits[2].grad is None
    single = torch.randn(1, 3, 8, 8)
    assert deep_supervision([single], target) == dice_cross_entropy(single, target)
    np.testing.assert_array_equal(shrink_labels(target, (4, 4)), target[:, ::2, ::2])


def make_case(shape: tuple[int, ...] = (6, 20, 24), channels: int = 2) -> PreparedCase:
    labels = np.zeros(shape, np.int16)
    labels[2, 15, 20] = 1
    labels[-2, 2:5, 3:6] = 2
    image = np.stack([labels + 10 * c for c in range(channels)]).astype(np.float32)
    return PreparedCase("a", image, labels, find_places(labels, np.random.default_rng(0)))


def test_a_case_is_kept_and_read_back(tmp_path: Path) -> None:
    case, rng = make_case(), np.random.default_rng(0)
    assert not is_prepared(tmp_path, "a")
    write_case(tmp_path, "a", case.image, case.labels, rng)
    assert is_prepared(tmp_path, "a")
    again = read_case(tmp_path, "a", validates=True)
    np.testing.assert_array_equal(again.image, case.image)
    np.testing.assert_array_equal(again.labels, case.labels)
    assert set(again.places) == {1, 2}
    np.testing.assert_array_equal(again.places[1], [[2, 15, 20]])
    assert again.validates


def test_patches_around_a_label_hold_it_and_each_label_comes_as_often() -> None:
    case, rng = make_case(), np.random.default_rng(0)
    found = [draw_patch(case, (2, 8, 8), rng, foreground=True)[1] for _ in range(200)]
    assert all((labels > 0).any() for labels in found)
    share = np.mean([(labels == 1).any() for labels in found])
    assert 0.4 < share < 0.6
    anywhere = [draw_patch(case, (2, 8, 8), rng, foreground=False)[1] for _ in range(200)]
    assert np.mean([(labels > 0).any() for labels in anywhere]) < 0.6


def test_image_and_labels_of_a_patch_belong_together_and_padding_is_ignored() -> None:
    case, rng = make_case((3, 20, 24)), np.random.default_rng(0)
    image, labels = draw_patch(case, (8, 8, 32), rng, foreground=True)
    assert image.shape == (2, 8, 8, 32)
    known = labels != IGNORED
    assert known.sum() == 3 * 8 * 24
    np.testing.assert_array_equal(image[0][known], labels[known])
    assert not image[:, ~known].any()


def test_a_patch_of_slices_is_cut_from_a_volume() -> None:
    image, labels = draw_patch(make_case(), (8, 8), np.random.default_rng(0), foreground=True)
    assert image.shape == (2, 8, 8)
    assert (labels > 0).any()


@pytest.mark.parametrize(("shape", "spacing"), [((16, 20), (1, 2)), ((8, 16, 12), (2, 1, 1))])
def test_changes_keep_image_and_labels_together(
    shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    labels = torch.ones(64, *shape, dtype=torch.int16)
    labels[:, 2:6, 4:9] = 2
    image = (labels[:, None] * 4 - 6).float()  # -2 and 2
    drawn = [
        augment_patches(
            image, labels, torch.Generator().manual_seed(s), spacing=spacing, mirror=(1,)
        )
        for s in (0, 0, 1)
    ]
    (found, changed), again, other = drawn
    torch.testing.assert_close(found, again[0])
    assert not torch.equal(found, other[0])
    assert (changed == IGNORED).any()
    assert not torch.equal(changed, labels)
    wrong = [
        ((pixels > pixels.mean()) != (names == 2))[names != IGNORED].float().mean().item()
        for pixels, names in zip(found[:, 0], changed, strict=True)
    ]
    assert np.median(wrong) < 0.05
