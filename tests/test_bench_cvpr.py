"""The files of the CVPR 2025 challenge: read as data, answered, talked about and scored."""

from __future__ import annotations

import io
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limner import metrics
from limner.bench import challenge
from limner.bench.challenge import CaseInteraction, CaseScores, answer_all, answer_case, interact
from limner.checkpoints.plain_pickle import Refused, read_plain
from limner.cli.__main__ import run as command
from limner.datasets.cvpr_npz import read_case, write_answer
from limner.errors import FormatError
from limner.models import create_model
from limner.models.toy import Toy
from limner.prompts.types import Box, Click
from volume_makers import SHAPE, SPACING, Flat, boxes_of, volume


def write_case(path: Path, seed: int = 0, *, leave_out: tuple[str, ...] = (), **more: Any) -> Path:
    """A challenge file as NumPy writes it: lists of dictionaries become pickles."""
    image, labels = volume(seed)
    members = {"imgs": image, "gts": labels, "spacing": SPACING, "boxes": boxes_of(labels)}
    kept = {key: value for key, value in (members | more).items() if key not in leave_out}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=True, **kept)
    return path


def clicks_of(*classes: tuple[list[tuple[int, ...]], list[tuple[int, ...]]]) -> list[dict]:
    """Clicks as the challenge's script keeps them: lists of NumPy integers."""
    return [
        {"fg": [list(np.array(at)) for at in fg], "bg": [list(np.array(at)) for at in bg]}
        for fg, bg in classes
    ]


# -- reading ----------------------------------------------------------------------------------


