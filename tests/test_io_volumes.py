"""NIfTI, NRRD, MetaImage and npz against nibabel and SimpleITK, in both directions."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import limner
from limner import Geometry, Image
from limner.errors import FormatError, GeometryError
from limner.io import Labels, write_image
from rounds import times

ITK_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
RAS = np.diag((-1.0, -1.0, 1.0, 1.0))


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random rotation, or reflection, of space."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


def oblique_geometry(rng: np.random.Generator, shape: tuple[int, ...]) -> Geometry:
    """A grid anywhere in space; in 2D within the x-y plane, as ITK's 2D images are."""
    spacing = rng.uniform(0.2, 4.0, len(shape))
    if len(shape) == 3:
        origin = rng.uniform(-200, 200, 3)
        return Geometry.from_spacing(shape, spacing, origin=origin, direction=rotation(rng))
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.eye(3)[:, ::-1].copy()
    direction[:2, 1] = -np.sin(angle), np.cos(angle)
    direction[:2, 2] = np.cos(angle), np.sin(angle)
    origin = (*rng.uniform(-200, 200, 2), 0.0)
    return Geometry.from_spacing(shape, spacing, origin=origin, direction=direction)


def to_itk(array: np.ndarray, geometry: Geometry, *, channels: bool = False) -> sitk.Image:
    """The same image as SimpleITK holds it."""
    n = geometry.ndim
    image = sitk.GetImageFromArray(array, isVector=channels)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin[:n])
    image.SetDirection(geometry.direction[:n, 3 - n :][:, ::-1].ravel())
    return image


def assert_same_grid(image: sitk.Image, geometry: Geometry) -> None:
    n = geometry.ndim
    assert image.GetSize() == geometry.shape[::-1]
    np.testing.assert_allclose(image.GetSpacing(), geometry.spacing[::-1], rtol=1e-5)
    np.testing.assert_allclose(image.GetOrigin(), geometry.origin[:n], rtol=1e-5, atol=1e-4)
    direction = np.reshape(image.GetDirection(), (n, n))[:, ::-1]
    np.testing.assert_allclose(direction, geometry.direction[:n, 3 - n :], atol=1e-5)


def some_pixels(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -3000), min(info.max, 3000), shape).astype(dtype)


# ---------------------------------------------------------------- all of ITK's formats


@pytest.mark.parametrize("suffix", ITK_SUFFIXES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 6, 7), (6, 7)])
def test_reads_what_itk_writes(tmp_path: Path, suffix: str, dtype: str, shape: tuple) -> None:
    rng = np.random.default_rng(len(shape) + len(dtype))
    geometry = oblique_geometry(rng, shape)
    pixels = some_pixels(rng, shape, dtype)
    path = tmp_path / f"image{suffix}"
    sitk.WriteImage(to_itk(pixels, geometry), path, useCompression=True)

    image = limner.read(path)

    assert not image.is_loaded
    assert image.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(image.array, pixels)
    assert image.geometry.is_close(geometry), (image.geometry, geometry)
    assert image.geometry.has_spacing


@pytest.mark.parametrize("suffix", ITK_SUFFIXES)
@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 6, 7), (6, 7)])
@pytest.mark.parametrize("top", [3, 300, 70000])
def test_itk_reads_what_we_write(tmp_path: Path, suffix: str, shape: tuple, top: int) -> None:
    rng = np.random.default_rng(top)
    geometry = oblique_geometry(rng, shape)
    labels = rng.integers(0, top, shape)
    labels.flat[0] = top
    path = tmp_path / f"labels{suffix}"

    limner.write(path, labels, like=geometry)

    image = sitk.ReadImage(path)
    assert_same_grid(image, geometry)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), labels)
    ours = limner.read_labels(path, like=geometry)
    np.testing.assert_array_equal(ours.to_array(), labels)
    assert limner.read(path).dtype == np.min_scalar_type(top)
    assert ours.geometry == geometry


@pytest.mark.parametrize("suffix", ITK_SUFFIXES)
def test_colour_goes_both_ways(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(3)
    geometry = oblique_geometry(rng, (4, 5, 6))
    pixels = some_pixels(rng, (4, 5, 6, 3), "uint8")
    theirs, ours = tmp_path / f"theirs{suffix}", tmp_path / f"ours{suffix}"
    sitk.WriteImage(to_itk(pixels, geometry, channels=True), theirs)
    write_image(ours, Image(pixels, geometry))

    for path in (theirs, ours):
        image = limner.read(path)
        assert image.num_channels == 3
        np.testing.assert_array_equal(image.array, pixels)
        assert image.geometry.is_close(geometry)
        green = limner.read(path, channel=1)
        assert green.num_channels is None
        np.testing.assert_array_equal(green.array, pixels[..., 1])
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), pixels)
        with pytest.raises(FormatError, match="no channel 3"):
            limner.read(path, channel=3)


