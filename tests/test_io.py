"""Every format alike: what is written comes back on the same grid, or a clear error says why."""

from __future__ import annotations

import gzip
import inspect
import json
import logging
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import limner
from limner import Geometry, Image
from limner.errors import FormatError, GeometryError
from limner.io import Labels, holds_labels, manifest_path, write_image, writer
from limner.io.formats import FORMATS as ENTRIES
from limner.io.formats import FormatEntry
from limner.io.protocols import ImageReader, ImageWriter, LabelReader, LabelWriter

# suffix: does it hold a volume, the affine, names, overlapping objects, images
FORMATS = {
    ".nii": ("volume", "affine", "image"),
    ".nii.gz": ("volume", "affine", "image"),
    ".nrrd": ("volume", "affine", "image", "names"),
    ".seg.nrrd": ("volume", "affine", "names", "overlaps"),
    ".mha": ("volume", "affine", "image"),
    ".mgz": ("volume", "affine", "image"),
    ".npz": ("volume",),
    ".tif": ("volume", "affine", "image", "names"),
    ".png": ("image", "names"),
    ".json": ("volume", "overlaps", "names"),
}


def those_with(*abilities: str) -> list[str]:
    return [s for s, have in FORMATS.items() if set(abilities) <= set(have)]


def geometry(ndim: int) -> Geometry:
    return Geometry.from_spacing((5, 6, 7)[3 - ndim :], (2.5, 0.5, 0.75)[3 - ndim :])


def some_labels(shape: tuple[int, ...], top: int = 3) -> np.ndarray:
    labels = np.random.default_rng(0).integers(0, top + 1, shape)
    labels.flat[-1] = top
    return labels.astype(np.min_scalar_type(top))


# ---------------------------------------------------------------- the contract of a format module


BY_FORMAT = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.module)


@BY_FORMAT
def test_format_modules_keep_the_contract(entry: FormatEntry) -> None:
    module = entry.load()
    assert entry.module.replace(".", "-").removesuffix("-images") == module.NAME
    assert all(s.startswith(".") and s == s.lower() for s in (*entry.suffixes, *entry.writes))
    assert list(inspect.signature(module.sniff).parameters) == ["path", "head"]
    if entry.images:
        assert isinstance(module, ImageReader)
        parameters = inspect.signature(module.read).parameters
        assert set(parameters) == {"path", "channel", "series", "strict"}
    else:
        assert isinstance(module, LabelReader)
    if isinstance(module, LabelReader):
        assert {"path", "like"} <= set(inspect.signature(module.read_labels).parameters)
    if entry.writes:
        assert isinstance(module, LabelWriter)
        parameters = inspect.signature(module.write).parameters
        assert list(parameters)[:2] == ["path", "labels"]
        assert parameters["like"].kind is inspect.Parameter.KEYWORD_ONLY
    if any(written.images for written in entry.writes.values()):
        assert isinstance(module, ImageWriter)


@BY_FORMAT
def test_no_reader_claims_noise(entry: FormatEntry, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, 2048).astype(np.uint8).tobytes()
    path = tmp_path / "noise"
    for head in (noise, b"\0" * 2048, b"hello\n" * 300, b"PK\x03\x04", b"\x1f\x8b", b"x"):
        path.write_bytes(head)
        assert not entry.load().sniff(path, head[:512])


HEADS = (  # as files of all formats begin, and some that look like several
    b"n+1\0",
    struct.pack("<i", 348) + b"\0" * 340 + b"n+1\0",
    struct.pack(">i", 348) + b"\0" * 340 + b"ni1\0",
    struct.pack("<i", 540) + b"n+2\0\r\n\x1a\n",
    b"NRRD0005\ntype: short\n",
    b"ObjectType = Image\nNDims = 3\n",
    b"  Comment = x\nNDims = 2\nDimSize = 4 4\n",
    struct.pack(">7i", 1, 4, 5, 6, 1, 4, 0) + b"\0" * 256,
    b"PK\3\4" + b"\0" * 22 + struct.pack("<HH", 8, 0) + b"imgs.npy",
    b"\0" * 128 + b"DICM\2\0\0\0UL\4\0",
    b"II*\0" + b"\0" * 124 + b"DICM\2\0\0\0UL\4\0",
    b"\x08\0\5\0CS\x0a\0ISO_IR 100",
    b"\0\x08\0\5CS\0\x0aISO_IR 100",
    b'{"images": [], "annotations": []}',
    b'\xef\xbb\xbf\n [{"image_id": 1, "segmentation": 2}]',
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 17 + b"\0\0\0\x08acTL",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\2",
    b"RIFF\0\0\0\0AVI ",
    b"\xff\xd8\xff\xe0",
    b"BM" + b"\0" * 12 + struct.pack("<I", 40),
    b"GIF87a",
    b"GIF89a",
    b"\x1aE\xdf\xa3",
    b"0&\xb2u\x8ef\xcf\x11",
    b"\0\0\1\xba",
    b"\0\0\1\xb3",
    b"FLV\1",
    b"OggS",
    b"YUV4MPEG2",
    b"\0\0\0\x18ftypisom",
    b"\0\0\0\x18moov",
    b"\0\0\0\x18mdat",
    b"\0\0\0\x18wide",
    b"G" + b"\0" * 187 + b"G",
)


