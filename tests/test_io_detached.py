"""Detached headers whose pixels lie in several files, behind links, or at the end of a stream."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import limner
from limner.errors import FormatError

SHAPE = (6, 5, 4)
PIXELS = np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)


def nhdr(folder: Path, *lines: str, dtype: str = "short") -> Path:
    """A header of `PIXELS`; the last lines say where they are."""
    sizes = " ".join(map(str, SHAPE[::-1]))
    fields = [f"type: {dtype}", "dimension: 3", f"sizes: {sizes}", "endian: little"]
    space = ["space: left-posterior-superior", "space directions: (0.5,0,0) (0,0.5,0) (0,0,2)"]
    path = folder / "a.nhdr"
    path.write_text("\n".join(["NRRD0005", *fields, *space, *lines, ""]))
    return path


def mhd(folder: Path, data: str, *names: str, extra: str = "") -> Path:
    path = folder / "a.mhd"
    path.write_text(
        f"ObjectType = Image\nNDims = 3\nDimSize = {SHAPE[2]} {SHAPE[1]} {SHAPE[0]}\n"
        f"ElementSpacing = 0.5 0.5 2\n{extra}ElementType = MET_SHORT\nElementDataFile = {data}\n"
        + "".join(f"{name}\n" for name in names)
    )
    return path


def write_slices(folder: Path, pattern: str, start: int = 0, per_file: int = 1) -> list[str]:
    names = []
    for k in range(SHAPE[0] // per_file):
        names.append(pattern % (start + k))
        part = PIXELS[k * per_file : (k + 1) * per_file]
        (folder / names[-1]).write_bytes(part.tobytes())
    return names


def same_as_itk(path: Path) -> None:
    found = limner.read(path)
    np.testing.assert_array_equal(found.array, PIXELS)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), PIXELS)
    np.testing.assert_array_equal(found.slice_at(3), PIXELS[3])
    assert found.spacing == (2, 0.5, 0.5)


@pytest.mark.parametrize("pattern", ["s%d.raw", "s%03d.raw", "a b%02d.img"])
@pytest.mark.parametrize("start", [0, 8])
def test_a_numbered_pattern(tmp_path: Path, pattern: str, start: int) -> None:
    write_slices(tmp_path, pattern, start)
    if " " not in pattern:  # which Teem takes for the end of the name
        same_as_itk(nhdr(tmp_path, "encoding: raw", f"data file: {pattern} {start} {start + 5} 1"))
        same_as_itk(mhd(tmp_path, f"{pattern} {start} {start + 5} 1"))
    path = nhdr(tmp_path, "encoding: raw", f"data file: {pattern} {start} {start + 5} 1 2")
    np.testing.assert_array_equal(limner.read(path).array, PIXELS)


def test_a_pattern_that_counts_down(tmp_path: Path) -> None:
    write_slices(tmp_path, "s%d.raw")
    path = nhdr(tmp_path, "encoding: raw", "data file: s%d.raw 5 0 -1")
    np.testing.assert_array_equal(limner.read(path).array, PIXELS[::-1])


@pytest.mark.parametrize("per_file", [1, 2, 3, 6])
def test_a_list_of_files(tmp_path: Path, per_file: int) -> None:
    names = write_slices(tmp_path, "s%d.raw", per_file=per_file)
    axes = "" if per_file == 1 else " 3"
    same_as_itk(nhdr(tmp_path, "encoding: raw", f"data file: LIST{axes}", *names))
    path = mhd(tmp_path, f"LIST{axes}", *names)
    np.testing.assert_array_equal(limner.read(path).array, PIXELS)


def test_lists_of_packed_and_text_files(tmp_path: Path) -> None:
    for k in range(6):
        (tmp_path / f"s{k}.gz").write_bytes(gzip.compress(PIXELS[k].tobytes()))
        (tmp_path / f"s{k}.txt").write_text("skip me\n" + " ".join(map(str, PIXELS[k].ravel())))
    same_as_itk(nhdr(tmp_path, "encoding: gzip", "data file: s%d.gz 0 5 1"))
    path = nhdr(tmp_path, "encoding: ascii", "line skip: 1", "data file: s%d.txt 0 5 1")
    np.testing.assert_array_equal(limner.read(path).array, PIXELS)


def test_channels_in_a_list(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"t{k}.raw").write_bytes((PIXELS + k).tobytes())
    path = tmp_path / "a.nhdr"
    path.write_text(
        "NRRD0005\ntype: short\ndimension: 4\nsizes: 4 5 6 3\nendian: little\n"
        "kinds: space space space time\nencoding: raw\ndata file: t%d.raw 0 2 1\n"
    )
    image = limner.read(path)
    assert (image.shape, image.channel_kind) == ((6, 5, 4, 3), "time")
    np.testing.assert_array_equal(image.array[..., 2], PIXELS + 2)
    np.testing.assert_array_equal(limner.read(path, channel=1).array, PIXELS + 1)


def test_the_end_of_a_packed_stream(tmp_path: Path) -> None:
    """``byte skip: -1`` over a .nii.gz, as ITK and pynrrd take it."""
    nibabel.save(nibabel.Nifti1Image(PIXELS.T, np.eye(4)), tmp_path / "v.nii.gz")
    path = nhdr(tmp_path, "encoding: gzip", "byte skip: -1", "data file: v.nii.gz")
    np.testing.assert_array_equal(limner.read(path).array, PIXELS)
    np.testing.assert_array_equal(nrrd.read(str(path))[0].T, PIXELS)
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(b"\0" * 100))
    with pytest.raises(FormatError, match="cut off"):
        _ = limner.read(path).array


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ([], "names no such file"),
        (["s0.raw", "../secret.raw"], "one plain file name"),
        (["s0.raw", "/etc/hostname"], "one plain file name"),
        (["s0.raw", "missing.raw"], "no such file"),
        (["s0.raw"] * 7, "7 files"),
        (["s0.raw"] * 2, "need at least"),
        (["s0.raw"] * 100_001, "more than 100,000"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, names: list[str], match: str) -> None:
    write_slices(tmp_path, "s%d.raw")
    for path in (
        nhdr(tmp_path, "encoding: raw", "data file: LIST", *names),
        mhd(tmp_path, "LIST", *names),
    ):
        with pytest.raises(FormatError, match=match):
            limner.read(path)


@pytest.mark.parametrize("text", ["s%d.raw 0 99999999 1", "s%d.raw 0 5 0", "s%s.raw 0 5 1"])
def test_patterns_that_are_refused(tmp_path: Path, text: str) -> None:
    write_slices(tmp_path, "s%d.raw")
    for path in (
        nhdr(tmp_path, "encoding: raw", f"data file: {text}"),
        mhd(tmp_path, text),
    ):
        with pytest.raises(FormatError, match=r"files of pixels|one plain file name"):
            limner.read(path)


# ---------------------------------------------------------------- links


def test_stores_of_large_files_are_followed(tmp_path: Path) -> None:
    """git-annex and DVC keep the file elsewhere and leave a link."""
    places = {
        "annex": tmp_path / ".git" / "annex" / "objects" / "W9" / "Fj" / "SHA256-s1--ab",
        "extension": tmp_path / "store" / "SHA256E-s1--ab.raw",
        "dvc": tmp_path / ".dvc" / "cache" / "files" / "md5" / "ab" / "cdef",
    }
    for name, place in places.items():
        place.parent.mkdir(parents=True)
        place.write_bytes(PIXELS.tobytes())
        folder = tmp_path / name
        folder.mkdir()
        (folder / "b.raw").symlink_to(place)
        for path in (nhdr(folder, "encoding: raw", "data file: b.raw"), mhd(folder, "b.raw")):
            same_as_itk(path)
            assert limner.read(path).is_made_of(place)


def test_a_link_to_the_header_finds_its_pixels(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.raw").write_bytes(PIXELS.tobytes())
    header = mhd(tmp_path / "data", "b.raw")
    (tmp_path / "link.mhd").symlink_to(header)
    np.testing.assert_array_equal(limner.read(tmp_path / "link.mhd").array, PIXELS)