@pytest.mark.parametrize("suffix", ITK_SUFFIXES)
@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
def test_images_are_written_as_they_are(tmp_path: Path, suffix: str, dtype: str) -> None:
    rng = np.random.default_rng(4)
    geometry = oblique_geometry(rng, (3, 4, 5))
    pixels = some_pixels(rng, geometry.shape, dtype)
    path = tmp_path / f"image{suffix}"
    write_image(path, Image(pixels, geometry))
    again = limner.read(path)
    assert again.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(again.array, pixels)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), pixels)
    assert again.geometry.is_close(geometry)


@settings(
    max_examples=times(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    suffix=st.sampled_from(ITK_SUFFIXES),
)
def test_any_grid_survives(tmp_path: Path, seed: int, shape: tuple, suffix: str) -> None:
    rng = np.random.default_rng(seed)
    geometry = oblique_geometry(rng, shape)
    labels = rng.integers(0, 5, shape).astype(np.uint8)
    path = tmp_path / f"labels{suffix}"
    limner.write(path, labels, like=geometry)
    again = limner.read(path)
    np.testing.assert_array_equal(again.array, labels)
    # NRRD and MetaImage are text: exact but for the division by the spacing. NIfTI-1 is float32.
    assert again.geometry.is_close(geometry, tolerance=1e-3 if ".nii" in suffix else 1e-9)


def test_planes_are_read_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    pixels = some_pixels(rng, (6, 7, 8), "int16")
    nibabel.save(nibabel.Nifti1Image(pixels.T, np.eye(4)), tmp_path / "a.nii")
    big = nibabel.Nifti1Header(endianness=">")
    big.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(pixels.T, np.eye(4), big), tmp_path / "b.nii")
    sitk.WriteImage(sitk.GetImageFromArray(pixels), tmp_path / "c.mha")
    sitk.WriteImage(sitk.GetImageFromArray(pixels), tmp_path / "d.nrrd")
    for path in sorted(tmp_path.iterdir()):
        image = limner.read(path)
        plane = image.slice_at(4)
        assert not image.is_loaded
        assert plane.dtype == np.int16
        np.testing.assert_array_equal(plane, pixels[4])
    assert len({limner.read(p).pixel_hash() for p in tmp_path.iterdir()}) == 1


# ---------------------------------------------------------------- NIfTI


def nifti(path: Path, pixels: np.ndarray, affine: np.ndarray | None = None, **fields) -> Path:
    """A NIfTI file by nibabel, with raw header fields set afterwards."""
    kind = nibabel.Nifti2Image if fields.pop("version", 1) == 2 else nibabel.Nifti1Image
    nibabel.save(kind(pixels, np.eye(4) if affine is None else affine), path)
    if fields:
        patch_header(path, **fields)
    return path


def patch_header(path: Path, **fields) -> None:
    content = path.read_bytes()
    packed = content[:2] == b"\x1f\x8b"
    content = gzip.decompress(content) if packed else content
    kind = nibabel.Nifti2Header if content[:4] == (540).to_bytes(4, "little") else None
    kind = kind or nibabel.Nifti1Header
    header = kind(content[: kind.sizeof_hdr], check=False)
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + content[kind.sizeof_hdr :]
    path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (1, 2), (0, 0)])
@pytest.mark.parametrize("version", [1, 2])
def test_masks_repeat_the_header_exactly(tmp_path: Path, codes: tuple, version: int) -> None:
    rng = np.random.default_rng(codes[0] * 10 + codes[1])
    affine = np.eye(4)
    affine[:3, :3] = rotation(rng) * rng.uniform(0.3, 3, 3)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    path = tmp_path / "ct.nii.gz"
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    source = kind(rng.integers(-9, 9, (7, 6, 5)).astype(np.int16), affine)
    source.set_sform(affine, codes[0])
    source.set_qform(affine, codes[1])
    nibabel.save(source, path)
    stored = nibabel.load(path)

    image = limner.read(path)
    np.testing.assert_array_equal(image.affine[:, [2, 1, 0, 3]], RAS @ stored.affine)
    limner.write(tmp_path / "mask.nii.gz", image.array > 0, like=image)

    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert mask.shape == stored.shape
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, stored.affine)
    for name in ("sform_code", "qform_code", "xyzt_units", "pixdim", "srow_x", "quatern_b"):
        np.testing.assert_array_equal(mask.header[name], stored.header[name])
    assert mask.header["sizeof_hdr"] == stored.header["sizeof_hdr"]
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(stored.dataobj) > 0)


