"""Files that packages bring along for their own tests, and what independent readers make of them.

Those of installed packages are found beside the packages. More lie in source distributions and
repositories: unpacked ones are found in the folder that ``LIMNER_TEST_CORPUS`` names, with one
sub-folder for each package of `UNPACKED`.
"""

from __future__ import annotations

import gzip
import io
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import highdicom
import nibabel
import nrrd
import numpy as np
import pydicom
import SimpleITK
import tifffile
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageSequence
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

INSTALLED = ("pydicom", "nibabel", "highdicom", "SimpleITK", "skimage", "tifffile", "PIL", "nrrd")
INSTALLED += ("imagecodecs",)
UNPACKED = ("pillow", "pynrrd", "highdicom", "pydicom-data", "imagecodecs", "imageio-images")
# Suffixes of what is no test file: code, texts, fonts.
_OTHERS = {".py", ".pyc", ".pyi", ".so", ".c", ".h", ".cpp", ".hpp", ".m", ".js", ".css", ".html"}
_OTHERS |= {".sh", ".mk", ".bat", ".pxd", ".pyx", ".rst", ".md", ".txt", ".typed", ".yml", ".yaml"}
_OTHERS |= {".toml", ".cfg", ".ini", ".in", ".svg", ".map", ".dump", ".icc", ".lut", ".whl"}
_OTHERS |= {".ttf", ".otf"}

Array = NDArray[Any]


class CorpusFile(NamedTuple):
    """A file of a package: `name` is its path within the package."""

    package: str
    name: str
    path: Path


@dataclass(frozen=True)
class Reading:
    """What an independent reader makes of a file.

    Attributes:
        reader: its name.
        array: pixels in index order, channels last.
        affine: index to LPS millimetres, 4×4; None if the reader does not know.
        exact: whether the values have to be the same to the last digit; of lossy compression
            decoders may differ by a few levels.
    """

    reader: str
    array: Array
    affine: Array | None = None
    exact: bool = True


def list_files() -> list[CorpusFile]:
    """All files there are, in a fixed order."""
    found = []
    for package, root in _roots():
        for path in sorted(root.rglob("*")):
            inner = path.relative_to(root)
            hidden = any(p[0] == "." or p in ("licenses", "__pycache__") for p in inner.parts)
            if not hidden and path.suffix.lower() not in _OTHERS and path.is_file():
                found.append(CorpusFile(package, inner.as_posix(), path))
    return found


def _roots() -> Iterator[tuple[str, Path]]:
    for package in INSTALLED:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            yield package, Path(spec.origin).parent
    folder = os.environ.get("LIMNER_TEST_CORPUS")
    if folder:
        for package in UNPACKED:
            yield f"{package} (source)", Path(folder) / package


def read_independently(path: Path, format: str, *, without: tuple[str, ...] = ()) -> list[Reading]:
    """All that independent readers make of a file; those that refuse it are left out."""
    found = []
    for name, read in READERS.get(format, {}).items():
        if name in without:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found.append(read(path))
            except Exception:
                continue
    return found


# ---------------------------------------------------------------- DICOM


_LOSSY = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91, 203)}


def _by_pydicom(path: Path) -> Reading:
    content = path.read_bytes()
    packed = content[:2] == b"\x1f\x8b"
    ds = pydicom.dcmread(io.BytesIO(gzip.decompress(content) if packed else content), force=True)
    if "TotalPixelMatrixRows" in ds:
        raise ValueError("tiles; highdicom puts them together")
    array = pixel_array(ds)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        array = apply_color_lut(array, ds)
        if ds.RedPaletteColorLookupTableDescriptor[2] == 16:
            array = array >> 8
    elif ds.SamplesPerPixel == 1:
        array = apply_modality_lut(array, ds)
        if ds.Modality == "RTDOSE":
            array = array * float(ds.DoseGridScaling)
    lossy = ds.file_meta.get("TransferSyntaxUID", "") in _LOSSY
    return Reading("pydicom", np.asarray(array), exact=not lossy)


def _by_highdicom(path: Path) -> Reading:
    image = highdicom.imread(path)
    if not image.is_tiled:
        raise ValueError("no tiles")
    array = image.get_total_pixel_matrix(apply_icc_profile=False)
    return Reading("highdicom", array, image.get_volume_geometry().affine)


def _by_itk(path: Path) -> Reading:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.HasMetaDataKey("0048|0007"):
        raise ValueError("tiles; highdicom puts them together")
    image = reader.Execute()
    array = SimpleITK.GetArrayFromImage(image)
    if image.GetDimension() == 4:
        array = np.moveaxis(array, 0, -1)  # time last
    return Reading("SimpleITK", array, affine_of_itk(image), exact=False)


def affine_of_itk(image: SimpleITK.Image) -> Array:
    """Index ``(slice, row, column)`` to LPS millimetres of an image of 2 to 4 axes."""
    ndim = min(image.GetDimension(), 3)
    direction = np.eye(3)
    full = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)
    direction[:ndim, :ndim] = full[:ndim, :ndim]
    affine = np.eye(4)
    affine[:3, :3] = (direction * [*image.GetSpacing()[:ndim], 1.0][:3])[:, ::-1]
    affine[:ndim, 3] = image.GetOrigin()[:ndim]
    return affine


