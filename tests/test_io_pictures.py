"""Pictures, TIFF stacks and COCO files: values, geometry, refusals, what other programs read."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import imageio.v3 as iio
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from limner.errors import FormatError, GeometryError, SeriesChoice
from limner.geometry import Geometry
from limner.io import coco, raster, tiff
from limner.io import read as limner_read
from limner.io.coco.masks import polygon_to_mask
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.raster import decoding
from rounds import times

RNG = np.random.default_rng(20261)
GREY8 = RNG.integers(0, 256, (40, 50), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (40, 50), dtype=np.uint16)
RGB8 = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (40, 50, 3), dtype=np.uint16)
STACK = RNG.integers(0, 60000, (6, 40, 50), dtype=np.uint16)


def png_file(width: int, height: int, bits: int, colour: int, pixels: bytes) -> bytes:
    """A PNG by hand, for headers that no writer gives."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [GREY8, GREY16, RGB8, RGB16], ids=["L", "I16", "RGB", "RGB16"])
def test_png_keeps_depth_and_colour(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(pixels))
    image = raster.read(path)
    assert not image.is_loaded
    assert image.shape == pixels.shape
    assert image.dtype == pixels.dtype
    np.testing.assert_array_equal(image.array, pixels)
    assert image.array.dtype == pixels.dtype
    assert not image.geometry.has_spacing
    again = tmp_path / "b.png"
    raster.write_image(again, image)
    np.testing.assert_array_equal(iio.imread(again) if pixels is not RGB16 else
                                  imagecodecs.imread(again), pixels)  # fmt: skip


@pytest.mark.parametrize("suffix", ["bmp", "webp", "gif"])
def test_other_lossless_pictures(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    colours = RGB8 // 64 * 64 if suffix != "gif" else np.repeat(GREY8[..., None] // 2, 3, axis=2)
    Picture.fromarray(colours).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = raster.read(path)
    pixels = image.array if image.num_channels else np.repeat(image.array[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels, colours)
    if suffix != "gif":
        assert raster.sniff(path, path.read_bytes()[:512])


def test_one_bit_is_zero_and_one_and_small_grey_is_not_stretched(tmp_path: Path) -> None:
    one = tmp_path / "one.png"
    Picture.fromarray(GREY8 > 99).save(one)
    np.testing.assert_array_equal(raster.read(one).array, (GREY8 > 99).astype(np.uint8))
    two = tmp_path / "two.png"
    two.write_bytes(png_file(4, 1, 2, 0, b"\0" + bytes([0b00011011])))
    assert raster.read(two).array.tolist() == [[0, 1, 2, 3]]
    four = tmp_path / "four.png"
    four.write_bytes(png_file(2, 1, 4, 0, b"\0" + bytes([0x5F])))
    assert raster.read(four).array.tolist() == [[5, 15]]


def test_palette_is_colour_for_images_and_indices_for_labels(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    indices = GREY8 % 4
    picture = Picture.fromarray(indices)
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(path, transparency=bytes([0, 255, 255, 128]))
    image = raster.read(path)
    assert image.shape == (40, 50, 3)
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    np.testing.assert_array_equal(image.array, palette[indices])
    np.testing.assert_array_equal(raster.read_labels(path).to_array(), indices)


def test_alpha_is_dropped_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rgba.png"
    Picture.fromarray(np.dstack((RGB8, GREY8))).save(path)
    np.testing.assert_array_equal(raster.read(path).array, RGB8)
    assert "alpha" in caplog.text
    caplog.clear()
    Picture.fromarray(np.dstack((GREY8, np.full_like(GREY8, 255)))).save(path)
    assert raster.read(path).shape == (40, 50)
    np.testing.assert_array_equal(raster.read(path).array, GREY8)
    assert not caplog.text
    deep = np.dstack((RGB16, np.full_like(GREY16, 65535)))
    path.write_bytes(imagecodecs.png_encode(deep))
    np.testing.assert_array_equal(raster.read(path).array, RGB16)


def test_jpeg_colour_spaces_and_orientation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jpg"
    smooth = np.zeros((32, 48, 3), np.uint8) + np.arange(48, dtype=np.uint8)[None, :, None]
    Picture.fromarray(smooth).convert("CMYK").save(path, quality=95)
    image = raster.read(path)
    assert image.shape == (32, 48, 3)
    assert np.abs(image.array.astype(int) - smooth).max() < 12
    exif = Picture.Exif()
    exif[0x0112] = 6
    Picture.fromarray(smooth).save(path, exif=exif)
    image = raster.read(path)
    assert image.shape == (32, 48, 3)  # as stored: masks are drawn on the stored grid
    assert image.metadata["exif_orientation"] == 6
    assert "EXIF" in caplog.text


def test_channel(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Picture.fromarray(RGB8).save(path)
    image = raster.read(path, channel=1)
    assert image.shape == (40, 50)
    np.testing.assert_array_equal(image.array, RGB8[..., 1])
    with pytest.raises(FormatError, match="no channel 3; the file has 3"):
        raster.read(path, channel=3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.4, 0.97])
def test_truncated_pictures_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    buffer = io.BytesIO()
    Picture.fromarray(RGB8).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    path = tmp_path / f"a.{suffix}"
    content = buffer.getvalue()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FormatError) as caught:
        raster.read(path).array  # noqa: B018
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_damaged_png_is_refused_even_where_the_last_row_is_full(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    content = bytearray(imagecodecs.png_encode(GREY16))
    path.write_bytes(content[:-12])
    with pytest.raises(FormatError, match="ends early"):
        raster.read(path).array  # noqa: B018
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="checksum"):
        raster.read(path).array  # noqa: B018


@pytest.mark.slow
def test_bombs_are_refused_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_file(1_000_000, 1_000_000, 8, 0, b"\0"))
    with pytest.raises(FormatError, match="1000000×1000000 pixels"):
        raster.read(path)
    # Larger than Pillow likes, but honest: a slide at full resolution.
    path.write_bytes(png_file(20_000, 10_000, 1, 0, b"\0" * (2501 * 10_000)))
    image = raster.read(path)
    assert image.shape == (10_000, 20_000)
    assert image.array.max() == 0


def test_wrong_content_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"not a picture at all")
    assert not raster.sniff(path, path.read_bytes())
    with pytest.raises(FormatError, match="not a PNG, JPEG"):
        raster.read(path)
    with pytest.raises(FormatError, match="no such file"):
        raster.read(tmp_path / "missing.png")


