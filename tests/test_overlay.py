"""Pictures of segmentations: what must be visible in them, and how they are written."""

from __future__ import annotations

import io
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import limner
from limner import phantoms
from limner.colors import color_of
from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.labels import Labels
from limner.prompts import Box, Click, Lasso, MaskPrompt, Prompt, Scribble, TextPrompt
from limner.render import layout, panel
from limner.render.overlay import LARGEST, render_overlay, write_preview
from limner.render.panel import NEGATIVE, POSITIVE, outline_color_of


def flat(shape: tuple[int, ...], *, spacing: tuple[float, ...] | None = None, **facts) -> Image:
    return Image(np.full(shape, 100, np.uint8), Geometry.from_spacing(shape, spacing), **facts)


def has_color(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((picture == color).all(axis=-1).any())


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 5), (20, 30), (300, 200), (1700, 90), (2, 4000)], ids=str
)
def test_pictures_of_any_size_are_legible(shape: tuple[int, int]) -> None:
    labels = np.zeros(shape, np.uint8)
    labels[0, 0] = 1
    picture = render_overlay(flat(shape), labels)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.shape[1] <= LARGEST
    assert max(picture.shape) >= min(256, max(shape))


def test_every_object_has_its_fill_its_outline_and_its_line_in_the_legend() -> None:
    labels = np.zeros((320, 240), np.int64)
    for k in range(12):
        labels[20 + 24 * k : 38 + 24 * k, 20:120] = k + 1
    image = flat((320, 240))
    picture = render_overlay(image, labels)
    plain = render_overlay(image, np.zeros_like(labels))
    assert all(has_color(picture, color_of(k + 1)) for k in range(12))
    assert all(has_color(picture, outline_color_of(k + 1)) for k in range(12))
    assert picture.shape[0] > plain.shape[0]  # the legend
    inside = picture[29, 70]  # middle of the first object
    assert (inside != plain[29, 70]).any()
    assert not (inside == color_of(1)).all()  # the image shines through


def test_names_come_from_the_segmentation_or_the_caller() -> None:
    mask = np.zeros((60, 200), np.uint8)
    mask[10:30, 10:50] = 1
    image = flat((60, 200))
    unnamed = render_overlay(image, mask)
    named = render_overlay(image, mask, names={1: "a much longer name than before"})
    labels = Labels(image.geometry, array=mask, names={1: "a much longer name than before"})
    assert not np.array_equal(unnamed, named)
    assert np.array_equal(named, render_overlay(image, labels.to_array()))


@pytest.mark.parametrize(
    ("prompt", "color"),
    [
        (Click((40, 60)), POSITIVE),
        (Click((40, 60), positive=False), NEGATIVE),
        (Scribble(((10, 10), (40, 60))), POSITIVE),
        (Scribble(((20, 20),), positive=False), NEGATIVE),
        (Box((10, 10), (50, 70)), (255, 255, 255)),
        (Box((-10, -10), (500, 70)), (255, 255, 255)),
        (Lasso(((10, 10), (10, 60), (50, 30))), (255, 255, 255)),
        (MaskPrompt(np.eye(80, 100, dtype=bool)), (255, 255, 255)),
    ],
)
def test_prompts_are_drawn(prompt: Prompt, color: tuple[int, int, int]) -> None:
    image, labels = flat((80, 100)), np.zeros((80, 100), np.uint8)
    assert not has_color(render_overlay(image, labels), color)
    assert has_color(render_overlay(image, labels, prompts=[prompt]), color)
    drawn = render_overlay(image, labels, prompts=[TextPrompt("liver")])
    assert np.array_equal(drawn, render_overlay(image, labels))


def test_a_click_is_drawn_where_it_was_made() -> None:
    image, labels = flat((80, 100)), np.zeros((80, 100), np.uint8)
    picture = render_overlay(image, labels, prompts=[Click((20, 75))])
    found = np.argwhere((picture == POSITIVE).all(axis=-1))
    scale = picture.shape[1] / 100
    assert np.allclose(found.mean(axis=0) / scale - 0.5, (20, 75), atol=0.5)


