"""Which objects the benchmark asks about, and what disturbances do to pictures and prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import limner
from bench_makers import SIDE, make_root, make_set, picture, write_png
from limner.bench.config import DISTURBANCES, BenchConfig, config_from_json, parse_weights
from limner.bench.disturb import click_beside, disturb_image, disturb_prompt
from limner.bench.run import seed_of
from limner.datasets.objects import find_objects, read_objects
from limner.datasets.record import Dataset
from limner.datasets.selection import find_sets, open_image, pick_evenly
from limner.errors import FormatError, GeometryError
from limner.prompts import Box, Click, Lasso


def ids_of(data_set: Dataset, stem: str = "a") -> list[str]:
    return read_objects(data_set, stem, open_image(data_set, stem)).ids


def test_a_root_gives_its_pictures_by_split_and_standing(tmp_path: Path) -> None:
    found = {s.name: s for s in find_sets(make_root(tmp_path), "test")}
    assert sorted(found) == ["2d/between", "2d/known", "2d/strange"]
    assert {n: s.standing for n, s in found.items()} == {
        "2d/between": "other",
        "2d/known": "seen",
        "2d/strange": "unseen",
    }
    assert list(found["2d/known"].cases) == ["c"]
    assert found["2d/known"].modality_name == "CT"
    every = find_sets(tmp_path, "all", ["kno*"])
    assert [(s.name, list(s.cases)) for s in every] == [("2d/known", ["a", "b", "c"])]


def test_a_listed_set_or_stem_that_is_gone_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_root(tmp_path)
    (root / "2d/known/images/c.png").unlink()
    (root / "2d/strange/masks").rename(root / "2d/strange/elsewhere")
    assert [s.name for s in find_sets(root, "test")] == ["2d/between"]
    assert "missing: ['c']" in caplog.text
    assert "lists 2d/strange, not there" in caplog.text


def test_folders_without_splits_are_all_test(tmp_path: Path) -> None:
    make_set(tmp_path / "deep/one")
    make_set(tmp_path / "two")
    assert [s.name for s in find_sets(tmp_path, "test")] == ["deep/one", "two"]
    (single,) = find_sets(tmp_path / "two", "all")
    assert (single.name, single.standing, list(single.cases)) == ("two", "other", ["a", "b"])
    with pytest.raises(FormatError, match=r"has no splits\.json"):
        find_sets(tmp_path, "val")


@pytest.mark.parametrize("content", ["not JSON", "[]", '{"sets": []}', '{"sets": {"2d/a": 3}}'])
def test_a_damaged_splits_file_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(FormatError, match=r"splits\.json") as caught:
        find_sets(tmp_path, "test")
    assert "\n" not in str(caught.value)


def test_nothing_to_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no folder"):
        find_sets(tmp_path / "nowhere", "test")
    with pytest.raises(FormatError, match="nothing to score"):
        find_sets(tmp_path, "test")
    (tmp_path / "empty/images").mkdir(parents=True)
    (tmp_path / "empty/masks").mkdir()
    with pytest.raises(FormatError, match="nothing to score"):
        find_sets(tmp_path / "empty", "test")
    make_set(tmp_path / "one")
    with pytest.raises(FormatError, match="No set of the split test is called x"):
        find_sets(tmp_path, "test", ["x"])


def test_units(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "one", ("a",))
    labels = np.asarray(limner.read(folder / "masks/a.png").array).copy()
    labels[0:8, 56:64] = 1  # 64 pixels: a component of its own
    labels[60:63, 0:5] = 1  # 15 pixels: a fragment
    labels[60:64, 10:14] = 7  # 16 pixels: large enough for a label
    labels[60:63, 20:24] = 9  # 12 pixels: too small for anything
    write_png(folder / "masks/a.png", labels)
    assert ids_of(*find_sets(folder, "test")) == ["1", "2", "7"]
    (folder / "dataset.json").write_text('{"unit": "component", "targets": {"1": "nucleus"}}')
    (components,) = find_sets(folder, "test")
    assert ids_of(components) == ["1.1", "1.2", "2.1"]
    found = list(find_objects(components, "a", open_image(components, "a")))
    assert [case.target_name for case in found] == ["nucleus", "nucleus", ""]
    assert [int(case.target.sum()) for case in found] == [64, 400, 432]
    (folder / "dataset.json").write_text('{"unit": "pixel"}')
    with pytest.raises(FormatError, match="unit='pixel'"):
        find_sets(folder, "test")


def test_instances_count_where_they_are(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "one", ("a",))
    instances = np.zeros((SIDE, SIDE), dtype=np.uint16)
    instances[:10, :10], instances[20:30, 20:30] = 500, 70
    write_png(folder / "instances/a.png", instances)
    assert ids_of(*find_sets(folder, "test")) == ["70", "500"]


def test_files_match_by_stem_whatever_their_format(tmp_path: Path) -> None:
    image, labels = picture()
    write_png(tmp_path / "images/p.1.tif", image)
    (tmp_path / "images/p.1.json").write_text("{}")
    (tmp_path / "images/.hidden.png").write_text("")
    (tmp_path / "masks").mkdir()
    limner.write(tmp_path / "masks/p.1.json", labels)
    (found,) = find_sets(tmp_path, "test")
    assert list(found.cases) == ["p.1"]
    assert ids_of(found, "p.1") == ["1", "2"]


def test_a_mask_that_is_missing_or_misfits_is_an_error(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "one")
    (folder / "masks/a.png").unlink()
    write_png(folder / "masks/b.png", np.ones((5, 5), dtype=np.uint8))
    (found,) = find_sets(folder, "test")
    with pytest.raises(FormatError, match="no mask of a"):
        ids_of(found, "a")
    with pytest.raises(GeometryError, match="shape"):
        ids_of(found, "b")


def test_strokes_of_people_belong_to_the_object_they_are_on(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "one", ("a", "a2"))
    drawn = np.zeros((SIDE, SIDE), dtype=np.uint8)
    drawn[45, 36:50] = 1
    drawn[2, 2:20] = 2
    write_png(folder / "scribbles/a__annotator0.png", drawn)
    write_png(folder / "scribbles/a__annotator1.png", np.where(drawn == 1, 0, drawn))
    (found,) = find_sets(folder, "test")
    (case,) = find_objects(found, "a", open_image(found, "a"), drawn=True)
    assert (case.object_id, case.annotator) == ("2", "annotator0")
    assert [stroke.positive for stroke in case.strokes] == [True, False]
    assert not list(find_objects(found, "a2", open_image(found, "a2"), drawn=True))


def test_spread() -> None:
    assert pick_evenly("abcdef", 3) == ["a", "c", "e"]
    assert pick_evenly("ab", 3) == ["a", "b"]
    assert pick_evenly("ab", None) == ["a", "b"]


def test_seeds_are_the_same_everywhere() -> None:
    assert seed_of(0, "2d/known", "a", "1") == 15165823823699057297
    assert (
        len({seed_of(s, n, t, i) for s in (0, 1) for n in "ab" for t in "ab" for i in "12"}) == 16
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "No model"),
        ({"models": ("toy", "toy")}, "named once"),
        ({"protocol": "lines"}, "protocol='lines' is unknown"),
        ({"disturb": "noise"}, "disturb='noise' is unknown"),
        ({"rounds": 0}, "rounds=0"),
        ({"limit": 0}, "limit=0"),
        ({"rounds": "many"}, "rounds='many'; input should be a valid integer"),
        ({"colour": "red"}, "unknown key 'colour'; known are data, models, protocol"),
        ({"protocol": "examples", "examples": 65}, "examples=65; it is 1 to 64"),
        ({"examples": 8}, "examples=8 means nothing to the protocol box"),
        ({"protocol": "clicks", "disturb": "box_large_20"}, "needs boxes"),
        ({"weights": (("other", "x"),)}, "weights are given for other"),
    ],
)
def test_an_impossible_configuration_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        BenchConfig(**({"data": "d", "models": ("toy",)} | changes))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_configuration_survives_its_file() -> None:
    config = BenchConfig("d", ("toy", "baseline/box"), sets=("a*",), weights=(("toy", "w"),))
    assert config_from_json(json.loads(json.dumps(config.to_json())), Path("c.json")) == config
    older = {"data": "d", "models": ["toy"]}
    assert config_from_json(older, Path("c.json")) == BenchConfig("d", ("toy",))
    with pytest.raises(FormatError, match=r"c\.json"):
        config_from_json({**older, "colour": 1}, Path("c.json"))


def test_weights_name_their_model_where_several_are_asked(tmp_path: Path) -> None:
    file = str(tmp_path / "w")
    assert parse_weights([file], ["toy"]) == (("toy", file),)
    assert parse_weights([f"b={file}"], ["a", "b"]) == (("b", file),)
    with pytest.raises(ValueError, match="say whose"):
        parse_weights([file], ["a", "b"])


def test_pictures_are_disturbed_as_described(tmp_path: Path) -> None:
    grey, _ = picture()
    colour = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    for name, array in (("grey", grey), ("colour", colour)):
        write_png(tmp_path / f"{name}.png", array)
    plain, coloured = limner.read(tmp_path / "grey.png"), limner.read(tmp_path / "colour.png")

    def changed(image: limner.Image, name: str) -> np.ndarray:
        found = disturb_image(image, name)
        assert found is not None
        assert found.geometry == image.geometry
        return np.asarray(found.array)

    assert disturb_image(plain, "none") is plain
    assert disturb_image(plain, "grey") is None
    assert disturb_image(coloured, "rgb") is None
    np.testing.assert_array_equal(changed(plain, "sixteen_bit"), grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(changed(plain, "inverted"), 255 - grey)
    np.testing.assert_array_equal(changed(coloured, "inverted"), 255 - colour)
    np.testing.assert_array_equal(changed(plain, "rgb"), np.repeat(grey[..., None], 3, axis=-1))
    luma = 0.299 * colour[..., 0] + 0.587 * colour[..., 1] + 0.114 * colour[..., 2]
    assert np.abs(changed(coloured, "grey") - luma).max() <= 0.51


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_inverting_and_widening_keep_the_range_of_other_types(dtype: type) -> None:
    array = np.linspace(-3e4, 3e4, 12).reshape(3, 4).astype(dtype)
    image = limner.Image(array, limner.Geometry.from_spacing((3, 4)))
    inverted = disturb_image(image, "inverted")
    wide = disturb_image(image, "sixteen_bit")
    assert inverted is not None
    assert wide is not None
    np.testing.assert_allclose(inverted.array, array[::-1, ::-1], atol=1)
    assert (wide.array.min(), wide.array.max()) == (0, 65535)
    assert (np.diff(wide.array.ravel().astype(int)) > 0).all()


def test_prompts_are_disturbed_as_described() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        moved = disturb_prompt(Click((30, 30), False), "click_off_5", rng, (SIDE, SIDE))
        assert isinstance(moved, Click)
        assert not moved.positive
        assert 4.2 <= np.hypot(moved.at[0] - 30, moved.at[1] - 30) <= 5.8
        corner = disturb_prompt(Click((0, 0)), "click_off_5", rng, (SIDE, SIDE))
        assert isinstance(corner, Click)
        assert min(corner.at) >= 0
    grown = disturb_prompt(Box((10, 20), (30, 23)), "box_large_20", rng, (31, SIDE))
    assert grown == Box((8, 19), (31, 24))
    lasso = Lasso(((1, 1), (1, 5), (5, 5)))
    assert all(disturb_prompt(lasso, name, rng, (9, 9)) is lasso for name in DISTURBANCES)


def test_the_click_beside_is_near_and_off_the_object() -> None:
    target = picture()[1] == 1
    for seed in range(20):
        click = click_beside(target, np.random.default_rng(seed))
        assert click is not None
        row, column = (int(x) for x in click.at)
        assert not click.positive
        assert not target[row, column]
        assert np.hypot(max(8 - row, row - 27, 0), max(10 - column, column - 29, 0)) < 8
    assert click_beside(np.ones((4, 4), dtype=bool), np.random.default_rng(0)) is None


def test_the_real_test_sets_are_found(shared_data: Path) -> None:
    found = {s.name: s for s in find_sets(shared_data, "test")}
    assert all(name.startswith("2d/") for name in found)
    assert found["2d/micro_dsb2018"].unit == "instance"
    assert found["2d/em_vnc"].unit == "component"
    assert found["2d/ct_btcv"].standing == "seen"
    assert found["2d/us_breast_usg"].standing == "unseen"
    assert found["2d/micro_wbc"].standing == "other"
    data_set = found["2d/scribble_acdc"]
    stem = next(iter(data_set.cases))
    people = list(find_objects(data_set, stem, open_image(data_set, stem), drawn=True))
    assert [case.annotator for case in people] == ["annotator0", "annotator1", "annotator2"]
