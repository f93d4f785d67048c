"""Exports of DICOM images with odd headers: written with what is valid, or refused beforehand."""

from __future__ import annotations

import logging
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from typer.testing import CliRunner

import limner
from dicom_makers import DX, image_dataset, save, save_series
from limner.cli.__main__ import app
from limner.errors import FormatError, GeometryError
from limner.io import check_writable
from limner.io.labels import Labels

ODD = {
    "stars": {"PatientBirthDate": "***"},
    "year": {"PatientBirthDate": "1960"},
    "no day": {"PatientBirthDate": "19600000", "StudyDate": "20201340"},
    "dots": {"PatientBirthDate": "1960.02.03", "StudyDate": "2020.10.12"},
    "colons": {"StudyTime": "11:27:24"},
    "long time": {"StudyTime": "112724.1234567"},
    "hour": {"StudyTime": "11"},
    "sex": {"PatientSex": "X"},
    "word": {"PatientSex": "FEMALE", "StudyDate": "ANONYMIZED", "StudyTime": "ANONYMIZED"},
    "long": {"AccessionNumber": "A" * 40, "StudyID": "B" * 40, "PatientID": "C" * 100},
    "name": {"PatientName": "Doe John With Many Parts", "ReferringPhysicianName": "^^^^^^"},
    "several": {"PatientID": ["a", "b"], "PatientName": ["A^B", "C"]},
    "letters": {"PatientName": "Müller^Jürgen", "SpecificCharacterSet": "ISO_IR 100"},
    "absent": dict.fromkeys(("PatientID", "PatientSex", "StudyDate", "StudyTime", "StudyID")),
    "thickness": {"SliceThickness": ""},
    "uid": {"StudyInstanceUID": "1.2.03.anonymous", "FrameOfReferenceUID": "unknown"},
}


def odd_series(folder: Path, elements: dict[str, object]) -> list[Path]:
    paths = save_series(folder, np.zeros((3, 8, 9), np.int16))
    for path in paths:
        with pydicom.config.disable_value_validation():
            ds = pydicom.dcmread(path)
            for keyword, value in elements.items():
                if value is None:
                    delattr(ds, keyword)
                else:
                    setattr(ds, keyword, value)
            ds.save_as(path)
    return paths


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dicom_type", ["seg", "seg-labelmap", "rtstruct"])
@pytest.mark.parametrize("case", ODD)
def test_odd_values_are_carried_or_emptied(tmp_path, case, dicom_type):
    odd_series(tmp_path / "ct", ODD[case])
    image = limner.read(tmp_path / "ct")
    mask = np.zeros(image.shape, np.uint8)
    mask[1, 2:5, 3:6] = 1
    target = tmp_path / "seg.dcm"
    check_writable(target, image, dicom_type=dicom_type)
    assert not target.exists()
    limner.write(target, mask, like=image, dicom_type=dicom_type)
    np.testing.assert_array_equal(limner.read_labels(target, like=image).to_array(), mask)
    ds = pydicom.dcmread(target)
    source = pydicom.dcmread(next((tmp_path / "ct").iterdir()))
    assert ds.StudyInstanceUID == source.StudyInstanceUID
    expected = {"dots": "19600203", "stars": "", "year": "", "no day": ""}
    assert ds.PatientBirthDate == expected.get(case, "")
    if case == "colons":
        assert ds.StudyTime == "112724"
    if case == "dots":
        assert ds.StudyDate == "20201012"
    if case == "letters":
        assert str(ds.PatientName) == "Müller^Jürgen"
    if dicom_type == "seg":
        seg = highdicom.seg.segread(target)
        np.testing.assert_array_equal(seg.get_volume(combine_segments=True).array.sum(), mask.sum())


def test_what_was_emptied_is_said_once(tmp_path, caplog):
    odd_series(tmp_path / "ct", ODD["word"])
    image = limner.read(tmp_path / "ct")
    with caplog.at_level(logging.WARNING):
        check_writable(tmp_path / "seg.dcm", image)
        limner.write(tmp_path / "seg.dcm", np.ones(image.shape, np.uint8), like=image)
    assert [r.getMessage().split(": ")[-1] for r in caplog.records] == [
        "PatientSex, StudyDate, StudyTime"
    ]


