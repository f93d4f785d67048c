"""Surfaces of masks, read back by trimesh: closed, outward, in place, of the voxels' volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import limner
from limner.cli.__main__ import run
from limner.errors import FormatError, GeometryError
from limner.geometry import Geometry
from limner.io.labels import Labels
from limner.io.surfaces import write_surfaces

trimesh = pytest.importorskip("trimesh")

SHAPE = (14, 40, 36)


def oblique(spacing: tuple[float, float, float], *, mirrored: bool = False) -> Geometry:
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([*spacing[:2], -spacing[2] if mirrored else spacing[2]])
    affine[:3, 3] = (100, -300, 50)
    return Geometry(SHAPE, affine)


def ball(centre: tuple[int, int, int], radius: float, spacing: tuple[float, ...]) -> np.ndarray:
    axes = [(np.arange(n) - c) * s for n, c, s in zip(SHAPE, centre, spacing, strict=True)]
    return sum(x * x for x in np.meshgrid(*axes, indexing="ij")) <= radius**2


@pytest.mark.parametrize("suffix", [".stl", ".obj", ".ply"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7)])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("centre", [(7, 20, 18), (0, 0, 18)])
@pytest.mark.parametrize("smoothing", [None, 0, 1.5])
def test_surface_is_closed_and_where_the_voxels_are(
    tmp_path: Path,
    suffix: str,
    spacing: tuple[float, float, float],
    mirrored: bool,
    centre: tuple[int, int, int],
    smoothing: float | None,
) -> None:
    mask, geometry = ball(centre, 5, spacing), oblique(spacing, mirrored=mirrored)
    path = tmp_path / f"ball{suffix}"
    write_surfaces(path, Labels(geometry, masks={1: mask}), smoothing=smoothing)
    mesh = trimesh.load(path)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(mask.sum() * geometry.voxel_volume, rel=0.03)
    middle = geometry.index_to_world(np.argwhere(mask)).mean(axis=0)
    assert np.abs(mesh.center_mass - middle).max() < 0.15
    assert b"SPACE=LPS" in path.read_bytes()[:200]


def test_one_voxel_and_a_full_volume_are_closed(tmp_path: Path) -> None:
    one = np.zeros(SHAPE, np.bool_)
    one[3, 4, 5] = True
    for mask in (one, np.ones(SHAPE, np.bool_)):
        path = tmp_path / "a.stl"
        write_surfaces(path, Labels(oblique((1, 1, 1)), masks={1: mask}))
        mesh = trimesh.load(path)
        assert mesh.is_watertight
        assert mesh.volume == pytest.approx(mask.sum(), rel=0.05)


def test_command_line_writes_a_file_each_or_one(tmp_path: Path) -> None:
    geometry = oblique((1, 1, 1))
    masks = {1: ball((7, 10, 10), 4, (1, 1, 1)), 3: ball((7, 28, 26), 5, (1, 1, 1))}
    source = tmp_path / "mask.seg.nrrd"
    limner.write(source, Labels(geometry, masks=masks, names={1: "left lung"}))
    assert run(["convert", str(source), str(tmp_path / "a.stl")]) == 0
    names = {p.name for p in tmp_path.glob("*.stl")}
    assert "a_left_lung.stl" in names
    assert len(names) == 2
    target = tmp_path / "all.obj"
    assert run(["convert", str(source), str(target), "--together", "--world", "ras"]) == 0
    assert target.read_text().count("\no ") == 2
    ras = trimesh.load(target, force="mesh", process=False)
    assert ras.volume > 0
    middle = np.concatenate([geometry.index_to_world(np.argwhere(m)) for m in masks.values()])
    assert np.abs(ras.center_mass - middle.mean(axis=0) * (-1, -1, 1)).max() < 0.5
    assert run(["convert", str(source), str(tmp_path / "b.ply"), "--object", "3"]) == 0
    assert (tmp_path / "b.ply").exists()
    for odd in (["--object", "2"], ["--smooth", "-1"], ["--world", "xyz"]):
        assert run(["convert", str(source), str(tmp_path / "c.ply"), *odd]) == 2
    assert run(["convert", str(source), str(tmp_path / "c.nii.gz"), "--smooth", "1"]) == 2
    assert not (tmp_path / "c.ply").exists()


def test_what_has_no_surface_is_refused(tmp_path: Path) -> None:
    empty = Labels(oblique((1, 1, 1)), masks={1: np.zeros(SHAPE, np.bool_)})
    with pytest.raises(FormatError, match="no voxel"):
        write_surfaces(tmp_path / "a.stl", empty)
    flat = Labels(Geometry((5, 5)), masks={1: np.ones((5, 5), np.bool_)})
    with pytest.raises(GeometryError, match="volume"):
        write_surfaces(tmp_path / "a.stl", flat)
