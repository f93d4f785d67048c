"""Everything mode: what is kept of a grid of clicks, in how much memory, and the command."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

import limner
from limner import phantoms, rle
from limner.adapters.protocols import ModelCard, Question, Segmentation, View
from limner.cli.__main__ import run
from limner.errors import PromptError, SessionError
from limner.models import create_model
from limner.sessions.answers.sparse_logits import SparseLogits, true_bounds
from limner.sessions.everything import Settings, everything, label_map
from limner.sessions.proposal import Candidate, distinct, mask_iou, runs_of

CARD = ModelCard("blobs", "", (2,), frozenset({"click"}), "", "", False, {2: 64})


class Blobs:
    """The bright component under the click, in batches; surer of large ones.

    Args:
        slope: logits at the rim of a mask; a small one is an unstable mask.
    """

    card = CARD

    def __init__(self, slope: float = 9.0) -> None:
        self.slope = slope
        self.batches: list[int] = []
        self.embedded: list[tuple[int, ...]] = []

    def embed(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        self.embedded.append(view.shape)
        return ndimage.label(view.array > 100)[0], view.array

    def segment(
        self, embedding: object, prompts: Sequence[object], previous: object = None
    ) -> Segmentation:
        return self.segment_batch(embedding, [Question(prompts)])[0]  # type: ignore[arg-type]

    def segment_batch(
        self, embedding: tuple[np.ndarray, np.ndarray], questions: Sequence[Question]
    ) -> list[Segmentation]:
        self.batches.append(len(questions))
        labels, _ = embedding
        found = []
        for question in questions:
            (click,) = question.prompts
            label = labels[tuple(int(x) for x in click.at)]  # type: ignore[union-attr]
            mask = (labels == label) & (label > 0)
            logits = np.where(mask, self.slope, -9.0).astype(np.float32)
            score = 0.9 + min(0.09, mask.sum() / 1e6)
            found.append(Segmentation(logits, score if mask.any() else 0.99))
        return found


def picture(shape: tuple[int, int] = (120, 160)) -> tuple[np.ndarray, np.ndarray]:
    """Three bright objects, and their label map."""
    truth = np.zeros(shape, np.uint8)
    truth[10:40, 20:60] = 1
    truth[60:110, 100:150] = 2
    truth[70:80, 30:42] = 3
    return np.where(truth > 0, 200, 20).astype(np.uint8), truth


def test_every_object_under_a_click_is_found_once_the_best_first() -> None:
    image, truth = picture()
    model = Blobs()
    found = everything(image, model, settings=Settings(points=16))
    assert len(found) == 3
    assert [p.area for p in found] == [2500, 1200, 120]
    for proposal, label in zip(found, (2, 1, 3), strict=True):
        assert np.array_equal(proposal.mask, truth == label)
        low, high = true_bounds(truth == label)
        assert (proposal.box.low, proposal.box.high) == (low, high)
        assert proposal.mask[tuple(int(x) for x in proposal.point)]
        assert proposal.stability == 1.0
        assert 0.9 <= proposal.score < 1
    assert sum(model.batches) == 256
    assert max(model.batches) == 64  # together where the model can
    assert model.embedded == [(120, 160)]
    assert everything(image, model, settings=Settings(points=16)) == found


def test_settings_say_what_is_kept() -> None:
    image, _ = picture()
    base = Settings(points=16)

    def areas(model: Blobs | None = None, **changed: float) -> list[int]:
        settings = replace(base, **changed)  # type: ignore[arg-type]
        return [p.area for p in everything(image, model or Blobs(), settings=settings)]

    assert areas(least_area=121) == [2500, 1200]
    assert areas(largest_share=0.1) == [1200, 120]
    assert areas(most=1) == [2500]
    assert areas(least_score=0.902) == [2500]
    assert areas(Blobs(slope=0.5)) == []
    assert areas(Blobs(slope=0.5), offset=0.4) == [2500, 1200, 120]
    assert areas(Blobs(slope=0.5), least_stability=0) == [2500, 1200, 120]
    assert areas(points=1) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"points": 0},
        {"rounds": 0},
        {"least_score": 1.5},
        {"crops": 9},
        {"crops": 2, "points": 3},
        {"offset": -1.0},
        {"most": 0},
        {"largest_share": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)  # type: ignore[arg-type]


def test_crops_find_what_the_grid_missed_and_drop_what_they_cut() -> None:
    image, _ = picture()
    image[100:104, 4:8] = 200  # between the clicks of the whole picture
    model = Blobs()
    without = everything(image, model, settings=Settings(points=8))
    assert 16 not in [p.area for p in without]
    found = everything(image, model, settings=Settings(points=32, crops=1))
    assert sorted(p.area for p in found) == [16, 120, 1200, 2500]
    assert len(model.embedded) == 1 + 1 + 4
    labels = ndimage.label(image > 100)[0]
    for proposal in found:
        assert np.array_equal(proposal.mask, labels == labels[tuple(map(int, proposal.point))])


def test_it_can_be_watched_and_stopped() -> None:
    image, _ = picture()
    seen: list[tuple[int, int]] = []

    def half(done: int, total: int) -> bool:
        seen.append((done, total))
        return done < total / 2

    found = everything(image, Blobs(), settings=Settings(points=16), progress=half)
    assert seen == [(64, 256), (128, 256)]
    assert [p.area for p in found] == [1200]  # of the upper half

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        everything(image, Blobs(), progress=interrupt)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy", "classical/region", "limner-2d"])
def test_any_model_that_takes_clicks_will_do(name: str) -> None:
    phantom = phantoms.image(2, (90, 110))
    model = create_model(name)
    settings = replace(Settings.of(model.card, points=6), least_score=0.0, least_stability=0.0)
    found = everything(phantom.image, model, settings=settings)
    assert found
    assert found == everything(phantom.image, name, settings=settings)
    assert list(found) == sorted(found, key=lambda p: -p.score)
    for proposal in found:
        assert proposal.area == proposal.mask.sum()
        assert true_bounds(proposal.mask) == (proposal.box.low, proposal.box.high)


def test_a_model_that_judges_is_asked_again_and_less_is_expected_of_it() -> None:
    judging = Settings.of(create_model("limner-2d").card, points=5)
    assert (judging.points, judging.rounds) == (5, 2)
    assert judging.least_score < Settings().least_score
    assert Settings.of(create_model("toy").card) == Settings()
    assert Settings.of(create_model("limner-2d").card, rounds=1).rounds == 1


class Halves(Blobs):
    """Offers, besides the component under the click, its upper half and something bad."""

    def __init__(self, slope: float = 9.0) -> None:
        super().__init__(slope)
        self.offered: list[int] = []

    def propose(
        self,
        embedding: tuple[np.ndarray, np.ndarray],
        questions: Sequence[Question],
        least: float = 0.0,
    ) -> list[list[Segmentation]]:
        self.least = least
        self.offered.append(len(questions))
        made = []
        for whole in self.segment_batch(embedding, questions):
            half = whole.logits.copy()
            rows = np.flatnonzero((half > 0).any(axis=1))
            half[rows[len(rows) // 2] if len(rows) else 0 :] = -9.0
            made.append(
                [
                    whole,
                    Segmentation(half, 0.88 + (half > 0).sum() / 1e6),
                    Segmentation(-whole.logits, 0.2),
                ]
            )
        return made


def test_all_that_a_click_may_mean_is_looked_at() -> None:
    image, truth = picture()
    model = Halves()
    found = everything(image, model, settings=Settings(points=16))
    assert [p.area for p in found] == [2500, 1200, 120, 1250, 600, 60]
    assert sum(model.offered) == 256
    assert model.least == Settings().least_score
    assert np.array_equal(found[3].mask, (truth == 2) & (np.arange(120)[:, None] < 85))
    assert found[3].score == pytest.approx(0.88, abs=0.01)
    with_crops = everything(image, Halves(), settings=Settings(points=16, crops=1))
    assert {p.area for p in with_crops} >= {2500, 1250}


def test_one_answer_counts_in_later_rounds_and_in_windows() -> None:
    image, _ = picture()
    for settings, zoom in ((Settings(points=8, rounds=2), False), (Settings(points=8), True)):
        model = Halves()
        found = everything(image, model, settings=settings, zoom=zoom)
        assert model.offered == []
        assert 1250 not in [p.area for p in found]


def test_answers_of_another_shape_are_refused() -> None:
    class Cut(Halves):
        def propose(
            self, embedding: object, questions: Sequence[Question], least: float = 0.0
        ) -> list[list[Segmentation]]:
            return [[Segmentation(np.ones((3, 4), np.float32), 1.0)] for _ in questions]

    with pytest.raises(ValueError, match=r"logits of shape \(3, 4\) to a view of \(120, 160\)"):
        everything(picture()[0], Cut())


def test_the_second_round_is_fed_the_first() -> None:
    shown: list[bool] = []

    class Twice(Blobs):
        def segment_batch(
            self, embedding: tuple[np.ndarray, np.ndarray], questions: Sequence[Question]
        ) -> list[Segmentation]:
            shown.extend(q.previous is not None and q.memory == "seen" for q in questions)
            return [replace(s, memory="seen") for s in super().segment_batch(embedding, questions)]

    image, _ = picture()
    everything(image, Twice(), settings=Settings(points=2, rounds=2))
    assert shown == [False] * 4 + [True] * 4


def test_what_cannot_be_asked_is_refused_by_name() -> None:
    image, _ = picture()
    boxes = Blobs()
    boxes.card = replace(CARD, prompts=frozenset({"box"}))  # type: ignore[misc]
    with pytest.raises(PromptError, match=r"understands box, .*clicks.*limner-2d"):
        everything(image, boxes)
    solid = Blobs()
    solid.card = replace(CARD, ndim=(3,), window={3: 64})  # type: ignore[misc]
    volume = np.zeros((4, 30, 30), np.uint8)
    with pytest.raises(SessionError, match="works on volumes"):
        everything(volume, solid, frame=1)
    with pytest.raises(PromptError, match="no frames"):
        everything(image, Blobs(), frame=1)
    for frame in (None, 4, -1):
        with pytest.raises(PromptError, match=r"one slice of a volume.*0…3"):
            everything(volume, Blobs(), frame=frame)


def test_one_slice_of_a_volume_is_a_picture() -> None:
    image, _ = picture()
    volume = np.stack([np.zeros_like(image), image])
    settings = Settings(points=16)
    flat = everything(image, Blobs(), settings=settings)
    assert everything(volume, Blobs(), settings=settings, frame=1) == flat
    assert everything(volume, Blobs(), settings=settings, frame=0) == ()


@pytest.mark.slow
def test_memory_stays_that_of_a_few_answers() -> None:
    side = 1024
    image = np.zeros((side, side), np.uint8)
    rows, columns = np.indices((side, side))
    image[(rows // 64 + columns // 64) % 2 == 0] = 200  # 128 squares that touch at corners
    model = Blobs()
    tracemalloc.start()
    found = everything(image, model, settings=Settings(points=16))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 128
    assert max(model.batches) < 64
    assert peak < 80 * 4 * side * side  # of 256 answers of 4 bytes a pixel


def test_a_label_map_shows_the_better_one_where_masks_overlap() -> None:
    image, truth = picture()
    found = everything(image, Blobs(), settings=Settings(points=16))
    labels = label_map(found, image.shape)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, np.array([0, 2, 1, 3])[truth])
    assert np.array_equal(np.unique(label_map([*found, found[0]], image.shape)), [0, 1, 2, 3])
    assert not label_map([], image.shape).any()


MASKS = st.integers(0, 2**30).map(
    lambda seed: np.random.default_rng(seed).random((9, 11)) > np.random.default_rng(seed).random()
)


def _candidate(mask: np.ndarray, score: float = 0.5, layer: int = 0) -> Candidate:
    starts, ends = runs_of(SparseLogits.of_mask(mask), (0, 0), mask.shape)
    return Candidate(starts, ends, mask.shape, true_bounds(mask), score, 1.0, (0.0, 0.0), layer)


@given(MASKS, MASKS)
def test_runs_are_the_mask_and_compare_as_it_does(first: np.ndarray, second: np.ndarray) -> None:
    if not first.any() or not second.any():
        return
    one, other = _candidate(first), _candidate(second)
    proposal = one.proposal()
    assert np.array_equal(proposal.mask, first)
    assert proposal.counts == rle.coco_encode(first)["counts"]
    assert proposal.area == first.sum()
    iou = (first & second).sum() / (first | second).sum()
    assert mask_iou(one, other) == pytest.approx(iou)
    assert mask_iou(one, one) == 1


def test_runs_of_a_part_lie_where_the_part_is() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:20, 10:17] = True
    starts, ends = runs_of(SparseLogits.of_mask(mask[5:, 8:]), (5, 8), mask.shape)
    assert np.array_equal(
        np.flatnonzero(mask.ravel(order="F")),
        np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)]),
    )
    whole = np.ones((4, 5), bool)
    starts, ends = runs_of(SparseLogits.of_mask(whole), (0, 0), whole.shape)
    assert (starts.tolist(), ends.tolist()) == ([0], [20])


def test_of_answers_alike_the_better_stays() -> None:
    square = np.zeros((40, 40), bool)
    square[5:25, 5:25] = True
    shifted = np.roll(square, 1, axis=0)
    ring = square.copy()
    ring[8:22, 8:22] = False
    first, second, third = _candidate(square, 0.8), _candidate(shifted, 0.9), _candidate(ring, 0.7)
    kept = distinct([first, second, third], box_iou=0.7, same_mask=0.8)
    assert kept == [second]
    kept = distinct([first, second, third], box_iou=1.0, same_mask=0.8)
    assert kept == [second, third]  # the same box, and another mask
    kept = distinct([first, second, third], box_iou=1.0, same_mask=1.0)
    assert kept == [second, first, third]
    closer = _candidate(square, 0.6, layer=1)
    assert distinct([first, closer], box_iou=0.7, same_mask=0.8) == [closer]


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.fromarray(picture()[0]).save(path)
    return path


SAYING = [
    "--model",
    "toy",
    "--no-zoom",
    "--points",
    "8",
    "--min-score",
    "0",
    "--min-stability",
    "0",
]


def test_the_command_writes_coco_runs(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all.json"
    assert run(["everything", str(photo), "-o", str(out), *SAYING, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    content = json.loads(out.read_text())
    settings = Settings(points=8, least_score=0, least_stability=0)
    found = everything(photo, "toy", settings=settings, zoom=False)
    assert len(found) == len(content["annotations"]) == len(report["masks"]) > 0
    labels = limner.read_labels(out, like=photo)
    for number, proposal in enumerate(found, start=1):
        assert np.array_equal(labels.mask(number), proposal.mask)
        record = content["annotations"][number - 1]
        assert record["score"] == round(proposal.score, 4)
        (top, left), (bottom, right) = proposal.box.low, proposal.box.high
        assert record["bbox"] == [left, top, right - left, bottom - top]
    facts = json.loads((tmp_path / "all.json.limner.json").read_text())
    assert facts["model"]["name"] == "toy"
    assert facts["everything"]["points"] == 8
    assert len(facts["proposals"]) == len(found)


@pytest.mark.parametrize("suffix", [".png", ".npz", ".nii.gz", ".tif"])
def test_the_command_writes_label_maps(photo: Path, tmp_path: Path, suffix: str) -> None:
    out, preview = tmp_path / f"all{suffix}", tmp_path / "preview.png"
    said = ["everything", str(photo), "-o", str(out), *SAYING, "--preview", str(preview)]
    assert run(said) == 0
    settings = Settings(points=8, least_score=0, least_stability=0)
    found = everything(photo, "toy", settings=settings, zoom=False)
    labels = np.asarray(limner.read_labels(out).to_array()).reshape(120, 160)
    assert np.array_equal(labels, label_map(found, (120, 160)))
    assert preview.stat().st_size > 0
    assert (tmp_path / f"all{suffix}.limner.json").exists()


def test_the_command_takes_one_slice_of_a_volume(tmp_path: Path) -> None:
    phantom = phantoms.volume(3, (8, 40, 48))
    volume, out = tmp_path / "ct.nii.gz", tmp_path / "all.nii.gz"
    limner.io.write_image(volume, phantom.image)
    said = ["everything", str(volume), "-o", str(out), *SAYING]
    assert run(said) == 2
    assert run([*said, "--slice", "3"]) == 0
    labels = np.asarray(limner.read_labels(out, like=volume).to_array())
    assert labels.shape == (8, 40, 48)
    assert [k for k in range(8) if labels[k].any()] == [3]


def test_an_interrupted_command_writes_nothing(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limner.models.toy import Toy

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Toy, "segment_batch", interrupt)
    out = tmp_path / "all.png"
    assert run(["everything", str(photo), "-o", str(out), *SAYING]) == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photo.png"]


def test_wrong_numbers_and_models_are_one_line(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "all.png")
    for wrong in (["--points", "0"], ["--min-score", "7"], ["--model", "nothing"]):
        assert run(["everything", str(photo), "-o", out, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