def test_rescale_is_applied_only_where_there_is_one(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    plain = limner.read(nifti(tmp_path / "plain.nii", pixels))
    assert plain.dtype == np.int16
    zero = limner.read(nifti(tmp_path / "zero.nii", pixels, scl_slope=0, scl_inter=5))
    assert zero.dtype == np.int16
    scaled = limner.read(nifti(tmp_path / "scaled.nii", pixels, scl_slope=0.5, scl_inter=-3))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.array, pixels.T * 0.5 - 3)
    np.testing.assert_allclose(scaled.slice_at(1), scaled.array[1])
    np.testing.assert_allclose(scaled.array, nibabel.load(tmp_path / "scaled.nii").get_fdata().T)
    wide = nifti(tmp_path / "wide.nii", pixels.astype(np.int32), scl_slope=2, scl_inter=0)
    assert limner.read(wide).dtype == np.float64


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_units_become_millimetres(tmp_path: Path, unit: int, factor: float) -> None:
    affine = np.diag((2.0, 3.0, 4.0, 1.0))
    affine[:3, 3] = 5, 6, 7
    path = nifti(tmp_path / "a.nii", np.zeros((4, 3, 2), np.uint8), affine, xyzt_units=unit)
    image = limner.read(path)
    np.testing.assert_allclose(image.spacing, np.array((4, 3, 2)) * factor)
    np.testing.assert_allclose(image.geometry.origin, np.array((-5, -6, 7)) * factor)
    limner.write(tmp_path / "b.nii", np.zeros((2, 3, 4), np.uint8), like=image)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "b.nii").affine, affine)
    assert limner.read(tmp_path / "b.nii").geometry == image.geometry


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_time_points_are_channels(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 99, (5, 4, 3, 6)).astype(np.int16)
    path = nifti(tmp_path / f"series{suffix}", pixels)
    image = limner.read(path)
    assert image.shape == (3, 4, 5, 6)
    np.testing.assert_array_equal(image.array, pixels.transpose(2, 1, 0, 3))
    np.testing.assert_array_equal(image.slice_at(2), pixels[:, :, 2].transpose(1, 0, 2))
    one = limner.read(path, channel=4)
    assert one.shape == (3, 4, 5)
    np.testing.assert_array_equal(one.slice_at(1), pixels[:, :, 1, 4].T)
    np.testing.assert_array_equal(one.array, pixels[..., 4].T)
    limner.write(tmp_path / "mask.nii.gz", one.array > 9, like=one)
    assert nibabel.load(tmp_path / "mask.nii.gz").shape == (5, 4, 3)
    np.testing.assert_array_equal(
        nibabel.load(tmp_path / "mask.nii.gz").affine, nibabel.load(path).affine
    )