@pytest.mark.parametrize(("top", "dtype"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_png_label_map(tmp_path: Path, top: int, dtype: type) -> None:
    array = RNG.integers(0, top + 1, (30, 20))
    array[0, 0] = top
    path = tmp_path / "labels.png"
    labels = Labels(Geometry((30, 20)), array=array, names={top: "Leber, «groß»"})
    raster.write(path, labels, like=None)
    again = np.asarray(Picture.open(path))
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, array)
    read = raster.read_labels(path)
    assert read.names == {top: "Leber, «groß»"}
    np.testing.assert_array_equal(read.to_array(), array)


def test_png_labels_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    path.write_bytes(b"old")
    with pytest.raises(FormatError, match=r"up to 65535, not 65536; use .tif"):
        raster.write(path, Labels(Geometry((1, 2)), array=np.array([[0, 65536]])), like=None)
    with pytest.raises(FormatError, match=r"\.tif or \.nii\.gz"):
        raster.write(path, Labels(Geometry((2, 3, 4)), array=np.zeros((2, 3, 4), int)), like=None)
    with pytest.raises(FormatError, match=r"use \.png"):
        raster.write(tmp_path / "a.jpg", Labels(Geometry((1, 2)), array=np.array([[0, 1]])))
    assert path.read_bytes() == b"old"


def test_labels_from_colour_and_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 20:50] = 255
    Picture.fromarray(np.dstack([mask] * 3)).save(path)
    np.testing.assert_array_equal(raster.read_labels(path).to_array(), mask)
    Picture.fromarray(RGB8).save(path)
    with pytest.raises(FormatError, match="colour picture is not a label map"):
        raster.read_labels(path)
    path = tmp_path / "mask.jpg"
    Picture.fromarray(mask).save(path, quality=90)
    labels = raster.read_labels(path)
    assert labels.ids == (1,)
    np.testing.assert_array_equal(labels.mask(1), mask > 0)
    Picture.fromarray(GREY8).save(path)
    with pytest.raises(FormatError, match="JPEG changes pixel values"):
        raster.read_labels(path)
    with pytest.raises(GeometryError, match="do not fit the image"):
        raster.read_labels(tmp_path / "mask.png", like=Image(GREY8[:9], Geometry((9, 50))))