# ---------------------------------------------------------------- volumes


def _by_nibabel(path: Path) -> Reading:
    image = nibabel.load(path)
    array = np.asanyarray(image.dataobj)
    axes = (1, 0) if array.ndim == 2 else (2, 1, 0, *range(3, array.ndim))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine @ np.eye(4)[:, [2, 1, 0, 3]]
    array = array.transpose(axes)
    if array.dtype.names:
        array = np.stack([array[n] for n in array.dtype.names], axis=-1)
    return Reading("nibabel", array, affine)


def _by_pynrrd(path: Path) -> Reading:
    array, header = nrrd.read(str(path))
    affine = None
    directions = np.asarray(header.get("space directions", np.nan), dtype=float)
    flips = {"left-posterior-superior": (1, 1, 1), "right-anterior-superior": (-1, -1, 1)}
    flip = np.array(flips.get(header.get("space", ""), (np.nan,) * 3))
    if directions.shape == (3, 3) and np.isfinite(directions).all() and np.isfinite(flip).all():
        affine = np.eye(4)
        affine[:3, :3] = (flip * directions)[::-1].T
        affine[:3, 3] = flip * header.get("space origin", np.zeros(3))
    return Reading("pynrrd", array.T, affine)


# ---------------------------------------------------------------- pictures


def _by_tifffile(path: Path) -> Reading:
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        array, page, axes = series.asarray(), series.keyframe, series.axes
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        array = array[..., 0] if axes[-1] == "S" else array
        array = np.moveaxis(page.colormap[:, array], 0, -1) >> 8
    elif "S" in axes:
        array = np.moveaxis(array, axes.index("S"), -1)
        has_alpha = any(s in (1, 2) for s in page.extrasamples)
        colours = {2: 3, 5: 4, 6: 3}.get(int(page.photometric), 1)
        if has_alpha and array.shape[-1] == colours + 1:
            array = array[..., :colours]
    lossy = page.compression in (6, 7, 34712, 33003, 33005, 50001, 34892)
    return Reading("tifffile", array, exact=not lossy)


def _by_pillow(path: Path) -> Reading:
    with Picture.open(path) as picture:
        if picture.format == "TIFF":
            _refuse_what_pillow_changes(picture)
        lossy = picture.format in ("JPEG", "WEBP", "MPO")
        frames = [_colours(frame) for frame in ImageSequence.Iterator(picture)]
        moves = len(frames) > 1 and picture.format != "MPO"
    return Reading("Pillow", np.stack(frames) if moves else frames[0], exact=not lossy)


def _refuse_what_pillow_changes(picture: Any) -> None:
    """Pillow stretches few bits to 8 and cuts 16, turns, inverts and flattens pages of a TIFF."""
    tags = picture.tag_v2
    changed = {tags.get(258, (8,)) != (8,) * len(picture.getbands()), tags.get(274, 1) != 1}
    changed |= {tags.get(262) in (0, 5), tags.get(259) == 6, picture.mode not in ("L", "RGB", "P")}
    changed |= {tags.get(339, (1,))[0] != 1, 32997 in tags, getattr(picture, "n_frames", 1) > 1}
    if True in changed:
        raise ValueError("not as stored")


def _colours(frame: Picture.Image) -> Array:
    if frame.mode in ("RGBA", "LA"):
        return np.asarray(frame)[..., : len(frame.mode) - 1].squeeze(
            axis=-1 if frame.mode == "LA" else ()
        )
    if frame.mode == "1":
        return np.array(frame, dtype=np.uint8)
    modes = {"P": "RGB", "PA": "RGB", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
    return np.array(frame.convert(modes[frame.mode]) if frame.mode in modes else frame)


def _png_by_itk(path: Path) -> Reading:
    """ITK reads 16-bit colours, which Pillow cuts to 8 bits."""
    if path.read_bytes()[24:25] != bytes([16]):
        raise ValueError("Pillow reads it")
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("PNGImageIO")
    return Reading("SimpleITK", SimpleITK.GetArrayFromImage(reader.Execute()))


def _by_numpy(path: Path) -> Reading:
    with np.load(path) as archive:
        return Reading("NumPy", archive[archive.files[0]])


READERS: dict[str, dict[str, Callable[[Path], Reading]]] = {
    "dicom": {"pydicom": _by_pydicom, "highdicom": _by_highdicom, "SimpleITK": _by_itk},
    "nifti": {"nibabel": _by_nibabel, "SimpleITK": _by_itk},
    "nrrd": {"pynrrd": _by_pynrrd, "SimpleITK": _by_itk},
    "mgh": {"nibabel": _by_nibabel},
    "mha": {"SimpleITK": _by_itk},
    "tiff": {"tifffile": _by_tifffile, "Pillow": _by_pillow},
    "raster": {"Pillow": _by_pillow, "SimpleITK": _png_by_itk},
    "video": {"Pillow": _by_pillow},
    "npz": {"NumPy": _by_numpy},
}
