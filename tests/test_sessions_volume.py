"""Sessions on volumes: windows per axis, slices of any axis, what is kept, and memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import limner
from limner import Box, Click, Geometry, Lasso, MaskPrompt, Scribble, TextPrompt, phantoms
from limner.adapters.protocols import ModelCard, Segmentation, View
from limner.adapters.resize import bin_edges, shrink, shrink_all
from limner.errors import FormatError, PromptError
from limner.models import create_model
from limner.prompts.types import Prompt
from limner.sessions.answers.changed_box import PackedMask, changed_box
from limner.sessions.answers.image_view import ImageView
from limner.sessions.answers.sparse_logits import STEP, SparseLogits
from limner.sessions.answers.window import MOST_UNEVEN, around, view_shape

WINDOW = (16, 32, 32)


class Half:
    """Above half of the range, in windows; counts what it is asked."""

    def __init__(
        self, window: int | tuple[int, ...] = WINDOW, ndim: tuple[int, ...] = (3,)
    ) -> None:
        kinds = frozenset({"click", "box", "scribble", "lasso", "mask", "text"})
        self.card = ModelCard("half", "", ndim, kinds, "", "", True, {3: window, 2: 64})
        self.views: list[View] = []
        self.said: list[Sequence[Prompt]] = []
        self.previous: list[np.ndarray | None] = []

    def embed(self, view: View) -> View:
        self.views.append(view)
        return view

    def segment(
        self, view: View, prompts: Sequence[Prompt], previous: np.ndarray | None = None
    ) -> Segmentation:
        self.said.append(prompts)
        self.previous.append(previous)
        pixels = view.normalized()
        grey = pixels if pixels.ndim == len(view.shape) else pixels.mean(axis=-1)
        logits = (grey - 0.5) * 20
        for prompt in prompts:  # obedient, so that every click changes something
            if isinstance(prompt, Click):
                place = np.round(prompt.at).astype(int)
                size = logits.shape
                logits[tuple(slice(max(0, p - 1), p + 2) for p in np.minimum(place, size))] = (
                    10 if prompt.positive else -10
                )
        return Segmentation(logits.astype(np.float32), 0.5)


def ball(shape: tuple[int, ...], middle: Sequence[float], half: Sequence[float]) -> np.ndarray:
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return np.asarray(
        sum(((g - c) / h) ** 2 for g, c, h in zip(grid, middle, half, strict=True)) <= 1
    )


def scene(shape: tuple[int, ...], spacing: tuple[float, ...]) -> ImageView:
    return ImageView(np.zeros(shape, np.uint8), spacing, (0, 1), None)


# -- windows ----------------------------------------------------------------------------------


def test_a_window_may_differ_per_axis() -> None:
    card = Half().card
    assert card.limits(3) == (16, 32, 32)
    assert card.limits(2) == (64, 64)
    assert card.limits(4) is None
    assert card.to_json()["window"] == {"3": [16, 32, 32], "2": 64}


@pytest.mark.parametrize(
    ("shape", "spacing", "limits", "expected"),
    [
        ((40, 100, 90), (5, 0.7, 0.7), (64, 128, 128), (40, 100, 90)),  # it fits
        ((100, 512, 512), (5, 0.7, 0.7), (64, 128, 128), (64, 128, 128)),
        ((300, 512, 512), (1, 1, 1), (64, 128, 128), (64, 128, 128)),
        ((40, 512, 512), (5, 0.7, 0.7), (64, 128, 128), (40, 128, 128)),  # thick slices stay
        ((40, 512, 512), (1, 1, 1), (64, 128, 128), (10, 128, 128)),  # equal steps
        ((40, 512, 256), (5, 0.7, 0.7), (64, 128, 128), (40, 128, 64)),
        ((1000, 64, 64), (1, 1, 1), (64, 128, 128), (64, 12, 12)),  # not too uneven
        ((1, 512, 512), (1, 1, 1), (64, 128, 128), (1, 128, 128)),
        ((256, 64, 64), (1, 1, 1), (64, 64, 64), (64, 48, 48)),
    ],
)
def test_a_view_has_equal_steps_as_far_as_the_window_allows(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    limits: tuple[int, ...],
    expected: tuple[int, ...],
) -> None:
    here = scene((1, 1, 1), spacing)
    assert view_shape(here, ((0, 0, 0), shape), limits) == expected


@given(st.data())
def test_no_view_is_larger_than_its_window_or_uneven_by_shrinking(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 900), min_size=3, max_size=3)))
    limits = tuple(data.draw(st.lists(st.integers(4, 130), min_size=3, max_size=3)))
    spacing = tuple(data.draw(st.lists(st.floats(0.3, 6), min_size=3, max_size=3)))
    found = view_shape(scene((1, 1, 1), spacing), ((0, 0, 0), shape), limits)
    assert all(1 <= n <= min(a, b) for n, a, b in zip(found, shape, limits, strict=True))
    if all(n >= 8 for n in found):
        steps = np.divide(shape, found) * spacing
        native = spacing[0] / min(spacing[1:])
        assert steps[0] / steps[1:].min() <= 1.3 * max(MOST_UNEVEN, native)


def test_the_least_window_is_a_cube_in_millimetres_within_the_models() -> None:
    here = scene((200, 400, 400), (5.0, 1.0, 1.0))
    low, high = around(here, [Click((100, 200, 200))], None, (64, 128, 128))
    size = np.subtract(high, low)
    assert 13 <= size[0] <= 15
    assert 64 <= size[1] == size[2] <= 66
    low, high = around(
        scene((200, 400, 400), (1.0,) * 3), [Click((100, 200, 200))], None, (64, 128, 128)
    )
    assert 32 <= np.subtract(high, low)[0] <= 34


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 0.8, 0.8), (0.7, 0.7, 3.0)])
@pytest.mark.parametrize("shape", [(60, 70, 80), (1, 90, 40), (50, 1, 1), (24, 40, 100)])
def test_any_shape_spacing_and_channels(
    shape: tuple[int, ...], spacing: tuple[float, ...], channels: int | None
) -> None:
    middle = np.array(shape) // 2
    truth = ball(shape, middle, np.maximum(np.array(shape) * 0.35, 0.6))
    array = np.where(truth, 900, 100).astype(np.int16)
    if channels is not None:
        array = np.stack([array] * channels, axis=-1)
    model = Half()
    image = limner.Image(array, Geometry.from_spacing(shape, spacing))
    with limner.open_session(image, model) as session:
        session.add(Click(tuple(middle)))
        prediction = session.predict()
        assert prediction.mask.shape == shape
        assert prediction.mask[tuple(middle)]
        assert limner.metrics.dice(prediction.mask, truth) > 0.75
    slices = {view.directions is not None for view in model.views}
    assert slices == {True}
    assert all((np.array(view.shape) <= WINDOW).all() for view in model.views)


# -- what is kept -----------------------------------------------------------------------------


def large_case() -> tuple[limner.Image, np.ndarray]:
    shape = (60, 90, 100)
    truth = ball(shape, (30, 45, 50), (22, 33, 37))
    array = np.where(truth, 900, 100).astype(np.int16)
    return limner.Image(array, Geometry.from_spacing(shape, (1.0, 1.0, 1.0))), truth


def test_an_answer_is_kept_as_coarse_as_it_was_given() -> None:
    image, truth = large_case()
    with limner.open_session(image, Half()) as session:
        session.add(Box((8, 12, 13), (52, 78, 87)))
        prediction = session.predict()
        assert limner.metrics.dice(prediction.mask, truth) > 0.93
        assert prediction.region.nbytes < 2 * 16 * 32 * 32 + 2000
        assert np.prod(prediction.region.size) > 10 * prediction.region.grid.size
        assert np.array_equal(prediction.logits > 0, prediction.mask)
        assert "mask" in vars(prediction)  # made when asked for
        session.add(Click((1, 1, 1)))
        assert "mask" not in vars(session.predict())


def test_box_is_what_changed_also_in_coarse_answers() -> None:
    image, _ = large_case()
    with limner.open_session(image, Half()) as session:
        session.add(Box((8, 12, 13), (52, 78, 87)))
        before = session.predict().mask
        assert session.predict().box is None
        for click in (Click((30, 45, 50), positive=False), Click((5, 45, 50)), Click((30, 5, 5))):
            session.add(click)
            prediction = session.predict()
            differs = np.argwhere(before != prediction.mask)
            assert len(differs)
            assert prediction.box is not None
            assert prediction.box.low == tuple(differs.min(axis=0))
            assert prediction.box.high == tuple(differs.max(axis=0) + 1)
            before = prediction.mask


def test_undo_and_redo_ask_nothing_again_for_any_object() -> None:
    image, _ = large_case()
    model = Half()
    with limner.open_session(image, model) as session:
        found: dict[tuple[int, int], np.ndarray] = {}
        for object_id in (1, 2):
            session.add(Box((8, 12, 13), (52, 78, 87)), object_id=object_id)
            found[object_id, 0] = session.predict(object_id=object_id).mask
            for n in range(1, 4):
                at = (30, 40 + 3 * n, 30 + 10 * object_id)
                session.add(Click(at, positive=False), object_id=object_id)
                found[object_id, n] = session.predict(object_id=object_id).mask
        assert not np.array_equal(found[1, 3], found[2, 3])
        asked, shown = len(model.said), len(model.views)
        for object_id in (2, 1):
            for n in (2, 1, 0):
                session.undo(object_id=object_id)
                assert np.array_equal(
                    session.predict(object_id=object_id).mask, found[object_id, n]
                )
        for _ in range(6):
            session.redo()
        for object_id in (1, 2):
            assert np.array_equal(session.predict(object_id=object_id).mask, found[object_id, 3])
        assert set(np.unique(session.labels)) == {0, 1, 2}
        assert np.array_equal(session.export().mask(1), found[1, 3])
        assert (len(model.said), len(model.views)) == (asked, shown)


def test_the_answer_before_comes_back_on_the_grid_of_the_next_view() -> None:
    image, _ = large_case()
    model = Half()
    with limner.open_session(image, model) as session:
        session.add(Box((8, 12, 13), (52, 78, 87)))
        first = session.predict()
        session.add(Click((30, 45, 50), positive=False))
        session.predict()
    shown, view = model.previous[-1], model.views[-1]
    assert shown is not None
    assert shown.shape == view.shape
    share = shrink_all(np.where(first.mask, 1.0, 0.0), view.shape)  # here the view is of the whole
    whole = view.array.shape == shrink(image.array, view.shape).shape
    assert whole
    assert np.mean((shown > 0) == (share > 0.5)) > 0.98


def test_the_whole_is_looked_at_once_for_all_objects() -> None:
    image, _ = large_case()
    model = Half()
    with limner.open_session(image, model) as session:
        for object_id in range(1, 12):
            session.add(Click((30, 40 + object_id, 50)), object_id=object_id)
            session.predict(object_id=object_id)
        coarse = [
            v for v in model.views if np.allclose(np.multiply(v.spacing, v.shape), (60, 90, 100))
        ]
        assert len({id(v.array) for v in coarse}) == 1


# -- coarse regions ---------------------------------------------------------------------------


def coarse_region(seed: int = 0) -> tuple[SparseLogits, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape, low, high, bins = (20, 31, 40), (3, 0, 7), (17, 31, 38), (5, 8, 9)
    logits = rng.normal(0, 4, bins).astype(np.float32)
    edges = [a + bin_edges(b - a, n) for a, b, n in zip(low, high, bins, strict=True)]
    return SparseLogits.of_bins(shape, logits, edges), logits


def test_a_coarse_region_answers_as_its_full_array_would() -> None:
    region, logits = coarse_region()
    full = region.full()
    assert np.array_equal(region.mask(), full > 0)
    assert np.array_equal(region.inside, full[region.slices] > 0)
    assert region.size == (14, 31, 31)
    assert full[0, 0, 0] == -16
    window = region.window((1, 2, 3), (15, 20, 30))
    assert np.allclose(window * STEP, full[1:15, 2:20, 3:30])
    for low, high, shape in (
        ((0, 0, 0), (20, 31, 40), (20, 31, 40)),
        ((0, 0, 0), (20, 31, 40), (6, 7, 9)),
        ((5, 3, 10), (12, 30, 31), (7, 9, 5)),
        ((17, 0, 0), (20, 31, 40), (2, 4, 4)),
    ):
        part = full[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        assert np.allclose(region.shrunk(low, high, shape), shrink_all(part, shape), atol=2e-2)
    for k in range(20):
        plane = region.slice_at(k)
        if 3 <= k < 17:
            assert plane is not None
            assert np.array_equal(plane.mask(), full[k] > 0)
        else:
            assert plane is None
    assert (logits > 0).sum() == (region.grid > 0).sum()


@pytest.mark.parametrize("seed", range(4))
def test_what_changed_between_coarse_native_and_packed_regions(seed: int) -> None:
    coarse, _ = coarse_region(seed)
    mask = np.random.default_rng(seed).random((20, 31, 40)) > 0.999
    mask &= ball(mask.shape, (6, 8, 30), (7, 9, 11))
    native = SparseLogits.of_mask(mask)
    for before, after in ((native, coarse), (coarse, native), (coarse, coarse)):
        differs = np.argwhere(before.mask() != after.mask())
        for old in (before, PackedMask.of(before)):
            found = changed_box(old, after)
            if len(differs):
                assert found is not None
                assert found.low == tuple(differs.min(axis=0))
                assert found.high == tuple(differs.max(axis=0) + 1)
            else:
                assert found is None
    assert np.array_equal(PackedMask.of(coarse).inside, coarse.inside)
    assert changed_box(SparseLogits.empty(mask.shape), SparseLogits.empty(mask.shape)) is None


def test_a_bin_of_a_large_volume_is_a_sample_of_it() -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 1000, (90, 120, 70)).astype(np.int16)
    array[:45] += 2000
    small = shrink(array, (6, 6, 5))
    assert np.allclose(small, shrink_all(array, (6, 6, 5)), atol=150)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        turned = np.ascontiguousarray(array.transpose(order))
        sizes = [(6, 6, 5)[k] for k in order]
        assert np.array_equal(shrink(turned, sizes), small.transpose(order))
    coloured = np.stack([array, array + 5], axis=-1)
    assert np.allclose(shrink(coloured, (6, 6, 5))[..., 1], small + 5)


# -- slices of any axis -----------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_prompt_on_a_slice_of_any_axis_is_lifted(axis: int) -> None:
    shape = (20, 30, 40)
    image = limner.Image(np.zeros(shape, np.uint8), Geometry(shape))

    def at(*rest: float) -> tuple[float, ...]:
        return (*rest[:axis], 7.0, *rest[axis:])

    with limner.open_session(image, Half()) as session:
        session.add(Box((2, 3), (9, 11)), frame=7, axis=axis)
        session.add(Click((4, 5), positive=False), frame=7, axis=axis)
        session.add(Scribble(((1, 2), (3, 4)), radius=1), frame=7, axis=axis)
        session.add(Lasso(((1, 1), (1, 9), (9, 9))), frame=7, axis=axis)
        session.add(TextPrompt("bright"), frame=7, axis=axis)
        high = (*(9, 11)[:axis], 8, *(9, 11)[axis:])
        assert session.prompts == (
            Box(at(2, 3), high),
            Click(at(4, 5), positive=False),
            Scribble((at(1, 2), at(3, 4)), radius=1),
            Lasso((at(1, 1), at(1, 9), at(9, 9))),
            TextPrompt("bright"),
        )
        assert {entry.frame for entry in session.entries} == {None}
        session.predict()
        last = shape[axis] - 1
        with pytest.raises(PromptError, match=f"0…{last}"):
            session.add(Click((1, 1)), frame=last + 1, axis=axis)
        with pytest.raises(PromptError, match="outside"):
            session.add(Click((99, 1)), frame=7, axis=axis)
        rest = tuple(n for k, n in enumerate(shape) if k != axis)
        with pytest.raises(PromptError, match="whole volume"):
            session.add(MaskPrompt(np.ones(rest)), frame=7, axis=axis)
        for wrong in (3, -1, "sagittal", True):
            with pytest.raises(PromptError, match="axis"):
                session.add(Click((1, 1)), frame=7, axis=wrong)  # type: ignore[arg-type]


def test_a_drawing_on_a_sagittal_slice_finds_the_object_in_3d() -> None:
    phantom = phantoms.volume(3, (20, 48, 40))
    label = int(np.bincount(phantom.truth[phantom.truth > 0]).argmax())
    target = phantom.truth == label
    k = int(target.sum(axis=(0, 1)).argmax())
    found = np.argwhere(target[:, :, k])
    with limner.open_session(phantom.image, "classical/graphcut") as session:
        session.add(Box(found.min(axis=0), found.max(axis=0) + 1), frame=k, axis=2)
        mask = session.predict().mask
    assert limner.metrics.dice(mask[:, :, k], target[:, :, k]) > 0.7
    assert mask[:, :, k + 1].any()


def test_models_of_slices_say_what_to_do_about_other_axes() -> None:
    image = limner.Image(np.zeros((9, 10, 11)), Geometry((9, 10, 11)))
    picture = limner.Image(np.zeros((9, 10)), Geometry((9, 10)))
    for where, model, frame, message in (
        (image, Half(ndim=(2,)), 3, r"across axis 0 only.*works in 3D"),
        (image, Half(), None, r"axis=1 goes with frame=K"),
        (picture, create_model("toy"), 0, "Only a volume"),
    ):
        with limner.open_session(where, model) as session:
            with pytest.raises(PromptError, match=message):
                session.add(Click((2, 2)), frame=frame, axis=1)
            assert session.prompts == ()


def test_a_lifted_prompt_survives_undo_and_a_crash(tmp_path: Path) -> None:
    phantom = phantoms.volume(3, (20, 48, 40))
    journal = tmp_path / "journal"
    session = limner.open_session(phantom.image, "toy", journal=journal)
    session.add(Box((5, 10), (15, 30)), frame=20, axis=2)
    first = session.predict().mask
    session.add(Click((10, 25), positive=False), frame=20, axis=1, object_id=1)
    session.predict()
    session.undo()
    session.close()  # the journal is all that is left
    with limner.resume(journal, image=phantom.image) as again:
        assert again.prompts == (Box((5, 10, 20), (15, 30, 21)),)
        assert np.array_equal(again.predict().mask, first)
        again.redo()
        assert again.prompts[1] == Click((10, 20, 25), positive=False)


# -- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("name", ["half", "toy"])
def test_memory_is_bounded_by_the_window_not_by_the_volume(name: str, dtype: type) -> None:
    shape = (160, 256, 256)  # 21 or 42 MB, a mask of it 10 MB
    array = np.zeros(shape, dtype)
    array[40:120, 60:200, 60:200] = 800
    image = limner.Image(array, Geometry.from_spacing(shape, (1.0, 0.8, 0.8)))
    model = Half() if name == "half" else create_model("toy")
    create_model("toy")  # imported before anything is measured
    tracemalloc.start()
    try:
        with limner.open_session(image, model) as session:
            session.add(Click((80, 130, 130)))
            session.predict()
            session.add(Box((40, 60, 60), (120, 200, 200)))
            session.predict()
            session.add(Click((80, 61, 61), positive=False))
            prediction = session.predict()
            assert prediction.box is None or prediction.box.low
            session.undo()
            session.predict()
            kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 35e6  # windows of the toy are 64³ floats, several at once
    assert kept < 15e6


def test_a_lenient_volume_is_cleaned_window_by_window() -> None:
    shape = (40, 60, 60)
    array = np.where(ball(shape, (20, 30, 30), (10, 15, 15)), 900, 100).astype(np.float32)
    array[0] = np.nan
    array[1, 0] = np.inf
    image = limner.Image(array, Geometry.from_spacing(shape, (1.0, 1.0, 1.0)))
    with limner.open_session(image, Half()) as session:
        session.add(Click((20, 30, 30)))
        with pytest.raises(FormatError, match="NaN"):
            session.predict()
    image.read_options = {"strict": False}
    model = Half()
    with limner.open_session(image, model) as session:
        session.add(Click((20, 30, 30)))
        assert limner.metrics.dice(session.predict().mask, array > 500) > 0.8
    assert all(np.isfinite(view.array).all() for view in model.views)
    assert np.isnan(image.array[0]).all()
