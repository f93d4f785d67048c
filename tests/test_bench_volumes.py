"""The benchmark on volumes: sets, cases, what is said in 3D and slice by slice, rows, reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import limner
from bench_makers import make_set as make_flat_set
from limner.bench import report as reports
from limner.bench._shared_embeddings import EncodedOnce, PropagatingEncodedOnce, encoded_once
from limner.bench.config import BenchConfig, config_from_json
from limner.bench.interaction import score_answer, way_of
from limner.bench.protocol import Exchange, SimulatedUser, check_dimensions, check_speakable
from limner.bench.rows import Row, decode_answer, encode_answer, read_left_out, read_rows
from limner.bench.run import run
from limner.bench.scores import area_under_curve, gate_nsd
from limner.bench.slices import CroppedMask, SliceBySlice, slice_placement, to_slice_prompt
from limner.bench.volume_tables import click_rounds, dsc_auc, nsd_auc
from limner.cli.__main__ import run as command
from limner.datasets.objects import Objects, find_objects, read_objects
from limner.datasets.selection import find_sets, guess_dimensions, open_image
from limner.errors import FormatError, PromptError
from limner.geometry import Geometry
from limner.io.labels import Labels
from limner.models import create_model
from limner.models.medsam import VARIANTS as MEDSAM
from limner.prompts.simulate_volume import challenge_click
from limner.prompts.types import Box, Click, Lasso, MaskPrompt, from_json
from volume_makers import SHAPE, Flat, make_set, volume, write

RIGHT = np.zeros((3, 4, 5), dtype=bool)


def config_of(data: Path, models: tuple[str, ...] = ("toy",), **changes: object) -> BenchConfig:
    given = {"rounds": 3, "dimensions": 3} | changes
    return BenchConfig(str(data), models, **given)  # type: ignore[arg-type]


def held(data: Path, out: Path, **changes: object) -> list[Row]:
    run(config_of(data, **changes), out)  # type: ignore[arg-type]
    return read_rows(out)


def without_measures(rows: list[Row]) -> list[dict[str, object]]:
    return [{k: v for k, v in vars(r).items() if k not in ("seconds", "peak_mb")} for r in rows]


# -- sets and cases ---------------------------------------------------------------------------


def test_sets_of_volumes_are_found_beside_those_of_pictures(tmp_path: Path) -> None:
    make_set(tmp_path / "3d" / "known", modality="CT (HU)", targets={"1": "ball"})
    make_set(tmp_path / "3d" / "strange")
    make_set(tmp_path / "3d" / "guessed")
    make_flat_set(tmp_path / "2d" / "flat")
    splits = {
        "sets": {f"3d/{n}": {"test": ["b"], "val": ["a"]} for n in ("known", "strange", "guessed")}
        | {"2d/flat": {"test": ["a"]}},
        "never_scored": ["3d/guessed"],
        "test_only": ["3d/strange"],
        "train_commercial_ok": ["3d/known"],
        "unit": {"3d/strange": "instance"},
    }
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    known, strange = find_sets(tmp_path, "test", dimensions=3)
    assert (known.name, known.standing, known.modality_name) == ("3d/known", "seen", "CT")
    assert (strange.standing, strange.unit, strange.dimensions) == ("unseen", "instance", 3)
    assert list(known.cases) == ["b"]
    assert open_image(known, "b").geometry.shape == SHAPE
    (case, _) = find_objects(known, "b", open_image(known, "b"))
    assert (case.target_name, case.spacing) == ("ball", (2.0, 1.0, 1.0))
    assert guess_dimensions(tmp_path, ["3d/kn*", "3d/s*"]) == 3
    assert (
        guess_dimensions(tmp_path, ["3d/known", "2d/flat"]) == guess_dimensions(tmp_path, []) == 2
    )


@pytest.mark.parametrize(
    "parts", [("images", "labels"), ("imagesTr", "labelsTr"), ("images", "masks")]
)
def test_folders_of_every_layout(tmp_path: Path, parts: tuple[str, str]) -> None:
    folder = make_set(tmp_path / "set", parts=parts)
    (found,) = find_sets(folder, "test", dimensions=3)
    assert [c.name for c in found.cases.values() if c.labels is not None] == ["a", "b"]
    assert guess_dimensions(folder, []) == 3


def test_the_files_of_nnunet_and_of_the_decathlon(tmp_path: Path) -> None:
    folder = make_set(
        tmp_path,
        ("a", "b_0000"),
        parts=("imagesTr", "labelsTr"),
        channel_names={"0": "T1 (native)"},
        labels={"background": 0, "liver": 1, "tumour": 2},
    )
    image, labels = volume()
    write(folder / "imagesTr" / "c_0000.nii.gz", image)
    write(folder / "imagesTr" / "c_0001.nii.gz", image)
    write(folder / "labelsTr" / "c.nii.gz", labels)
    (found,) = find_sets(folder, "test", dimensions=3)
    assert {stem: case.images[0].name for stem, case in found.cases.items()} == {
        "a": "a.nii.gz",
        "b_0000": "b_0000.nii.gz",  # its mask has the number, too
        "c": "c_0000.nii.gz",
    }
    assert (found.modality_name, found.value_names) == ("T1", {"1": "liver", "2": "tumour"})
    (folder / "dataset.json").write_text(
        json.dumps({"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}})
    )
    (found,) = find_sets(folder, "test", dimensions=3)
    assert (found.modality_name, found.value_names) == ("CT", {"1": "liver"})


def test_what_was_not_annotated_is_never_asked_about(tmp_path: Path) -> None:
    facts = {"a": {"targets": ["1", "2"]}, "b": {"targets": ["1"], "slices": 9}}
    folder = make_set(tmp_path, cases=facts)
    (found,) = find_sets(folder, "test", dimensions=3)
    ids = {s: read_objects(found, s, open_image(found, s)).ids for s in found.cases}
    assert ids == {"a": ["1", "2"], "b": ["1"]}
    make_set(tmp_path / "plain", cases=["a", "b"])
    (found,) = find_sets(tmp_path / "plain", "test", dimensions=3)
    assert all(case.annotated is None for case in found.cases.values())


def test_components_touch_at_corners_and_have_64_voxels() -> None:
    array = np.zeros((20, 20, 20), dtype=np.uint8)
    array[0:4, 0:4, 0:4] = 1  # 64
    array[4:8, 4:8, 4:8] = 1  # touches at a corner
    array[12:16, 12:16, 12:16] = 1
    array[12:16, 0:3, 0:4] = 1  # 48: too small
    array[18:20, 18:20, 18:20] = 2  # 8
    labels = Labels(Geometry.from_spacing(array.shape), array=array)
    objects = Objects(labels, "component", {})
    assert objects.ids == ["1.1", "1.3"]
    assert int(objects.mask("1.1").sum()) == 128
    assert objects.mask("1.3")[12:16, 12:16, 12:16].all()
    assert Objects(labels, "label", {}).ids == ["1"]
    assert Objects(labels, "label", {}, annotated={"2"}).ids == []


def test_pictures_and_volumes_are_not_mixed_up(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", parts=("images", "masks"))
    with pytest.raises(FormatError, match="nothing to score"):
        run(config_of(folder, dimensions=2), tmp_path / "flat")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FormatError, match=r"imagesTr/ and labelsTr/.* has volumes"):
        find_sets(empty, "test", dimensions=3)


# -- what is said -----------------------------------------------------------------------------


def test_a_box_is_said_on_the_largest_slice_with_its_range() -> None:
    target = volume()[1] == 2
    place = slice_placement(target)
    low, high = (np.argwhere(target).min(axis=0), np.argwhere(target).max(axis=0) + 1)
    said = place(Box(tuple(low), tuple(high)))
    y, x = np.nonzero(target[said.frame])
    assert said.frame == target.sum(axis=(1, 2)).argmax() == 11
    assert said.within == (3, 12)
    assert said.prompt == Box((y.min(), x.min()), (y.max() + 1, x.max() + 1))
    larger = place(Box(tuple(low - 1), tuple(high + 2)))
    assert larger.within == (2, 14)
    assert larger.prompt == Box((y.min() - 1, x.min() - 1), (y.max() + 3, x.max() + 3))
    mask = place(MaskPrompt(target))
    assert mask.frame == 11
    assert isinstance(mask.prompt, MaskPrompt)
    lifted = mask.lifted(target.shape)
    assert isinstance(lifted, MaskPrompt)
    assert lifted.mask.sum() == target[11].sum()
    click = to_slice_prompt(Click((5.0, 7.0, 9.0), positive=False))
    assert (click.frame, click.prompt) == (5, Click((7.0, 9.0), positive=False))
    assert click.lifted(target.shape) == Click((5.0, 7.0, 9.0), positive=False)
    with pytest.raises(PromptError, match="cannot be said on one"):
        to_slice_prompt(Lasso(((1.0, 2.0, 3.0), (4.0, 2.0, 6.0), (7.0, 2.0, 2.0))))


@pytest.mark.parametrize("between", ["carry", "interpolate"])
def test_the_mask_by_slices_is_what_the_session_exports(between: str) -> None:
    image, labels = volume()
    target = labels == 2
    with limner.open_session(image, Flat()) as session:
        hand = SliceBySlice(session, slice_placement(target), between=between)  # type: ignore[arg-type]
        case_prompts = [
            [Box((3, 12, 18), (4, 16, 32)), Box((11, 10, 16), (12, 30, 36))],
            [Click((7.0, 20.0, 26.0))],
            [Click((12.0, 2.0, 2.0), positive=False)]
            if between == "carry"
            else [Click((9.0, 20.0, 30.0))],
        ]
        for prompts in case_prompts:
            said, mask = hand.say(prompts, SHAPE)
            assert said == tuple(prompts)
            np.testing.assert_array_equal(mask, np.asarray(session.labels) == 1)
        assert mask[3:12].any(axis=(1, 2)).all()


def test_cropped_masks_are_the_same() -> None:
    mask = volume()[1] == 1
    kept = CroppedMask.of(mask)
    np.testing.assert_array_equal(kept.whole(SHAPE), mask)
    assert (kept.size, kept.inside.size) == (
        mask.sum(),
        np.ptp(np.argwhere(mask), 0).__add__(1).prod(),
    )
    assert CroppedMask.of(mask & False).whole(SHAPE).sum() == 0


def test_interpolated_boxes_are_exact_where_the_object_moves_evenly(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for k in range(2, 11):
        labels[k, 2 + k : 12 + k, 20 - k : 28 - k] = 1
    write(tmp_path / "images" / "a.nii.gz", (labels * 100).astype(np.uint8))
    write(tmp_path / "labels" / "a.nii.gz", labels)
    said = {"protocol": "slices", "by_slices": True, "rounds": 1, "models": ("baseline/box",)}
    (row,) = held(tmp_path, tmp_path / "out", **said)
    assert row.scores == {"dice": [1.0], "nsd": [1.0], "hd95": [0.0]}
    assert (row.way, row.task) == ("slices", "boxes on 3 slices, interpolate, 3D")
    frames = [from_json(p).low[0] for p in row.prompts[0]]  # type: ignore[union-attr]
    assert frames == [2, 6, 10]
    (carried,) = held(tmp_path, tmp_path / "carry", **said, between="carry")
    assert 0.5 < carried.dice[0] < 1  # type: ignore[operator]
    (one,) = held(tmp_path, tmp_path / "one", **said, slices=1)
    assert one.task == "box on 1 slice, 3D"
    (clicks,) = held(tmp_path, tmp_path / "clicks", **said, mark="click")
    assert [p["kind"] for p in clicks.prompts[0]] == ["click"] * 3


def test_what_each_protocol_says_in_a_volume(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a",))
    target = volume()[1] == 1
    said = {}
    for protocol in ("box", "clicks", "mixed", "slices"):
        rows = held(data, tmp_path / protocol, protocol=protocol, rounds=4, objects=1)
        said[protocol] = [[from_json(p) for p in r] for r in rows[0].prompts]
        assert rows[0].way == "whole"
    low, high = np.argwhere(target).min(axis=0), np.argwhere(target).max(axis=0) + 1
    assert said["box"][0] == [Box(tuple(low), tuple(high))]
    assert all(isinstance(p, Click) and len(p.at) == 3 for r in said["box"][1:] for p in r)
    click = challenge_click(target, target & False, lambda n: 0)
    assert click is not None
    assert isinstance(said["clicks"][0][0], Click)
    depth = [c.at[0] for c in (click, said["clicks"][0][0])]  # type: ignore[union-attr]
    assert depth[0] == depth[1]
    assert [len(r) for r in said["slices"][:2]] == [3, 1]
    assert all(isinstance(p, Box) and p.high[0] - p.low[0] == 1 for p in said["slices"][0])


def test_corrections_follow_the_challenges_rule() -> None:
    _, labels = volume()
    data = Labels(Geometry.from_spacing(SHAPE), array=labels)
    case = Objects(data, "label", {}).case("2")
    user = SimulatedUser(case, "box", frozenset({"box", "click"}), seed=0)
    answer = np.roll(case.target, 3, axis=2)
    (said,) = user.correct(answer)
    assert isinstance(said, Click)
    expected = challenge_click(case.target, answer, np.random.default_rng(0))
    assert expected is not None
    assert said.positive == case.target[tuple(int(x) for x in said.at)]
    assert user.correct(case.target) == ()


# -- rows -------------------------------------------------------------------------------------


def test_every_model_is_asked_in_its_way(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data")
    models = [create_model("toy"), Flat(), create_model("baseline/box")]
    config = config_of(data, ("toy", "flat", "baseline/box"))
    outcome = run(config, tmp_path / "out", models=models)
    rows = read_rows(tmp_path / "out")
    assert outcome.num_rows == len(rows) == 3 * 2 * 2
    assert outcome.num_failed == 0
    assert {(r.model, r.way) for r in rows} == {
        ("toy", "whole"),
        ("flat", "slices"),
        ("baseline/box", "whole"),
    }
    assert {r.dimensions for r in rows} == {3}
    assert {r.task for r in rows} == {"box, 3D"}
    toy = next(r for r in rows if r.model == "flat" and r.stem == "b" and r.object_id == "2")
    target = volume(1)[1] == 2
    assert toy.answer is not None
    answer = decode_answer(toy.answer)
    assert toy.dice[-1] == pytest.approx(limner.metrics.dice(answer, target), abs=1e-6)
    spacing = (2.0, 1.0, 1.0)
    nsd = limner.metrics.nsd(answer, target, spacing, tolerance=2)
    assert toy.scores["nsd"][-1] == pytest.approx(nsd, abs=1e-6)
    hd95 = limner.metrics.hd95(answer, target, spacing)
    assert toy.scores["hd95"][-1] == pytest.approx(hd95, abs=1e-3)
    assert toy.peak_mb is None or toy.peak_mb >= 0
    assert toy.dice[0] is not None
    assert toy.dice[0] > 0.7


def test_models_of_both_kinds_can_be_asked_slice_by_slice(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", ("a",))
    whole = held(data, tmp_path / "whole", objects=1)
    slices = held(data, tmp_path / "slices", objects=1, by_slices=True)
    assert (whole[0].way, slices[0].way) == ("whole", "slices")
    assert whole[0].dice != slices[0].dice
    found = reports.build_report([tmp_path / "whole", tmp_path / "slices"], num_cases=0)
    assert found.models == ["toy", "toy, by slices"]
    assert any("By slices:" in fact for fact in found.facts)


def test_a_run_on_volumes_goes_on_and_repeats(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data")
    rows = held(data, tmp_path / "one", protocol="mixed")
    path = tmp_path / "one" / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:40])
    again = held(data, tmp_path / "one", protocol="mixed")
    assert without_measures(again) == without_measures(rows)
    with pytest.raises(FormatError, match="another by_slices"):
        held(data, tmp_path / "one", protocol="mixed", by_slices=True)


def test_a_volume_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data")
    (data / "images" / "a.nii.gz").write_bytes(b"no volume")
    rows = held(data, tmp_path / "out")
    assert {r.stem for r in rows} == {"b"}
    assert [f["stem"] for f in read_left_out(tmp_path / "out")] == ["a"]


@pytest.mark.parametrize("name", ["click_off_5", "box_large_20", "sixteen_bit", "inverted"])
def test_disturbances_of_volumes(tmp_path: Path, name: str) -> None:
    data = make_set(tmp_path / "data", ("a",))
    protocol = "clicks" if name == "click_off_5" else "box"
    plain = held(data, tmp_path / "plain", protocol=protocol, rounds=1)
    changed = held(data, tmp_path / "changed", protocol=protocol, rounds=1, disturb=name)
    for a, b in zip(plain, changed, strict=True):
        one, two = from_json(a.prompts[0][0]), from_json(b.prompts[0][0])
        if name == "click_off_5":
            assert isinstance(one, Click)
            assert isinstance(two, Click)
            gap = np.subtract(one.at, two.at)
            assert gap[0] == 0
            assert 3 <= np.hypot(*gap[1:]) <= 5.8
        elif name == "box_large_20":
            assert isinstance(one, Box)
            assert isinstance(two, Box)
            assert (np.subtract(one.low, two.low) >= 0).all()
            assert np.subtract(one.low, two.low).any()
        else:
            assert one == two
            assert a.image_sha256 == b.image_sha256


def test_answers_survive_their_text() -> None:
    rng = np.random.default_rng(0)
    for mask in (rng.random((4, 5, 6)) > 0.5, rng.random((7, 8)) > 0.3, RIGHT, ~RIGHT):
        value = json.loads(json.dumps(encode_answer(mask)))
        np.testing.assert_array_equal(decode_answer(value), mask)


def test_scores_of_nothing_and_of_an_empty_answer() -> None:
    _, labels = volume()
    data = Labels(Geometry.from_spacing(SHAPE), array=labels)
    case = Objects(data, "label", {}).case("1")
    empty = score_answer(Exchange((), case.target & False, 0.0), case)
    assert empty == {"dice": 0.0, "nsd": 0.0, "hd95": None}
    right = score_answer(Exchange((), case.target, 0.0), case)
    assert right == {"dice": 1.0, "nsd": 1.0, "hd95": 0.0}
    assert score_answer(None, case) == {"dice": 0.0, "nsd": 0.0, "hd95": None}


# -- areas and reports ------------------------------------------------------------------------


def test_areas_by_hand(tmp_path: Path) -> None:
    assert area_under_curve([1, 1, 1, 1, 1]) == 4.0
    assert area_under_curve([0, 0.2, 0.4, 0.6, 0.8]) == pytest.approx(0.1 + 0.3 + 0.5 + 0.7)
    assert (gate_nsd(0.9, 0.2), gate_nsd(0.9, 0.21)) == (0.0, 0.9)
    row = held(make_set(tmp_path / "data", ("a",)), tmp_path / "out", objects=1, rounds=1)[0]
    dice, nsd = [0.9, 0.1, 0.2, 0.5, 0.5, 0.7, 1.0], [1.0, 0.5, 0.5, 0.5, 0.7, 0.9, 1.0]
    box = replace(row, scores={"dice": dice, "nsd": nsd})
    assert click_rounds(box) == slice(1, 6)
    assert dsc_auc(box) == pytest.approx(0.15 + 0.35 + 0.5 + 0.6)
    assert nsd_auc(box) == pytest.approx(0 + 0.25 + 0.6 + 0.8)
    clicks = replace(box, protocol="clicks")
    assert dsc_auc(clicks) == pytest.approx(0.5 + 0.15 + 0.35 + 0.5)
    assert np.isnan(dsc_auc(replace(row, scores={"dice": dice[:5], "nsd": nsd[:5]})))


@pytest.mark.slow
def test_a_report_of_volumes(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", modality="CT")
    models = [create_model("toy"), Flat()]
    run(config_of(data, ("toy", "flat"), rounds=6), tmp_path / "box", models=models)
    run(config_of(data, ("toy",), protocol="slices", rounds=2), tmp_path / "slices")
    found = reports.build_report([tmp_path / "box", tmp_path / "slices"])
    titles = {table.title: table for table in found.tables}
    scores = titles["Five clicks, as the CVPR 2025 challenge scores them"]
    assert [row[:2] for row in scores.rows] == [
        ["box, 3D", "toy"],
        ["box, 3D", "flat, by slices"],
        ["boxes on 3 slices, interpolate, 3D", "toy"],
    ]
    assert scores.rows[2][2:] == ["", "", "", ""]  # one click only
    rows = [r for r in found.rows if r.model == "toy" and r.protocol == "box"]
    mean = np.mean([area_under_curve([float(x or 0) for x in r.dice[1:]]) for r in rows])
    assert scores.rows[0][2].startswith(f"{mean:.3f}")
    full = titles["Every set in full: box, 3D"]
    assert full.header[3:7] == ["box", "box + 1", "box + 3", "box + 5"]
    assert "Peak memory in MB" in titles
    assert any("volumes" in fact and "2 mm" in fact for fact in found.facts)
    assert not any("pixels" in fact for fact in found.facts)
    assert len(found.worst_cases) == 3
    assert all(p.png.startswith(b"\x89PNG") and "Slice" in p.caption for p in found.worst_cases)
    reports.write_html(found, tmp_path / "page.html")
    assert "data:image/png" in (tmp_path / "page.html").read_text()
    record = next(iter(reports.flatten_rows(found.rows)))
    assert {"hd95", "peak_mb", "way", "dimensions"} <= set(record)


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "scribbles"}, "protocol=scribbles is not for volumes; there use box"),
        ({"protocol": "slices", "dimensions": 2}, "protocol=slices is not for pictures"),
        ({"disturb": "grey"}, "disturb=grey is not for volumes"),
        ({"disturb": "shuffled"}, "disturb=shuffled is not for volumes"),
        ({"dimensions": 4}, "dimensions=4 is unknown; use 2, 3"),
        ({"dimensions": 2, "by_slices": True}, "by_slices is about volumes"),
        ({"slices": 5}, "slices=5 means nothing to the protocol box"),
        ({"protocol": "slices", "mark": "lasso"}, "mark='lasso' is unknown; use box, click"),
        ({"protocol": "slices", "between": "x"}, "between='x' is unknown"),
        ({"protocol": "slices", "slices": 0}, "slices=0; it is at least 1"),
    ],
)
def test_an_impossible_configuration_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(Path("x"), **changes)


def test_a_configuration_of_volumes_survives_its_file() -> None:
    config = config_of(Path("x"), protocol="slices", slices=5, mark="click", between="carry")
    assert config_from_json(config.to_json(), Path("f")) == config
    old = {k: v for k, v in BenchConfig("x", ("toy",)).to_json().items() if k != "dimensions"}
    assert config_from_json(old, Path("f")).dimensions == 2


def test_who_can_be_asked_about_volumes() -> None:
    flat, both = Flat().card, create_model("toy").card
    solid = replace(both, name="solid", ndim=(3,))
    for card in (flat, both, solid):
        check_dimensions(card, 3)
    check_dimensions(both, 3, by_slices=True)
    with pytest.raises(ValueError, match="solid works in 3D only"):
        check_dimensions(solid, 3, by_slices=True)
    with pytest.raises(ValueError, match="solid works on volumes"):
        check_dimensions(solid, 2)
    wordy = replace(flat, name="wordy", prompts=frozenset({"click", "text"}))
    with pytest.raises(ValueError, match=r"wordy understands click, text; .* masks or boxes"):
        check_dimensions(wordy, 3)
    boxes = MEDSAM["vit_b"].card
    check_speakable(boxes, "slices", "none")
    with pytest.raises(ValueError, match="needs click"):
        check_speakable(boxes, "slices", "none", mark="click")
    config = config_of(Path("x"))
    assert [way_of(card, config) for card in (flat, both, solid)] == ["slices", "whole", "whole"]
    assert way_of(both, config.changed(dimensions=2)) is None


def test_slices_are_encoded_once_and_volumes_by_the_model_itself() -> None:
    class Batch(Flat):
        def segment_batch(self, embedding, questions):  # type: ignore[no-untyped-def]
            return [self.segment(embedding, q.prompts, q.previous) for q in questions]

    class Carrying(Batch):
        def next_prompts(self, view, before, prompts):  # type: ignore[no-untyped-def]
            return prompts

    assert isinstance(encoded_once(Batch(), dimensions=3), EncodedOnce)
    carrying = encoded_once(Carrying(), dimensions=3)
    assert isinstance(carrying, PropagatingEncodedOnce)
    assert carrying.next_prompts(None, None, (1,)) == (1,)  # type: ignore[arg-type]
    assert type(encoded_once(Carrying())) is EncodedOnce
    solid = Batch()
    solid.card = replace(solid.card, ndim=(2, 3))
    assert encoded_once(solid, dimensions=3) is solid
    assert isinstance(encoded_once(solid, dimensions=3, by_slices=True), EncodedOnce)


def test_the_command_takes_volumes_by_their_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_set(tmp_path / "data", ("a",))
    said = ["bench", "run", "--data", str(data), "--model", "baseline/ellipse", "--rounds", "2"]
    assert command([*said, "-o", str(tmp_path / "out")]) == 0
    assert {row.dimensions for row in read_rows(tmp_path / "out")} == {3}
    capsys.readouterr()
    refused = [*said, "-o", str(tmp_path / "x"), "--protocol", "examples"]
    assert command(refused) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "protocol=examples is not for volumes" in line
    assert not (tmp_path / "x").exists()


def test_real_volumes(shared_data: Path, tmp_path: Path) -> None:
    found = {s.name: s for s in find_sets(shared_data, "test", dimensions=3)}
    assert "3d/multiorgan_ct_pseudo" not in found
    assert found["3d/nuclei_confocal"].unit == "instance"
    assert found["3d/sarcoma_pet"].standing == "unseen"
    cardiac = found["3d/cardiac_mr"]
    ids = {s: read_objects(cardiac, s, open_image(cardiac, s)).ids for s in cardiac.cases}
    assert ids == {"SC-HF-I-2_ED": ["1", "2"], "SC-HF-I-2_ES": ["1"]}
    sets = ("hippocampus_mr",)
    changes = {"models": ("baseline/ellipse",), "sets": sets, "limit": 1, "rounds": 2}
    rows = held(shared_data, tmp_path / "out", **changes)
    assert len(rows) == 2
    assert all(0.35 < float(r.dice[0] or 0) < 0.7 for r in rows)
