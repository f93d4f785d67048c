"""DICOM images: geometry, values, codecs, choices, damage; against SimpleITK and known arrays."""

from __future__ import annotations

import gzip
import io
import logging
import shutil
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import DeflatedExplicitVRLittleEndian

import limner
from dicom_makers import (
    AXIAL,
    DX,
    MR,
    PET,
    US_MULTIFRAME,
    compress,
    enhanced_dataset,
    image_dataset,
    save,
    save_series,
)
from limner.errors import FormatError, LimnerError, SeriesChoice
from limner.io.dicom import _codecs, images
from rounds import times


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def volume(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-1000, 2000, (6, 9, 11), dtype=np.int16)


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random rotation; its first two columns are an ImageOrientationPatient."""
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return matrix * np.sign(np.linalg.det(matrix))


def read_with_itk(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def refusal(path: Path) -> str:
    """What reading a file with its pixels says against it, "" if nothing."""
    try:
        image = images.read(path)
        pixels = image.array
    except LimnerError as error:
        return str(error)
    assert pixels.shape == image.shape
    assert pixels.dtype == image.dtype
    return ""


def deflate(plane: np.ndarray) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(plane.tobytes()) + encoder.flush()


def encode_rle(plane: np.ndarray) -> bytes:
    bits = plane.dtype.itemsize * 8
    return RLELosslessEncoder.encode(
        plane,
        rows=plane.shape[0],
        columns=plane.shape[1],
        samples_per_pixel=1,
        bits_allocated=bits,
        bits_stored=bits,
        pixel_representation=0,
        number_of_frames=1,
        photometric_interpretation="MONOCHROME2",
    )


def encode_lossless_jpeg(plane: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(plane, lossless=True, bitspersample=plane.dtype.itemsize * 8)


# Geometry of a series


def test_oblique_shuffled_series_agrees_with_itk(tmp_path, volume, rng):
    axes = rotation(rng)
    save_series(
        tmp_path,
        volume,
        origin=(-31.5, 12.25, 88.0),
        orientation=tuple(axes[:, :2].T.ravel()),
        spacing=(0.7, 0.9),
        step=2.5,
        rng=rng,
    )
    image = images.read(tmp_path)
    assert image.kind == "volume"
    assert image.modality == "CT"
    assert image.array.dtype == np.int16
    np.testing.assert_array_equal(image.array, volume)
    itk = read_with_itk(tmp_path)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk), image.array)
    assert image.spacing == pytest.approx((2.5, 0.7, 0.9), abs=1e-6)
    for index in ((0, 0, 0), (5, 0, 10), (3, 8, 2)):
        world = itk.TransformIndexToPhysicalPoint([int(k) for k in index[::-1]])
        np.testing.assert_allclose(image.geometry.index_to_world(index), world, atol=1e-5)


@settings(
    max_examples=times(15),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_orientation_gives_the_affine_it_was_written_with(tmp_path_factory, seed):
    generator = np.random.default_rng(seed)
    axes = rotation(generator)
    steps = generator.uniform(0.3, 4.0, 3)
    origin = generator.uniform(-300, 300, 3)
    folder = tmp_path_factory.mktemp("series")
    stack = generator.integers(0, 4000, (4, 5, 6), dtype=np.uint16)
    save_series(
        folder,
        stack,
        origin=tuple(origin),
        orientation=tuple(axes[:, :2].T.ravel()),
        spacing=(steps[1], steps[2]),
        step=steps[0],
        rng=generator,
    )
    image = images.read(folder)
    expected = np.eye(4)
    expected[:3, 0], expected[:3, 1] = axes[:, 2] * steps[0], axes[:, 1] * steps[1]
    expected[:3, 2], expected[:3, 3] = axes[:, 0] * steps[2], origin
    np.testing.assert_allclose(image.affine, expected, atol=1e-6)
    np.testing.assert_array_equal(image.array, stack)


def test_tilted_gantry_keeps_the_shear(tmp_path, volume, caplog):
    save_series(tmp_path, volume, step=np.array([0.0, 1.0, 3.0]))
    with caplog.at_level(logging.WARNING):
        image = images.read(tmp_path)
    assert not image.geometry.is_orthogonal
    np.testing.assert_allclose(image.affine[:3, 0], (0, 1, 3))
    assert "tilted gantry" in caplog.text


def test_rounded_positions_are_no_gap(tmp_path, volume):
    wobble = {k: {"ImagePositionPatient": [0, 0, round(k * 1.25 + 0.004 * (k % 2), 3)]}
              for k in range(6)}  # fmt: skip
    save_series(tmp_path, volume, per_slice=wobble)
    assert images.read(tmp_path).spacing[0] == pytest.approx(1.25, abs=0.002)


def test_gap_is_named_and_lenient_reads_on(tmp_path, volume):
    paths = save_series(tmp_path, volume, step=2.0, SeriesDescription="thin")
    paths[3].unlink()
    with pytest.raises(FormatError, match=r"thin.*4 mm between slices 2 and 3.*1 slice is missing"):
        images.read(tmp_path)
    with pytest.raises(FormatError, match="--lenient"):
        images.read(tmp_path)
    image = images.read(tmp_path, strict=False)
    np.testing.assert_array_equal(image.array, np.delete(volume, 3, axis=0))


@pytest.mark.parametrize(
    ("heights", "farthest", "mean"),
    [
        ([0, 1, 2, 5, 6], 1.0, 0.4),  # an even stack has them at 0, 1.5, 3, 4.5, 6
        ([0, 3, 6, 11, 16], 2.0, 0.8),  # 0, 4, 8, 12, 16
        ([0, 1, 2, 3, 4], None, None),
    ],
)
def test_lenient_says_how_far_slices_are_off(tmp_path, volume, caplog, heights, farthest, mean):
    places = {k: {"ImagePositionPatient": [0, 0, z]} for k, z in enumerate(heights)}
    save_series(tmp_path, volume[:5], per_slice=places)
    with caplog.at_level(logging.WARNING):
        image = images.read(tmp_path, strict=False)
    even = image.geometry.index_to_world([[k, 0, 0] for k in range(5)])[:, 2]
    off = np.abs(even - heights)
    if farthest is None:
        assert off.max() < 1e-9
        assert not caplog.records
        return
    assert off.max() == pytest.approx(farthest)
    assert f"up to {farthest:.3g} mm beside their place" in caplog.text
    assert f"{off.mean():.3g} mm on average" in caplog.text
    assert off.mean() == pytest.approx(mean)


def test_slices_out_of_line_are_refused(tmp_path, volume):
    save_series(tmp_path, volume, per_slice={2: {"ImagePositionPatient": [4, 0, 2]}})
    with pytest.raises(FormatError, match="slice 2 lies 4 mm beside"):
        images.read(tmp_path)


def test_slices_without_position_need_lenient(tmp_path, volume):
    for path in save_series(tmp_path, volume):
        ds = pydicom.dcmread(path)
        del ds.ImagePositionPatient
        ds.save_as(path)
    with pytest.raises(FormatError, match="no position"):
        images.read(tmp_path)
    np.testing.assert_array_equal(images.read(tmp_path, strict=False).array, volume)


def test_copies_of_a_file_are_left_out(tmp_path, volume):
    paths = save_series(tmp_path, volume)
    shutil.copy(paths[2], tmp_path / "copy.dcm")
    np.testing.assert_array_equal(images.read(tmp_path).array, volume)


def test_one_file_of_a_series_is_a_2d_image_with_its_place(tmp_path, volume):
    paths = save_series(tmp_path, volume, origin=(1, 2, 3), step=2.0, SliceThickness=1.5)
    image = images.read(paths[4])
    assert image.kind == "image"
    assert image.shape == (9, 11)
    np.testing.assert_allclose(image.geometry.origin, (1, 2, 11))
    np.testing.assert_allclose(image.affine[:3, 0], (0, 0, 1.5))
    np.testing.assert_array_equal(image.array, volume[4])


def test_nothing_is_read_before_it_is_asked_for(tmp_path, volume):
    paths = save_series(tmp_path, volume)
    image = images.read(tmp_path)
    paths[0].unlink()
    np.testing.assert_array_equal(image.slice_at(3), volume[3])
    assert not image.is_loaded
    with pytest.raises(FormatError, match="no such file"):
        _ = image.array


# Choices


def test_two_series_must_be_chosen_between(tmp_path, volume):
    uids = ["1.2.3.100", "1.2.3.2007"]
    save_series(tmp_path / "a", volume, SeriesInstanceUID=uids[0], SeriesDescription="Thorax 1.0")
    save_series(tmp_path / "b", volume[:4] + 1, SeriesInstanceUID=uids[1], SeriesDescription="Head")
    with pytest.raises(SeriesChoice, match=r"2 images; choose one with series= \(--series\)") as e:
        images.read(tmp_path)
    assert "\n" not in str(e.value)
    assert e.value.series == {
        uids[0]: "CT · 6 slices · 11×9 · Thorax 1.0",
        uids[1]: "CT · 4 slices · 11×9 · Head",
    }
    for choice in (uids[1], "2007", "2", 2):
        np.testing.assert_array_equal(images.read(tmp_path, series=choice).array, volume[:4] + 1)
    for wrong in ("3", "1.2.9", 0):
        with pytest.raises(SeriesChoice, match="is none of them"):
            images.read(tmp_path, series=wrong)


def test_time_points_at_each_position_are_choices(tmp_path, volume):
    uid = "1.2.3.4"
    for phase in range(2):
        save_series(
            tmp_path / str(phase),
            volume + phase,
            SeriesInstanceUID=uid,
            TemporalPositionIdentifier=phase + 1,
        )
    with pytest.raises(SeriesChoice) as e:
        images.read(tmp_path)
    assert list(e.value.series) == [f"{uid}:1", f"{uid}:2"]
    assert "TemporalPositionIdentifier 2" in e.value.series[f"{uid}:2"]
    np.testing.assert_array_equal(images.read(tmp_path, series=":2").array, volume + 1)


def test_repeats_without_a_telling_element_are_split_by_instance_number(tmp_path, volume):
    uid = "1.2.3.4"
    for repeat in range(2):
        own = {k: {"InstanceNumber": 2 * k + repeat} for k in range(len(volume))}
        save_series(tmp_path / str(repeat), volume + repeat, SeriesInstanceUID=uid, per_slice=own)
    with pytest.raises(SeriesChoice, match="repeat 1 of 2 by InstanceNumber"):
        images.read(tmp_path)
    np.testing.assert_array_equal(images.read(tmp_path, series=2).array, volume + 1)


def test_positions_doubled_here_and_there_are_an_error(tmp_path, volume):
    place = {"ImagePositionPatient": [0, 0, 2]}
    save_series(tmp_path, volume, per_slice={3: place})
    with pytest.raises(FormatError, match=r"5 positions, some more than once.*strict=False"):
        images.read(tmp_path)
    assert images.read(tmp_path, strict=False).shape == volume.shape


def test_localizer_in_the_series_is_apart(tmp_path, volume):
    uid = "1.2.3.4"
    save_series(tmp_path / "s", volume, SeriesInstanceUID=uid)
    save_series(
        tmp_path / "l",
        volume[:1, :5, :7],
        SeriesInstanceUID=uid,
        orientation=(0, 1, 0, 0, 0, -1),
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    with pytest.raises(SeriesChoice, match="CT · 1 image · 7×5 · localizer"):
        images.read(tmp_path)
    image = images.read(tmp_path, series=":2" if images.read(tmp_path, series=1).kind == "image"
                       else ":1")  # fmt: skip
    np.testing.assert_array_equal(image.array, volume)


def test_frames_at_one_place_are_a_video_in_time(tmp_path, volume, rng):
    times = {k: {"TriggerTime": 40.0 * k, "ImagePositionPatient": [0, 0, 5]} for k in range(6)}
    save_series(tmp_path, volume, rng=rng, per_slice=times, sop_class=MR, modality="MR")
    image = images.read(tmp_path)
    assert image.kind == "video"
    np.testing.assert_array_equal(image.array, volume)


def test_other_objects_in_the_folder_are_no_images(tmp_path, volume):
    save_series(tmp_path, volume)
    report = image_dataset(volume[0], sop_class="1.2.840.10008.5.1.4.1.1.88.11", modality="SR")
    del report.PixelData
    save(report, tmp_path / "report.dcm")
    (tmp_path / "notes.txt").write_text("not DICOM")
    assert images.read(tmp_path).shape == volume.shape
    with pytest.raises(FormatError, match="holds no pixels; it says it is: Basic Text SR"):
        images.read(tmp_path / "report.dcm")


def test_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("not DICOM")
    assert not images.sniff(tmp_path, b"")
    with pytest.raises(FormatError, match="holds no DICOM image"):
        images.read(tmp_path)


# Values


def test_rescale_keeps_integers_where_they_are_exact(tmp_path, rng):
    stored = rng.integers(0, 4096, (3, 5, 5), dtype=np.uint16)
    save_series(tmp_path, stored, BitsStored=12, HighBit=11, RescaleSlope=1, RescaleIntercept=-1024)
    image = images.read(tmp_path)
    assert image.dtype == image.array.dtype == np.int16
    np.testing.assert_array_equal(image.array, stored.astype(int) - 1024)


def test_sixteen_bits_with_offset_do_not_wrap(tmp_path):
    stored = np.array([[-32768, 32767]], dtype=np.int16)
    ds = image_dataset(stored)
    image = images.read(save(ds, tmp_path / "a.dcm", RescaleSlope=1, RescaleIntercept=-1024))
    np.testing.assert_array_equal(image.array, [[-33792, 31743]])


def test_slopes_that_differ_by_slice_as_in_pet(tmp_path, rng):
    stored = rng.integers(0, 30000, (4, 5, 6), dtype=np.int16)
    slopes = [0.5, 1.25, 2.0, 0.01]
    own = {k: {"RescaleSlope": slope, "RescaleIntercept": 0} for k, slope in enumerate(slopes)}
    save_series(tmp_path, stored, per_slice=own, sop_class=PET, modality="PT")
    image = images.read(tmp_path)
    assert image.array.dtype == np.float32
    np.testing.assert_allclose(image.array, stored * np.reshape(slopes, (4, 1, 1)), rtol=1e-6)
    np.testing.assert_array_equal(image.slice_at(2), image.array[2])


def test_spare_bits_are_cut_and_signs_extended(tmp_path):
    stored = np.array([[0x0FFF, 0xF001], [0x1800, 0x07FF]], dtype=np.uint16)
    ds = image_dataset(stored, sop_class=MR, modality="MR")
    image = images.read(
        save(ds, tmp_path / "a.dcm", BitsStored=12, HighBit=11, PixelRepresentation=1)
    )
    np.testing.assert_array_equal(image.array, [[-1, 1], [-2048, 2047]])


def test_modality_lookup_table(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [4, 10, 16]
    table.LUTData = np.array([500, 600, 700, 65000], dtype=np.uint16).tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    ds = image_dataset(np.array([[0, 10, 11], [12, 13, 200]], dtype=np.uint8), modality="OT")
    image = images.read(save(ds, tmp_path / "a.dcm", ModalityLUTSequence=[table]))
    np.testing.assert_array_equal(image.array, [[500, 500, 600], [700, 65000, 65000]])


def test_float_pixels(tmp_path, rng):
    values = rng.normal(size=(4, 5)).astype(np.float32)
    ds = image_dataset(values, sop_class="1.2.840.10008.5.1.4.1.1.30", modality="MR")
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.FloatPixelData = values.tobytes()
    image = images.read(save(ds, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.array, values)


def test_palette_colours(tmp_path):
    ds = image_dataset(np.array([[0, 1], [2, 2]], dtype=np.uint8), modality="US")
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for colour, entries in (("Red", (0, 255, 9)), ("Green", (10, 20, 30)), ("Blue", (1, 2, 3))):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [3, 0, 16])
        content = (np.array(entries, dtype=np.uint16) * 257).tobytes()
        setattr(ds, f"{colour}PaletteColorLookupTableData", content)
    image = images.read(save(ds, tmp_path / "a.dcm"))
    expected = [[[0, 10, 1], [255, 20, 2]], [[9, 30, 3], [9, 30, 3]]]
    np.testing.assert_array_equal(image.array, expected)
    np.testing.assert_array_equal(
        images.read(tmp_path / "a.dcm", channel=0).array, [[0, 255], [9, 9]]
    )
    with pytest.raises(FormatError, match="no channel 3"):
        images.read(tmp_path / "a.dcm", channel=3)


def test_planar_and_ybr_colours(tmp_path, rng):
    colours = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    ds = image_dataset(colours, modality="OT")
    ds.PixelData = np.moveaxis(colours, -1, 0).tobytes()
    image = images.read(save(ds, tmp_path / "planar.dcm", PlanarConfiguration=1))
    np.testing.assert_array_equal(image.array, colours)
    grey = np.full((4, 4, 3), 128, dtype=np.uint8)
    grey[..., 0] = 77
    ds = image_dataset(grey, modality="OT")
    ds.PhotometricInterpretation = "YBR_FULL"
    np.testing.assert_array_equal(images.read(save(ds, tmp_path / "ybr.dcm")).array, 77)
    ds = image_dataset(grey, modality="OT")
    ds.PhotometricInterpretation = "YBR_FULL_422"
    ds.PixelData = bytes((10, 20, 128, 128)) * 8
    row = images.read(save(ds, tmp_path / "ybr422.dcm")).array[0, :, 0]
    np.testing.assert_array_equal(row, [10, 20, 10, 20])


# Compression


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        ("1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode),
        ("1.2.840.10008.1.2.4.90", lambda a: imagecodecs.jpeg2k_encode(a, codecformat="j2k")),
        ("1.2.840.10008.1.2.4.91", lambda a: imagecodecs.jpeg2k_encode(a, codecformat="j2k")),
        ("1.2.840.10008.1.2.4.70", encode_lossless_jpeg),
        ("1.2.840.10008.1.2.4.57", encode_lossless_jpeg),
        ("1.2.840.10008.1.2.5", encode_rle),
        ("1.2.840.10008.1.2.4.201", imagecodecs.htj2k_encode),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossless_compression_returns_the_pixels(tmp_path, rng, syntax, encode, dtype):
    stack = rng.integers(0, np.iinfo(dtype).max, (3, 16, 24), dtype=dtype)
    frames = [bytes(encode(plane)) for plane in stack]
    ds = image_dataset(stack, sop_class=US_MULTIFRAME, modality="US")
    compress(ds, syntax, frames)
    image = images.read(save(ds, tmp_path / "a.dcm", FrameTime=40))
    np.testing.assert_array_equal(image.array, stack)
    np.testing.assert_array_equal(image.slice_at(1), stack[1])


def test_deflated_frames(rng):
    plane = rng.integers(0, 4000, (6, 7, 1), dtype=np.uint16)
    syntax = {"syntax": "1.2.840.10008.1.2.8.1", "itemsize": 2, "photometric": "MONOCHROME2"}
    pixels, _ = _codecs.decode(deflate(plane), shape=(6, 7, 1), **syntax)
    np.testing.assert_array_equal(pixels, plane)
    with pytest.raises(ValueError, match="of 112 bytes"):
        _codecs.decode(deflate(plane), shape=(8, 7, 1), **syntax)


JPEG_SYNTAXES = {
    "baseline": "1.2.840.10008.1.2.4.50",
    "lossless": "1.2.840.10008.1.2.4.70",
    "LS": "1.2.840.10008.1.2.4.80",
    "2000": "1.2.840.10008.1.2.4.90",
    "RLE": "1.2.840.10008.1.2.5",
    "deflated frames": "1.2.840.10008.1.2.8.1",
    "explicit": "1.2.840.10008.1.2.1",
    "implicit": "1.2.840.10008.1.2",
}
JPEG_ENCODERS = {
    "baseline": lambda plane: imagecodecs.jpeg8_encode(plane, level=100),
    "lossless": lambda plane: imagecodecs.ljpeg_encode(plane),
    "LS": lambda plane: imagecodecs.jpegls_encode(plane),
    "2000": lambda plane: imagecodecs.jpeg2k_encode(
        plane, codecformat="j2k", reversible=True, level=0
    ),
}


@pytest.mark.parametrize("kind", JPEG_ENCODERS)
@pytest.mark.parametrize("stated", JPEG_SYNTAXES)
def test_jpeg_under_another_transfer_syntax(tmp_path, caplog, kind, stated):
    y, x = np.mgrid[0:16, 0:24]
    plane = np.asarray(y * 5 + x * 3, dtype=np.uint8)
    ds = image_dataset(plane, sop_class=MR, modality="MR")
    compress(ds, JPEG_SYNTAXES[kind], [JPEG_ENCODERS[kind](plane)])
    path = save(ds, tmp_path / "a.dcm")
    meta, wrong = JPEG_SYNTAXES[kind].encode(), JPEG_SYNTAXES[stated].encode()
    size = len(meta) + len(meta) % 2
    content = path.read_bytes()
    old = b"\2\0\x10\0UI" + struct.pack("<H", size) + meta.ljust(size, b"\0")
    assert content.count(old) == 1
    new = b"\2\0\x10\0UI" + struct.pack("<H", size) + wrong.ljust(size, b"\0")
    if stated == "implicit":
        new = new.replace(wrong, b"1.2.840.10008.1.2.1")  # one that the data set is really in
    path.write_bytes(content.replace(old, new[: len(old)]))
    with caplog.at_level(logging.WARNING):
        found = images.read(path).array
    np.testing.assert_allclose(found.astype(int), plane, atol=0 if kind != "baseline" else 3)
    is_near = {kind, stated} == {"baseline", "lossless"} and kind == "baseline"
    assert ("read as such" in caplog.text) == (kind != stated and not is_near)


@pytest.mark.parametrize("kind", JPEG_ENCODERS)
@pytest.mark.parametrize("wrapped", [True, False])
def test_jpeg_as_if_it_were_plain_pixels(tmp_path, kind, wrapped):
    """Under explicit VR little endian, with a defined length, with and without items."""
    y, x = np.mgrid[0:32, 0:24]
    plane = np.asarray(y * 5 + x * 3, dtype=np.uint8)
    ds = image_dataset(plane, sop_class=MR, modality="MR")
    encoded = JPEG_ENCODERS[kind](plane)
    assert len(encoded) < plane.size
    ds.PixelData = encapsulate([encoded]) if wrapped else encoded + b"\0" * (len(encoded) % 2)
    path = save(ds, tmp_path / "a.dcm")
    np.testing.assert_allclose(images.read(path).array.astype(int), plane, atol=3)


def test_twelve_bit_jpeg_is_close(tmp_path):
    ramp = np.linspace(0, 4095, 32 * 32).reshape(32, 32).astype(np.uint16)
    ds = image_dataset(ramp, sop_class=MR, modality="MR")
    encoded = imagecodecs.jpeg8_encode(ramp, level=98, bitspersample=12)
    compress(ds, "1.2.840.10008.1.2.4.51", [encoded])
    image = images.read(save(ds, tmp_path / "a.dcm", BitsStored=12, HighBit=11))
    assert np.abs(image.array.astype(int) - ramp).max() < 40


def test_one_frame_in_several_fragments(tmp_path, rng):
    plane = rng.integers(0, 4000, (32, 32), dtype=np.uint16)
    encoded = imagecodecs.jpegls_encode(plane)
    ds = image_dataset(plane, sop_class=MR, modality="MR")
    compress(ds, "1.2.840.10008.1.2.4.80", [encoded])
    ds.PixelData = pydicom.encaps.encapsulate([encoded], fragments_per_frame=3)
    np.testing.assert_array_equal(images.read(save(ds, tmp_path / "a.dcm")).array, plane)


@pytest.mark.parametrize("has_table", [True, False])
def test_frames_in_fragments_with_and_without_offset_table(tmp_path, rng, has_table):
    stack = rng.integers(0, 4000, (3, 32, 32), dtype=np.uint16)
    ds = image_dataset(stack, sop_class=US_MULTIFRAME, modality="US")
    encoded = [imagecodecs.jpegls_encode(p) for p in stack]
    compress(ds, "1.2.840.10008.1.2.4.80", encoded)
    ds.PixelData = pydicom.encaps.encapsulate(encoded, fragments_per_frame=2, has_bot=has_table)
    np.testing.assert_array_equal(images.read(save(ds, tmp_path / "a.dcm")).array, stack)


def test_codestream_of_another_size_is_refused_before_decoding(tmp_path):
    ds = image_dataset(np.zeros((16, 16), dtype=np.uint8), modality="OT")
    bomb = imagecodecs.jpegls_encode(np.zeros((4096, 4096), dtype=np.uint8))
    compress(ds, "1.2.840.10008.1.2.4.80", [bomb])
    image = images.read(save(ds, tmp_path / "a.dcm"))
    with pytest.raises(FormatError, match="claims 4096×4096 pixels where the header says 16×16"):
        _ = image.array


def test_jpegls_parameters_that_hang_the_decoder_are_refused(tmp_path, rng):
    plane = rng.integers(0, 60000, (64, 64), dtype=np.uint16)
    encoded = imagecodecs.jpegls_encode(plane)
    scan = encoded.index(b"\xff\xda")
    preset = b"\xff\xf8" + struct.pack(">HB5H", 13, 1, 65373, 18, 67, 26900, 1280)
    ds = image_dataset(plane, sop_class=MR, modality="MR")
    compress(ds, "1.2.840.10008.1.2.4.80", [encoded[:scan] + preset + encoded[scan:]])
    image = images.read(save(ds, tmp_path / "a.dcm"))
    with pytest.raises(FormatError, match="preset parameters out of range"):
        _ = image.array


def test_unsupported_compression_is_named(tmp_path):
    ds = image_dataset(np.zeros((16, 16), dtype=np.uint8), modality="OT")
    compress(ds, "1.2.840.10008.1.2.4.94", [b"\0" * 64])
    with pytest.raises(FormatError, match="JPIP Referenced"):
        images.read(save(ds, tmp_path / "a.dcm"))


def test_video_stream(tmp_path, rng):
    av = pytest.importorskip("av", reason="needs PyAV: pip install 'limner[video]'")
    levels = (30, 90, 150, 200, 230)
    texture = rng.integers(-20, 20, (48, 64, 1))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in levels:
            pixels = np.repeat(texture + level, 3, axis=-1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    ds = image_dataset(np.zeros((5, 48, 64, 3), dtype=np.uint8), modality="ES")
    compress(ds, "1.2.840.10008.1.2.4.100", [buffer.getvalue()])
    ds.PhotometricInterpretation = "YBR_PARTIAL_420"
    path = save(ds, tmp_path / "a.dcm", FrameTime=40)
    image = images.read(path)
    assert image.kind == "video"
    assert image.shape == (5, 48, 64, 3)
    np.testing.assert_allclose(image.array.mean(axis=(1, 2, 3)), levels, atol=4)
    again = images.read(path)
    for k in (3, 1, 4):
        np.testing.assert_array_equal(again.slice_at(k), image.array[k])
    with pytest.raises(FormatError, match="stream ends at 5"):
        _ = images.read(save(ds, path, NumberOfFrames=6)).array


# Multi-frame


def test_enhanced_multiframe_is_sorted_by_position(tmp_path, rng):
    stack = rng.integers(0, 3000, (5, 7, 8), dtype=np.uint16)
    order = rng.permutation(5)
    ds = enhanced_dataset(
        stack[order], [(1.0, 2.0, 3.0 + 2.0 * k) for k in order], spacing=(0.5, 0.6), thickness=2.5
    )
    image = images.read(save(ds, tmp_path / "a.dcm", BitsStored=12, HighBit=11))
    assert image.kind == "volume"
    assert image.spacing == pytest.approx((2.0, 0.5, 0.6))
    assert image.geometry.origin == (1, 2, 3)
    np.testing.assert_array_equal(image.array, stack.astype(int) - 1000)
    assert image.metadata["sources"]["frames"] == list(np.argsort(order))


def test_enhanced_multiframe_with_time_points_is_a_choice(tmp_path, rng):
    stack = rng.integers(0, 3000, (6, 7, 8), dtype=np.uint16)
    places = [(0.0, 0.0, float(k % 3)) for k in range(6)]
    ds = enhanced_dataset(stack, places, temporal=[1, 1, 1, 2, 2, 2])
    path = save(ds, tmp_path / "a.dcm")
    with pytest.raises(SeriesChoice, match="TemporalPositionIndex 1"):
        images.read(path)
    np.testing.assert_array_equal(images.read(path, series=2).array, stack[3:].astype(int) - 1000)


def test_ultrasound_cine_is_a_video_with_region_spacing(tmp_path, rng):
    frames = rng.integers(0, 256, (4, 10, 12, 3), dtype=np.uint8)
    region = Dataset()
    region.RegionSpatialFormat = 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.03, -0.05
    ds = image_dataset(frames, sop_class=US_MULTIFRAME, modality="US")
    path = save(ds, tmp_path / "a.dcm", FrameTime=33.3, SequenceOfUltrasoundRegions=[region])
    image = images.read(path)
    assert image.kind == "video"
    assert image.shape == (4, 10, 12, 3)
    assert image.spacing[1:] == pytest.approx((0.5, 0.3))
    assert image.metadata["frame_time_ms"] == pytest.approx(33.3)
    np.testing.assert_array_equal(image.array, frames)


def test_slices_without_position_in_one_file_are_a_volume(tmp_path, rng):
    stack = rng.integers(0, 255, (4, 5, 6), dtype=np.uint8)
    ds = image_dataset(stack, sop_class="1.2.840.10008.5.1.4.1.1.77.1.5.4", modality="OPT")
    image = images.read(save(ds, tmp_path / "a.dcm", PixelSpacing=[0.1, 0.2], SliceThickness=0.5))
    assert image.kind == "volume"
    assert image.spacing == pytest.approx((0.5, 0.1, 0.2))
    np.testing.assert_array_equal(image.array, stack)


def test_dose_grid_is_a_volume_in_gray(tmp_path, rng):
    stored = rng.integers(0, 2**31, (3, 4, 5), dtype=np.uint32)
    ds = image_dataset(stored, sop_class="1.2.840.10008.5.1.4.1.1.481.2", modality="RTDOSE")
    path = save(
        ds,
        tmp_path / "a.dcm",
        ImagePositionPatient=[0, 0, 10],
        ImageOrientationPatient=list(AXIAL),
        PixelSpacing=[2, 2],
        GridFrameOffsetVector=[0, 3, 6],
        DoseGridScaling=1e-6,
    )
    image = images.read(path)
    assert image.spacing == pytest.approx((3, 2, 2))
    np.testing.assert_allclose(image.array, stored * 1e-6, rtol=1e-6)


# Spacing


def test_spacing_unknown_detector_and_impossible(tmp_path, rng):
    ds = image_dataset(rng.integers(0, 99, (4, 5), dtype=np.uint8), sop_class=DX, modality="DX")
    path = save(ds, tmp_path / "a.dcm")
    assert not images.read(path).geometry.has_spacing
    image = images.read(save(ds, path, ImagerPixelSpacing=[0.2, 0.1]))
    assert image.spacing == pytest.approx((0.2, 0.1))
    assert image.metadata["spacing_source"] == "ImagerPixelSpacing"
    image = images.read(save(ds, path, PixelSpacing=[0.3, 0.4]))
    assert image.spacing == pytest.approx((0.3, 0.4))
    for wrong in ([0, 1], [-1, 1]):
        with pytest.raises(FormatError, match=r"PixelSpacing.*must be above 0"):
            images.read(save(ds, path, PixelSpacing=wrong))
        image = images.read(path, strict=False)
        assert not image.geometry.has_spacing
        assert image.shape == (4, 5)


# Odd and damaged files


def test_bare_data_set_without_preamble(tmp_path, volume):
    path = save_series(tmp_path, volume[:1])[0]
    content = path.read_bytes()
    ds = pydicom.dcmread(path)
    ds.file_meta, ds.preamble = FileMetaDataset(), None
    bare = tmp_path / "bare"
    pydicom.dcmwrite(bare, ds, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert bare.read_bytes()[128:132] != b"DICM" == content[128:132]
    assert images.sniff(bare, bare.read_bytes()[:1024])
    np.testing.assert_array_equal(images.read(bare).array, volume[0])


def test_other_bytes_are_not_dicom(tmp_path):
    for name, content in (("a.png", b"\x89PNG\r\n\x1a\n" + bytes(300)), ("b", b""), ("c", b"\x08")):
        path = tmp_path / name
        path.write_bytes(content)
        assert not images.sniff(path, content)
        with pytest.raises(FormatError, match="is not a DICOM file"):
            images.read(path)


def test_truncated_pixels_and_lies_about_frames(tmp_path, volume):
    path = save_series(tmp_path, volume[:1])[0]
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    with pytest.raises(FormatError, match="truncated"):
        images.read(path)
    path.write_bytes(content)
    ds = pydicom.dcmread(path)
    for claim in (2, 10**12):
        with pytest.raises(FormatError, match=f"{claim} frames"):
            images.read(save(ds, path, NumberOfFrames=claim))
    with pytest.raises(FormatError, match="65535"):
        images.read(save(ds, path, NumberOfFrames=1, Rows=65535, Columns=65535))


def test_unreadable_file_in_a_folder(tmp_path, volume):
    paths = save_series(tmp_path, volume)
    broken = tmp_path / "broken.dcm"
    content = paths[0].read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match=r"broken.dcm.*strict=False"):
        images.read(tmp_path)
    np.testing.assert_array_equal(images.read(tmp_path, strict=False).array, volume)


def test_damaged_bytes_never_give_a_traceback(tmp_path, rng):
    plane = rng.integers(0, 4000, (16, 16), dtype=np.uint16)
    plain = image_dataset(plane, sop_class=MR, modality="MR")
    packed = image_dataset(plane, sop_class=MR, modality="MR")
    compress(
        packed, "1.2.840.10008.1.2.4.90", [imagecodecs.jpeg2k_encode(plane, codecformat="j2k")]
    )
    target, outcomes = tmp_path / "damaged.dcm", set()
    for source in (save(plain, tmp_path / "a.dcm"), save(packed, tmp_path / "b.dcm")):
        content = source.read_bytes()
        for _ in range(120):
            damaged = bytearray(content)
            for at in rng.integers(128, len(content), 6):
                damaged[at] = rng.integers(256)
            end = rng.integers(140, len(content)) if rng.random() < 0.5 else len(content)
            target.write_bytes(bytes(damaged[:end]))
            text = refusal(target)
            assert "\n" not in text
            outcomes.add("refused" if text else "read")
    assert outcomes == {"read", "refused"}


def test_damaged_meta_information_does_not_matter(tmp_path, rng):
    path = save(image_dataset(rng.integers(0, 9, (4, 4), dtype=np.uint16)), tmp_path / "a.dcm")
    content = path.read_bytes()
    at = content.index(b"\x02\x00\x02\x00UI") + 4
    path.write_bytes(content[:at] + b"U\xae" + content[at + 2 :])
    assert limner.read(path).array.shape == (4, 4)  # the data set says it again
    with pytest.raises(FormatError, match="not a segmentation"):
        limner.read_labels(path)


def test_dicomdir_is_followed_but_not_out_of_its_folder(tmp_path, volume):
    study = tmp_path / "study"
    for path in save_series(study / "IMAGES", volume):
        path.rename(path.with_suffix(""))
    outside = save_series(tmp_path / "SECRET", volume + 1)[0]
    outside = outside.rename(outside.with_suffix(""))
    records = []
    names = sorted(p.name for p in (study / "IMAGES").iterdir())
    for parts in [*(["IMAGES", n] for n in names), ["..", "SECRET", outside.name]]:
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        with pydicom.config.disable_value_validation():
            record.ReferencedFileID = parts
        records.append(record)
    index = image_dataset(volume[0], sop_class="1.2.840.10008.1.3.10")
    del index.PixelData
    with pydicom.config.disable_value_validation():
        save(index, study / "DICOMDIR", DirectoryRecordSequence=records)
    assert images.sniff(study / "DICOMDIR", (study / "DICOMDIR").read_bytes()[:1024])
    np.testing.assert_array_equal(images.read(study / "DICOMDIR").array, volume)
    np.testing.assert_array_equal(images.read(study).array, volume)


def test_metadata_say_nothing_about_the_patient(tmp_path, volume):
    save_series(tmp_path, volume, PatientName="Doe^Jane", PatientID="X1234", WindowCenter=[40, 50],
                WindowWidth=[400, 300])  # fmt: skip
    metadata = dict(images.read(tmp_path).metadata)
    assert metadata["window_center"] == [40.0, 50.0]
    assert "Doe" not in str(metadata)
    assert "X1234" not in str(metadata)
    assert len(set(metadata["sources"]["sop_instance_uids"])) == len(volume)


def test_siemens_mosaic_is_noted(tmp_path, volume):
    ds = image_dataset(volume[0], sop_class=MR, modality="MR")
    image = images.read(save(ds, tmp_path / "a.dcm", ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]))
    assert "not a volume" in image.metadata["mosaic"]


def pydicom_files() -> list[Path]:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and "dicomdirtests" not in p.parts]


@pytest.mark.parametrize("path", pydicom_files(), ids=lambda p: p.name)
def test_pydicom_files_open_or_say_why_not(path):
    with path.open("rb") as file:
        head = file.read(4096)
    images.sniff(path, head)
    text = refusal(path)
    assert "\n" not in text
    assert not text or path.name in text


@pytest.mark.slow
def test_pydicom_dicomdirs_and_folders_open_or_say_why_not():
    folder = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
    paths = [folder, *(p for p in folder.iterdir() if p.name.startswith("DICOMDIR"))]
    for path in paths:
        with pytest.raises(LimnerError) as e:
            images.read(path)
        assert "\n" not in str(e.value)
    with pytest.raises(SeriesChoice) as choice:
        images.read(folder / "DICOMDIR")
    assert len(choice.value.series) > 5


# Real files


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "twin", "scale"),
    [
        ("sarcoma_ct_rtstruct", "sarcoma_ct", 0),
        ("sarcoma_mr_rtstruct", "sarcoma_mr_t1", 0),
        ("sarcoma_pet_rtstruct", "sarcoma_pet", 1e-5),
    ],
)
def test_real_series_equal_their_nifti_twins(shared_data, name, twin, scale):
    import nibabel

    image = images.read(shared_data / "dicom" / name)
    nifti = nibabel.load(shared_data / "3d" / twin / "images" / "STS_002.nii.gz")
    np.testing.assert_allclose(image.array, np.asarray(nifti.dataobj).T, rtol=scale)
    to_lps = np.diag([-1, -1, 1, 1]) @ nifti.affine
    np.testing.assert_allclose(image.affine[:3, :3], to_lps[:3, 2::-1], atol=1e-4)
    np.testing.assert_allclose(image.affine[:3, 3], to_lps[:3, 3], atol=1e-3)


@pytest.mark.slow
@pytest.mark.shared
def test_all_shared_dicom_files_open(shared_data):
    opened = 0
    for path in sorted((shared_data / "dicom").rglob("*.dcm")):
        text = refusal(path)
        assert not text or "read_labels" in text
        opened += not text
    assert opened >= 150


@pytest.mark.shared
def test_slide_is_put_together_from_its_tiles(shared_data):
    path = shared_data / "dicom" / "highdicom_seg" / "sm_image.dcm"
    image = images.read(path)
    assert image.kind == "image"
    assert image.shape == (50, 50, 3)
    frames = pydicom.dcmread(path).pixel_array
    np.testing.assert_array_equal(image.array[10:20, 30:40], frames[8])


@pytest.mark.parametrize("kind", ["single", "series", "multiframe", "deflated"])
def test_files_compressed_with_gzip_are_read(tmp_path, volume, kind):
    plain = tmp_path / "plain"
    if kind == "series":
        save_series(plain, volume)
    elif kind == "multiframe":
        save(enhanced_dataset(volume, [(0, 0, k) for k in range(len(volume))]), plain / "a.dcm")
    else:
        ds = image_dataset(volume[0])
        if kind == "deflated":
            ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        save(ds, plain / "a.dcm")
    for file in plain.iterdir():
        packed = tmp_path / "packed" / f"{file.name}.gz"
        packed.parent.mkdir(exist_ok=True)
        packed.write_bytes(gzip.compress(file.read_bytes()))
    is_folder = kind == "series"
    expected = limner.read(plain if is_folder else plain / "a.dcm")
    found = limner.read(tmp_path / "packed" if is_folder else tmp_path / "packed" / "a.dcm.gz")
    assert found.format == "dicom"
    assert found.geometry == expected.geometry
    np.testing.assert_array_equal(found.array, expected.array)


def test_gzip_files_that_are_damaged_or_no_dicom(tmp_path, volume):
    path = save(image_dataset(volume[0]), tmp_path / "a.dcm")
    packed = gzip.compress(path.read_bytes())
    (tmp_path / "b.dcm.gz").write_bytes(packed[:-300])
    assert "gzip data end too early" in refusal(tmp_path / "b.dcm.gz")
    (tmp_path / "c.dcm.gz").write_bytes(gzip.compress(b"nothing of the kind"))
    with pytest.raises(FormatError, match="not a DICOM file"):
        limner.read(tmp_path / "c.dcm.gz")