def test_a_single_time_point_is_no_channel(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", np.ones((5, 4, 3, 1), np.uint8))
    assert limner.read(path).shape == (3, 4, 5)


def test_rgb_type(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (5, 4, 3, 3)).astype(np.uint8)
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = nifti(tmp_path / "a.nii.gz", pixels.copy().view(rgb).reshape(5, 4, 3))
    image = limner.read(path)
    np.testing.assert_array_equal(image.array, pixels.transpose(2, 1, 0, 3))


def test_two_dimensional(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(4, 3)
    path = nifti(tmp_path / "a.nii.gz", pixels, np.diag((2.0, 3.0, 1.0, 1.0)))
    image = limner.read(path)
    assert image.kind == "image"
    assert image.spacing == (3.0, 2.0)
    np.testing.assert_array_equal(image.array, pixels.T)
    limner.write(tmp_path / "b.nii.gz", image.array > 5, like=image)
    again = nibabel.load(tmp_path / "b.nii.gz")
    assert again.shape == (4, 3)
    np.testing.assert_array_equal(again.affine, nibabel.load(path).affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("field", ["pixdim", "srow"])
def test_one_slice_may_lack_its_thickness(tmp_path: Path, axis: int, field: str) -> None:
    shape = [4, 5, 6]
    shape[axis] = 1
    path = nifti(tmp_path / "a.nii", np.zeros(shape, np.uint8), np.diag((2.0, 2.0, 2.0, 1.0)))
    pixdim = [1.0, 2, 2, 2, 1, 1, 1, 1]
    pixdim[axis + 1] = 0
    patch_header(path, pixdim=pixdim)
    if field == "srow":
        patch_header(path, **{f"srow_{'xyz'[axis]}": [0, 0, 0, 0]})
    image = limner.read(path)
    assert image.spacing[2 - axis] == (1.0 if field == "srow" else 2.0)
    limner.write(tmp_path / "b.nii", np.ones(image.shape, np.uint8), like=image)
    assert limner.read(tmp_path / "b.nii").geometry.is_close(image.geometry)


@pytest.mark.parametrize("packed", [False, True])
def test_pairs(tmp_path: Path, packed: bool) -> None:
    pixels = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    nibabel.save(nibabel.Nifti1Pair(pixels, np.eye(4)), tmp_path / "a.img")
    if packed:
        (tmp_path / "a.img.gz").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
        (tmp_path / "a.img").unlink()
    image_name = "a.img.gz" if packed else "a.img"
    for name in ("a.hdr", image_name):
        np.testing.assert_array_equal(limner.read(tmp_path / name).array, pixels.T)
    (tmp_path / image_name).unlink()
    with pytest.raises(FormatError, match="half of a"):
        limner.read(tmp_path / "a.hdr")


def test_analyze_is_refused_because_left_is_unknown(tmp_path: Path) -> None:
    nibabel.save(nibabel.AnalyzeImage(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "a.img")
    for name in ("a.hdr", "a.img"):
        with pytest.raises(FormatError, match=r"ANALYZE 7\.5"):
            limner.read(tmp_path / name)


def test_neither_sform_nor_qform(tmp_path: Path) -> None:
    pixels = np.zeros((5, 4, 3), np.uint8)
    fields = {"sform_code": 0, "qform_code": 0, "xyzt_units": 0}
    bare = limner.read(nifti(tmp_path / "bare.nii", pixels, **fields))
    assert not bare.geometry.has_spacing
    sized = nifti(tmp_path / "sized.nii", pixels, **fields, pixdim=[1, 2, 3, 4, 1, 1, 1, 1])
    image = limner.read(sized)
    assert image.geometry.has_spacing
    assert image.spacing == (4.0, 3.0, 2.0)
    expected = RAS @ nibabel.load(sized).affine
    np.testing.assert_array_equal(image.affine[:, [2, 1, 0, 3]], expected)


def test_a_useless_sform_gives_way_to_the_qform(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    affine = np.diag((2.0, 3.0, 4.0, 1.0))
    zeros = {name: [0, 0, 0, 0] for name in ("srow_x", "srow_y", "srow_z")}
    path = nifti(tmp_path / "a.nii", np.zeros((5, 4, 3), np.uint8), affine, **zeros)
    patch_header(path, qform_code=1, sform_code=1)
    with caplog.at_level(logging.WARNING):
        assert limner.read(path).spacing == (4.0, 3.0, 2.0)
    assert "the qform is used" in caplog.text
    patch_header(path, qform_code=0)
    with pytest.raises(GeometryError, match="sform"):
        limner.read(path)


def test_gzip_of_several_members(tmp_path: Path) -> None:
    pixels = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    plain = nifti(tmp_path / "a.nii", pixels).read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(plain[:400]) + gzip.compress(plain[400:]) + b"\0" * 100)
    np.testing.assert_array_equal(limner.read(path).array, pixels.T)


def test_axes_longer_than_nifti1_can_say(tmp_path: Path) -> None:
    labels = np.zeros((2, 40000), np.uint8)
    labels[1, 39999] = 1
    limner.write(tmp_path / "a.nii.gz", labels, like=Geometry(labels.shape))
    again = nibabel.load(tmp_path / "a.nii.gz")
    assert isinstance(again, nibabel.Nifti2Image)
    np.testing.assert_array_equal(np.asarray(again.dataobj).T, labels)
    np.testing.assert_array_equal(limner.read(tmp_path / "a.nii.gz").array, labels)


def test_same_mask_same_bytes(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
        limner.write(first, labels, like=Geometry(labels.shape))
        limner.write(second, labels, like=Geometry(labels.shape))
        assert first.read_bytes() == second.read_bytes()


# ---------------------------------------------------------------- NRRD


def nrrd_file(path: Path, *lines: str, pixels: bytes = b"") -> Path:
    path.write_bytes("\n".join(["NRRD0005", *lines, "", ""]).encode() + pixels)
    return path


GRID = ("dimension: 3", "sizes: 4 3 2", "type: short", "endian: little")
PIXELS = np.arange(24, dtype="<i2").reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("raw", bytes),
        ("gzip", gzip.compress),
        ("gz", gzip.compress),
        ("bzip2", bz2.compress),
        ("ascii", lambda b: " ".join(map(str, np.frombuffer(b, "<i2"))).encode()),
    ],
)
def test_nrrd_encodings(tmp_path: Path, encoding: str, pack) -> None:
    path = nrrd_file(
        tmp_path / "a.nrrd", *GRID, f"encoding: {encoding}", pixels=pack(PIXELS.tobytes())
    )
    image = limner.read(path)
    assert not image.geometry.has_spacing
    assert image.dtype == np.int16
    np.testing.assert_array_equal(image.array, PIXELS)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("LPS", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
        ("scanner-xyz", (1, 1, 1)),
    ],
)
def test_nrrd_spaces(tmp_path: Path, space: str, signs: tuple) -> None:
    lines = (*GRID, "encoding: raw", f"space: {space}")
    directions = "space directions: (0,2,0) (0.5,0,0) (0,0,3)"
    path = nrrd_file(
        tmp_path / "a.nrrd", *lines, directions, "space origin: (1,2,3)", pixels=PIXELS.tobytes()
    )
    image = limner.read(path)
    np.testing.assert_allclose(image.geometry.origin, np.array((1, 2, 3)) * signs)
    np.testing.assert_allclose(image.affine[:3, 2], np.array((0, 2, 0)) * signs)
    np.testing.assert_allclose(image.affine[:3, 1], np.array((0.5, 0, 0)) * signs)
    assert_same_grid(sitk.ReadImage(path), image.geometry)


def test_nrrd_big_endian_units_and_byte_skip(tmp_path: Path) -> None:
    lines = ("dimension: 3", "sizes: 4 3 2", "type: int16", "endian: big", "encoding: raw")
    space = ("space: LPS", "space directions: (100,0,0) (0,200,0) (0,0,300)")
    units = 'space units: "um" "um" "um"'
    pixels = b"JUNK" + PIXELS.astype(">i2").tobytes()
    for skip in ("byte skip: 4", "byte skip: -1"):
        path = nrrd_file(tmp_path / "a.nrrd", *lines, *space, units, skip, pixels=pixels)
        image = limner.read(path)
        np.testing.assert_array_equal(image.array, PIXELS)
        assert image.array.dtype.isnative
        np.testing.assert_allclose(image.spacing, (0.3, 0.2, 0.1))


def test_nrrd_spacings_without_space_agree_with_itk(tmp_path: Path) -> None:
    lines = (*GRID, "encoding: raw", "spacings: 0.5 2 3")
    path = nrrd_file(tmp_path / "a.nrrd", *lines, pixels=PIXELS.tobytes())
    image = limner.read(path)
    assert image.spacing == (3.0, 2.0, 0.5)
    assert_same_grid(sitk.ReadImage(path), image.geometry)


def test_nrrd_channels_wherever_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 9, (2, 3, 4, 5)).astype(np.uint8)  # slowest first
    lines = ("dimension: 4", "sizes: 5 4 3 2", "type: uchar", "encoding: raw", "space: LPS")
    for axis in range(4):  # counted from the fastest
        vectors = ["(1,0,0)", "(0,1,0)", "(0,0,1)"]
        vectors.insert(axis, "none")
        directions = f"space directions: {' '.join(vectors)}"
        path = nrrd_file(tmp_path / "a.nrrd", *lines, directions, pixels=pixels.tobytes())
        expected = np.moveaxis(pixels, 3 - axis, -1)
        image = limner.read(path)
        assert image.shape == expected.shape
        np.testing.assert_array_equal(image.array, expected)
        np.testing.assert_array_equal(image.slice_at(1), expected[1])
        one = limner.read(path, channel=1)
        np.testing.assert_array_equal(one.slice_at(1), expected[1, ..., 1])
        np.testing.assert_array_equal(one.array, expected[..., 1])


def test_nrrd_detached_header_beside_its_pixels(tmp_path: Path) -> None:
    (tmp_path / "a b.raw").write_bytes(PIXELS.tobytes())
    path = nrrd_file(tmp_path / "a.nhdr", *GRID, "encoding: raw", "data file: a b.raw")
    image = limner.read(path)
    assert image.path == path
    np.testing.assert_array_equal(image.slice_at(1), PIXELS[1])
    np.testing.assert_array_equal(image.array, PIXELS)


def test_nrrd_sheared_grid(tmp_path: Path) -> None:
    affine = np.diag((1.0, 1.0, 1.0, 1.0))
    affine[0, 1] = 0.3
    geometry = Geometry((3, 4, 5), affine[:, [2, 1, 0, 3]])
    labels = np.ones((3, 4, 5), np.uint8)
    limner.write(tmp_path / "a.nrrd", labels, like=geometry)
    assert limner.read(tmp_path / "a.nrrd").geometry.is_close(geometry)
    limner.write(tmp_path / "a.nii.gz", labels, like=geometry)
    assert limner.read(tmp_path / "a.nii.gz").geometry.is_close(geometry)
    with pytest.raises(GeometryError, match=r"write \.nii\.gz or \.nrrd"):
        limner.write(tmp_path / "a.mha", labels, like=geometry)
    assert not (tmp_path / "a.mha").exists()


def slicer_file(path: Path, pixels: np.ndarray, origin: tuple, *segments: tuple) -> Path:
    """A segmentation as 3D Slicer writes it: layers fastest, then x, y, z."""
    layers, sizes = pixels.shape[-1], pixels.shape[2::-1]
    fields = []
    for k, (name, value, layer) in enumerate(segments):
        fields += [
            f"Segment{k}_ID:=Segment_{k}",
            f"Segment{k}_Name:={name}",
            f"Segment{k}_LabelValue:={value}",
            f"Segment{k}_Layer:={layer}",
            f"Segment{k}_Color:=0.5 0.5 0.5",
        ]
    lines = (
        "type: unsigned char",
        "dimension: 4",
        "space: left-posterior-superior",
        f"sizes: {layers} {' '.join(map(str, sizes))}",
        "space directions: none (1,0,0) (0,1,0) (0,0,2)",
        "kinds: list domain domain domain",
        "encoding: gzip",
        f"space origin: ({','.join(map(str, origin))})",
        *fields,
        "Segmentation_MasterRepresentation:=Binary labelmap",
    )
    return nrrd_file(path, *lines, pixels=gzip.compress(pixels.tobytes()))


def test_slicer_segments_overlap_and_have_names(tmp_path: Path) -> None:
    pixels = np.zeros((3, 4, 5, 2), np.uint8)
    pixels[:2, :3, :3, 0] = 1
    pixels[1:, 1:, 1:, 1] = 1
    pixels[0, 3, 4, 0] = 2
    segments = (("liver", 1, 0), ("tumour", 1, 1), ("node", 2, 0))
    path = slicer_file(tmp_path / "a.seg.nrrd", pixels, (0, 0, 0), *segments)
    found = limner.read_labels(path)
    assert found.names == {1: "liver", 2: "tumour", 3: "node"}
    np.testing.assert_array_equal(found.mask(1), pixels[..., 0] == 1)
    np.testing.assert_array_equal(found.mask(2), pixels[..., 1] == 1)
    np.testing.assert_array_equal(found.mask(3), pixels[..., 0] == 2)
    limner.write(tmp_path / "b.seg.nrrd", found)
    again = limner.read_labels(tmp_path / "b.seg.nrrd")
    assert again.names == found.names
    for object_id in (1, 2, 3):
        np.testing.assert_array_equal(again.mask(object_id), found.mask(object_id))
    broken = slicer_file(tmp_path / "c.seg.nrrd", pixels, (0, 0, 0), ("liver", 1, 5))
    with pytest.raises(FormatError, match="layers"):
        limner.read_labels(broken)


def test_slicer_segmentation_cut_to_its_content_is_put_back(tmp_path: Path) -> None:
    image = Geometry.from_spacing((8, 9, 10), (2, 1, 1), origin=(-3, 4, 10))
    pixels = np.random.default_rng(0).integers(0, 2, (3, 4, 5, 1)).astype(np.uint8)
    path = slicer_file(tmp_path / "a.seg.nrrd", pixels, (-3 + 2, 4 + 1, 10 + 2 * 4), ("a", 1, 0))
    like = Image(np.zeros(image.shape), image)
    found = limner.read_labels(path, like=like)
    expected = np.zeros(image.shape, np.uint8)
    expected[4:7, 1:5, 2:7] = pixels[..., 0]
    np.testing.assert_array_equal(found.to_array(), expected)
    assert found.geometry == image
    path = slicer_file(tmp_path / "b.seg.nrrd", pixels, (-2.5, 5, 18), ("a", 1, 0))
    with pytest.raises(GeometryError, match="shape"):
        limner.read_labels(path, like=like)


# ---------------------------------------------------------------- MetaImage


def metaimage(path: Path, *lines: str, data: str = "LOCAL", pixels: bytes = b"") -> Path:
    header = ["ObjectType = Image", "NDims = 3", "DimSize = 4 3 2", *lines]
    header.append(f"ElementDataFile = {data}\n")
    path.write_bytes("\n".join(header).encode() + pixels)
    return path


def test_metaimage_detached_and_big_endian(tmp_path: Path) -> None:
    lines = ("ElementType = MET_SHORT", "BinaryDataByteOrderMSB = True", "ElementSpacing = 1 2 3")
    raw = PIXELS.astype(">i2").tobytes()
    (tmp_path / "a.raw").write_bytes(raw)
    detached = metaimage(tmp_path / "a.mhd", *lines, data="a.raw")
    local = metaimage(tmp_path / "b.mha", *lines, pixels=raw)
    for path in (detached, local):
        image = limner.read(path)
        np.testing.assert_array_equal(image.array, PIXELS)
        assert image.spacing == (3.0, 2.0, 1.0)
        assert_same_grid(sitk.ReadImage(path), image.geometry)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), PIXELS)