@pytest.mark.slow
def test_every_shared_picture_opens(shared_data: Path) -> None:
    paths = sorted(p for p in (shared_data / "2d").rglob("*") if p.suffix in (".png", ".jpg"))
    assert paths
    for path in paths:
        image = raster.read(path)
        with Picture.open(path) as picture:
            assert image.geometry.shape == picture.size[::-1]
            expected = {"L": (np.uint8, None), "I;16": (np.uint16, None)}
            assert (image.dtype, image.num_channels) == expected.get(picture.mode, (np.uint8, 3))
        if path.parent.name != "images":
            labels = raster.read_labels(path)
            assert labels.to_array().max() == image.array.max()


# --- TIFF -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "packbits"])
def test_tiff_stack(tmp_path: Path, dtype: str, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    pixels = (STACK % 251).astype(dtype)
    tifffile.imwrite(path, pixels, compression=compression, photometric="minisblack", metadata=None)
    assert tiff.sniff(path, path.read_bytes()[:16])
    image = tiff.read(path)
    assert (image.kind, image.shape, image.dtype) == ("volume", pixels.shape, np.dtype(dtype))
    np.testing.assert_array_equal(image.slice_at(4), pixels[4])
    assert not image.is_loaded
    np.testing.assert_array_equal(image.array, pixels)


@pytest.mark.parametrize(
    "options",
    [
        {"bigtiff": True},
        {"byteorder": ">"},
        {"tile": (16, 16)},
        {"tile": (16, 16), "compression": "jpeg", "photometric": "rgb"},
        {"planarconfig": "separate", "photometric": "rgb"},
        {"truncate": True, "photometric": "rgb"},
    ],
    ids=str,
)
def test_tiff_layouts(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    colour = "photometric" in options
    if options.get("planarconfig") == "separate":
        tifffile.imwrite(path, RGB8.transpose(2, 0, 1), **options)
        expected = RGB8
    elif colour:
        expected = np.stack([np.full((40, 50, 3), k * 40, np.uint8) for k in range(5)])
        tifffile.imwrite(path, expected, **options)
    else:
        expected = STACK
        tifffile.imwrite(path, expected, photometric="minisblack", **options)
    image = tiff.read(path)
    assert image.shape == expected.shape
    assert image.array.dtype.isnative
    np.testing.assert_allclose(image.array, expected, atol=2 if "compression" in options else 0)
    if image.geometry.ndim == 3:
        np.testing.assert_array_equal(image.slice_at(1), image.array[1])


def test_tiff_of_other_writers(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pages = [Picture.fromarray(p) for p in (STACK >> 8).astype(np.uint8)]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    np.testing.assert_array_equal(tiff.read(path).array, STACK >> 8)
    sitk.WriteImage(sitk.GetImageFromArray(STACK), str(path), True)
    np.testing.assert_array_equal(tiff.read(path).array, STACK)
    Picture.fromarray(GREY8 > 99).save(path, compression="group4")
    np.testing.assert_array_equal(tiff.read(path).array, GREY8 > 99)
    assert tiff.read(path).dtype == np.uint8
    picture = Picture.fromarray(GREY8 % 3)
    picture.putpalette([0, 0, 0, 9, 99, 199, 255, 0, 0])
    picture.save(path)
    assert tiff.read(path).array[0, GREY8[0] % 3 == 1][0].tolist() == [9, 99, 199]
    np.testing.assert_array_equal(tiff.read_labels(path).to_array(), GREY8 % 3)


def test_tiff_spacing_only_from_those_who_mean_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY8, resolution=(300, 300), resolutionunit="inch")
    assert not tiff.read(path).geometry.has_spacing  # dots per inch of a printer
    facts = {"axes": "ZYX", "spacing": 2.5, "unit": "um"}
    tifffile.imwrite(path, STACK, imagej=True, resolution=(1 / 0.5, 1 / 0.25), metadata=facts)
    assert tiff.read(path).spacing == pytest.approx((0.0025, 0.00025, 0.0005))
    facts = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.4, "PhysicalSizeZ": 2.0,
             "PhysicalSizeZUnit": "mm"}  # fmt: skip
    tifffile.imwrite(path, STACK, ome=True, metadata=facts)
    assert tiff.read(path).spacing == pytest.approx((2.0, 0.0004, 0.0005))
    tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "TYX", "unit": "mm"},
                     resolution=(2, 2))  # fmt: skip
    video = tiff.read(path)
    assert video.kind == "video"
    assert video.spacing == pytest.approx((1.0, 0.5, 0.5))


