"""FreeSurfer's .mgz and .mgh against nibabel, in both directions."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

import limner
from limner import Geometry, Image
from limner.errors import FormatError, GeometryError
from limner.io import Labels, write_image

SHAPE = (6, 5, 4)
RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
SUFFIXES = (".mgz", ".mgh")
DTYPES = ("u1", "i2", "i4", "f4", "u2")


def pixels(dtype: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def oblique(seed: int) -> np.ndarray:
    """A RAS affine of x, y, z, left- or right-handed."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * rng.uniform(0.4, 3, 3)
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    return affine


def by_nibabel(path: Path) -> nibabel.MGHImage:
    """Not by `nibabel.load`, which leaves the file open."""
    content = path.read_bytes()
    return nibabel.MGHImage.from_bytes(
        gzip.decompress(content) if path.suffix == ".mgz" else content
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reads_what_nibabel_writes(tmp_path: Path, suffix: str, dtype: str, seed: int) -> None:
    path = tmp_path / f"a{suffix}"
    array = pixels(dtype)
    nibabel.save(nibabel.MGHImage(array.T, oblique(seed)), path)
    image = limner.read(path)
    assert (image.format, image.kind, image.dtype) == ("mgh", "volume", np.dtype(dtype))
    np.testing.assert_array_equal(image.array, array)
    np.testing.assert_array_equal(limner.read(path).slice_at(2), array[2])
    theirs = RAS @ by_nibabel(path).affine[:, [2, 1, 0, 3]]
    np.testing.assert_allclose(image.affine, theirs, atol=1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_nibabel_reads_what_we_write(tmp_path: Path, suffix: str, dtype: str, seed: int) -> None:
    path = tmp_path / f"a{suffix}"
    grid = Geometry(SHAPE, (RAS @ oblique(seed))[:, [2, 1, 0, 3]])
    write_image(path, Image(pixels(dtype), grid))
    theirs = by_nibabel(path)
    np.testing.assert_array_equal(np.asarray(theirs.dataobj).T, pixels(dtype))
    np.testing.assert_allclose(theirs.affine, oblique(seed), atol=1e-4)
    np.testing.assert_allclose(theirs.header.get_zooms()[:3], grid.spacing[::-1], rtol=1e-5)


@pytest.mark.parametrize("top", [1, 255, 2035, 70000])
def test_label_maps(tmp_path: Path, top: int) -> None:
    array = np.zeros(SHAPE, np.int32)
    array[2:4, 1:3] = top
    grid = Geometry(SHAPE, (RAS @ oblique(3))[:, [2, 1, 0, 3]])
    limner.write(tmp_path / "aseg.mgz", array, like=grid)
    found = limner.read_labels(tmp_path / "aseg.mgz", like=grid)
    assert found.ids == (top,)
    np.testing.assert_array_equal(found.to_array(), array)
    np.testing.assert_array_equal(np.asarray(by_nibabel(tmp_path / "aseg.mgz").dataobj).T, array)


def test_frames_are_time_points(tmp_path: Path) -> None:
    frames = pixels("f4", (3, *SHAPE))
    nibabel.save(nibabel.MGHImage(frames.T, np.eye(4)), tmp_path / "a.mgz")
    image = limner.read(tmp_path / "a.mgz")
    assert (image.shape, image.channel_kind) == ((*SHAPE, 3), "time")
    np.testing.assert_array_equal(image.array[..., 1], frames[1])
    np.testing.assert_array_equal(limner.read(tmp_path / "a.mgz", channel=2).array, frames[2])
    write_image(tmp_path / "b.mgz", image)
    np.testing.assert_array_equal(np.asarray(by_nibabel(tmp_path / "b.mgz").dataobj).T, frames)


def test_without_a_place(tmp_path: Path) -> None:
    image = nibabel.MGHImage(pixels("u1").T, np.eye(4))
    image.header["goodRASFlag"] = 0
    content = bytearray(image.to_bytes())
    content[28:30] = b"\0\0"
    (tmp_path / "a.mgh").write_bytes(content)
    found = limner.read(tmp_path / "a.mgh").geometry
    assert not found.has_spacing
    theirs = RAS @ by_nibabel(tmp_path / "a.mgh").affine[:, [2, 1, 0, 3]]
    np.testing.assert_allclose(found.affine, theirs, atol=1e-6)


def test_tags_behind_the_pixels_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nibabel.save(nibabel.MGHImage(pixels("i2").T, np.eye(4)), tmp_path / "a.mgh")
    content = (tmp_path / "a.mgh").read_bytes() + b"tags" * 5000
    (tmp_path / "tags.mgz").write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(limner.read(tmp_path / "tags.mgz").array, pixels("i2"))
    assert not caplog.records
    damaged = bytearray(gzip.compress(content))
    damaged[-6] ^= 255  # of the checksum
    (tmp_path / "tags.mgz").write_bytes(damaged)
    with pytest.raises(FormatError, match="damaged"):
        _ = limner.read(tmp_path / "tags.mgz").array


@pytest.mark.parametrize("size", [10, 100, 284, 400])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_off(tmp_path: Path, size: int, suffix: str) -> None:
    nibabel.save(nibabel.MGHImage(pixels("i4").T, np.eye(4)), tmp_path / "whole.mgh")
    content = (tmp_path / "whole.mgh").read_bytes()[:size]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".mgz" else content)
    with pytest.raises(FormatError, match=r"a\.mg"):
        _ = limner.read(path).array


def test_what_the_format_does_not_hold(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="convert the image to float32"):
        write_image(tmp_path / "a.mgz", Image(np.zeros(SHAPE, np.float64), Geometry(SHAPE)))
    labels = Labels(Geometry((1, 2)), array=np.array([[0, 2**31]]))
    with pytest.raises(FormatError, match="ids below"):
        limner.write(tmp_path / "a.mgz", labels)
    bad = np.eye(4)
    nibabel.save(nibabel.MGHImage(pixels("u1").T, bad), tmp_path / "a.mgh")
    content = bytearray((tmp_path / "a.mgh").read_bytes())
    content[30:34] = b"\0\0\0\0"  # the spacing of x
    (tmp_path / "a.mgh").write_bytes(content)
    with pytest.raises(GeometryError, match="spacing"):
        limner.read(tmp_path / "a.mgh")
