"""Files of other packages through the command line, against independent readers.

Every file that comes with the packages of `corpus_files` goes through ``info``, ``convert`` and
``segment``: it is refused in one line, or read as independent readers do (shape, values, place).
Its box is where it was drawn in what is written. Where anything differs, `DIFFERENCES` says why.
``make test`` takes a few files, ``make test-long`` all of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import highdicom
import numpy as np
import pytest
import SimpleITK
from scipy.spatial import cKDTree

import limner
from corpus_files import CorpusFile, affine_of_itk, list_files, read_independently
from limner.cli.__main__ import run
from limner.io import holds_labels
from limner.io.formats import FORMATS
from rounds import ROUNDS, times

LEVELS = 3  # by which decoders of lossy compression may differ
MODEL = ("--model", "baseline/box")


class Difference(NamedTuple):
    """A difference that is as it should be.

    Attributes:
        files: regular expression of the end of the name.
        reader: that differs; ``""`` for any.
        what: ``"values"``, ``"grid"``, ``"refused"`` (by limner alone) or ``"alone"`` (read by
            limner alone).
        reason: why limner's way is right, or what is not supported.
    """

    files: str
    reader: str
    what: str
    reason: str


_US = r"(examples_(palette|ybr_color)|JPGLosslessP14SV1_1s_1f_8b|OBXXXX1A.*)\.dcm"
DIFFERENCES = tuple(
    Difference(*row)
    for row in (
        # DICOM
        (
            r"SC_rgb_rle_(16|32)bit.*\.dcm",
            "SimpleITK",
            "values",
            "GDCM swaps RLE's planes of bytes",
        ),
        (
            r"/CR\d/\d+|dx_image.dcm|RG\d_J2K.\.dcm",
            "SimpleITK",
            "values",
            "ITK inverts MONOCHROME1",
        ),
        (_US, "SimpleITK", "grid", "spacing of ultrasound regions, which ITK does not read"),
        (r"rtdose.*\.dcm", "SimpleITK", "values", "ITK does not apply DoseGridScaling"),
        (
            r"OBXXXX1A_expb.*\.dcm",
            "pydicom",
            "values",
            "pydicom's palette of big-endian files is 0",
        ),
        (r"eCT_Supplemental.dcm", "pydicom", "values", "rescale in functional groups; ITK agrees"),
        (r"gdcm-US-ALOKA.*", "SimpleITK", "values", "limner shows palettes with 8 bits, not 16"),
        (r"mlut_18.dcm", "SimpleITK", "values", "ITK does not apply a modality LUT; pydicom does"),
        (r"badVR.dcm", "", "refused", "NumberOfFrames is '1A'; pydicom refuses it, too"),
        (r"RG1_J2KI.dcm", "", "refused", "its PixelSpacing is 0"),
        (r"dicom_file02.dcm", "", "refused", "four orientations in one file; --series asks which"),
        (
            r"JLSL_08_07_0_1F.dcm",
            "",
            "alone",
            "JPEG-LS of 7 bits, which the others' decoders refuse",
        ),
        (r"emri_.*_too_short.dcm", "", "alone", "an offset table that the others do not get past"),
        # volumes
        (r"resampled_anat_moved.nii", "SimpleITK", "values", "ITK reads NaN as 0; nibabel agrees"),
        (r".mnc", "", "refused", "MINC is not supported"),
        (r"BRIK.gz", "", "refused", "AFNI is not supported"),
        (
            r"byteskip_minus_.*\.nhdr",
            "",
            "refused",
            "NRRD allows a byte skip of -1 for raw data only",
        ),
        (r"test(1d_ascii|_customFields).nrrd", "", "refused", "one axis is no image"),
        # pictures
        (r"chessboard_RGB.png", "Pillow", "values", "Pillow cuts colours of 16 bits to 8"),
        (r"clipboard.dib", "", "refused", "a bitmap without its file header is not supported"),
        (r"_frame_loop.tiff", "", "refused", "the list of pages runs in a circle"),
        (r"_planar_extra_samples.tiff", "", "refused", "the second plane has no data"),
        (r"wrong_bits_per_sample.tiff", "", "refused", "the file ends inside the page"),
        (r"gray.c(8|16).tif", "", "refused", "complex numbers are not supported"),
        (r"(multipage.*|-lastframe)\.tiff?", "", "alone", "tifffile's series fail; pages agree"),
        (
            r"\.mpo",
            "",
            "alone",
            "Pillow refuses the second picture of the file, limner reads the first",
        ),
        (r"\.(mp4|webm|mkv|avi)", "", "alone", "no reader that is independent of FFmpeg"),
    )
)
# What refusals say, and why such a file is rightly refused.
REFUSALS = {
    "of no known kind": "another format",
    "holds no pixels": "DICOM without an image",
    "is empty": "no content",
    "holds .* images; choose one|holds several": "several series: --series",
    "cut off|truncated|incomplete|ends before its pixels|ends early": "damaged",
    "damaged|cannot be decoded": "damaged",
    "need at least|claims|one picture may have|could be decompression bomb": "claims too much",
    "not a readable|not a PNG|is not NIfTI|no valid|runs in a circle": "malformed, or such a codec",
    "complex|lie in space|byte skip|not an integer": "see `DIFFERENCES`",
    "no such file|does not say which": "incomplete",
    "must be above 0": "a spacing of 0",
    "half of a .* pair|series it was drawn on": "one file of several",
    "values that are no image|not a DICOM file": "no image",
    "no image or|not a segmentation|is no image|holds no|not labels|whole numbers": "no image",
}


@cache
def corpus() -> tuple[CorpusFile, ...]:
    """The files of this run: those of all packages in turn, as many as `times` says."""
    files = list_files()
    random.Random(0).shuffle(files)
    return tuple(files[: times(40)] if ROUNDS < 20 else files)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the readers that are compared with
        yield


def said(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(a) for a in arguments])
    return code, out.getvalue(), err.getvalue()


def is_listed(file: CorpusFile, reader: str, what: str) -> bool:
    return any(
        re.search(f"(?:{d.files})$", file.name) and d.reader in ("", reader) and d.what == what
        for d in DIFFERENCES
    )


# ---------------------------------------------------------------- comparison


def differ(ours: np.ndarray, theirs: np.ndarray, *, exact: bool) -> str:
    """How two arrays of pixels differ, or nothing. Grey may be shown as three channels."""
    ours, theirs = np.squeeze(ours), np.squeeze(theirs)
    if theirs.shape == (*ours.shape, 3) and (theirs == theirs[..., :1]).all():
        theirs = theirs[..., 0]
    if ours.shape == (*theirs.shape, 3) and (ours == ours[..., :1]).all():
        ours = ours[..., 0]
    if ours.shape != theirs.shape:
        return f"shape {ours.shape}, not {theirs.shape}"
    if ours.dtype.kind in "biu" and theirs.dtype.kind in "biu" and np.array_equal(ours, theirs):
        return ""
    first, second = ours.astype(np.float64), theirs.astype(np.float64)
    allowed = (
        1e-5 * np.nanmax(np.abs(second), initial=1) if exact or first.dtype == bool else LEVELS
    )
    if np.allclose(first, second, rtol=1e-5, atol=allowed, equal_nan=True):
        return ""
    return f"{np.mean(first != second):.1%} of the values differ"


def are_same_grids(ours: limner.Geometry, theirs: np.ndarray, reader: str) -> bool:
    steps = np.linalg.norm(theirs[:3, :3], axis=0)
    if not ours.has_spacing:  # ITK says 1 where a file says nothing
        return reader != "SimpleITK" or bool(np.allclose(steps[1:], 1))
    axes = slice(3 - ours.ndim, 4)
    return np.allclose(ours.affine[:3, axes], theirs[:3, axes], rtol=1e-4, atol=1e-3)


def turned(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with its slices in the other order."""
    other = affine.copy()
    other[:3, 3] += affine[:3, 0] * (len(array) - 1)
    other[:3, 0] *= -1
    return array[::-1], other