def test_the_window_decides_what_is_black_and_white() -> None:
    pixels = np.tile(np.arange(-1000, 1000, 10, dtype=np.int16), (40, 1))
    image = Image(pixels, Geometry.from_spacing(pixels.shape), modality="CT")
    labels = np.zeros(pixels.shape, np.uint8)
    lung = render_overlay(image, labels, window="lung").astype(int)
    abdomen = render_overlay(image, labels, window=(-160.0, 240.0)).astype(int)
    middle = lung.shape[0] // 2
    assert lung[middle, 200].sum() > abdomen[middle, 200].sum()
    with pytest.raises(ValueError, match="abdomen"):
        render_overlay(image, labels, window="nothing")


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_number_of_channels_and_type(channels: int, dtype: type) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (20, 30, channels)).astype(dtype)
    if dtype is np.float32:
        pixels[0, 0], pixels[1, 1], pixels[2, 2] = np.nan, np.inf, -np.inf
    picture = render_overlay(
        Image(pixels, Geometry.from_spacing((20, 30))), np.zeros((20, 30), np.uint8)
    )
    assert picture.std() > 10
    assert (np.ptp(picture.astype(int), axis=-1).max() > 0) == (channels >= 3)


def test_volumes_show_three_planes_in_millimetres() -> None:
    labels = np.zeros((10, 40, 60), np.uint8)
    labels[4:7, 10:20, 30:40] = 1
    image = flat(labels.shape, spacing=(6.0, 1.0, 1.0), kind="volume")
    picture = render_overlay(image, labels)
    assert picture.shape[1] <= LARGEST
    # Side by side: 60 wide, 60 wide, 40 wide at one scale, so the width is about 4 times the 40 mm.
    columns = np.flatnonzero((picture[40] != (18, 18, 20)).any(axis=-1))
    assert columns.size > 0.9 * picture.shape[1]
    tall = render_overlay(flat(labels.shape, spacing=(12.0, 1.0, 1.0)), labels)
    assert tall.shape[0] / tall.shape[1] > 1.5 * picture.shape[0] / picture.shape[1]


STORED = {  # index axes as LPS unit vectors
    "axial": ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    "axial, feet first, nose down": ((0, 0, -1), (0, -1, 0), (-1, 0, 0)),
    "sagittal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "coronal, turned": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
}


@pytest.mark.parametrize("axes", STORED.values(), ids=STORED)
def test_volumes_are_turned_head_up_and_right_to_the_left(axes: tuple[tuple[int, ...]]) -> None:
    """A blob at the patient's upper front right is at the upper left of every plane."""
    shape = (30, 30, 30)
    geometry = Geometry.from_spacing(shape, (1.0, 1.0, 1.0), direction=np.array(axes).T)
    upper_front_right = np.array((-1, -1, 1))
    ends = [24 if np.dot(axis, upper_front_right) > 0 else 3 for axis in axes]
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(k, k + 4) for k in ends)] = 1
    image = Image(np.full(shape, 100, np.uint8), geometry, kind="volume")
    picture = render_overlay(image, labels)
    size = (picture.shape[1] - 32) // 3
    for k in range(3):
        part = picture[8 : 8 + size, 8 + k * (size + 8) : 8 + k * (size + 8) + size]
        found = np.argwhere((part == outline_color_of(1)).all(axis=-1)) / size
        assert found.min() > 0.05
        assert found.max() < 0.3


def test_videos_are_contact_sheets_and_frames_can_be_chosen() -> None:
    phantom = phantoms.sequence(1, (11, 40, 48))
    sheet = render_overlay(phantom.image, phantom.truth)
    single = render_overlay(phantom.image, phantom.truth, frame=3)
    assert sheet.shape[1] > 2 * single.shape[1]
    assert has_color(single, color_of(1))
    with pytest.raises(ValueError, match=r"0…10"):
        render_overlay(phantom.image, phantom.truth, frame=11)


@dataclass(frozen=True)
class Placed:
    prompt: Prompt
    frame: int | None