@BY_FORMAT
def test_a_format_is_asked_about_all_that_it_knows(entry: FormatEntry, tmp_path: Path) -> None:
    """The table must not hide a file from the format that would take it."""
    path, rng, known = tmp_path / "file.json", np.random.default_rng(0), 0
    for head in HEADS:
        for end in (b"", b"\0" * 900, rng.integers(0, 256, 900).astype(np.uint8).tobytes()):
            for content in (head + end, gzip.compress(head + end)):
                path.write_bytes(content)
                try:
                    taken = entry.load().sniff(path, content[:1024])
                except FormatError:  # damaged, but its own
                    taken = True
                known += taken
                assert entry.may_be(content[:1024]) or not taken
    assert known or entry.module in ("dicom.seg", "dicom.rtstruct")  # which need a whole file


def test_a_png_is_opened_without_the_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    limner.write(path, some_labels((5, 6)))
    code = (
        "import sys, limner; limner.read(sys.argv[1]).array; limner.read_labels(sys.argv[1]).ids\n"
        "print(*(m for m in sys.modules if m.startswith(('limner.io.', 'limner.io_'))))\n"
        "print(*(m for m in ('pydicom', 'nibabel', 'tifffile', 'av') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    ours, theirs = done.stdout.split("\n")[:2]
    formats = {entry.module.split(".")[0] for entry in ENTRIES}
    assert {m.split(".")[2] for m in ours.split()} & formats == {"raster"}
    assert not theirs


def test_importing_io_costs_numpy_only() -> None:
    heavy = "nibabel pydicom PIL tifffile scipy skimage nrrd isal highdicom av torch imagecodecs"
    code = f"import sys, limner.io; print([m for m in {heavy.split()} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("top", [1, 3, 255, 256, 5000])
def test_labels_come_back(tmp_path: Path, suffix: str, ndim: int, top: int) -> None:
    if ndim == 3 and suffix not in those_with("volume"):
        pytest.skip("holds pictures only")
    labels = some_labels(geometry(ndim).shape, top)
    path = tmp_path / f"mask{suffix}"
    limner.write(path, labels, like=geometry(ndim))
    found = limner.read_labels(path, like=geometry(ndim))
    np.testing.assert_array_equal(found.to_array(), labels)
    assert found.geometry == geometry(ndim)
    assert found.ids == tuple(np.unique(labels[labels > 0]))


@pytest.mark.parametrize("suffix", those_with("volume", "affine"))
def test_the_grid_comes_back_without_help(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    limner.write(path, some_labels((5, 6, 7)), like=geometry(3))
    assert limner.read_labels(path).geometry.is_close(geometry(3))


@pytest.mark.parametrize("suffix", those_with("image"))
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_images_come_back(tmp_path: Path, suffix: str, dtype: str) -> None:
    shape = (5, 6, 7) if suffix in those_with("volume") else (6, 7)
    pixels = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    path = tmp_path / f"image{suffix}"
    write_image(path, Image(pixels, geometry(len(shape))))
    again = limner.read(path)
    assert again.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(again.array, pixels)


@pytest.mark.parametrize("suffix", FORMATS)
def test_empty_masks_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    limner.write(path, np.zeros((6, 7), np.uint8), like=geometry(2))
    assert limner.read_labels(path, like=geometry(2)).ids == ()


@pytest.mark.parametrize("suffix", those_with("names"))
def test_names_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    limner.write(path, some_labels((6, 7)), like=geometry(2), names={2: "Größe"})
    assert limner.read_labels(path, like=geometry(2)).names[2] == "Größe"


@pytest.mark.parametrize("suffix", FORMATS)
def test_overlaps_are_kept_or_said(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    masks = {1: np.zeros((6, 7), bool), 2: np.zeros((6, 7), bool)}
    masks[1][1:4, 1:4] = masks[2][2:5, 2:5] = True
    path = tmp_path / f"mask{suffix}"
    with caplog.at_level(logging.WARNING):
        limner.write(path, masks, like=geometry(2))
    found = limner.read_labels(path, like=geometry(2))
    np.testing.assert_array_equal(found.mask(1), masks[1])
    if suffix in those_with("overlaps"):
        np.testing.assert_array_equal(found.mask(2), masks[2])
        assert not caplog.records
    else:
        np.testing.assert_array_equal(found.mask(2), masks[2] & ~masks[1])
        assert "4 pixels belong to several objects" in caplog.text


def test_a_label_map_of_a_session_stands_for_its_labels(tmp_path: Path) -> None:
    masks = {1: np.zeros((6, 7), bool), 2: np.zeros((6, 7), bool)}
    masks[1][1:4, 1:4] = masks[2][2:5, 2:5] = True
    labels = Labels(geometry(2), masks=masks, names={1: "a"}, manifest={"model": "toy"})
    limner.write(tmp_path / "mask.json", labels.to_array())
    found = limner.read_labels(tmp_path / "mask.json")
    np.testing.assert_array_equal(found.mask(1), masks[1])
    assert found.name(1) == "a"
    assert json.loads((tmp_path / "mask.json.limner.json").read_text()) == {"model": "toy"}


def test_names_given_at_writing_leave_the_labels_alone(tmp_path: Path) -> None:
    labels = Labels(geometry(2), array=some_labels((6, 7)), names={1: "a"})
    limner.write(tmp_path / "mask.png", labels, names={2: "b"})
    assert labels.names == {1: "a"}
    assert limner.read_labels(tmp_path / "mask.png").names == {1: "a", 2: "b"}


def test_a_stale_manifest_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = Labels(geometry(2), array=some_labels((6, 7)), manifest={"model": "toy"})
    limner.write(tmp_path / "mask.png", labels)
    with caplog.at_level(logging.WARNING):
        limner.write(tmp_path / "mask.png", some_labels((6, 7)))
    assert "tells how the file that mask.png replaced was made" in caplog.text
    assert manifest_path(tmp_path / "mask.png").exists()


def test_masks_of_one_stem_keep_their_own_manifests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("mask.png", "mask.nii.gz", "mask.json"):
        labels = Labels(geometry(2), array=some_labels((6, 7)), manifest={"file": name})
        limner.write(tmp_path / name, labels)
    limner.write(tmp_path / "mask.npz", some_labels((6, 7)))
    for name in ("mask.png", "mask.nii.gz", "mask.json"):
        assert json.loads(manifest_path(tmp_path / name).read_text()) == {"file": name}
    assert not caplog.records
    assert not manifest_path(tmp_path / "mask.npz").exists()


# ---------------------------------------------------------------- as NumPy arrays


def test_numpy_takes_labels_as_their_label_map() -> None:
    masks = {2: np.eye(6, 7, dtype=bool), 5: np.zeros((6, 7), bool)}
    masks[5][0, :3] = True
    for labels in (
        Labels(geometry(2), masks=masks),
        Labels(geometry(2), array=some_labels((6, 7)).astype(np.int64)),
    ):
        array = np.asarray(labels)
        assert type(array) is np.ndarray
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, labels.to_array())
        np.testing.assert_array_equal(np.unique(labels), [0, *labels.ids])
        assert np.asarray(labels, dtype=np.float32).dtype == np.float32
        array[:] = 0  # an array of its own
        assert np.asarray(labels).any()
        with pytest.raises(ValueError, match="copy=False"):
            np.asarray(labels, copy=False)


def test_numpy_takes_an_image_as_its_pixels() -> None:
    pixels = np.arange(42, dtype=np.int16).reshape(6, 7)
    calls = []
    image = Image(lambda: calls.append(1) or pixels, geometry(2), dtype=np.int16)
    assert np.mean(image) == pixels.mean()
    assert np.shares_memory(np.asarray(image), pixels)
    assert not np.asarray(image, copy=False).flags.writeable
    copied = np.array(image)
    copied[0, 0] = 7
    assert pixels[0, 0] == 0
    assert np.asarray(image, dtype=np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        np.asarray(image, dtype=np.float32, copy=False)
    assert calls == [1]


# ---------------------------------------------------------------- choosing and refusing


def test_content_wins_over_suffix(tmp_path: Path) -> None:
    limner.write(tmp_path / "mask.nii.gz", some_labels((5, 6, 7)), like=geometry(3))
    (tmp_path / "mask.nii.gz").rename(tmp_path / "mask.mha")
    assert limner.read(tmp_path / "mask.mha").format == "nifti"
    limner.write(tmp_path / "mask.nrrd", some_labels((5, 6, 7)), like=geometry(3))
    (tmp_path / "mask.nrrd").rename(tmp_path / "no suffix")
    assert limner.read(tmp_path / "no suffix").format == "nrrd"


def test_paths_may_be_strings_and_suffixes_capital(tmp_path: Path) -> None:
    limner.write(str(tmp_path / "MASK.NII.GZ"), some_labels((5, 6, 7)), like=geometry(3))
    assert limner.read(str(tmp_path / "MASK.NII.GZ")).shape == (5, 6, 7)
    assert (tmp_path / "MASK.NII.GZ").read_bytes()[:2] == b"\x1f\x8b"


@pytest.mark.parametrize("name", ["mask.xyz", "mask", "mask.gz", "mask.jpg", "mask.mhd"])
def test_unknown_suffixes_list_the_known(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match=r"\.nii\.gz"):
        limner.write(tmp_path / name, some_labels((6, 7)))
    assert list(tmp_path.iterdir()) == []


def test_labels_only_suffixes_take_no_images(tmp_path: Path) -> None:
    image = Image(np.zeros((6, 7), np.uint8), geometry(2))
    for suffix in (".npz", ".dcm", ".json"):
        with pytest.raises(FormatError, match="images are written as"):
            write_image(tmp_path / f"a{suffix}", image)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".tif"])
def test_the_image_is_never_replaced(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ct{suffix}"
    write_image(path, Image(np.ones((5, 6, 7), np.uint8), geometry(3)))
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for name in (path, tmp_path / "link" / path.name):
        with pytest.raises(FormatError, match="is the image itself"):
            limner.write(name, some_labels((5, 6, 7)), like=path)
        with pytest.raises(FormatError, match="is the image itself"):
            write_image(name, limner.read(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", FORMATS)
def test_labels_of_another_shape_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    with pytest.raises(GeometryError, match="shape"):
        limner.write(path, np.zeros((7, 6), np.uint8), like=geometry(2))
    assert list(tmp_path.iterdir()) == []
    limner.write(path, some_labels((6, 7)), like=geometry(2))
    with pytest.raises(GeometryError, match="shape"):
        limner.read_labels(path, like=Geometry((7, 6)))


def test_labels_from_elsewhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    limner.write(path, some_labels((5, 6, 7)), like=geometry(3))
    moved = Geometry.from_spacing((5, 6, 7), (2.5, 0.5, 0.75), origin=(0, 0, 30))
    with pytest.raises(GeometryError, match="lies elsewhere"):
        limner.read_labels(path, like=moved)
    nearly = Geometry.from_spacing((5, 6, 7), (2.5, 0.5, 0.75), origin=(0, 0, 0.001))
    assert limner.read_labels(path, like=nearly).geometry == nearly
    with pytest.raises(GeometryError, match="lies elsewhere"):
        limner.write(tmp_path / "b.nii.gz", limner.read_labels(path), like=moved)


@pytest.mark.parametrize("values", [[[0.5, 1]], [[-1, 2]], [[np.nan, 1]]])
def test_what_is_no_label_map_is_refused(tmp_path: Path, values: list) -> None:
    for suffix in (".nii.gz", ".nrrd", ".mha", ".tif"):
        path = tmp_path / f"image{suffix}"
        dtype = np.int16 if values == [[-1, 2]] else np.float32
        write_image(path, Image(np.array(values, dtype), Geometry((1, 2))))
        with pytest.raises((FormatError, GeometryError), match="label"):
            limner.read_labels(path)


def test_whole_floats_are_labels(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz", Image(np.array([[0.0, 2.0]]), Geometry((1, 2))))
    assert limner.read_labels(tmp_path / "a.nii.gz").ids == (2,)


def test_options_are_those_of_the_format(tmp_path: Path) -> None:
    labels = some_labels((6, 7))
    with pytest.raises(TypeError, match="quality"):
        limner.write(tmp_path / "a.nii.gz", labels, quality=9)
    with pytest.raises(ValueError, match=r"belongs to \.dcm"):
        limner.write(tmp_path / "a.nii.gz", labels, dicom_type="seg")
    with pytest.raises(ValueError, match="rtstruct"):
        limner.write(tmp_path / "a.dcm", labels, dicom_type="sr")
    assert list(tmp_path.iterdir()) == []
    assert writer("a.dcm", dicom_type="seg-labelmap").keeps_overlaps is False
    assert writer("a.dcm").keeps_overlaps is True


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seg.nii.gz", "seg.nii.gz.limner.json"),
        ("a.b.nii", "a.b.nii.limner.json"),
        ("seg.JSON", "seg.JSON.limner.json"),
        ("seg", "seg.limner.json"),
    ],
)
def test_where_the_manifest_is(name: str, expected: str) -> None:
    assert manifest_path(Path("folder") / name) == Path("folder") / expected


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mask.nii.gz"
    limner.write(path, some_labels((5, 6, 7)), like=geometry(3))
    before = path.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(FormatError, match="no space left"):
        limner.write(path, np.zeros((5, 6, 7), np.uint8), like=geometry(3))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mask.nii.gz"]


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    for suffix in FORMATS:
        with pytest.raises(FormatError, match="Cannot write in"):
            limner.write(tmp_path / "nowhere" / f"a{suffix}", some_labels((6, 7)), like=geometry(2))


def test_holds_labels(tmp_path: Path) -> None:
    labels = some_labels((6, 7))
    for suffix in FORMATS:
        path = tmp_path / f"mask{suffix}"
        limner.write(path, labels, like=geometry(2))
        assert holds_labels(path) is (suffix in (".npz", ".json")), suffix
    np.savez(tmp_path / "case.npz", imgs=labels, gts=labels)
    assert not holds_labels(tmp_path / "case.npz")


# ---------------------------------------------------------------- DICOM and frames, by real files


@pytest.mark.slow
@pytest.mark.parametrize("dicom_type", [None, "seg", "seg-labelmap", "rtstruct"])
def test_dicom_segmentations(shared_data: Path, tmp_path: Path, dicom_type: str | None) -> None:
    image = limner.read(shared_data / "dicom" / "ct_jpeg2000")
    labels = np.zeros(image.geometry.shape, np.uint8)
    labels[5:12, 100:200, 150:260] = 1
    labels[8:10, 300:340, 150:260] = 2
    path = tmp_path / "seg.dcm"
    options = {} if dicom_type is None else {"dicom_type": dicom_type}
    limner.write(path, labels, like=image, names={1: "liver", 2: "spleen"}, **options)
    assert holds_labels(path)
    found = limner.read_labels(path, like=image)
    assert sorted(found.names.values()) == ["liver", "spleen"]
    assert found.geometry == image.geometry
    np.testing.assert_array_equal(found.to_array(), labels)
    with pytest.raises(FormatError):
        limner.read(path)


def test_a_dicom_series_is_no_segmentation(shared_data: Path) -> None:
    with pytest.raises(FormatError, match="DICOM image, not a segmentation"):
        limner.read_labels(shared_data / "dicom" / "ct_jpeg2000")


def test_folders_of_frames_are_videos(shared_data: Path) -> None:
    folder = next(iter(sorted((shared_data / "video").glob("*/*/frames"))))
    image = limner.read(folder)
    assert image.kind == "video"
    assert image.geometry.shape[0] == len(list(folder.glob("*.png")))


def test_dir_of_the_package_lists_the_public_names_only() -> None:
    shown = dir(limner)
    assert {name for name in shown if not name.startswith("__")} == set(limner.__all__)
    assert "__version__" in shown


def test_old_names_of_slices_still_work() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    grid = Geometry(array.shape)
    with pytest.warns(DeprecationWarning, match="read_slice="):
        image = Image(lambda: array, grid, dtype=array.dtype, plane=lambda k: array[k])
    with pytest.warns(DeprecationWarning, match=r"Image\.slice_at"):
        assert np.array_equal(image.plane(1), image.slice_at(1))
    with pytest.warns(DeprecationWarning, match=r"Image\.slices"):
        assert len(list(image.planes())) == 2
    with pytest.warns(DeprecationWarning, match=r"Geometry\.slice_at"):
        assert grid.plane(1) == grid.slice_at(1)
