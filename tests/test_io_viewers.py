"""Files as viewers show them: masks in colours, pictures turned by a tag, palettes with alpha."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image as Picture
from PIL import ImageOps

import limner
from limner import Geometry
from limner.io import Labels
from limner.io.raster.pixels import say_turned
from limner.io.raster.png import label_colours

PIXELS = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)


# ---------------------------------------------------------------- masks in colours


@pytest.mark.parametrize("top", [0, 1, 2, 3, 15, 16, 17, 255])
def test_masks_are_seen_and_keep_their_values(tmp_path: Path, top: int) -> None:
    labels = (np.arange(20 * 30).reshape(20, 30) % (top + 1)).astype(np.uint8)
    path = tmp_path / "mask.png"
    limner.write(path, Labels(Geometry(labels.shape), array=labels, names={1: "a"}))
    with Picture.open(path) as shown:
        assert shown.mode == "P"
        np.testing.assert_array_equal(np.asarray(shown), labels)
        colours = np.asarray(shown.convert("RGB"))
    np.testing.assert_array_equal(imagecodecs.png_decode(path.read_bytes()), colours)
    assert not colours[labels == 0].any()
    if top:
        assert colours[labels > 0].max(axis=-1).min() > 100  # bright on black
    found = limner.read_labels(path)
    np.testing.assert_array_equal(found.to_array(), labels)
    assert found.names == {1: "a"}


def test_colours_of_labels_differ() -> None:
    colours = label_colours(256).astype(int)
    assert len(np.unique(colours, axis=0)) > 240
    steps = np.abs(np.diff(colours, axis=0)).sum(axis=1)
    assert steps.min() > 60  # neighbours in number are told apart


def test_more_labels_than_a_palette_are_grey(tmp_path: Path) -> None:
    labels = np.arange(300).reshape(15, 20)
    limner.write(tmp_path / "mask.png", labels)
    with Picture.open(tmp_path / "mask.png") as shown:
        assert shown.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(shown), labels)
    np.testing.assert_array_equal(limner.read_labels(tmp_path / "mask.png").to_array(), labels)


def test_a_palette_of_another_program_is_a_label_map(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    picture = Picture.fromarray(noise)
    picture.putpalette(bytes(np.random.default_rng(1).integers(0, 256, 768).astype(np.uint8)))
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(limner.read_labels(tmp_path / "a.png").to_array(), noise)


# ---------------------------------------------------------------- turned pictures


def positions(text: str, row: int, column: int) -> tuple[int, int]:
    """What a hint makes of a position that was read off a viewer."""
    place = text.split("column c is (")[1].split(")")[0].split(", ")
    found = [eval(part, {"__builtins__": {}}, {"r": row, "c": column}) for part in place]
    return found[0], found[1]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_hint_says_where_a_viewer_shows_it(orientation: int) -> None:
    picture = Picture.fromarray(PIXELS)
    picture.getexif()[0x0112] = orientation
    shown = np.asarray(ImageOps.exif_transpose(picture))
    text = say_turned(orientation, *PIXELS.shape)
    for row, column in ((0, 0), (3, 7), (11, 2), (shown.shape[0] - 1, shown.shape[1] - 1)):
        assert shown[row, column] == PIXELS[positions(text, row, column)]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_every_turned_picture_is_told(
    tmp_path: Path, suffix: str, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"a{suffix}"
    picture = Picture.fromarray(PIXELS)
    if suffix == ".tif":
        tags: Any = [(274, 3, 1, orientation, True)] if orientation != 1 else []
        tifffile.imwrite(path, PIXELS, photometric="minisblack", extratags=tags, metadata=None)
    else:
        exif = Picture.Exif()
        exif[0x0112] = orientation
        picture.save(path, exif=exif)
    image = limner.read(path)
    assert (f"(orientation {orientation})" in caplog.text) is (orientation != 1)
    assert image.geometry.shape == PIXELS.shape


# ---------------------------------------------------------------- palettes with alpha


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_a_tiff_palette_with_alpha_is_rgb(tmp_path: Path, layout: str, extra: int) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (3, 256)).astype(np.uint16) * 257
    alpha = np.full_like(PIXELS, 255)
    alpha[:2] = 9
    pixels = np.stack([PIXELS, alpha], axis=-1 if layout == "contig" else 0)
    path = tmp_path / "p.tif"
    tifffile.imwrite(
        path, pixels, photometric="minisblack", planarconfig=layout, extrasamples=[extra],
        extratags=[(320, 3, 768, colours.ravel(), True)], metadata=None,
    )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+b") as file:  # tifffile writes no such file itself
        file.pages.first.tags["PhotometricInterpretation"].overwrite(3)
    image = limner.read(path)
    assert image.shape == (12, 20, 3)
    np.testing.assert_array_equal(image.array, (colours.T // 257).astype(np.uint8)[PIXELS])
    np.testing.assert_array_equal(limner.read_labels(path).to_array(), PIXELS)


# ---------------------------------------------------------------- images beside the first


def slide(path: Path, thumbnail: tuple[int, int], names: tuple[str, ...] = ()) -> Path:
    """An Aperio slide: base, thumbnail, a level, label and macro photograph."""
    facts = "Aperio Image Library v10\n400x300 [0,0 400x300] (16x16)|AppMag = 20|MPP = 0.5"
    said = "Aperio Image Library v10\n"
    with tifffile.TiffWriter(path) as file:
        base = np.zeros((300, 400, 3), np.uint8)
        common: dict[str, Any] = {"photometric": "rgb", "metadata": None}
        file.write(base, tile=(16, 16), description=facts, **common)
        file.write(np.zeros((*thumbnail, 3), np.uint8), description=said + "thumb", **common)
        file.write(base[::4, ::4], tile=(16, 16), description=said + "level", **common)
        for name in names:
            text = f"{said}{name} 120x90"
            pixels = np.zeros((90, 120, 3), np.uint8)
            file.write(pixels, subfiletype=1, description=text, **common)
    return path


@pytest.mark.parametrize("size", [(60, 80), (75, 100), (76, 100)])
def test_the_thumbnail_of_a_slide_has_its_own_spacing(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = slide(tmp_path / "a.svs", size, ("label", "macro"))
    assert limner.read(path).spacing == pytest.approx((0.0005, 0.0005))
    assert limner.read(path, series="level=1").spacing == pytest.approx((0.002, 0.002))
    small = limner.read(path, series=1)
    assert small.shape[:2] == size
    rows, columns = (0.0005 * 300 / size[0], 0.0005 * 400 / size[1])
    assert small.spacing == pytest.approx((rows, columns))
    for number in (2, 3):  # photographs of the glass, whatever their shape
        assert not limner.read(path, series=number).geometry.has_spacing


def test_another_image_of_another_shape_has_no_spacing(tmp_path: Path) -> None:
    path = slide(tmp_path / "a.svs", (60, 60))
    assert not limner.read(path, series=1).geometry.has_spacing