def test_prompts_of_a_session_appear_on_their_frame() -> None:
    phantom = phantoms.sequence(1, (40, 40, 48))
    nothing = np.zeros_like(phantom.truth)
    said = [Placed(Click((20, 20)), 17), Placed(TextPrompt("vessel"), None)]
    assert has_color(render_overlay(phantom.image, nothing, prompts=said), POSITIVE)
    assert has_color(render_overlay(phantom.image, nothing, prompts=said, frame=17), POSITIVE)
    assert not has_color(render_overlay(phantom.image, nothing, prompts=said, frame=18), POSITIVE)


def test_misfits_are_refused() -> None:
    image = flat((20, 30))
    with pytest.raises(ValueError, match="shape"):
        render_overlay(image, np.zeros((20, 31), np.uint8))
    with pytest.raises(ValueError, match="float"):
        render_overlay(image, np.zeros((20, 30)))
    with pytest.raises(ValueError, match="frame"):
        render_overlay(image, np.zeros((20, 30), np.uint8), frame=0)


def test_previews_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    phantom = phantoms.sequence(2, (5, 24, 24))
    write_preview(tmp_path / "a.png", phantom.image, phantom.truth)
    write_preview(tmp_path / "a.gif", phantom.image, phantom.truth)
    with Pillow.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
    with Pillow.open(tmp_path / "a.gif") as movie:
        assert movie.n_frames == 5
    with pytest.raises(FormatError, match=r"\.png"):
        write_preview(tmp_path / "a.jpg", phantom.image, phantom.truth)
    with pytest.raises(FormatError, match=r"\.gif"):
        write_preview(tmp_path / "b.gif", flat((9, 9)), np.zeros((9, 9), np.uint8))
    with pytest.raises(FormatError, match="Cannot write"):
        write_preview(tmp_path / "no" / "a.png", phantom.image, phantom.truth)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif", "a.png"]


def test_many_instances_share_a_short_legend() -> None:
    labels = np.arange(400, dtype=np.uint16).reshape(20, 20)
    picture = render_overlay(flat((20, 20)), labels)
    assert picture.shape[0] < 2 * picture.shape[1]


def test_hundreds_of_objects_have_colours_of_their_own() -> None:
    colors = [color_of(k) for k in range(1, 300)]
    assert len(set(colors)) == len(colors)
    near = np.abs(np.diff(np.asarray(colors[:24]), axis=0)).sum(axis=1)
    assert near.min() > 60  # neighbours in the list


def test_an_outline_stands_out_from_its_fill_and_from_any_image() -> None:
    labels = np.zeros((60, 60), np.uint8)
    labels[20:40, 20:40] = 7
    for grey in (0, 114, 255):
        picture = render_overlay(flat_of(np.full((60, 60), grey, np.uint8)), labels)
        scale = picture.shape[1] // 60
        row = picture[30 * scale].astype(int).sum(axis=-1)[10 * scale : 30 * scale]
        assert np.abs(np.diff(row)).max() > 150


def test_thick_slices_leave_no_empty_half() -> None:
    """The three panels lie below each other where that shows more."""
    shape = (20, 128, 128)
    geometry = Geometry.from_spacing(shape, (5.0, 3.0, 3.0))
    image = Image(np.full(shape, 200, np.uint8), geometry)
    picture = render_overlay(image, np.zeros(shape, "u1"), window=(0, 255))
    assert (picture > 60).any(axis=-1).mean() > 0.9
    assert picture.shape[0] > picture.shape[1]
    cube = render_overlay(
        Image(np.full((40,) * 3, 200, np.uint8), Geometry.from_spacing((40,) * 3)),
        np.zeros((40,) * 3, "u1"),
    )
    assert cube.shape[1] > 2.5 * cube.shape[0]


