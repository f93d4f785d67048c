"""The image that a segmentation refers to: found by UID, without parsing a whole archive."""

from __future__ import annotations

import gzip
import logging
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

import limner
from dicom_makers import save_series
from limner.io.dicom import _files, _search


@pytest.fixture(params=["seg", "rtstruct"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A segmentation of the series in ``ct``, beside folders of other series and copies."""
    rng = np.random.default_rng(3)
    volume = rng.integers(0, 9, (5, 8, 9), dtype=np.int16)
    save_series(tmp_path / "ct", volume)
    image = limner.read(tmp_path / "ct")
    mask = np.zeros(image.shape, np.uint8)
    mask[1:3, 2:5, 3:7] = 1
    limner.write(tmp_path / "mask.dcm", mask, like=image, dicom_type=request.param)
    for k in range(3):
        paths = save_series(tmp_path / f"other{k}", volume)
        shutil.copytree(tmp_path / f"other{k}", tmp_path / f"other{k}" / "again")
        assert len(paths) == 5
    (tmp_path / "notes.txt").write_text("not DICOM")
    return tmp_path / "mask.dcm", mask


def test_only_the_series_referred_to_is_parsed(case, monkeypatch, caplog):
    path, mask = case
    parsed: list[Path] = []
    original = _files._parse

    def parse(path: Path, *others: object) -> object:
        parsed.append(path)
        return original(path, *others)

    monkeypatch.setattr(_files, "_parse", parse)
    with caplog.at_level(logging.WARNING):
        found = limner.read_labels(path)
    np.testing.assert_array_equal(found.to_array(), mask)
    assert not [p for p in parsed if "other" in str(p)]
    assert not caplog.records


def test_a_long_search_is_announced(case, monkeypatch, caplog):
    path, mask = case
    monkeypatch.setattr(_search, "_ANNOUNCED_FROM", 10)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(limner.read_labels(path).to_array(), mask)
    assert [r.getMessage() for r in caplog.records if "Looking through the files" in r.getMessage()]
    caplog.clear()
    limner.read_labels(path, like=path.parent / "ct")
    assert not caplog.records


def test_images_in_the_same_folder_spare_the_others(case, monkeypatch):
    path, mask = case
    for file in (path.parent / "ct").iterdir():
        file.rename(path.parent / f"z{file.name}")
    walked: list[Path] = []
    original = _search._uids_of

    def look(path: Path, wanted: frozenset[str]) -> set[str]:
        walked.append(path)
        return original(path, wanted)

    monkeypatch.setattr(_search, "_uids_of", look)
    np.testing.assert_array_equal(limner.read_labels(path).to_array(), mask)
    assert not [p for p in walked if "other" in str(p)]


def test_compressed_files_and_series_known_by_their_instances(case):
    path, mask = case
    for file in (path.parent / "ct").iterdir():
        file.with_suffix(".dcm.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    ds = pydicom.dcmread(path)
    if ds.Modality == "SEG":
        del ds.ReferencedSeriesSequence  # only the frames name their instances
    ds.save_as(path)
    found = limner.read_labels(path)
    assert found.geometry.shape == mask.shape
    np.testing.assert_array_equal(found.to_array(), mask)