def test_metaimage_header_size_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"HEADER" + PIXELS.tobytes())
    for size in ("6", "-1"):
        lines = ("ElementType = MET_SHORT", f"HeaderSize = {size}")
        path = metaimage(tmp_path / "a.mhd", *lines, data="a.raw")
        np.testing.assert_array_equal(limner.read(path).array, PIXELS)
    text = " ".join(map(str, PIXELS.ravel())).encode()
    path = metaimage(
        tmp_path / "b.mha", "ElementType = MET_SHORT", "BinaryData = False", pixels=text
    )
    np.testing.assert_array_equal(limner.read(path).array, PIXELS)
    assert not limner.read(path).geometry.has_spacing


@pytest.mark.parametrize("direction", ["TransformMatrix", "Orientation", "Rotation"])
@pytest.mark.parametrize("origin", ["Offset", "Position", "Origin"])
def test_metaimage_synonyms_agree_with_itk(tmp_path: Path, direction: str, origin: str) -> None:
    lines = (
        "ElementType = MET_SHORT",
        "ElementSpacing = 1 2 3",
        f"{direction} = 0 1 0 0 0 1 1 0 0",
        f"{origin} = 7 8 9",
    )
    path = metaimage(tmp_path / "a.mha", *lines, pixels=PIXELS.tobytes())
    assert_same_grid(sitk.ReadImage(path), limner.read(path).geometry)