def test_tiff_hyperstack(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    pixels = RNG.integers(0, 9, (2, 4, 3, 20, 30), dtype=np.uint16)
    tifffile.imwrite(path, pixels, ome=True, metadata={"axes": "TZCYX"})
    with pytest.raises(SeriesChoice, match="series='t=K', K in 0…1") as caught:
        tiff.read(path)
    assert list(caught.value.series) == ["t=0", "t=1"]
    image = tiff.read(path, series="t=1")
    assert (image.kind, image.shape) == ("volume", (4, 20, 30, 3))
    np.testing.assert_array_equal(image.array, np.moveaxis(pixels[1], 1, -1))
    np.testing.assert_array_equal(
        tiff.read(path, series="t=1", channel=2).slice_at(3), pixels[1, 3, 2]
    )
    with pytest.raises(FormatError, match="no t=2"):
        tiff.read(path, series="t=2")
    with pytest.raises(FormatError, match="not understood"):
        tiff.read(path, series="first")


@pytest.mark.parametrize(("count", "kind"), [(6, "image"), (9, "volume")])
def test_imagej_stack_without_named_axes(tmp_path: Path, count: int, kind: str) -> None:
    path = tmp_path / "a.tif"
    pixels = RNG.integers(0, 9, (count, 20, 30), dtype=np.uint16)
    tifffile.imwrite(path, pixels, imagej=True)  # says "channels", of which ImageJ shows 7
    image = tiff.read(path)
    assert image.kind == kind
    expected = pixels if kind == "volume" else np.moveaxis(pixels, 0, -1)
    np.testing.assert_array_equal(image.array, expected)
    if kind == "volume":
        np.testing.assert_array_equal(tiff.read(path).slice_at(7), pixels[7])


def test_tiff_whose_pages_run_in_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2, 4, 5), np.uint8), metadata=None)
    with tifffile.TiffFile(path) as file:
        first, second = (page.offset for page in file.pages)
    content = bytearray(path.read_bytes())
    (num_tags,) = struct.unpack_from("<H", content, second)
    struct.pack_into("<I", content, second + 2 + 12 * num_tags, first)
    path.write_bytes(content)
    with pytest.raises(FormatError, match="circle"):
        tiff.read(path)


def test_tiff_of_complex_numbers_is_no_image(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 5), np.complex64))
    with pytest.raises(FormatError, match=r"complex64.*magnitude"):
        tiff.read(tmp_path / "a.tif")


