"""Time points and other channels of volumes: they are no colours, and every command says so."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import limner
from limner.cli.__main__ import run

BOX = "2,4,4,6,12,12"


def volume(count: int | None, dtype: str = "i2") -> np.ndarray:
    """A bright block; x, y, z (and time)."""
    pixels = np.zeros((16, 16, 8), dtype)
    pixels[4:12, 4:12, 2:6] = 200
    return pixels if count is None else np.stack([pixels // (k + 1) for k in range(count)], -1)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 20])
def test_every_command_says_so_from_two_points_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    path = tmp_path / "t.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume(count), np.eye(4)), path)
    said = f"t.nii.gz has {count} time points, and the model sees them all together"
    commands = {
        "segment": ["segment", "--box", BOX],
        "propagate": ["propagate", "--slice", "4", "--box", "4,4,12,12"],
        "everything": ["everything", "--slice", "4", "--points", "2", "--most", "1"],
    }
    for name, (command, *options) in commands.items():
        for channel in ((), ("--channel", "0")):
            out = tmp_path / f"{name}{len(channel)}.nii.gz"
            given = [command, str(path), "-o", str(out), "--model", "toy", *options, *channel]
            assert run(given) == 0
            assert (said in capsys.readouterr().err) is not bool(channel)


def test_info_calls_them_time_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume(3), np.eye(4)), path)
    assert run(["info", str(path)]) == 0
    assert "time points" in capsys.readouterr().out


def kinds(tmp_path: Path) -> dict[str, str | None]:
    """Files of several writers, and what their channels are."""
    vector = sitk.GetImageFromArray(np.zeros((4, 5, 6, 2), np.float32), isVector=True)
    colour = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    series = sitk.JoinSeries([sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16))] * 3)
    found: dict[str, str | None] = {}
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        for name, image in {"other": vector, "colour": colour, "time": series}.items():
            sitk.WriteImage(image, tmp_path / f"{name}{suffix}")
            found[f"{name}{suffix}"] = name
    rgb = np.zeros((6, 5, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    nibabel.save(nibabel.Nifti1Image(volume(None), np.eye(4)), tmp_path / "grey.nii")
    return {**found, "rgb.nii": "colour", "grey.nii": None}


def test_what_channels_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, expected in kinds(tmp_path).items():
        image = limner.read(tmp_path / name)
        assert image.channel_kind == expected, name
        if image.num_channels is not None:
            assert limner.read(tmp_path / name, channel=0).channel_kind is None
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            limner.open_session(image, "toy").close()
        assert ("sees them all together" in caplog.text) is (expected in ("time", "other")), name