def test_metaimage_of_four_axes(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(2, 2, 3, 4)
    image = sitk.GetImageFromArray(pixels, isVector=False)
    sitk.WriteImage(image, tmp_path / "a.mha")
    ours = limner.read(tmp_path / "a.mha")
    assert ours.shape == (2, 3, 4, 2)
    np.testing.assert_array_equal(ours.array, np.moveaxis(pixels, 0, -1))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_other_units_than_millimetres(tmp_path: Path, suffix: str) -> None:
    """ITK ignores the units of both formats: a mask must state the same numbers as its image."""
    path, mask = tmp_path / f"image{suffix}", tmp_path / f"mask{suffix}"
    if suffix == ".mha":
        lines = ("ElementType = MET_SHORT", "ElementSpacing = 1 2 3", "Offset = 7 8 9")
        metaimage(path, *lines, "DistanceUnits = um", pixels=PIXELS.tobytes())
    else:
        space = ("space: RAS", "space directions: (1,0,0) (0,2,0) (0,0,3)", "space origin: (7,8,9)")
        units = 'space units: "um" "um" "um"'
        nrrd_file(path, *GRID, *space, units, "encoding: raw", pixels=PIXELS.tobytes())
    image = limner.read(path)
    np.testing.assert_allclose(image.spacing, (0.003, 0.002, 0.001))
    limner.write(mask, PIXELS > 3, like=image)
    assert limner.read(mask).geometry.is_close(image.geometry)
    ours, theirs = sitk.ReadImage(mask), sitk.ReadImage(path)
    np.testing.assert_allclose(ours.GetSpacing(), theirs.GetSpacing())
    np.testing.assert_allclose(ours.GetOrigin(), theirs.GetOrigin())


# ---------------------------------------------------------------- npz


def test_npz_case(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (4, 5, 6)).astype(np.uint8)
    target = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    path = tmp_path / "3DBox_CT_1.npz"
    boxes = np.array([{"z_min": 1}], dtype=object)
    np.savez_compressed(path, imgs=pixels, gts=target, spacing=(0.7, 0.7, 2.5), boxes=boxes)

    image = limner.read(path)

    np.testing.assert_array_equal(image.array, pixels)
    assert image.spacing == (2.5, 0.7, 0.7)
    assert image.metadata["skipped"] == ["boxes"]
    assert image.metadata["boxes"] is None
    labels = limner.read_labels(path, like=image)
    np.testing.assert_array_equal(labels.to_array(), target)
    limner.write(tmp_path / "out.npz", labels, like=image)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as written:
        assert written["segs"].dtype == np.uint8
        np.testing.assert_array_equal(written["segs"], target)
        np.testing.assert_array_equal(written["spacing"], (0.7, 0.7, 2.5))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((0.7, 0.7, 2.5), (2.5, 0.7, 0.7)),  # ITK's order
        ((2.5, 0.7, 0.7), (2.5, 0.7, 0.7)),  # the array's order
        ((0.6, 0.7, 2.5), (2.5, 0.7, 0.6)),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ],
)
def test_npz_spacing_in_either_order(tmp_path: Path, stored: tuple, expected: tuple) -> None:
    np.savez(tmp_path / "a.npz", imgs=np.zeros((2, 3, 4), np.uint8), spacing=stored)
    assert limner.read(tmp_path / "a.npz").spacing == expected