def test_what_libraries_log_stays_off_the_screen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4, 4), np.uint8))
    content = bytearray(path.read_bytes())
    for name in ("ImageWidth", "ImageLength"):
        with tifffile.TiffFile(path) as file:
            at = file.pages.first.tags[name].valueoffset
        content[at : at + 4] = (1_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    with caplog.at_level("WARNING"), pytest.raises(FormatError, match="this machine can hold"):
        tiff.read(path)
    assert caplog.text == ""


def test_few_bytes_cannot_hold_many_pixels(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Picture.fromarray(np.zeros((64, 64), np.uint8)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 9000, 9000)
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(FormatError, match=r"81,000,000 pixels.*cannot hold"):
        raster.read(tmp_path / "a.jpg")
    for suffix, options in ((".png", {"compress_level": 9}), (".jpg", {"progressive": True})):
        path = tmp_path / f"empty{suffix}"  # as small as they get
        Picture.new("1" if suffix == ".png" else "L", (3000, 2000)).save(path, **options)
        assert not raster.read(path).array.any()


def test_tiff_pyramid_and_thumbnail(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB8, subifds=1, photometric="rgb", tile=(16, 16))
        writer.write(RGB8[::2, ::2], subfiletype=1, photometric="rgb", tile=(16, 16))
        writer.write(GREY8[:9, :9], photometric="minisblack")
    assert tiff.read(path).shape == (40, 50, 3)
    np.testing.assert_array_equal(tiff.read(path, series="level=1").array, RGB8[::2, ::2])
    np.testing.assert_array_equal(tiff.read(path, series="1").array, GREY8[:9, :9])
    with pytest.raises(FormatError, match="no series 2; the file has 2"):
        tiff.read(path, series="2")


@pytest.mark.parametrize("imagej", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("share", [0.0, 0.005, 0.3, 0.6, 0.99])
def test_truncated_tiff_is_refused(
    tmp_path: Path, imagej: bool, compression: str | None, share: float
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=imagej, compression=compression,
                     photometric="minisblack")  # fmt: skip
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FormatError) as caught:
        tiff.read(path).array  # noqa: B018
    assert "\n" not in str(caught.value)


def test_tiff_bomb_is_refused_before_allocation(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tags = [(256, 4, 1, 1_000_000), (257, 4, 1, 1_000_000), (258, 3, 1, 8), (259, 3, 1, 1),
            (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 1_000_000),
            (279, 4, 1, 100)]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + body + b"\0\0\0\0"
    )
    with pytest.raises(FormatError, match="1000000×1000000"):
        tiff.read(path)


def test_ome_set_does_not_open_other_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "secret.ome.tif"
    tifffile.imwrite(other, np.full((40, 50), 7, np.uint8), ome=True)
    uuid = "urn:uuid:00000000-0000-0000-0000-000000000001"
    description = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="' + uuid + '">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="50" '
        'SizeY="40" SizeZ="2" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        f'<TiffData FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="a.ome.tif">{uuid}</UUID>'
        '</TiffData><TiffData FirstZ="1" IFD="0" PlaneCount="1"><UUID FileName="secret.ome.tif">'
        "urn:uuid:00000000-0000-0000-0000-000000000002</UUID></TiffData></Pixels></Image></OME>"
    )
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, GREY8, description=description, metadata=None)
    image = tiff.read(path)
    np.testing.assert_array_equal(image.array, GREY8)
    assert "several files (which are not opened)" in caplog.text
    single = description.replace("secret.ome.tif", "a.ome.tif").replace("000000002", "000000001")
    single = single.replace('FirstZ="1" IFD="0"', 'FirstZ="1" IFD="1"')
    tifffile.imwrite(path, GREY8, description=single, metadata=None)
    with pytest.raises(FormatError, match="promises planes that are not in this file"):
        tiff.read(path)
    np.testing.assert_array_equal(tiff.read(path, strict=False).array, GREY8)


@pytest.mark.parametrize("top", [3, 300, 70_000])
@pytest.mark.parametrize("shape", [(40, 50), (6, 40, 50), (1, 40, 50)], ids=str)
def test_tiff_labels(tmp_path: Path, top: int, shape: tuple[int, ...]) -> None:
    geometry = Geometry.from_spacing(
        shape, (2.0, 0.5, 0.3)[3 - len(shape) :], origin=(-10.0, 5.0, 7.5)
    )
    array = RNG.integers(0, top + 1, shape)
    array.flat[0] = top
    path = tmp_path / "labels.tif"
    tiff.write(path, Labels(geometry, array=array, names={1: "liver"}), like=None)
    for other in (tifffile.imread(path), sitk.GetArrayFromImage(sitk.ReadImage(str(path)))):
        np.testing.assert_array_equal(np.squeeze(other), np.squeeze(array))
        assert other.dtype == np.min_scalar_type(top)
        assert other.shape == shape or shape[0] == 1  # one slice looks like a picture to them
    labels = tiff.read_labels(path)
    assert labels.geometry == geometry
    assert labels.names == {1: "liver"}
    np.testing.assert_array_equal(labels.to_array(), array)
    with tifffile.TiffFile(path) as file:
        if top < 65536:
            assert file.imagej_metadata is not None
            assert file.imagej_metadata["unit"] == "mm"
            x, y = (file.pages.first.tags[f"{a}Resolution"].value for a in "XY")
            assert (x[1] / x[0], y[1] / y[0]) == pytest.approx((0.3, 0.5))
            assert file.imagej_metadata.get("spacing", 2.0) == 2.0


