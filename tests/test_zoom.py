"""Windows, shrinking and regions: what a model sees and how its answer comes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import limner
from limner import Box, Click, Lasso, MaskPrompt, Scribble, TextPrompt
from limner.adapters.intensity import resolve_window, robust_limits
from limner.adapters.protocols import ModelCard, Question, Segmentation, View
from limner.adapters.resize import MOST_IN_BIN, bin_edges, enlarge, shrink, shrink_all
from limner.sessions.answers.changed_box import LastMasks, PackedMask, changed_box
from limner.sessions.answers.sparse_logits import STEP, SparseLogits
from limner.sessions.answers.zoom import MOST_GROWTHS, prompt_to_view
from rounds import times

SIZES = st.integers(1, 60)


@given(st.data())
def test_shrinking_keeps_the_mean_and_enlarging_a_constant(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(SIZES, SIZES))
    target = tuple(data.draw(st.integers(1, n)) for n in shape)
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    small = shrink(array, target)
    assert small.shape == target
    weights = np.multiply.outer(
        *[np.diff(bin_edges(n, m)) for n, m in zip(shape, target, strict=True)]
    )
    assert (small * weights).sum() == pytest.approx(array.sum(), rel=1e-4)
    edges = [bin_edges(n, m) for n, m in zip(shape, target, strict=True)]
    assert (enlarge(np.full(target, 3.0, np.float32), edges) == 3).all()


@given(st.data())
def test_enlarging_a_ramp_gives_the_ramp_between_the_outer_centres(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 60))
    bins = data.draw(st.integers(2, size))
    ramp = np.arange(size, dtype=np.float32)[:, None]
    small = shrink(ramp, (bins, 1))
    back = enlarge(small * 100, [bin_edges(size, bins), bin_edges(1, 1)]) / 100
    inner = slice(int(np.ceil(small[0, 0])), int(small[-1, 0]) + 1)
    assert np.allclose(back[inner], ramp[inner], atol=0.05)


@given(st.data())
def test_shrinking_is_the_mean_of_bins_on_every_axis(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 12)] * 3))
    target = tuple(data.draw(st.integers(1, n)) for n in shape)
    array = np.random.default_rng(0).integers(-900, 900, shape).astype(np.int16)
    edges = [bin_edges(n, m) for n, m in zip(shape, target, strict=True)]
    expected = np.empty(target)
    for index in np.ndindex(target):
        bins = tuple(slice(e[k], e[k + 1]) for e, k in zip(edges, index, strict=True))
        expected[index] = array[bins].mean()
    assert np.allclose(shrink_all(array, target), expected, atol=1e-3)
    if all(np.diff(e).max() <= MOST_IN_BIN for e in edges):
        assert np.allclose(shrink(array, target), expected, atol=1e-3)


def test_shrinking_keeps_channels_and_leaves_fitting_arrays_alone() -> None:
    array = np.random.default_rng(0).integers(0, 255, (8, 6, 3), dtype=np.uint8)
    assert shrink(array, (8, 6)) is array
    assert shrink(array, (4, 3)).shape == (4, 3, 3)


MASKS = st.integers(0, 2**30).map(
    lambda seed: np.random.default_rng(seed).random((9, 11)) > np.random.default_rng(seed).random()
)


@given(MASKS, MASKS)
def test_regions_hold_masks_exactly_and_tell_what_changed(
    before: np.ndarray, after: np.ndarray
) -> None:
    old, new = SparseLogits.of_mask(before), SparseLogits.of_mask(after)
    assert np.array_equal(new.mask(), after)
    assert np.array_equal(new.full() > 0, after)
    assert np.array_equal(new.window((2, 3), (9, 8)) > 0, after[2:9, 3:8])
    box = changed_box(PackedMask.of(old), new)
    differs = np.argwhere(before != after)
    if len(differs):
        assert box is not None
        assert (box.low, box.high) == (tuple(differs.min(axis=0)), tuple(differs.max(axis=0) + 1))
    else:
        assert box is None


@given(MASKS)
def test_a_packed_mask_is_the_mask(mask: np.ndarray) -> None:
    region = SparseLogits.of_mask(mask)
    packed = PackedMask.of(region)
    assert np.array_equal(packed.inside, region.inside)
    assert len(packed.bits) < 40 + mask.size // 8
    assert changed_box(packed, region) is None


def test_tiny_positive_logits_stay_positive() -> None:
    logits = np.array([1e-12, 0.0, -1e-12, 1e9, -1e9], dtype=np.float32)
    for shape in ((1, 5), (1, 1, 5)):
        edges = [bin_edges(n, n) for n in shape]
        kept = SparseLogits.of_bins(shape, logits.reshape(shape), edges).steps.ravel()
        assert (kept > 0).tolist() == [True, False, False, True, False]
        assert kept[3] * STEP == -kept[4] * STEP == 30.0


def test_what_is_shown_is_remembered_for_every_object_and_frame() -> None:
    masks = [np.zeros((9, 11), bool) for _ in range(3)]
    masks[1][2:4, 3:7] = True
    masks[2][2:4, 3:8] = True
    shown = LastMasks()
    assert shown.replace("a", SparseLogits.of_mask(masks[0])) is None
    assert shown.replace("a", SparseLogits.of_mask(masks[1])) == Box((2, 3), (4, 7))
    assert shown.replace("b", SparseLogits.of_mask(masks[1])) == Box((2, 3), (4, 7))
    assert shown.replace("a", SparseLogits.of_mask(masks[2])) == Box((2, 7), (4, 8))
    assert shown.replace("a", SparseLogits.of_mask(masks[2])) is None
    assert shown.replace("b", SparseLogits.of_mask(masks[1])) is None
    shown.clear()
    assert shown.replace("b", SparseLogits.of_mask(masks[1])) == Box((2, 3), (4, 7))


def test_a_plane_of_a_region_is_the_region_of_the_plane() -> None:
    mask = np.random.default_rng(1).random((5, 6, 7)) > 0.7
    region = SparseLogits.of_mask(mask)
    for k in range(5):
        plane = region.slice_at(k)
        assert plane is not None
        assert np.array_equal(plane.mask(), mask[k])
    assert region.slice_at(99) is None


def test_prompts_land_where_the_view_shows_their_pixels() -> None:
    bounds, shape = ((10, 20), (50, 100)), (20, 40)  # half the size
    click = prompt_to_view(Click((30, 60)), bounds, shape)
    assert click == Click((9.75, 19.75))
    assert prompt_to_view(Click((9, 60)), bounds, shape) is None
    box = prompt_to_view(Box((0, 30), (30, 120)), bounds, shape)
    assert box == Box((0, 5), (10, 40))
    assert prompt_to_view(Box((0, 0), (5, 5)), bounds, shape) is None
    tiny = prompt_to_view(Box((30, 60), (31, 61)), bounds, shape)
    assert isinstance(tiny, Box)
    stroke = prompt_to_view(Scribble(((30, 60), (30, 80)), radius=2.0), bounds, shape)
    assert isinstance(stroke, Scribble)
    assert stroke.radius == pytest.approx(1.0)
    assert isinstance(prompt_to_view(Lasso(((20, 30), (20, 40), (40, 40))), bounds, shape), Lasso)
    assert prompt_to_view(TextPrompt("liver"), bounds, shape) == TextPrompt("liver")
    mask = np.zeros((60, 120), dtype=bool)
    mask[33, 71] = True
    shown = prompt_to_view(MaskPrompt(mask), bounds, shape)
    assert isinstance(shown, MaskPrompt)
    assert np.argwhere(shown.mask).tolist() == [[11, 25]]


class Threshold:
    """Every pixel above half of the range, wherever the prompts are; counts its answers."""

    def __init__(self, windows: dict[int, int], *, everything: bool = False) -> None:
        kinds = frozenset({"click", "box"})
        self.card = ModelCard("threshold", "", (2, 3), kinds, "", "", True, windows)
        self.everything = everything
        self.shown: list[tuple[View, list]] = []

    def embed(self, view: View) -> View:
        return view

    def segment(self, view: View, prompts: list, previous: object = None) -> Segmentation:
        self.shown.append((view, list(prompts)))
        logits = view.normalized() - np.float32(-1 if self.everything else 0.5)
        return Segmentation(logits, 0.5)


@given(st.data())
@settings(max_examples=times(60), deadline=None)
def test_answers_of_a_window_are_pasted_back_exactly(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 120), min_size=2, max_size=3).map(tuple))
    low = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    high = tuple(min(a + data.draw(st.integers(1, 9)), n) for a, n in zip(low, shape, strict=True))
    array = np.zeros(shape, np.uint8)
    array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 200
    model = Threshold({2: 40, 3: 40})
    image = limner.Image(array, limner.Geometry(shape))
    with limner.open_session(image, model, window=(0, 255)) as session:
        session.add(Box(low, high))
        prediction = session.predict()
    assert np.array_equal(prediction.mask, array > 0)
    assert (prediction.box.low, prediction.box.high) == (low, high)
    assert all(max(view.shape) <= 40 for view, _ in model.shown)


def test_a_memory_comes_back_where_the_window_has_not_moved() -> None:
    class Remembering(Threshold):
        """Says how often it was asked on this very view."""

        seen: list[tuple[tuple[int, ...], object]]

        def segment_batch(self, view: View, questions: list[Question]) -> list[Segmentation]:
            (question,) = questions
            self.seen.append((view.shape, question.memory))
            found = self.segment(view, list(question.prompts))
            return [Segmentation(found.logits, 0.5, len(self.seen))]

    array = np.zeros((90, 300), np.uint8)
    array[40:50, 40:50] = array[60:70, 280:290] = 200
    model = Remembering({2: 64})
    model.seen = []
    with limner.open_session(array, model, window=(0, 255)) as session:
        for box in (Box((40, 40), (50, 50)), Box((41, 41), (49, 49)), Box((60, 280), (70, 290))):
            session.add(box)
            session.predict()
    (first, nothing), (second, number), (third, moved) = model.seen
    assert first == second != third
    assert (nothing, number, moved) == (None, 1, None)


def test_the_window_stops_growing_and_shows_all_prompts_it_reaches() -> None:
    array = np.zeros((4000, 3000), np.uint8)
    model = Threshold({2: 64}, everything=True)
    with limner.open_session(array, model) as session:
        session.add(Box((2000, 1500), (2010, 1510)))
        session.add(Click((1998, 1505)))  # or the answer would stay inside the box
        session.add(Click((1800, 1505), positive=False))
        mask = session.predict().mask
    assert len(model.shown) == MOST_GROWTHS + 1
    assert mask[2005, 1505]
    assert (len(model.shown[0][1]), len(model.shown[-1][1])) == (2, 3)


def test_a_model_that_answers_nonsense_is_named() -> None:
    class Wrong(Threshold):
        def segment(self, view: View, prompts: list, previous: object = None) -> Segmentation:
            return Segmentation(np.zeros((3, 3), np.float32), 0.5)

    class Lost(Threshold):
        def segment(self, view: View, prompts: list, previous: object = None) -> Segmentation:
            return Segmentation(np.full(view.shape, np.nan, np.float32), float("nan"))

    for model in (Wrong({}), Lost({})):
        with limner.open_session(np.zeros((9, 9)), model) as session:
            session.add(Click((4, 4)))
            if isinstance(model, Wrong):
                with pytest.raises(ValueError, match="threshold answered logits"):
                    session.predict()
            else:
                assert (session.predict().score, session.predict().mask.any()) == (0.0, False)


def test_limits_are_taken_from_all_columns_and_channels() -> None:
    picture = np.zeros((1800, 2000, 3), np.uint8)  # 10.8 million values: every 10th would do …
    picture[..., 1], picture[..., 2] = 100, 200
    assert robust_limits(picture) == (0, 200)
    volume = np.zeros((100, 200, 200), np.int16)  # … and here every 4th sees 50 columns only
    volume[:, :, 1::4] = 700
    assert robust_limits(volume) == (0, 700)
    assert robust_limits(np.asfortranarray(volume)) == (0, 700)
    assert robust_limits(np.eye(50, dtype=bool)) == (0, 1)
    assert robust_limits(np.full((3, 3), np.nan)) == (0, 1)


@pytest.mark.parametrize("window", [5, (1, 2, 3), ("a", "b"), (3, 1), (0, np.nan), "livr", ()])
def test_what_is_no_window_is_refused(window: object) -> None:
    with pytest.raises(ValueError, match="window"):
        resolve_window(window)