def test_npz_pictures(tmp_path: Path) -> None:
    colour = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    np.savez(tmp_path / "2DBox.npz", imgs=colour, boxes=np.array([[0, 1, 2, 3]]))
    image = limner.read(tmp_path / "2DBox.npz")
    assert image.kind == "image"
    assert image.num_channels == 3
    assert image.metadata["boxes"] == [[0, 1, 2, 3]]
    np.testing.assert_array_equal(
        limner.read(tmp_path / "2DBox.npz", channel=2).array, colour[..., 2]
    )
    np.savez(tmp_path / "3DBox.npz", imgs=colour)
    assert limner.read(tmp_path / "3DBox.npz").geometry.shape == (4, 5, 3)
    np.savez(tmp_path / "grey.npz", imgs=np.asfortranarray(colour[..., 0]))
    np.testing.assert_array_equal(limner.read(tmp_path / "grey.npz").array, colour[..., 0])


# ---------------------------------------------------------------- real files


@pytest.mark.slow
def test_every_shared_volume_opens_as_others_see_it(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted((shared_data / "3d").glob("*/images/*.nii.gz"))
    assert paths
    for path in paths:
        theirs = nibabel.load(path)
        image = limner.read(path)
        np.testing.assert_array_equal(image.array, np.asarray(theirs.dataobj).T)
        np.testing.assert_array_equal(image.affine[:, [2, 1, 0, 3]], RAS @ theirs.affine)
        labels_path = path.parent.parent / "labels" / path.name
        if not labels_path.exists():
            continue
        labels = limner.read_labels(labels_path, like=image)
        assert labels.ids
        written = tmp_path / "mask.nii.gz"
        limner.write(written, labels, like=image)
        again = nibabel.load(written)
        assert again.shape == theirs.shape[:3]
        np.testing.assert_array_equal(again.affine, theirs.affine)
        np.testing.assert_array_equal(
            np.asarray(again.dataobj), np.asarray(nibabel.load(labels_path).dataobj)
        )


def test_metadata_is_json(tmp_path: Path) -> None:
    labels = Labels(Geometry((2, 3, 4)), array=np.ones((2, 3, 4), np.uint8))
    for suffix in (".nii.gz", ".nrrd", ".mha", ".npz"):
        limner.write(tmp_path / f"a{suffix}", labels)
        np.savez(tmp_path / "a.npz", imgs=np.ones((2, 3, 4)))
        metadata = limner.read(tmp_path / f"a{suffix}").metadata
        assert json.loads(json.dumps(dict(metadata))) == dict(metadata)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz"])
def test_time_series_of_itk_become_channels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    pixels = np.arange(3 * 4 * 5 * 6, dtype=np.int16).reshape(3, 4, 5, 6)
    series = sitk.GetImageFromArray(pixels, isVector=False)
    series.SetSpacing((0.5, 0.25, 2, 3))
    series.SetOrigin((1, 2, 3, 4))
    sitk.WriteImage(series, str(path), True)
    image = limner.read(path)
    np.testing.assert_array_equal(image.array, np.moveaxis(pixels, 0, -1))
    assert image.spacing == (2, 0.25, 0.5)
    assert image.geometry.origin == (1, 2, 3)
    np.testing.assert_array_equal(limner.read(path, channel=2).array, pixels[2])