def test_tiff_labels_keep_the_shape_of_a_stack(tmp_path: Path) -> None:
    source, path = tmp_path / "stack.tif", tmp_path / "mask.tif"
    tifffile.imwrite(source, STACK, imagej=True, metadata={"axes": "TYX"})
    image = tiff.read(source)
    tiff.write(path, Labels(image.geometry, array=(image.array > 9000).astype(int)), like=image)
    assert tiff.read(path).kind == "video"
    assert tifffile.imread(path).shape == STACK.shape
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).shape == STACK.shape


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("channels", [None, 2, 3])
def test_tiff_image_round_trip(tmp_path: Path, dtype: str, channels: int | None) -> None:
    shape = (4, 20, 30) if channels is None else (4, 20, 30, channels)
    pixels = RNG.integers(0, 100, shape).astype(dtype)
    geometry = Geometry.from_spacing((4, 20, 30), (3.0, 1.0, 1.0))
    path = tmp_path / "a.tif"
    tiff.write_image(path, Image(pixels, geometry))
    image = tiff.read(path)
    assert (image.geometry, image.dtype) == (geometry, np.dtype(dtype))
    np.testing.assert_array_equal(image.array, pixels)
    np.testing.assert_array_equal(tifffile.imread(path), pixels)


def test_tiff_labels_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.array([[0.0, 1.5]], np.float32))
    with pytest.raises(FormatError, match="fractions"):
        tiff.read_labels(path)
    tifffile.imwrite(path, np.array([[0, -1]], np.int16))
    with pytest.raises(FormatError, match="negative"):
        tiff.read_labels(path)
    tifffile.imwrite(path, np.array([[0.0, 3.0]], np.float32))
    assert tiff.read_labels(path).ids == (3,)


# --- COCO -----------------------------------------------------------------------------------------


def load_coco(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@settings(max_examples=times(40), deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))
def test_coco_volume(tmp_path_factory: Any, seed: int, depth: int, rows: int, columns: int) -> None:
    path = tmp_path_factory.mktemp("coco") / "a.json"
    array = np.random.default_rng(seed).integers(0, 4, (depth, rows, columns))
    geometry = Geometry.from_spacing(array.shape, (2.0, 0.5, 0.7), origin=(1.0, 2.0, 3.0))
    coco.write(path, Labels(geometry, array=array, names={2: "liver"}), like=None)
    assert coco.sniff(path, path.read_bytes()[:512])
    labels = coco.read_labels(path)
    assert labels.geometry == geometry
    assert labels.names == {2: "liver"}
    np.testing.assert_array_equal(labels.to_array(), array)
    file = load_coco(path)
    assert len(file.dataset["images"]) == depth
    for annotation in file.dataset["annotations"]:
        frame = file.imgs[annotation["image_id"]]["frame_index"]
        expected = array[frame] == annotation["object_id"]
        np.testing.assert_array_equal(file.annToMask(annotation), expected)
        assert annotation["area"] == expected.sum()
        segmentation = annotation["segmentation"]
        assert annotation["bbox"] == coco_mask.toBbox(segmentation).tolist()
        encoded = coco_mask.encode(np.asfortranarray(expected.astype(np.uint8)))
        assert encoded["counts"].decode("ascii") == segmentation["counts"]


def test_coco_keeps_overlaps_and_empty_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    masks = {1: GREY8 > 100, 4: GREY8 > 50, 7: np.zeros(GREY8.shape, bool)}
    coco.write(path, Labels(Geometry(GREY8.shape), masks=masks), like=None)
    labels = coco.read_labels(path)
    assert labels.ids == (1, 4, 7)
    for object_id, mask in masks.items():
        np.testing.assert_array_equal(labels.mask(object_id), mask)