def test_a_file_that_numpy_wrote_is_read_back(tmp_path: Path) -> None:
    said = clicks_of(([(6, 10, 10), (5, 9, 9)], [(0, 0, 0)]), ([], []))
    order = [["fg", "bg", "fg"], [None, None, None]]
    previous = np.zeros(SHAPE, dtype=np.uint8)
    path = write_case(tmp_path / "CT_a.npz", clicks=said, clicks_order=order, prev_pred=previous)
    case = read_case(path)
    labels = volume()[1]
    assert case.classes == (1, 2)
    assert case.image.geometry.shape == SHAPE
    assert case.spacing == SPACING
    assert case.boxes is not None
    z = np.flatnonzero((labels == 1).any(axis=(1, 2)))
    first = case.boxes[0]
    assert first.slices == (z.min(), z.max() + 1)
    assert first.frame == z[len(z) // 2]
    plane = np.argwhere(labels[first.frame] == 1)
    assert first.slice_box == Box(tuple(plane.min(axis=0)), tuple(plane.max(axis=0) + 1))
    assert first.volume_box.low == (z.min(), *first.slice_box.low)
    assert first.slice_prompt.within == first.slices
    clicks = [click for round_ in case.clicks[0] for click in round_]
    assert clicks == [
        Click((6, 10, 10)),
        Click((0, 0, 0), positive=False),
        Click((5, 9, 9)),
    ]
    assert case.clicks[1] == ()
    np.testing.assert_array_equal(case.truth, labels)
    np.testing.assert_array_equal(case.previous, previous)


def test_without_an_order_the_clicks_are_said_together(tmp_path: Path) -> None:
    said = clicks_of(([(6, 10, 10)], [(0, 0, 0)]), ([(7, 20, 26)], []))
    for extra in ({}, {"clicks_order": [["fg"], ["fg"]]}):  # no order, and one of something else
        case = read_case(write_case(tmp_path / "a.npz", clicks=said, **extra))
        assert [len(r) for r in case.clicks[0]] == [2]
        assert case.clicks[1] == ((Click((7, 20, 26)),),)
    order = np.array([["fg", "bg"], ["fg", "fg"]])  # of texts alone NumPy makes no pickle
    case = read_case(write_case(tmp_path / "b.npz", clicks=said, clicks_order=order))
    assert [len(r) for r in case.clicks[0]] == [1, 1]


def test_classes_come_from_the_truth_or_are_counted(tmp_path: Path) -> None:
    image, labels = volume()
    path = write_case(tmp_path / "a.npz", leave_out=("gts",))
    assert read_case(path).classes == (1, 2)
    truth = tmp_path / "truth"
    truth.mkdir()
    np.savez_compressed(truth / "a.npz", gts=labels.astype(np.uint16) ** 8 + (labels == 1))
    assert read_case(path, truth=truth).classes == (2, 256)
    assert read_case(path, truth=truth / "a.npz").classes == (2, 256)
    np.savez_compressed(tmp_path / "bare.npz", imgs=image)
    with pytest.raises(FormatError, match="no boxes, no clicks, no gts"):
        read_case(tmp_path / "bare.npz")
    case = read_case(write_case(tmp_path / "c.npz", leave_out=("boxes", "spacing")))
    assert (case.boxes, case.clicks, case.spacing) == (None, (), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"boxes": [{"z_min": 0}]}, r"prompts of 1 classes, and there are 2"),
        ({"boxes": [{"z_min": 0}, {"z_min": 1}]}, r"boxes\[0\] is no dictionary with z_min"),
        ({"boxes": [1, 2]}, r"boxes\[0\] is no dictionary"),
        ({"clicks": [{"fg": [[0, 0, 99]]}, {}]}, r"clicks\[0\] has a click at \(0, 0, 99\), out"),
        ({"clicks": [{"fg": [[0, 0]]}, {}]}, r"clicks\[0\] has a click at \[0, 0\]; slice, row"),
        ({"clicks": [{"fg": [[0, 0.5, 1]]}, {}]}, r"clicks\[0\] holds 0.5, not a whole number"),
        ({"clicks": [{"fg": 3}, {}]}, r"clicks\[0\] is no dictionary with lists fg and bg"),
        ({"prev_pred": np.zeros((2, 2, 2))}, r"prev_pred of shape \(2, 2, 2\) does not fit"),
        ({"gts": np.zeros((2, 2, 2), np.uint8)}, r"gts of uint8 and shape .* is no label map"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    path = write_case(tmp_path / "a.npz", **more)
    with pytest.raises(FormatError, match=message):
        read_case(path)


def test_boxes_outside_the_volume_are_refused(tmp_path: Path) -> None:
    for key, value in (("z_max", SHAPE[0]), ("z_mid_x_max", SHAPE[2]), ("z_mid_y_min", -1)):
        boxes = boxes_of(volume()[1])
        boxes[1][key] = value
        with pytest.raises(FormatError, match=r"boxes\[1\] has slices .* must ascend within 14×32"):
            read_case(write_case(tmp_path / "a.npz", boxes=boxes))


# -- foreign pickles --------------------------------------------------------------------------


class Runs:
    """Unpickled it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("key", ["boxes", "clicks", "clicks_order"])
def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(
    tmp_path: Path, key: str
) -> None:
    target = tmp_path / "made"
    bad = np.empty(2, dtype=object)
    bad[:] = [Runs(target), Runs(target)]
    path = write_case(
        tmp_path / "a.npz", **({"clicks": clicks_of(([], []), ([], []))} | {key: bad})
    )
    with pytest.raises(FormatError, match=rf"'{key}' names posix.mkdir, and nothing is run here"):
        read_case(path)
    assert not target.exists()


def pickled(value: Any, protocol: int = 4) -> bytes:
    return pickle.dumps(value, protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_survive(protocol: int) -> None:
    value = np.empty((2, 2), dtype=object)
    value[:] = [[{"a": np.int64(3), "b": [1.5, None]}, "x"], [np.float32(0.5), True]]
    expected = [[{"a": 3, "b": [1.5, None]}, "x"], [0.5, True]]
    if protocol == 2:  # bytes are text there, which needs a function to turn back
        with pytest.raises(Refused, match=r"names _codecs\.encode"):
            read_plain(pickled(value, protocol))
        return
    assert read_plain(pickled(value, protocol)) == expected
    inner = np.empty(1, dtype=object)
    inner[0] = {"at": np.arange(6, dtype=">i4").reshape(2, 3)}
    if protocol < 5:
        assert read_plain(pickled(inner, protocol)) == [{"at": [[0, 1, 2], [3, 4, 5]]}]
    assert read_plain(pickled(np.array(None, dtype=object), protocol)) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Path("x"), "names pathlib"),
        ([1, {2, 3}], "no list, dictionary"),
        (np.zeros(3, dtype="M8[s]"), "no plain value"),
        ([[[[[[[[[[[1]]]]]]]]]]], "lists within lists"),
        (b"bytes", "no list, dictionary"),
    ],
)
def test_other_values_are_refused(value: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        read_plain(pickled(value))


def test_damaged_pickles_are_refused() -> None:
    whole = pickled(np.array([{"a": 1}, {"b": np.int64(2)}], dtype=object))
    for end in range(len(whole) - 1):
        with pytest.raises(Refused):
            read_plain(whole[:end])
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(whole)
        broken[rng.integers(len(broken))] = rng.integers(256)
        try:
            read_plain(bytes(broken))
        except Refused:
            continue
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(Refused, match="lists within lists"):
        read_plain(pickled(endless))


# -- the interaction --------------------------------------------------------------------------


def test_the_interaction_by_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = read_case(write_case(tmp_path / "a.npz"))
    said: list[tuple[int, tuple[Any, ...]]] = []
    plain = CaseInteraction.say

    def told(self: CaseInteraction, number: int, prompts: Any) -> None:
        said.append((number, tuple(prompts)))
        plain(self, number, prompts)

    monkeypatch.setattr(CaseInteraction, "say", told)
    labels, scores = interact(create_model("toy"), case)
    assert [number for number, _ in said] == [0, 1] * 6
    assert case.boxes is not None
    assert said[:2] == [(k, (case.boxes[k].volume_box,)) for k in range(2)]
    assert all(isinstance(p, Click) for _, prompts in said[2:] for p in prompts)
    assert (len(scores.dsc), len(scores.nsd), scores.num_classes) == (6, 6, 2)
    truth = volume()[1]
    dice = [metrics.dice(labels == k, truth == k) for k in (1, 2)]
    assert scores.dsc[-1] == pytest.approx(np.mean(dice))
    nsd = [metrics.nsd(labels == k, truth == k, SPACING, tolerance=2) for k in (1, 2)]
    assert scores.nsd[-1] == pytest.approx(np.mean(nsd))
    assert scores.summary["DSC_final"] == scores.dsc[-1]
    assert scores.dsc[-1] > 0.7


def test_the_numbers_by_hand() -> None:
    dsc, nsd = (0.9, 0.1, 0.3, 0.5, 0.5, 0.7), (0.8, 0.0, 0.2, 0.4, 0.6, 0.8)
    scores = CaseScores("a.npz", 2, dsc, nsd, 190.0)
    assert scores.summary == pytest.approx(
        {
            "DSC_AUC": 0.2 + 0.4 + 0.5 + 0.6,
            "NSD_AUC": 0.1 + 0.3 + 0.5 + 0.7,
            "DSC_final": 0.7,
            "NSD_final": 0.8,
            "s_per_class": 95.0,
        }
    )
    assert scores.is_late
    assert not replace(scores, seconds=179.0).is_late


def test_without_boxes_the_first_round_is_skipped(tmp_path: Path) -> None:
    case = read_case(write_case(tmp_path / "a.npz", leave_out=("boxes",)))
    _, scores = interact(create_model("toy"), case)
    assert (scores.dsc[0], scores.nsd[0]) == (0.0, 0.0)
    assert scores.dsc[1] > 0
    assert scores.summary["DSC_AUC"] > 0


def test_a_poor_overlap_has_no_surface_score(tmp_path: Path) -> None:
    labels = volume()[1]
    case = read_case(write_case(tmp_path / "a.npz"))
    wrong = np.roll(labels, 18, axis=2)
    assert challenge._scores(wrong, case)[0] < 0.2
    assert challenge._scores(wrong, case)[1] == 0.0
    assert challenge._scores(labels, case) == (1.0, 1.0)


class Failing(Toy):
    """Raises from the third question on."""

    def __init__(self) -> None:
        self.asked = 0

    def segment(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        if self.asked == 5:
            raise RuntimeError("tired")
        return super().segment(*args, **kwargs)


def test_a_round_that_fails_counts_as_nothing_and_the_next_goes_on(tmp_path: Path) -> None:
    case = read_case(write_case(tmp_path / "a.npz"))
    _, scores = interact(Failing(), case)
    assert len(scores.failures) == 1
    assert "RuntimeError: tired" in scores.failures[0]
    failed = int(scores.failures[0].split()[1].rstrip(":"))
    assert scores.dsc[failed] == 0.0
    assert scores.dsc[-1] > 0.5


def test_models_of_slices_are_told_the_box_on_its_slice(tmp_path: Path) -> None:
    case = read_case(write_case(tmp_path / "a.npz"))
    labels, scores = interact(Flat(), case)
    assert case.boxes is not None
    low, high = case.boxes[0].slices
    assert scores.dsc[0] > 0.5
    assert set(np.flatnonzero((labels == 1).any(axis=(1, 2)))) <= set(range(low, high))


def test_one_answer_at_a_time_is_the_same_conversation(tmp_path: Path) -> None:
    """What the challenge does: each round a new start with all prompts and the answer before."""
    model, truth = create_model("toy"), volume()[1]
    whole, scores = interact(model, read_case(write_case(tmp_path / "whole.npz")))
    clicks: list[dict[str, list[Any]]] = [{"fg": [], "bg": []} for _ in range(2)]
    order: list[list[str | None]] = [[], []]
    segs = np.zeros_like(truth)
    for round_ in range(6):
        more: dict[str, Any] = {}
        if round_:
            for k, label in enumerate((1, 2)):
                click = challenge.challenge_click(truth == label, segs == label, challenge._choose)
                order[k].append(None if click is None else "fg" if click.positive else "bg")
                if click is not None:
                    at = [np.int64(x) for x in click.at]
                    clicks[k]["fg" if click.positive else "bg"].append(at)
            more = {"clicks": clicks, "clicks_order": order, "prev_pred": segs}
        path = write_case(tmp_path / "round.npz", leave_out=("gts",), **more)
        segs = answer_case(model, read_case(path))
        dice = np.mean([metrics.dice(segs == k, truth == k) for k in (1, 2)])
        assert dice == pytest.approx(scores.dsc[round_], abs=1e-9)
    np.testing.assert_array_equal(segs, whole)


def test_an_answer_that_somebody_else_made_is_gone_on_from(tmp_path: Path) -> None:
    truth = volume()[1]
    before = truth.copy()
    before[:, :, :8] = 0
    said = clicks_of(([(6, 10, 9)], []), ([], []))
    facts = {"clicks": said, "prev_pred": before, "leave_out": ("gts", "boxes")}
    path = write_case(tmp_path / "a.npz", **facts)
    found = answer_case(create_model("baseline/ellipse"), read_case(path))
    assert metrics.dice(found == 1, before == 1) > 0.95  # the ellipse keeps a mask as it is
    np.testing.assert_array_equal(found == 2, before == 2)  # nothing was said of it
    flat = answer_case(Flat(), read_case(path))  # it takes no mask of a volume: the click alone
    assert (flat == 1).any()


def test_where_classes_overlap_the_smaller_one_counts(tmp_path: Path) -> None:
    boxes = boxes_of(volume()[1])
    for key in boxes[0]:
        boxes[1][key] = boxes[0][key]
    boxes[0] |= {"z_min": 0, "z_max": 13, "z_mid_x_min": 0, "z_mid_x_max": 30}
    path = write_case(tmp_path / "a.npz", boxes=boxes, leave_out=("gts",))
    labels = answer_case(create_model("baseline/box"), read_case(path))
    assert set(np.unique(labels)) == {0, 1, 2}
    case = read_case(path)
    assert case.boxes is not None
    inner = case.boxes[1].volume_box
    window = tuple(slice(int(a), int(b)) for a, b in zip(inner.low, inner.high, strict=True))
    assert (labels[window] == 2).all()


# -- folders and the command ------------------------------------------------------------------


def test_answers_are_written_as_the_challenge_reads_them(tmp_path: Path) -> None:
    write_answer(tmp_path / "a.npz", np.array([[[0, 300]]]))
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["segs"]
        assert file["segs"].dtype == np.uint16


def test_a_folder_with_and_without_truth(tmp_path: Path) -> None:
    for seed in range(2):
        write_case(tmp_path / "cases" / f"c{seed}.npz", seed, leave_out=("gts",))
    (tmp_path / "cases" / "broken.npz").write_bytes(b"PK\x03\x04nothing")
    model = create_model("toy")
    assert list(answer_all(model, tmp_path / "cases", tmp_path / "o")) == ["c0.npz", "c1.npz"]
    (tmp_path / "truth").mkdir()
    for seed in range(2):
        np.savez_compressed(tmp_path / "truth" / f"c{seed}.npz", gts=volume(seed)[1])
    found = list(
        answer_all(model, tmp_path / "cases", tmp_path / "scored", truth=tmp_path / "truth")
    )
    assert [isinstance(one, CaseScores) and one.dsc[-1] > 0.6 for one in found] == [True, True]
    with np.load(tmp_path / "scored" / "c1.npz") as file:
        assert file["segs"].shape == SHAPE


@pytest.mark.slow
def test_the_command_prints_and_keeps_the_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "cases" / "CT_a.npz")
    write_case(tmp_path / "cases" / "CT_b.npz", 1)
    out = tmp_path / "out"
    said = ["bench", "cvpr", str(tmp_path / "cases"), "--model", "toy", "-o", str(out)]
    assert command(said) == 0
    printed = capsys.readouterr().out
    assert "| case | classes | DSC_AUC | NSD_AUC | DSC_final | NSD_final | s_per_class |" in printed
    assert "| mean of 2 |" in printed
    lines = (out / "scores.csv").read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("case,classes,DSC_AUC,NSD_AUC,DSC_final,NSD_final,s_per_class")
    assert (out / "CT_b.npz").is_file()
    write_case(tmp_path / "one.npz", leave_out=("gts",))
    assert command(["bench", "cvpr", str(tmp_path / "one.npz"), *said[3:]]) == 0
    assert "Wrote" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["cases/a.npz", "-o", "cases"], "holds the cases themselves"),
        (["empty", "-o", "out"], "holds no npz files"),
        (["nothing.npz", "-o", "out"], "nothing.npz"),
        (["cases", "-o", "out", "--truth", "empty"], "There is no .*empty/a.npz"),
    ],
)
def test_misuse_of_the_command_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_case(tmp_path / "cases" / "a.npz")
    (tmp_path / "empty").mkdir()
    assert command(["bench", "cvpr", *given, "--model", "toy"]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_huge_pickles_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limner.io import npz

    monkeypatch.setattr(npz, "_MAX_PICKLE", 100)
    with pytest.raises(FormatError, match="'boxes' has more than"):
        read_case(write_case(tmp_path / "a.npz"))
    buffer = io.BytesIO()
    np.savez(buffer, imgs=volume()[0])
    (tmp_path / "b.npz").write_bytes(buffer.getvalue())
    assert npz.read_pickle(tmp_path / "b.npz", "boxes") is None
    assert npz.read_array(tmp_path / "b.npz", "gts") is None
