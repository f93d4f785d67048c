"""Pictures of segmentations: what must be visible in them, and how they are written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from limner import phantoms
from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.labels import Labels
from limner.prompts import Box, Click, Lasso, MaskPrompt, Prompt, Scribble, TextPrompt
from limner.render.overlay import LARGEST, render_overlay, write_preview
from limner.render.panel import NEGATIVE, PALETTE, POSITIVE, color_of


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
    labels = np.zeros((200, 240), np.int64)
    for k in range(len(PALETTE)):
        labels[20 + 24 * k : 38 + 24 * k, 20:120] = k + 1
    image = flat((200, 240))
    picture = render_overlay(image, labels)
    plain = render_overlay(image, np.zeros_like(labels))
    assert all(has_color(picture, color_of(k + 1)) for k in range(len(PALETTE)))
    assert picture.shape[0] > plain.shape[0]  # the legend
    inside = picture[58, 140]  # middle of the first object, drawn at twice the size
    assert (inside != plain[58, 140]).any()
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
        panel = picture[8 : 8 + size, 8 + k * (size + 8) : 8 + k * (size + 8) + size]
        found = np.argwhere((panel == color_of(1)).all(axis=-1)) / size
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
