"""The benchmark's protocol for models that need no prompts: every label of an image scored once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import volume_makers
from bench_makers import make_set
from limner import metrics
from limner.bench import report as reports
from limner.bench.automatic import find_label
from limner.bench.config import BenchConfig
from limner.bench.rows import decode_answer, read_left_out, read_rows
from limner.bench.run import run
from limner.cli.__main__ import run as command
from limner.datasets.objects import TargetObject
from limner.models import View
from limner.models.toy_automatic import CARD, Bands

BANDS = "toy-automatic/bands"


def config_of(data: Path, models: tuple[str, ...] = (BANDS,), **changes: object) -> BenchConfig:
    return BenchConfig(str(data), models, protocol="automatic", **changes)  # type: ignore[arg-type]


class Counting(Bands):
    """Bands for images of two blocks on dark; counts the images that it has seen."""

    def __init__(self, labels: dict[int, str] | None = None) -> None:
        self.card = replace(CARD, labels=labels or CARD.labels)
        self.num_seen = 0

    def predict(self, view: View) -> np.ndarray:
        self.num_seen += 1
        return super().predict(view)


def test_an_image_is_labelled_once_and_every_label_scored(tmp_path: Path) -> None:
    data, model = make_set(tmp_path / "data"), Counting()
    outcome = run(config_of(data), tmp_path / "out", models=[model])
    assert (outcome.num_rows, outcome.num_failed) == (4, 0)
    assert model.num_seen == 2
    for row in read_rows(tmp_path / "out"):
        assert row.task == "automatic"
        assert row.prompts == [[]]
        assert {k: len(v) for k, v in row.scores.items()} == {"dice": 1, "nsd": 1}
        assert row.dice[0] > 0.8
        assert decode_answer(row.answer).sum() > 100
    run(config_of(data), tmp_path / "out", models=[model])
    assert model.num_seen == 2


def test_a_report_shows_the_scores(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data")
    given = ["--protocol", "automatic", "--model", BANDS]
    assert command(["bench", "run", "--data", str(data), *given, "-o", str(tmp_path / "out")]) == 0
    text = reports.to_markdown(reports.build_report([tmp_path / "out"]))
    assert "automatic" in text
    assert BANDS in text


def test_volumes_are_scored_in_millimetres(tmp_path: Path) -> None:
    data = volume_makers.make_set(tmp_path / "data")
    run(config_of(data, dimensions=3), tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert rows
    assert {row.way for row in rows} == {"whole"}
    assert all(row.task == "automatic, 3D" and len(row.scores["hd95"]) == 1 for row in rows)


def test_labels_of_instances_and_parts_are_whole_labels_here(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a",), targets={"1": "grey", "2": "bright"})
    run(config_of(data), tmp_path / "out")
    assert {row.target_name for row in read_rows(tmp_path / "out")} == {"grey", "bright"}


def test_a_label_that_the_model_does_not_have_is_left_out(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a",), targets={"1": "liver", "2": "bright"})
    run(config_of(data), tmp_path / "out")
    (row,) = read_rows(tmp_path / "out")
    assert row.target_name == "bright"
    (note,) = read_left_out(tmp_path / "out")
    assert note["reason"] == f"{BANDS} has no label liver."


def test_a_model_that_fails_scores_nothing(tmp_path: Path) -> None:
    class Broken(Counting):
        def predict(self, view: View) -> np.ndarray:
            raise RuntimeError("out of order")

    data = make_set(tmp_path / "data", ("a",))
    run(config_of(data), tmp_path / "out", models=[Broken()])
    for row in read_rows(tmp_path / "out"):
        assert row.error == "RuntimeError: out of order"
        assert row.dice == [0.0]
        assert row.answer is None


def target(object_id: str, name: str) -> TargetObject:
    return TargetObject(object_id, name, np.ones((2, 2), bool))


def test_labels_are_matched_by_name_and_by_value_where_there_are_no_names() -> None:
    card = replace(CARD, labels={1: "spleen", 2: "label 2"})
    assert find_label(card, target("7", "Spleen")) == 1
    assert find_label(card, target("1", "liver")) is None
    assert find_label(card, target("1", "")) == 1
    assert find_label(card, target("2", "liver")) == 2
    assert find_label(card, target("3", "")) is None


def test_models_that_take_prompts_are_refused(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a",))
    with pytest.raises(ValueError, match="needs a model without prompts"):
        run(config_of(data, ("toy",)), tmp_path / "out")
    with pytest.raises(ValueError, match="limner auto"):
        run(BenchConfig(str(data), (BANDS,)), tmp_path / "other")


def test_scores_are_those_of_the_written_answer(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a",))
    run(config_of(data), tmp_path / "out")
    from limner import read_labels

    truth = read_labels(data / "masks" / "a.png").to_array()
    for row in read_rows(tmp_path / "out"):
        answer = decode_answer(row.answer)
        assert row.dice[0] == pytest.approx(metrics.dice(answer, truth == int(row.object_id)))