def test_the_legend_agrees_with_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an object that lies below another one in the label map."""
    grid = Geometry.from_spacing((40, 50), (0.5, 0.5))
    below, above = np.zeros((40, 50), bool), np.zeros((40, 50), bool)
    below[5:35, 5:45], above[10:20, 10:20] = True, True
    labels = Labels(grid, masks={1: below, 2: above}, names={1: "lesion"})
    said: list[str] = []
    monkeypatch.setattr(layout, "draw_text", lambda d, p, label, **_: said.append(label))
    render_overlay(flat((40, 50), spacing=(0.5, 0.5)), labels.to_array())
    assert said == ["lesion: 300.0 sq mm", "object 2: 25.0 sq mm"]
    assert grid.format_size(labels.sizes()[1]) == "300.0 mm²"
    assert grid.format_size(3) == "0.75 mm²"
    assert Geometry.from_spacing((2, 2, 2), (1e-3,) * 3).format_size(8) == "8 µm³"


def test_panels_are_named_as_the_command_line_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(panel, "draw_text", lambda d, p, label, **_: said.append(label))
    shape = (30, 40, 50)  # sagittal slices are stored, head first
    axes = np.array(((1, 0, 0), (0, 0, -1), (0, 1, 0))).T
    geometry = Geometry.from_spacing(shape, (1.0, 1.0, 1.0), direction=axes)
    render_overlay(Image(np.zeros(shape, np.uint8), geometry), np.zeros(shape, "u1"))
    assert {"sagittal slice 15", "axial slice 20", "coronal slice 25"} <= set(said)


def test_a_huge_image_is_shrunk_before_it_is_drawn() -> None:
    pixels = np.zeros((4000, 6000), np.uint16)
    pixels[:, 3000:] = 4000
    tracemalloc.start()
    picture = render_overlay(flat_of(pixels), np.zeros(pixels.shape, np.uint8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * pixels.nbytes  # as floats it would be more than six times that
    assert picture[100, 100].max() == 0
    assert picture[100, -100].min() == 255


def flat_of(pixels: np.ndarray) -> Image:
    return Image(pixels, Geometry.from_spacing(pixels.shape))


def test_results_show_themselves_in_a_notebook_and_in_one_line() -> None:
    phantom = phantoms.image(3, (60, 80))
    with limner.open_session(phantom.image, "toy") as session:
        assert repr(session).startswith("<Session toy on <Image image MR 60×80")
        session.add(limner.Box((10, 10), (40, 40)))
        session.names[1] = "lesion"
        prediction, found = session.predict(), session.export()
        with Pillow.open(io.BytesIO(session._repr_png_())) as shown:
            assert shown.mode == "RGB"
    count = int(prediction.mask.sum())
    assert repr(prediction) == (
        f"<Prediction of object 1: {count:,} of 60×80, score {prediction.score:.2f}>"
    )
    assert repr(found).startswith("<Labels on 60×80: 1 lesion ")
    picture = limner.render_overlay(phantom.image, prediction)
    assert np.array_equal(picture, limner.render_overlay(phantom.image, prediction.mask))
    assert np.array_equal(picture, limner.render_overlay(phantom.image, found.mask(1)))
    with Pillow.open(io.BytesIO(picture._repr_png_())) as shown:
        assert np.array_equal(np.asarray(shown), picture)


def test_a_prediction_on_a_slice_is_shown_on_it() -> None:
    phantom = phantoms.volume(3, (8, 40, 40))
    with limner.open_session(phantom.image, "toy") as session:
        session.add(limner.Box((10, 10), (30, 30)), frame=3)
        prediction = session.predict(frame=3)
    expected = np.zeros(phantom.image.geometry.shape, bool)
    expected[3] = prediction.mask
    shown = limner.render_overlay(phantom.image, prediction)
    assert np.array_equal(shown, limner.render_overlay(phantom.image, expected, frame=3))


def test_labels_of_a_huge_image_are_counted_in_little_memory() -> None:
    array = np.zeros((5000, 5000), np.uint8)
    array[100:200, 50:250] = 3
    tracemalloc.start()
    labels = Labels(Geometry.from_spacing(array.shape), array=array)
    sizes = labels.sizes()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert labels.ids == (3,)
    assert sizes == {3: 20_000}
    assert peak < 2 * array.nbytes