def foreign(segmentations: list[Any], **extra: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 5, "width": 50, "height": 40, "file_name": "x.png"}],
        "categories": [{"id": 3, "name": "nucleus"}],
        "annotations": [
            {"id": 900_000 + k, "image_id": 5, "category_id": 3, "segmentation": s, **extra}
            for k, s in enumerate(segmentations)
        ],
    }


def test_coco_of_other_writers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    left, right = GREY8 > 128, GREY8 < 60
    encoded = coco_mask.encode(np.asfortranarray(left.astype(np.uint8)))
    flat = right.ravel(order="F").astype(int)
    counts, value = [0], 0
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    content = foreign(
        [
            {"size": [40, 50], "counts": encoded["counts"].decode()},
            {"size": [40, 50], "counts": counts},
        ]
    )
    path.write_text(json.dumps(content))
    labels = coco.read_labels(path)
    assert labels.ids == (1, 2)
    assert labels.names == {1: "nucleus", 2: "nucleus"}
    np.testing.assert_array_equal(labels.mask(1), left)
    np.testing.assert_array_equal(labels.mask(2), right)
    path.write_text(json.dumps(content["annotations"]))  # a list of results
    np.testing.assert_array_equal(coco.read_labels(path).mask(2), right)
    path.write_text(json.dumps(foreign([[[2, 3, 7, 3, 7, 9, 2, 9]]], attributes={"track_id": 12})))
    labels = coco.read_labels(path)
    assert labels.ids == (12,)
    assert np.argwhere(labels.mask(12)).min(axis=0).tolist() == [3, 2]
    assert labels.mask(12).sum() == 30


def test_coco_chooses_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = foreign([[[0, 0, 9, 0, 9, 9]]])
    content["images"].append({"id": 6, "width": 10, "height": 20, "file_name": "sub/y.png"})
    content["annotations"][0]["image_id"] = 6
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match="2 pictures; give the image"):
        coco.read_labels(path)
    like = Image(np.zeros((20, 10)), Geometry((20, 10)), path=tmp_path / "y.png")
    assert coco.read_labels(path, like=like).geometry.shape == (20, 10)
    wrong = Image(np.zeros((9, 9)), Geometry((9, 9)), path=tmp_path / "y.png")
    with pytest.raises(GeometryError, match="do not fit"):
        coco.read_labels(path, like=wrong)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 200_000,
        "{}",
        '{"annotations": 3}',
        '{"annotations": []}',
        json.dumps(foreign([{"size": [40, 50], "counts": [2001]}])),
        json.dumps(foreign([{"size": [40, 50], "counts": [-1, 2001]}])),
        json.dumps(foreign([{"size": [40, 50], "counts": [2**63, 2**63, 2000]}])),
        json.dumps(foreign([{"size": [40, 51], "counts": [2040]}])),
        json.dumps(foreign([{"size": [40, 50], "counts": "~~"}])),
        json.dumps(foreign([{"counts": "04"}])),
        json.dumps(foreign([[[1, 2, 3]]])),
        json.dumps(foreign([[[1, 2, 3, float("nan"), 5, 6]]])),
        json.dumps(foreign([])).replace('"height": 40', '"height": 4000000000'),
        json.dumps(foreign([])).replace('"height": 40', '"height": 0'),
    ],
    ids=range(16),
)
def test_coco_refuses_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(FormatError) as caught:
        coco.read_labels(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=times(60), deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 45)), min_size=3, max_size=7))