def compare(file: CorpusFile, image: limner.Image, *_: object) -> list[str]:
    """Differences from independent readers that are not listed."""
    found = []
    readings = read_independently(file.path, image.format)
    if not readings and not is_listed(file, "", "alone"):
        found.append(f"{file.package} {file.name}: no other reader reads it")
    for reading in readings:
        array, affine = reading.array, reading.affine
        if affine is not None and image.geometry.ndim == 3 and array.ndim >= 3:
            array, affine = in_order(array, affine, image.geometry)
        how = differ(image.array, array, exact=reading.exact)
        if how and not is_listed(file, reading.reader, "values"):
            found.append(f"{file.package} {file.name}: {reading.reader}: {how}")
        if affine is None or are_same_grids(image.geometry, affine, reading.reader):
            continue
        if not is_listed(file, reading.reader, "grid"):
            found.append(f"{file.package} {file.name}: {reading.reader}: {affine.tolist()}")
    return found


def in_order(
    array: np.ndarray, affine: np.ndarray, grid: limner.Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """ITK keeps the frames in the order of the file; limner sorts them along their normal."""
    if len(array) == grid.shape[0] and np.allclose(affine[:3, 0], -grid.affine[:3, 0], atol=1e-3):
        return turned(array, affine)
    return array, affine


# ---------------------------------------------------------------- the three commands


def check_info(file: CorpusFile, image: limner.Image, *_: object) -> list[str]:
    code, out, err = said("info", file.path, "--json")
    if code:
        return [f"{file.name}: info: {err}"]
    facts = json.loads(out)
    wanted = list(image.geometry.shape), image.num_channels, str(image.dtype)
    given = facts["shape"], facts["channels"], facts["pixel_type"]
    return [] if given == wanted else [f"{file.name}: info says {given}, not {wanted}"]


def targets(image: limner.Image) -> list[str]:
    """Suffixes of the formats that hold an image."""
    volumes = [".nii.gz", ".nrrd", ".tif"]
    if image.geometry.is_orthogonal:
        volumes.append(".mha")
    if image.geometry.ndim == 2 and image.dtype in (np.uint8, np.uint16):
        volumes += [".png"] if image.num_channels in (None, 3) else []
    return volumes


_INDEPENDENT = {
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".mha": "mha",
    ".tif": "tiff",
    ".png": "raster",
}


def check_convert(
    file: CorpusFile, image: limner.Image, folder: Path, rng: random.Random
) -> list[str]:
    suffix = rng.choice(targets(image))
    path = folder / f"image{suffix}"
    code, _, err = said("convert", file.path, path)
    if code:
        known = re.search("holds|cannot|not written|float16|complex", err)
        return [] if code == 2 and known else [f"{file.name}: convert to {suffix}: {err}"]
    readings = read_independently(path, _INDEPENDENT[suffix])
    found = [] if readings else [f"{file.name}: no other reader reads the {suffix}"]
    for reading in readings:
        how = differ(image.array, reading.array, exact=True)
        if reading.reader == "SimpleITK" and image.dtype.kind == "f":  # it reads NaN as 0
            known = np.isfinite(np.squeeze(image.array))
            how = differ(
                np.squeeze(image.array)[known], np.squeeze(reading.array)[known], exact=True
            )
        if image.dtype == np.uint16 and image.num_channels and reading.reader == "Pillow":
            how = ""  # it cuts them to 8 bits
        if how:
            found.append(f"{file.name}: {suffix}: {reading.reader}: {how}")
        grid = image.geometry
        if reading.affine is None or not grid.has_spacing or image.kind == "video":
            continue
        if not are_same_grids(grid, reading.affine, reading.reader):
            found.append(f"{file.name}: {suffix}: {reading.reader}: {reading.affine.tolist()}")
    return found


def check_segment(
    file: CorpusFile, image: limner.Image, folder: Path, rng: random.Random
) -> list[str]:
    grid = image.geometry
    low = [n // 4 for n in grid.shape]
    high = [max(a + 1, n - n // 4 - 1) for a, n in zip(low, grid.shape, strict=True)]
    box, place = ",".join(map(str, (*low, *high))), ()
    if image.kind == "video":
        box, place = ",".join(map(str, (*low[1:], *high[1:]))), ("--frame", low[0])
        high[0] = low[0] + 1
    wanted = np.zeros(grid.shape, dtype=bool)
    wanted[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    suffixes = [".nii.gz", ".nrrd", ".tif"]
    suffixes += [".mha"] if grid.is_orthogonal else []
    suffixes += [".png"] if grid.ndim == 2 else []
    chosen = [rng.choice(suffixes)] + ([".dcm"] if image.format == "dicom" else [])
    found = []
    for suffix in chosen:
        path = folder / f"mask{suffix}"
        code, _, err = said("segment", file.path, "--box", box, *place, *MODEL, "-o", path)
        if code:
            known = re.search(_NO_MASK, err)
            if code != 2 or not known:
                found.append(f"{file.name}: segment to {suffix}: {err}")
        elif suffix == ".dcm":
            found += [f"{file.name}: SEG: {line}" for line in check_seg(path, wanted, image)]
        else:
            found += [
                f"{file.name}: mask: {line}" for line in check_mask(path, suffix, wanted, grid)
            ]
    return found


# Why there is no mask: said before the model runs.
_NO_MASK = "NaN|infinite|time points|channels|time point|every pixel|same value|has no|cannot|needs"


def check_mask(path: Path, suffix: str, wanted: np.ndarray, grid: limner.Geometry) -> Iterator[str]:
    for reading in read_independently(path, _INDEPENDENT[suffix]):
        if differ(reading.array > 0, wanted, exact=True):
            yield f"{reading.reader}: {suffix}: the box lies elsewhere"
        if reading.affine is None or not grid.has_spacing:
            continue
        if not are_same_grids(grid, reading.affine, reading.reader):
            yield f"{reading.reader}: {suffix}: {reading.affine.tolist()}"


def check_seg(path: Path, wanted: np.ndarray, image: limner.Image) -> Iterator[str]:
    """Pixels of the box by where frames say they are; by their number where they say nothing."""
    try:
        seg = highdicom.seg.segread(path)
    except Exception as error:
        yield f"highdicom refuses it: {error}"
        return
    shared, groups = seg.SharedFunctionalGroupsSequence[0], seg.PerFrameFunctionalGroupsSequence
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    if seg.is_tiled:
        matrix = seg.get_total_pixel_matrix(combine_segments=True)
        if not np.array_equal(matrix > 0, wanted):
            yield "the box lies elsewhere on the slide"
        return
    if "PlanePositionSequence" not in groups[0] or "PixelMeasuresSequence" not in shared:
        found = np.zeros_like(wanted).reshape(-1, *wanted.shape[-2:])
        for frame, group in zip(frames, groups, strict=True):
            found[source_number(group) - 1] |= frame > 0
        if not np.array_equal(found.reshape(wanted.shape), wanted):
            yield "the box lies elsewhere"
        return
    points = [frame_points(f, g, shared) for f, g in zip(frames, groups, strict=True)]
    theirs = np.concatenate(points)
    ours = world(image.affine, np.argwhere(wanted if wanted.ndim == 3 else wanted[None]))
    size = max(image.spacing) * 0.05
    apart = cKDTree(theirs).query(ours)[0].max() if len(theirs) == len(ours) else np.inf
    if apart > size:
        yield f"the box lies elsewhere: up to {apart} mm off, {len(theirs)} for {len(ours)} points"


def frame_points(frame: np.ndarray, group: Any, shared: Any) -> np.ndarray:
    """LPS millimetres of the pixels of a frame (PS3.3 C.7.6.2.1.1)."""
    plane = (group if "PlaneOrientationSequence" in group else shared).PlaneOrientationSequence[0]
    across, down = np.reshape(plane.ImageOrientationPatient, (2, 3)).astype(float)
    rows, columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
    at = np.argwhere(frame)
    return origin + at[:, :1] * rows * down + at[:, 1:] * columns * across


def source_number(group: Any) -> int:
    """Number of the frame that a frame names, from 1."""
    sources = [s for d in group.DerivationImageSequence for s in d.SourceImageSequence]
    return int(sources[0].get("ReferencedFrameNumber", 1)) if sources else 1


def world(affine: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return indices @ affine[:3, :3].T + affine[:3, 3]


# ---------------------------------------------------------------- tests


def check_refusal(file: CorpusFile, error: Exception) -> list[str]:
    """A refusal is one line that names the file, for a known reason."""
    message, found = str(error), []
    if "\n" in message or not re.search("|".join(REFUSALS), message):
        found.append(f"{file.package} {file.name}: no known reason: {message}")
    if file.path.stem not in message and file.path.parent.as_posix() not in message:
        found.append(f"{file.package} {file.name}: does not say which file: {message}")
    kind = next((e for e in FORMATS if e.images and e.has_suffix(file.path)), None)
    name = kind.module.split(".")[0] if kind is not None else ""
    if file.path.read_bytes()[128:132] == b"DICM":
        name = "dicom"
    if "holds no pixels" in message or "ends before its pixels" in message:
        return found
    readings = read_independently(file.path, name, without=("SimpleITK",))  # it may crash
    if readings and not is_listed(file, "", "refused"):
        found.append(f"{file.package} {file.name}: {readings[0].reader} reads it: {message}")
    return found


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("quiet")
def test_every_file_is_read_and_written_as_independent_readers_do(tmp_path: Path) -> None:
    found, figures = list[str](), Counter[tuple[str, str]]()
    for k, file in enumerate(corpus()):
        rng, folder = random.Random(file.name), tmp_path / str(k)
        try:
            if holds_labels(file.path):
                limner.read_labels(file.path)
                figures[file.package, "masks"] += 1
                continue
            image = limner.read(file.path)
            _ = image.array
        except limner.LimnerError as error:
            figures[file.package, "refused"] += 1
            found += check_refusal(file, error)
            continue
        figures[file.package, "read"] += 1
        folder.mkdir()
        for check in (compare, check_info, check_convert, check_segment):
            try:
                found += check(file, image, folder, rng)
            except Exception as error:
                found.append(f"{file.name}: {check.__name__}: {error!r}")
    print(*(f"{p}: {what} {n}" for (p, what), n in sorted(figures.items())), sep="\n")
    assert not found, f"{len(found)} differences:\n" + "\n".join(found)


@pytest.mark.slow
def test_the_command_itself_says_the_same(tmp_path: Path) -> None:
    """What the test above does in one process, each in a process of its own."""
    from pydicom.data import get_testdata_file

    path, out = get_testdata_file("CT_small.dcm"), tmp_path / "mask.nrrd"
    command = [sys.executable, "-m", "limner"]
    info = subprocess.run([*command, "info", path, "--json"], capture_output=True, check=True)
    assert json.loads(info.stdout)["shape"] == [128, 128]
    box = ["--box", "32,40,90,80", *MODEL, "-o", str(out)]
    subprocess.run([*command, "segment", path, *box], capture_output=True, check=True)
    mask, source = SimpleITK.ReadImage(str(out)), SimpleITK.ReadImage(path)
    wanted = np.zeros((128, 128), dtype=bool)
    wanted[32:90, 40:80] = True
    assert np.array_equal(np.squeeze(SimpleITK.GetArrayFromImage(mask)) > 0, wanted)
    np.testing.assert_allclose(
        affine_of_itk(mask)[:3, 1:], affine_of_itk(source)[:3, 1:], atol=1e-3
    )
