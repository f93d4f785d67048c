"""Files that change after they were opened, and arrays with colours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

import limner
from limner import Geometry, Image
from limner.errors import FormatError
from limner.io import write_image


def older(path: Path) -> None:
    """A file system with a coarse clock would give both versions the same time."""
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns - 10**9))


def nifti(path: Path, size: int) -> None:
    pixels = np.full((size, 6, 4), size, np.int16)
    nibabel.save(nibabel.Nifti1Image(pixels, np.diag([size, 1.0, 1.0, 1.0])), path)


def other(path: Path, size: int) -> None:
    write_image(path, Image(np.full((4, 6, size), size, np.int16), Geometry((4, 6, size))))


def png(path: Path, size: int) -> None:
    Picture.fromarray(np.full((6, size), size, np.uint8)).save(path)


def detached(path: Path, size: int) -> None:
    path.write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 5 6 4\nElementType = MET_UCHAR\n"
        "ElementDataFile = a.raw\n"
    )
    older(path)
    path.with_suffix(".raw").write_bytes(bytes([size]) * 120)


MAKERS: dict[str, Callable[[Path, int], None]] = {
    "a.nii": nifti,
    "a.nii.gz": nifti,
    "a.nrrd": other,
    "a.mha": other,
    "a.mhd": detached,
    "a.mgz": other,
    "a.tif": lambda path, size: tifffile.imwrite(
        path, np.full((4, 6, size), size, np.uint8), photometric="minisblack"
    ),
    "a.png": png,
    "a.npz": lambda path, size: np.savez(path, imgs=np.full((4, 6, size), size)),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("sizes", [(5, 8), (5, 5)])
def test_a_file_that_was_replaced_is_noticed(
    tmp_path: Path, name: str, sizes: tuple[int, int]
) -> None:
    path = tmp_path / name
    MAKERS[name](path, sizes[0])
    for file in tmp_path.iterdir():
        older(file)
    opened, loaded = limner.read(path), limner.read(path)
    assert loaded.array.max() in (5, 1)  # 8-bit images of one bit may be 1
    MAKERS[name](path, sizes[1])
    with pytest.raises(FormatError, match=r"has changed since it was opened"):
        _ = opened.array
    if opened.geometry.ndim == 3:
        with pytest.raises(FormatError, match=r"has changed since it was opened"):
            opened.slice_at(1)
    assert loaded.array.shape == loaded.shape  # what was read stays
    assert limner.read(path).array.max() == sizes[1]


def test_frames_and_touched_files(tmp_path: Path) -> None:
    for k in range(3):
        png(tmp_path / f"f{k}.png", 9)
        older(tmp_path / f"f{k}.png")
    video = limner.read(tmp_path)
    np.testing.assert_array_equal(video.slice_at(1), np.full((6, 9), 9))
    png(tmp_path / "f1.png", 9)
    with pytest.raises(FormatError, match=r"f1\.png has changed"):
        video.slice_at(1)
    (tmp_path / "f1.png").unlink()
    with pytest.raises(FormatError, match=r"no such file|cannot be read"):
        video.slice_at(1)


# ---------------------------------------------------------------- arrays


RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (70, 90, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "array",
    [
        COLOURS,
        COLOURS / np.float32(255),  # as matplotlib's imread has PNG
        COLOURS / 255.0,
        COLOURS.astype(np.uint16) * 257,
        COLOURS.astype(np.float64),
    ],
    ids=lambda a: str(a.dtype),
)
def test_colours_of_every_type_are_one_image(
    array: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    with limner.open_session(array, "toy") as session:
        image = session.image
        assert (image.kind, image.shape, image.channel_kind) == ("image", (70, 90, 3), "colour")
        np.testing.assert_array_equal(image.array, array)
        session.add(limner.Box((10, 10), (40, 40)))
        session.predict()
    assert not caplog.records
    first = array.transpose(2, 0, 1)
    found = limner.open_session(first, "toy").image
    if array.dtype == np.uint8 or array.max() <= 1:
        np.testing.assert_array_equal(found.array, array)
        assert "is taken as colours first" in caplog.text
    else:
        assert found.kind == "volume"


def test_alpha_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    alpha = np.full((70, 90, 1), 255, np.uint8)
    image = limner.open_session(np.concatenate([COLOURS, alpha], axis=2), "toy").image
    np.testing.assert_array_equal(image.array, COLOURS)
    assert not caplog.records
    alpha[:9] = 0
    limner.open_session(np.concatenate([COLOURS, alpha], axis=2), "toy")
    assert "alpha channel" in caplog.text


def test_one_channel_is_grey_and_volumes_stay() -> None:
    grey = limner.open_session(COLOURS[..., :1], "toy").image
    assert (grey.kind, grey.shape) == ("image", (70, 90))
    for shape in ((3, 20, 20), (4, 70, 90), (1, 70, 90), (20, 70, 2), (70, 90, 5)):
        assert limner.open_session(np.zeros(shape), "toy").image.kind == "volume"


# ---------------------------------------------------------------- boxes in x, y order


def test_a_box_in_xy_order_that_leaves_the_image_gets_the_hint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with limner.open_session(np.zeros((60, 200)), "toy") as session:
        session.add(limner.Box((20, 10), (150, 50)))
        assert "no effect. Positions are in index order, row before column" in caplog.text
        caplog.clear()
        session.add(limner.Box((20, 10), (70, 220)))
        assert "no effect" in caplog.text
        assert "row before column" not in caplog.text
