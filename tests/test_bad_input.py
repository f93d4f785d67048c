"""Files that are damaged, hostile or no images: one clear line each, and bounded memory."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import logging
import os
import pickle
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import limner
from limner.errors import FormatError, GeometryError, LimnerError
from limner.geometry import Geometry
from limner.io import Image, write_image
from rounds import times


def refused(path: Path, match: str, error: type[LimnerError] = FormatError) -> None:
    """Reading the header or the pixels fails with one line that names the file."""
    with pytest.raises(error, match=match) as caught:
        _ = limner.read(path).array
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message or path.stem in message


def nifti(path: Path, pixels: np.ndarray | None = None, **fields: object) -> Path:
    """A NIfTI file with raw header fields as given, however wrong."""
    pixels = np.arange(60, dtype=np.int16).reshape(5, 4, 3) if pixels is None else pixels
    image = nibabel.Nifti1Image(pixels, np.eye(4))
    content = image.to_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + content[348:]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# ---------------------------------------------------------------- any file


def test_missing_empty_and_unknown(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.nii", "There is no file")
    (tmp_path / "empty.nii.gz").touch()
    refused(tmp_path / "empty.nii.gz", r"empty \(0 bytes\)")
    (tmp_path / "notes.txt").write_text("not an image")
    refused(tmp_path / "notes.txt", r"of no known kind.*\.nii\.gz")
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".npz", ".nhdr", ".hdr"):
        path = tmp_path / f"wrong{suffix}"
        path.write_bytes(b"this is something else " * 40)
        refused(path, "not|no ElementDataFile|magic")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    refused(tmp_path / "pipe.nii", "neither a file nor a folder")
    with pytest.raises(FormatError):
        limner.read(tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match="folder"):
        limner.read(tmp_path / "folder")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_closed_file(tmp_path: Path) -> None:
    path = nifti(tmp_path / "closed.nii")
    path.chmod(0)
    refused(path, "permission denied")


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        image = limner.read(nifti(tmp_path / name))
        (tmp_path / name).unlink()
        with pytest.raises(FormatError, match="cannot be read"):
            _ = image.array
    image = limner.read(nifti(tmp_path / "a.nii"))
    (tmp_path / "a.nii").unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        image.slice_at(0)


# ---------------------------------------------------------------- gzip


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.5, 0.9])
def test_cut_off(tmp_path: Path, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 3000, (20, 20, 20)).astype(np.int16)
    for name in ("a.nii", "a.nii.gz"):
        path = nifti(tmp_path / name, noise)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        refused(path, "cut off|damaged")


def test_checksum_and_trailing_bytes(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    refused(path, "checksum.*missing")
    path.write_bytes(content[:-6] + b"\xff" + content[-5:])
    refused(path, "damaged.*checksum")
    path.write_bytes(content + b"garbage")
    refused(path, "foreign bytes")
    assert limner.read(path, strict=False).array.shape == (3, 4, 5)
    path.write_bytes(content + b"\0" * 512)
    assert limner.read(path).array.shape == (3, 4, 5)


def test_more_data_than_the_header_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.zeros((5, 4, 30), np.int16)
    path = nifti(tmp_path / "a.nii.gz", pixels, dim=[3, 5, 4, 2, 1, 1, 1, 1])
    with caplog.at_level(logging.WARNING):
        assert limner.read(path).array.shape == (2, 4, 5)
    assert "more data than its header says" in caplog.text


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_few_more_bytes_are_no_second_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pieces: int
) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    content = gzip.decompress(path.read_bytes())
    if pieces == 1:
        packed = gzip.compress(content + b"\1" * 64)
    else:  # a member of its own, and the empty one with which block-wise gzip files end
        packed = gzip.compress(content) + gzip.compress(b"\1" * 64) + gzip.compress(b"")
    path.write_bytes(packed)
    with caplog.at_level(logging.INFO):
        assert limner.read(path).array.shape == (3, 4, 5)
    (record,) = (r for r in caplog.records if r.name != "limner.io")
    assert record.levelno == logging.INFO
    assert "64 bytes follow its data" in record.getMessage()
    path.write_bytes(packed + b"garbage")
    refused(path, "foreign bytes")
    damaged = bytearray(gzip.compress(content + b"\1" * 64))
    damaged[-6] ^= 0xFF
    path.write_bytes(damaged)
    refused(path, "damaged.*checksum")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_one_channel_of_a_sound_series_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    pixels = np.arange(5 * 4 * 6 * 7, dtype=np.int16).reshape(4, 6, 7, 5)
    path = tmp_path / f"series{suffix}"
    write_image(path, Image(pixels, Geometry((4, 6, 7))))
    with caplog.at_level(logging.INFO):
        for channel in range(5):
            found = limner.read(path, channel=channel).array
            np.testing.assert_array_equal(found, pixels[..., channel])
    assert {r.name for r in caplog.records} <= {"limner.io"}  # what is read


def test_the_last_time_point_of_a_damaged_series_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "series.nii.gz"
    pixels = np.arange(5 * 4 * 6 * 7, dtype=np.int16).reshape(4, 6, 7, 5)
    write_image(path, Image(pixels, Geometry((4, 6, 7))))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FormatError, match="checksum"):
        _ = limner.read(path, channel=4).array


@pytest.mark.slow
def test_a_bomb_behind_a_small_header_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    header = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.uint8), np.eye(4)).to_bytes()
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(header)
        for _ in range(300):
            file.write(b"\0" * (1 << 20))
    tracemalloc.start()
    image = limner.read(path)
    assert image.array.shape == (3, 4, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("name", ["huge.nii", "huge.nii.gz"])
def test_a_header_that_claims_the_world(tmp_path: Path, name: str) -> None:
    path = nifti(tmp_path / name, dim=[3, 10000, 10000, 10000, 1, 1, 1, 1])
    with pytest.raises(FormatError, match="need at least"):
        limner.read(path)
    path = nifti(tmp_path / name, dim=[7, *[32767] * 7])
    with pytest.raises(FormatError, match="need at least"):
        limner.read(path)


def test_more_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.io.limits.physical_memory", lambda: 100)
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        path = tmp_path / f"a{suffix}"
        write_image(path, limner.Image(np.ones((5, 6, 7)), limner.Geometry((5, 6, 7))))
        refused(path, "this machine can hold")
    np.savez(tmp_path / "a.npz", imgs=np.ones((5, 6, 7)))
    refused(tmp_path / "a.npz", "this machine can hold")


def test_no_memory_left_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_left(*_: object, **__: object) -> None:
        raise MemoryError

    paths = [nifti(tmp_path / "a.nii.gz")]
    for suffix in (".png", ".tif"):
        paths.append(tmp_path / f"a{suffix}")
        write_image(paths[-1], limner.Image(np.ones((5, 6), np.uint8), limner.Geometry((5, 6))))
    images = [limner.read(path) for path in paths]
    for target in (
        "limner.io._block.inflate",
        "limner.io.raster.decoding.check_chunks",
        "limner.io.tiff.stack.Stack._raw",
    ):
        monkeypatch.setattr(target, nothing_left)
    for image in images:
        with pytest.raises(FormatError, match=r"a\.\S+ does not fit into the free memory"):
            _ = image.array


# ---------------------------------------------------------------- NIfTI


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_impossible_spacing(tmp_path: Path, value: float, name: str) -> None:
    pixdim = [1, 1, value, 1, 1, 1, 1, 1]
    path = nifti(tmp_path / name, pixdim=pixdim)
    refused(path, "spacing.*axis j", GeometryError)
    assert limner.read(path, strict=False).array.shape == (3, 4, 5)
    path = nifti(tmp_path / name, pixdim=pixdim, sform_code=0, qform_code=1)
    refused(path, "spacing.*axis j", GeometryError)


def test_signalling_nan_in_a_header_is_no_warning(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", sform_code=0, qform_code=1)
    content = bytearray(path.read_bytes())
    content[268:272] = b"\x01\x00\xa0\x7f"  # qoffset_x
    path.write_bytes(content)
    refused(path, "not finite", GeometryError)


def test_impossible_affines(tmp_path: Path) -> None:
    refused(nifti(tmp_path / "a.nii", srow_x=[np.nan] * 4), "sform", GeometryError)
    refused(nifti(tmp_path / "a.nii", srow_x=[0, 1, 0, 0]), "no grid", GeometryError)
    parallel = {"srow_x": [1, 1, 0, 0], "srow_y": [0, 0, 0, 0]}
    refused(nifti(tmp_path / "a.nii", **parallel), "singular", GeometryError)
    path = nifti(tmp_path / "a.nii", sform_code=0, qform_code=1, quatern_b=5, quatern_c=5)
    refused(path, "qform is no rotation", GeometryError)
    path = nifti(tmp_path / "a.nii", sform_code=0, qform_code=1, qoffset_x=np.nan)
    refused(path, "not finite", GeometryError)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"datatype": 32}, "complex numbers"),
        ({"datatype": 1792}, "complex numbers"),
        ({"datatype": 1}, "single bits"),
        ({"datatype": 1536}, "128-bit floats"),
        ({"datatype": 0}, "no data type"),
        ({"datatype": 77}, "unknown data type"),
        ({"dim": [0, 1, 1, 1, 1, 1, 1, 1]}, "counts 0 axes"),
        ({"dim": [9, 1, 1, 1, 1, 1, 1, 1]}, "counts 9 axes"),
        ({"dim": [1, 60, 1, 1, 1, 1, 1, 1]}, "no image"),
        ({"dim": [3, 5, -4, 3, 1, 1, 1, 1]}, "no image"),
        ({"dim": [3, 5, 0, 3, 1, 1, 1, 1]}, "no image"),
        ({"vox_offset": 100}, "cannot begin at byte 100"),
        ({"vox_offset": -5}, "cannot begin"),
        ({"vox_offset": np.nan}, "cannot begin"),
        ({"vox_offset": 1e9}, "cut off"),
        ({"magic": b"abc"}, "ANALYZE"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "intercept"),
        ({"intent_code": 3001}, "surface"),
    ],
)
def test_nifti_headers(tmp_path: Path, fields: dict, match: str) -> None:
    refused(nifti(tmp_path / "a.nii", **fields), match)


def test_infinite_intensities(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.zeros((5, 4, 3), np.float32)
    pixels[0, 0] = np.nan, np.inf, -np.inf
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        path = tmp_path / f"some{suffix}"
        write_image(path, limner.Image(pixels.T, limner.Geometry((3, 4, 5))))
        with caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(limner.read(path).array, pixels.T)
        assert "3 of 60 pixels are NaN or infinite" in caplog.text
        caplog.clear()
        path = tmp_path / f"all{suffix}"
        write_image(path, limner.Image(pixels.T + np.nan, limner.Geometry((3, 4, 5))))
        refused(path, "every pixel is NaN or infinite")


# ---------------------------------------------------------------- NRRD and MetaImage


GOOD_NRRD = {
    "type": "short",
    "dimension": "3",
    "sizes": "4 3 2",
    "endian": "little",
    "encoding": "raw",
    "space": "left-posterior-superior",
    "space directions": "(1,0,0) (0,1,0) (0,0,1)",
    "space origin": "(0,0,0)",
}
GOOD_MHA = {
    "ObjectType": "Image",
    "NDims": "3",
    "DimSize": "4 3 2",
    "ElementType": "MET_SHORT",
    "ElementSpacing": "1 1 1",
}


def nrrd(path: Path, pixels: bytes = bytes(48), **changes: str | None) -> Path:
    fields = {**GOOD_NRRD, **{k.replace("_", " "): v for k, v in changes.items()}}
    lines = [f"{k}: {v}" for k, v in fields.items() if v is not None]
    path.write_bytes("\n".join(["NRRD0005", *lines, "", ""]).encode() + pixels)
    return path


def mha(path: Path, pixels: bytes = bytes(48), data: str = "LOCAL", **changes: str | None) -> Path:
    fields = {**GOOD_MHA, **changes, "ElementDataFile": data}
    lines = [f"{k} = {v}\n" for k, v in fields.items() if v is not None]
    path.write_bytes("".join(lines).encode() + pixels)
    return path


def test_the_good_ones_are_good(tmp_path: Path) -> None:
    assert limner.read(nrrd(tmp_path / "a.nrrd")).array.shape == (2, 3, 4)
    assert limner.read(mha(tmp_path / "a.mha")).array.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"type": "block"}, "values of type 'block'"),
        ({"type": None}, "lacks the field 'type'"),
        ({"sizes": None}, "lacks the field 'sizes'"),
        ({"sizes": "4 3"}, "do not fit dimension"),
        ({"sizes": "4 0 2"}, "do not fit"),
        ({"sizes": "4 -3 2"}, "do not fit"),
        ({"sizes": "a b c"}, "malformed"),
        ({"sizes": "40000 40000 40000"}, "need at least"),
        ({"encoding": "hex"}, "'hex' is not read"),
        ({"encoding": None}, "lacks the field 'encoding'"),
        ({"endian": None}, "lacks the field 'endian'"),
        ({"endian": "middle"}, "little or big"),
        ({"dimension": "x"}, "malformed"),
        ({"space_directions": "(1,0,0) (0,1,0)"}, "2 space directions"),
        ({"space_directions": "(1,0,0) (0,1,0) none"}, "cut off|channels|lie in space"),
        ({"space_directions": "none none (0,0,1)"}, "1 lie in space"),
        ({"space_origin": "(0,0)"}, "axes; 2 or 3"),
        ({"byte_skip": "-7"}, "byte skip of -7"),
        ({"line_skip": "100"}, "lines to skip"),
        ({"data_file": "LIST"}, "no such file"),
        ({"data_file": "/etc/hostname"}, "one plain file name"),
        ({"data_file": "../outside.raw"}, "one plain file name"),
        ({"data_file": "slice%03d.raw 1 9 1"}, "one plain file name"),
        ({"data_file": "C:\\secret.raw"}, "one plain file name"),
        ({"data_file": "missing.raw"}, "no such file"),
        ({"data_file": "."}, "one plain file name"),
        ({"data_file": "a.nrrd"}, "no such file"),
    ],
)
def test_nrrd_headers(tmp_path: Path, changes: dict, match: str) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "outside.raw").write_bytes(bytes(48))
    if changes == {"space_directions": "(1,0,0) (0,1,0) none"}:
        image = limner.read(nrrd(folder / "a.nrrd", **changes))
        assert image.shape == (3, 4, 2)  # a plane in space with two channels
        return
    refused(nrrd(folder / "a.nrrd", **changes), match)


def test_nrrd_sizes_beyond_all_integers(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "a.nrrd"
    path.write_text("NRRD0005\ntype: short\ndimension: 2\nsizes: 99999999999999999999 9\n\n")
    refused(path, "sizes")
    assert not recwarn.list


@pytest.mark.parametrize("vectors", ["(0,0,0) (0,1,0) (0,0,1)", "(nan,0,0) (0,1,0) (0,0,1)"])
def test_nrrd_spacing(tmp_path: Path, vectors: str) -> None:
    refused(nrrd(tmp_path / "a.nrrd", space_directions=vectors), "spacing", GeometryError)
    parallel = "(1,0,0) (1,0,0) (0,0,1)"
    refused(nrrd(tmp_path / "a.nrrd", space_directions=parallel), "singular", GeometryError)


def test_links_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(48))
    folder = tmp_path / "upload"
    folder.mkdir()
    (folder / "a.raw").symlink_to(tmp_path / "secret")
    refused(nrrd(folder / "a.nhdr", b"", data_file="a.raw"), "no such file")
    refused(mha(folder / "a.mhd", b"", data="a.raw"), "no such file")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ElementType": "MET_STRING"}, "elements of type"),
        ({"ElementType": None}, "elements of type"),
        ({"DimSize": "4 3"}, "does not fit NDims"),
        ({"DimSize": "4 3 0"}, "holds no pixel"),
        ({"DimSize": "4 3 -2"}, "holds no pixel"),
        ({"DimSize": "40000 40000 40000"}, "need at least"),
        ({"ElementNumberOfChannels": "0"}, "holds no pixel"),
        ({"TransformMatrix": "1 0 0 1"}, "4 numbers for 3 axes"),
        ({"Offset": "1 2"}, "do not fit 3 axes"),
        ({"data": "LIST"}, "no such file"),
        ({"data": "/etc/hostname"}, "one plain file name"),
        ({"data": "../outside.raw"}, "one plain file name"),
        ({"data": "slice%03d.raw 1 9 1"}, "one plain file name"),
        ({"data": "missing.raw"}, "no such file"),
        ({"data": ""}, "one plain file name"),
    ],
)
def test_metaimage_headers(tmp_path: Path, changes: dict, match: str) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside.raw").write_bytes(bytes(48))
    refused(mha(tmp_path / "inside" / "a.mha", **changes), match)


@pytest.mark.parametrize("spacing", ["1 0 1", "1 nan 1", "1 -1 1", "1 x 1", "1 inf 1"])
def test_metaimage_spacing(tmp_path: Path, spacing: str) -> None:
    path = mha(tmp_path / "a.mha", ElementSpacing=spacing)
    refused(path, "spacing|finite", GeometryError)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zlib.compress])
def test_damaged_streams(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 48).astype(np.uint8).tobytes()
    packed = pack(noise)
    encoding = {"gzip": "gzip", "bz2": "bzip2"}.get(pack.__module__, "")

    def written(content: bytes) -> Path:
        if encoding:
            return nrrd(tmp_path / "a.nrrd", content, encoding=encoding)
        return mha(tmp_path / "a.mha", content, CompressedData="True")

    assert limner.read(written(packed)).array.tobytes() == noise
    refused(written(packed[: len(packed) // 2]), "cut off|damaged")
    refused(written(packed[:-1]), "cut off|damaged")
    refused(written(b"\0" * len(packed)), "damaged|cut off")
    refused(written(packed[:-6] + bytes([packed[-6] ^ 255]) + packed[-5:]), "damaged|cut off")
    refused(written(packed + b"garbage"), "foreign bytes")


def test_text_that_is_no_numbers(tmp_path: Path) -> None:
    few, words = b"1 2 3 " * 3 + b" " * 60, b"one " * 24
    for content, match in ((few, "9 numbers, not 24"), (words, "not int16")):
        refused(nrrd(tmp_path / "a.nrrd", content, encoding="ascii"), match)
        refused(mha(tmp_path / "a.mha", content, BinaryData="False"), match)


# ---------------------------------------------------------------- npz


class Explosive:
    """Leaves a mark if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "a.npz"
    evil = np.array([Explosive(mark)], dtype=object)
    np.savez(path, imgs=np.ones((2, 3, 4), np.uint8), boxes=evil, spacing=evil)
    assert limner.read(path).array.shape == (2, 3, 4)
    np.savez(path, imgs=np.array([[Explosive(mark)] * 2] * 2, dtype=object))
    refused(path, "does not unpickle")
    np.savez(path, segs=np.array([[Explosive(mark)] * 2] * 2, dtype=object))
    with pytest.raises(FormatError, match="does not unpickle"):
        limner.read_labels(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Explosive(mark)))
    assert mark.exists()


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def test_npz_members(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    good = npy(np.ones((2, 3, 4), np.uint8))
    assert limner.read(npz(path, imgs=good)).shape == (2, 3, 4)
    refused(npz(path, imgs=good[:-4]), "claims 24 bytes, and")
    huge = good.replace(b"(2, 3, 4), ", b"(9999,9999)", 1)
    refused(npz(path, imgs=huge), "claims 99980001 bytes")
    refused(npz(path, imgs=b"not an array"), "no valid header")
    refused(npz(path, spacing=npy(np.ones(3))), "holds no image")
    refused(npz(path, imgs=npy(np.ones(3))), "is no image")
    refused(npz(path, imgs=npy(np.ones((2, 2), complex))), "complex")
    refused(npz(path, imgs=good, spacing=npy(np.zeros(3))), "spacing", GeometryError)
    impossible = npy(np.ones(3)).replace(b"(3,), ", b"(-1,),", 1)
    assert limner.read(npz(path, imgs=good, spacing=impossible)).array.shape == (2, 3, 4)
    with pytest.raises(FormatError, match="holds no label map"):
        limner.read_labels(npz(path, imgs=good))
    content = npz(path, imgs=good).read_bytes()
    path.write_bytes(content[:-30])
    refused(path, "damaged")


# ---------------------------------------------------------------- anything at all


@pytest.mark.slow
@settings(
    max_examples=times(150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), name=st.sampled_from(["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.npz"]))
def test_damage_anywhere_is_an_error_of_ours_or_harmless(
    tmp_path: Path, data: st.DataObject, name: str
) -> None:
    path = tmp_path / name
    pixels = np.random.default_rng(0).integers(0, 9, (4, 5, 6)).astype(np.int16)
    if name == "a.npz":
        np.savez_compressed(path, imgs=pixels, spacing=(1.0, 1.0, 2.0))
    else:
        write_image(path, limner.Image(pixels, limner.Geometry((4, 5, 6))))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    with contextlib.suppress(LimnerError):
        image = limner.read(path)
        assert image.array.shape == image.shape