def test_polygon_agrees_with_the_even_odd_rule(corners: list[tuple[float, float]]) -> None:
    mask = polygon_to_mask([c for corner in corners for c in corner], 40, 40)
    for row, column in [(3, 3), (20, 20), (39, 0), (10, 30)]:
        x, y, inside = column + 0.5, row + 0.5, False
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
                inside = not inside
        assert mask[row, column] == inside


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif"])
def test_a_header_with_a_palette_is_read_without_decoding(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(_: object) -> None:
        raise AssertionError("decoded")

    path = tmp_path / f"a{suffix}"
    colours = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for pixels, shape in ((colours, (4, 4, 3)), (colours.repeat(3, axis=-1)[..., :3], (4, 4))):
        Picture.fromarray(pixels).quantize(16).save(path)
        with monkeypatch.context() as patch:
            patch.setattr("PIL.ImageFile.ImageFile.load", decode)
            assert raster.read(path).shape == shape


def test_a_value_beyond_the_palette_of_a_tiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = np.array([[0, 1], [2, 250]], np.uint8)
    colours = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(path, pixels, photometric="palette", colormap=colours)
    assert tiff.read(path).array.shape == (2, 2, 3)
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags["ColorMap"]
        at, count = tag.offset + 4, 6
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, at, count)
    path.write_bytes(content)
    with pytest.raises(FormatError, match="not in its palette of 2 colours"):
        _ = tiff.read(path).array


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "L"), ("a.png", "RGB"), ("a.jpg", "L"), ("a.jpg", "RGB")]
)
def test_a_huge_picture_is_decoded_without_a_copy(
    name: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    shape = (90, 120) if mode == "L" else (90, 120, 3)
    Picture.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).save(path)
    expected = np.asarray(raster.read(path).array)
    monkeypatch.setattr(decoding, "HUGE_PIXELS", 100)
    monkeypatch.setattr(decoding, "_pixels_of", None)  # of Pillow's way
    found = np.asarray(raster.read(path).array)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (0 if name == "a.png" else 2)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(FormatError):
        raster.read(path).array  # noqa: B018


@pytest.mark.parametrize("where", [0, -1])
def test_the_header_of_a_png_is_read_without_its_pixels(where: int, tmp_path: Path) -> None:
    """Also where EXIF is looked for, which may stand before or after them."""
    path = tmp_path / "a.png"
    exif = Picture.Exif()
    exif[0x0112] = 6
    Picture.fromarray(np.zeros((30, 40), np.uint8)).save(path, exif=exif)
    chunks = _png_chunks(path.read_bytes())
    moved = next(c for c in chunks if c[4:8] == b"eXIf")
    rest = [c for c in chunks if c is not moved]
    rest.insert(1 if where == 0 else len(rest) - 1, moved)
    broken = [c[:8] + b"\0" * (len(c) - 8) if c[4:8] == b"IDAT" else c for c in rest]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(broken))
    image = raster.read(path)
    assert image.shape == (30, 40)
    assert image.metadata["exif_orientation"] == 6
    with pytest.raises(FormatError):
        image.array  # noqa: B018


def _png_chunks(content: bytes) -> list[bytes]:
    chunks, position = [], 8
    while position < len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4])
        chunks.append(content[position:end])
        position = end
    return chunks


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def test_the_header_of_a_png_is_read_without_decoding_and_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    path = tmp_path / "a.png"
    Picture.new("RGB", (9, 7)).save(path)
    assert raster.read(path).shape == (7, 9, 3)
    content = path.read_bytes()
    for columns, rows in ((2**31 - 1, 12), (30000, 30000), (10**6, 10**6)):
        header = struct.pack(">II5B", columns, rows, 8, 2, 0, 0, 0)
        path.write_bytes(content[:8] + _chunk(b"IHDR", header) + content[33:])
        with pytest.raises(FormatError, match=r"claims|need at least"):
            raster.read(path)


def _animation(path: Path) -> bytes:
    frames = [Picture.new("L", (9, 7), 90 * k) for k in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)
    return path.read_bytes()


def test_an_animated_png_is_known_behind_a_long_profile(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    content = _animation(path)
    path.write_bytes(content[:33] + _chunk(b"xXXx", bytes(5000)) + content[33:])
    assert limner_read(path).shape[0] == 3


def test_an_animated_png_that_promises_more_frames_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    content = _animation(path)
    at = content.index(b"acTL") - 4
    promise = _chunk(b"acTL", struct.pack(">II", 2 * 10**9, 0))
    path.write_bytes(content[:at] + promise + content[at + 20 :])
    with pytest.raises(FormatError, match="2000000000 frames are promised and at most 4"):
        limner_read(path)
    image = limner_read(path, strict=False)
    assert image.array.shape[0] == image.shape[0] <= 4


def test_a_burst_of_pictures_in_a_film_container_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.avifs"
    path.write_bytes(b"\0\0\0\x20ftypavis" + bytes(40))
    with pytest.raises(FormatError, match="no known kind"):
        limner_read(path)
