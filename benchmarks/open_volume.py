"""How long it takes to open a CT of 512×512×300, beside the other readers: header, then pixels.

Run: ``python benchmarks/open_volume.py [--slices 300] [--repeats 5]``. Prints medians in
milliseconds. The phantom is made in a temporary folder: a body of soft tissue with noise in air,
int16, which packs about as well as a real CT. Files are read once before they are timed, so the
disk does not count. nibabel and SimpleITK read the header and the pixels in one go or by their own
lazy objects; both columns show the time until the values are in an array.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import limner
from limner.io import write_image

SIZE = 512  # rows and columns
SPACING = (1.0, 0.75, 0.75)  # slice, row, column, mm
HU_AIR = -1000
HU_TISSUE = 40
NOISE = 12  # HU, standard deviation


def phantom(num_slices: int) -> np.ndarray:
    """A noisy ellipse of soft tissue in air, ``(slice, row, column)`` int16."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    body = (rows / 180) ** 2 + (columns / 220) ** 2 < 1
    volume = np.full((num_slices, SIZE, SIZE), HU_AIR, dtype=np.int16)
    for plane in volume:
        plane[body] = HU_TISSUE + rng.normal(0, NOISE, int(body.sum()))
    return volume


def write_series(folder: Path, volume: np.ndarray) -> None:
    """The volume as one uncompressed CT file per slice."""
    from pydicom import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k, plane in enumerate(volume):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset = Dataset()
        dataset.file_meta = meta
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.FrameOfReferenceUID = frame
        dataset.Modality, dataset.PatientID, dataset.PatientName = "CT", "phantom", "phantom"
        dataset.InstanceNumber = k + 1
        dataset.Rows, dataset.Columns = plane.shape
        dataset.PixelSpacing = list(SPACING[1:])
        dataset.SliceThickness = SPACING[0]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, k * SPACING[0]]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelData = plane.tobytes()
        dataset.save_as(folder / f"{k:04d}.dcm", enforce_file_format=True)


def by_limner(path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Header and pixels."""
    return lambda: limner.read(path).geometry, lambda: limner.read(path).array


def by_nibabel(path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Header and pixels, stored type kept."""
    import nibabel

    return lambda: nibabel.load(path).affine, lambda: np.asarray(nibabel.load(path).dataobj)


def by_simpleitk(path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Header and pixels of one file, or of a series where the path is a folder."""
    import SimpleITK as sitk  # noqa: N813

    def names() -> Any:
        return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else path

    def header() -> Any:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        return reader.GetSize()

    pixels = lambda: sitk.GetArrayViewFromImage(sitk.ReadImage(names()))  # noqa: E731
    return (names if path.is_dir() else header), pixels


def by_pydicom(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """All headers, and all pixels stacked by position."""
    import pydicom

    def headers() -> Any:
        return [pydicom.dcmread(p, stop_before_pixels=True) for p in sorted(folder.iterdir())]

    def pixels() -> Any:
        datasets = [pydicom.dcmread(p) for p in sorted(folder.iterdir())]
        datasets.sort(key=lambda d: d.ImagePositionPatient[2])
        return np.stack([d.pixel_array for d in datasets])

    return headers, pixels


def median_ms(action: Callable[[], Any], repeats: int) -> float:
    """Median time of an action in milliseconds, after one run that does not count."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def main() -> None:
    """Make the phantom, time the readers, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    volume = phantom(arguments.slices)
    geometry = limner.Geometry.from_spacing(volume.shape, SPACING)
    with tempfile.TemporaryDirectory() as name:
        packed, plain, series = Path(name, "ct.nii.gz"), Path(name, "ct.nii"), Path(name, "series")
        for path in (packed, plain):
            began = time.perf_counter()
            write_image(path, limner.Image(volume, geometry))
            print(f"wrote {path.name}: {(time.perf_counter() - began) * 1000:.0f} ms, "
                  f"{path.stat().st_size / 1e6:.0f} MB")  # fmt: skip
        write_series(series, volume)
        print(f"{'':12}{'reader':12}{'header ms':>12}{'pixels ms':>12}")
        for path, readers in (
            (packed, (by_limner, by_nibabel, by_simpleitk)),
            (plain, (by_limner, by_nibabel, by_simpleitk)),
            (series, (by_limner, by_pydicom, by_simpleitk)),
        ):
            for reader in readers:
                header, pixels = (median_ms(f, arguments.repeats) for f in reader(path))
                title = reader.__name__.removeprefix("by_")
                print(f"{path.name:12}{title:12}{header:12.1f}{pixels:12.0f}")
        image = limner.read(plain)
        print(f"one plane of {plain.name}: {median_ms(lambda: image.slice_at(7), 5):.2f} ms")


if __name__ == "__main__":
    main()
