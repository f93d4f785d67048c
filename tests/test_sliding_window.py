"""Sliding-window inference: what any volume, patch and overlap must give."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden_rule
import parity
from limner.adapters.sliding_window import SlidingWindow, window_starts


def linear(image: np.ndarray) -> np.ndarray:
    """Two labels from all channels, pixel by pixel: ``(batch, label, *axes)``."""
    weighted = sum((k + 1.0) * image[:, k] for k in range(image.shape[1]))
    return np.stack([weighted, 0.5 - 2.0 * weighted], axis=1).astype(np.float32)


def image_of(shape: tuple[int, ...], channels: int = 2) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(channels, *shape)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 13), min_size=2, max_size=3),
    patch=st.integers(1, 7),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.8]),
    gaussian=st.booleans(),
    batch=st.integers(1, 3),
)
def test_a_linear_network_gives_what_it_gives_on_the_whole_image(
    shape: list[int], patch: int, overlap: float, gaussian: bool, batch: int
) -> None:
    image = image_of(tuple(shape))
    window = SlidingWindow((patch,) * len(shape), overlap, gaussian, mirror=(0,), batch_size=batch)
    found = window.predict(image, linear)
    np.testing.assert_allclose(found, linear(image[None])[0], atol=2e-5)


def test_slabs_follow_one_another_and_are_handed_on_early() -> None:
    image, asked = image_of((40, 6, 5)), []

    def network(batch: np.ndarray) -> np.ndarray:
        asked.append(len(batch))
        return linear(batch)

    slabs = SlidingWindow((8, 6, 5)).predict_slabs(image, network)
    first = next(slabs)
    assert first.shape == (2, 4, 6, 5)
    assert len(asked) == 1
    rest = [first, *slabs]
    assert sum(slab.shape[1] for slab in rest) == 40
    np.testing.assert_allclose(np.concatenate(rest, 1), linear(image[None])[0], atol=2e-5)


def test_large_sums_are_held_in_half_precision_and_stay_near() -> None:
    image = image_of((30, 20, 20))
    exact = SlidingWindow((8, 8, 8)).predict(image, linear)
    half = SlidingWindow((8, 8, 8), float32_bytes=0).predict(image, linear)
    assert half.dtype == np.float32
    assert not np.array_equal(half, exact)
    np.testing.assert_allclose(half, exact, atol=4e-3 * np.abs(exact).max())


def test_a_patch_of_two_axes_takes_a_volume_slice_by_slice() -> None:
    image, shapes = image_of((5, 9, 7)), set()

    def network(batch: np.ndarray) -> np.ndarray:
        shapes.add(batch.shape)
        return linear(batch)

    found = SlidingWindow((4, 4), mirror=(1,)).predict(image, network)
    assert shapes == {(1, 2, 4, 4)}
    np.testing.assert_allclose(found, linear(image[None])[0], atol=2e-5)


def test_mirrored_answers_are_averaged() -> None:
    ramp = np.arange(4, dtype=np.float32)[None, None, :].repeat(4, axis=1)

    def network(batch: np.ndarray) -> np.ndarray:  # knows left from right
        return batch * np.arange(4, dtype=np.float32)

    plain = SlidingWindow((4, 4)).predict(ramp, network)
    mirrored = SlidingWindow((4, 4), mirror=(1,)).predict(ramp, network)
    places = np.arange(4)
    np.testing.assert_allclose(plain[0, 0], places * places)
    np.testing.assert_allclose(mirrored[0, 0], places * (places + (3 - places)) / 2)


def test_the_middle_of_a_window_counts_more() -> None:
    def network(batch: np.ndarray) -> np.ndarray:  # wrong at the borders of its patch
        answer = np.ones((len(batch), 1, *batch.shape[2:]), np.float32)
        answer[..., [0, -1]] = 0
        return answer

    image = image_of((1, 32), channels=1)
    even = SlidingWindow((1, 8), gaussian=False).predict(image, network)
    weighted = SlidingWindow((1, 8)).predict(image, network)
    assert weighted[0, 0, 4:-4].min() > 0.95
    assert even[0, 0, 4:-4].min() == pytest.approx(0.5)


def test_progress_counts_every_window_and_answers_are_the_same_again() -> None:
    image, told = image_of((10, 10)), []
    window = SlidingWindow((4, 4), batch_size=3)
    first = window.predict(image, linear, progress=lambda *at: told.append(at))
    assert told[-1] == (16, 16)
    assert [at[0] for at in told] == sorted(at[0] for at in told)
    np.testing.assert_array_equal(first, window.predict(image, linear))


def test_windows_lie_and_count_as_those_of_nnunet() -> None:
    with np.load(parity.GOLDEN / "nnunet" / "case_window_rule.npz") as file:
        case = dict(file)
    shape, patch = (tuple(int(n) for n in case[name]) for name in ("shape", "patch"))
    starts = [window_starts(max(n, p), p, 0.5) for n, p in zip(shape, patch, strict=True)]
    assert starts == json.loads(str(case["steps"]))
    pixels, _ = golden_rule.phantom(str(case["seed"]), shape)
    image = (pixels - pixels.mean()) / pixels.std()
    sides = [np.linspace(-1, 1, n, dtype=np.float32) for n in patch]
    z, y, q = np.meshgrid(*sides, indexing="ij")

    def rule(batch: np.ndarray) -> np.ndarray:
        x = batch[:, 0]
        return np.stack([np.sin(3 * x) + z, x * y + 0.3 * q, 0.5 * x**2 - q * z], axis=1)

    found = SlidingWindow(patch, mirror=(0, 1, 2)).predict(image[None].astype(np.float32), rule)
    golden = case["logits.sub"]
    error = np.abs(found.reshape(-1)[:: golden_rule.sample_step(found.size)] - golden)
    # The authors hold weights and sums in half precision, which is coarse in the outer columns.
    assert np.quantile(error, 0.98) < 5e-3 * golden.std()
    labels = sum(golden_rule.unpack_mask(case, f"argmax_bit{k}").astype(int) << k for k in range(2))
    assert (found.argmax(axis=0) != labels).mean() < 3e-3


def test_windows_reach_from_end_to_end() -> None:
    assert window_starts(10, 4, 0.5) == [0, 2, 4, 6]
    assert window_starts(4, 4, 0.5) == [0]
    assert window_starts(11, 4, 0.0) == [0, 4, 7]
    assert window_starts(3, 1, 0.9) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": (0, 4)}, "at least one pixel"),
        ({"patch": (4, 4), "overlap": 1.0}, "below 1"),
        ({"patch": (4, 4), "mirror": (2,)}, "axes 0 to 1"),
        ({"patch": (4, 4), "batch_size": 0}, "at least 1"),
    ],
)
def test_impossible_windows_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlidingWindow(**options)


def test_a_patch_of_other_axes_is_refused() -> None:
    with pytest.raises(ValueError, match="3 axes"):
        SlidingWindow((4, 4, 4)).predict(image_of((8, 8)), linear)