def no_model(*_: object, **__: object) -> None:
    raise AssertionError("the model was asked although nothing could be written")


def segment(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["segment", *map(str, arguments)])
    assert result.exit_code != 0
    assert not isinstance(result.exception, AssertionError), result.exception
    return str(result.exception) + result.output


@pytest.mark.parametrize("problem", ["two studies", "no uid", "not dicom", "gap", "shear", "stack"])
def test_refused_before_the_model_runs(tmp_path, monkeypatch, problem):
    from limner.models.baseline import Baseline

    monkeypatch.setattr(Baseline, "embed", no_model)
    source, suffix, options = tmp_path / "ct", ".dcm", []
    volume = np.zeros((4, 8, 9), np.int16)
    box = ("--box", "1,2,3,2,5,6", "--model", "baseline/box")
    match problem:
        case "two studies":
            save_series(source, volume, per_slice={2: {"StudyInstanceUID": generate_uid()}})
            words = "same series"
        case "no uid":
            for path in save_series(source, volume):
                ds = pydicom.dcmread(path)
                del ds.SOPInstanceUID, ds.file_meta.MediaStorageSOPInstanceUID
                ds.save_as(path, enforce_file_format=False)
            words = "SOPInstanceUID"
        case "not dicom":
            source = tmp_path / "a.nii.gz"
            limner.write(
                source, volume.astype(np.uint8), like=limner.Geometry.from_spacing(volume.shape)
            )
            words = "needs the DICOM files"
        case "gap":
            save_series(source, volume, per_slice={3: {"ImagePositionPatient": [0, 0, 7]}})
            options, words = ["--lenient", "--type", "rtstruct"], "not evenly spaced"
        case "shear":
            save_series(source, volume, step=np.array([0.0, 0.4, 1.0]))
            suffix, words = ".mha", "sheared"
        case "stack":
            save_series(source, volume)
            suffix, words = ".png", "one picture"
    told = segment(source, *box, *options, "-o", tmp_path / f"out{suffix}")
    assert words in told
    assert not (tmp_path / f"out{suffix}").exists()


def test_formats_without_limits_take_everything(tmp_path):
    save_series(tmp_path / "ct", np.zeros((3, 4, 5), np.int16), step=np.array([0.0, 0.5, 1.0]))
    image = limner.read(tmp_path / "ct")
    for suffix in (".nii.gz", ".nrrd", ".seg.nrrd", ".npz", ".tif", ".json", ".dcm"):
        check_writable(tmp_path / f"a{suffix}", image)
    with pytest.raises(GeometryError, match="sheared"):
        check_writable(tmp_path / "a.mha", image)
    with pytest.raises(ValueError, match=r"belongs to \.dcm"):
        check_writable(tmp_path / "a.nii", image, dicom_type="seg")
    with pytest.raises(FormatError, match="patient space"):
        radiograph = save(image_dataset(np.zeros((4, 5), np.uint8), sop_class=DX), tmp_path / "r")
        check_writable(tmp_path / "a.dcm", limner.read(radiograph), dicom_type="rtstruct")


def test_an_object_without_a_pixel_is_written_without_words_of_a_library(tmp_path, caplog):
    save_series(tmp_path / "ct", np.zeros((3, 8, 9), np.int16))
    image = limner.read(tmp_path / "ct")
    empty = Labels(image.geometry, masks={1: np.zeros(image.shape, bool)}, names={1: "liver"})
    with caplog.at_level(logging.DEBUG, logger="highdicom"):
        limner.write(tmp_path / "seg.dcm", empty, like=image)
    assert not [r for r in caplog.records if r.name.startswith("highdicom")]
    found = limner.read_labels(tmp_path / "seg.dcm", like=image)
    assert found.names == {1: "liver"}
    assert not np.any(found.to_array())
