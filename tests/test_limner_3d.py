"""The built-in 3D model's adapter: what the network is shown, and what becomes of its answer."""

from __future__ import annotations

import numpy as np
import pytest

from limner.adapters.early_fusion import EarlyFusionModel
from limner.models import View, limner_3d
from limner.networks import fusion2d as fusion
from limner.prompts import Box, Click, Lasso, MaskPrompt, Prompt, Scribble

ROUGH = np.float32(np.tanh(fusion.MASK_LOGIT / fusion.LOGIT_SCALE))


class Spy:
    """Keeps what it is shown; answers the previous-answer channel, doubled."""

    description = "spy"

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        (fused,) = inputs
        self.seen.append(fused)
        return 2.0 * fused[:, 3:4], np.zeros(1, np.float32)


def view(shape: tuple[int, int, int], channels: int | None = None) -> View:
    size = shape if channels is None else (*shape, channels)
    array = np.random.default_rng(0).integers(0, 1001, size).astype(np.int16)
    return View(array, (2.0, 1.0, 1.0), (0.0, 1000.0))


def shown(
    volume: View, prompts: list[Prompt], previous: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What the network sees, (7, slice, row, column), and the model's logits."""
    spy = Spy()
    model = EarlyFusionModel(spy, limner_3d.CARD, limner_3d.OPTIONS)
    result = model.segment(model.embed(volume), prompts, previous)
    return spy.seen[0][0], result.logits


def test_a_view_of_full_size_is_shown_voxel_by_voxel() -> None:
    volume = view((24, 90, 70))
    seen, logits = shown(volume, [Click((10, 20, 30))])
    assert seen.shape == (fusion.NUM_CHANNELS, 24, 96, 96)
    assert logits.shape == (24, 90, 70)
    expected = (volume.array / 1000.0 - fusion.IMAGE_CENTRE) * fusion.IMAGE_SCALE
    for channel in seen[:3]:
        assert np.allclose(channel[:, :90, :70], expected, atol=1e-6)
        assert (channel[:, 90:] == -1).all()  # padding is black
    assert (seen[fusion.PREVIOUS] == 0).all()
    assert seen[fusion.POSITIVE, 10, 20, 30] == 1
    assert seen[fusion.NEGATIVE].sum() == seen[fusion.REGION].sum() == 0


def test_training_paints_the_same_ball_and_the_same_guess() -> None:
    torch = pytest.importorskip("torch")
    from limner.train.simulate.strokes3d import find_corners, paint_balls, paint_ellipsoid

    size = torch.Size((32, 96, 96))
    seen, _ = shown(view((32, 96, 96)), [Click((10, 20, 30))])
    at = torch.tensor([[10, 20, 30]])
    assert np.array_equal(paint_balls(at, size, fusion.CLICK_RADIUS)[0, 0], seen[fusion.POSITIVE])
    seen, _ = shown(view((32, 96, 96)), [Box((4, 20, 30), (29, 90, 94))])
    region = torch.from_numpy(seen[None, fusion.REGION : fusion.REGION + 1])
    guess = paint_ellipsoid(find_corners(region), size)[0, 0].numpy()
    assert guess.sum() == pytest.approx(np.pi / 6 * 25 * 70 * 64, rel=0.01)
    assert np.allclose(seen[fusion.PREVIOUS], ROUGH * (2 * guess - 1), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_box_on_one_slice_is_a_guess_about_that_slice_alone(axis: int) -> None:
    low, high = [4, 20, 30], [29, 90, 94]
    low[axis], high[axis] = 25, 26
    seen, _ = shown(view((32, 96, 96)), [Box(tuple(low), tuple(high))])
    here = np.take(seen[fusion.PREVIOUS], 25, axis)
    assert np.allclose(np.abs(here), ROUGH)
    assert 0 < (here > 0).mean() < (np.take(seen[fusion.REGION], 25, axis) > 0).mean()
    assert np.count_nonzero(seen[fusion.PREVIOUS]) == here.size
    assert np.count_nonzero(seen[fusion.REGION]) == np.prod(np.subtract(high, low))


def test_a_lasso_and_a_mask_on_one_slice_likewise() -> None:
    find_corners = ((7.0, 10.0, 10.0), (7.0, 10.0, 60.0), (7.0, 60.0, 60.0), (7.0, 60.0, 10.0))
    seen, _ = shown(view((32, 96, 96)), [Lasso(find_corners)])
    assert np.allclose(seen[fusion.PREVIOUS, 7, 20:50, 20:50], ROUGH)
    assert np.allclose(seen[fusion.PREVIOUS, 7, 70:], -ROUGH)
    assert (np.delete(seen[fusion.PREVIOUS], 7, 0) == 0).all()
    mask = np.zeros((32, 96, 96), bool)
    mask[9, 30:50, 30:50] = True
    seen, _ = shown(view((32, 96, 96)), [MaskPrompt(mask)])
    assert np.array_equal(seen[fusion.PREVIOUS, 9] > 0, mask[9])
    assert (np.delete(seen[fusion.PREVIOUS], 9, 0) == 0).all()
    assert seen[fusion.REGION].sum() == 0
    mask[10, 30:50, 30:50] = True
    seen, _ = shown(view((32, 96, 96)), [MaskPrompt(mask)])
    assert np.allclose(seen[fusion.PREVIOUS], np.where(mask, ROUGH, -ROUGH))


@pytest.mark.parametrize(
    ("shape", "times"),
    [((10, 20, 24), (3, 4, 4)), ((5, 47, 48), (2, 2, 2)), ((20, 30, 30), (1, 3, 3))],
)
def test_small_views_are_enlarged_and_answers_come_back_in_place(
    shape: tuple[int, int, int], times: tuple[int, int, int]
) -> None:
    at = (shape[0] // 2, shape[1] // 2, 19)
    previous = np.full(shape, -8.0, np.float32)
    previous[at] = 8.0
    seen, logits = shown(view(shape), [Click(at)], previous)
    larger = np.multiply(shape, times)
    assert (np.subtract(seen.shape[1:], larger) == -larger % limner_3d.OPTIONS.stride).all()
    marked = np.argwhere(seen[fusion.POSITIVE]).mean(axis=0)
    assert np.allclose(marked, (np.array(at) + 0.5) * times - 0.5, atol=0.5)
    assert logits.shape == shape
    assert np.unravel_index(logits.argmax(), shape) == at


def test_a_scribble_on_a_slice_is_painted_there() -> None:
    stroke = Scribble(((7, 20, 20), (7, 20, 80)), positive=False, radius=1.0)
    seen, logits = shown(view((32, 96, 96)), [stroke], np.full((32, 96, 96), 8.0, np.float32))
    painted = seen[fusion.NEGATIVE]
    assert painted[7, 20, 20:81].all()
    assert painted.sum() == painted[7].sum() > 61
    assert (logits[7, 20, 20:81] <= -fusion.MASK_LOGIT).all()


def test_channels_become_three() -> None:
    grey, _ = shown(view((32, 96, 96)), [])
    assert np.array_equal(grey[0], grey[2])
    volume = view((32, 96, 96), 2)
    mixed, _ = shown(volume, [])
    assert np.allclose(mixed[2], (mixed[0] + mixed[1]) / 2, atol=1e-5)
    four, _ = shown(view((32, 96, 96), 4), [])
    assert not np.array_equal(four[0], four[1])
