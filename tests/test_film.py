"""Films: every picture in it, of a kind that players know, and none left behind on failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

import limner
from limner.errors import FormatError
from limner.io.labels import Labels
from limner.io.video.encode import MOST_GIF_FRAMES, write_film
from limner.render.film import LARGEST, FrameTimeline, frame_rate, write_timeline_film


def pictures(count: int, size: tuple[int, int] = (61, 83)) -> Iterator[np.ndarray]:
    for k in range(count):
        pixels = np.full((*size, 3), 40, np.uint8)
        pixels[:, : 2 + 2 * k] = (86, 180, 233)
        yield pixels


def video_of(count: int, size: tuple[int, int] = (40, 60), **facts: float) -> limner.Image:
    rng = np.random.default_rng(5)
    array = rng.integers(0, 200, (count, *size), dtype=np.uint8)
    geometry = limner.Geometry.from_spacing(array.shape)
    return limner.Image(array, geometry, kind="video", metadata=facts)


def test_an_mp4_is_what_browsers_and_slides_play(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="video files need the extra 'video'")
    path = tmp_path / "film.mp4"
    write_film(path, pictures(30), rate=29.97)
    film = limner.read(path)
    assert film.shape == (30, 62, 84, 3), "odd sizes get a row and a column"
    facts = film.metadata
    assert (facts["codec"], facts["pixel_format"]) == ("h264", "yuv420p")
    assert facts["frames_per_second"] == pytest.approx(29.97, abs=0.01)
    for k in (0, 11, 29):
        blue = film.slice_at(k)[30, : 2 + 2 * k].astype(int).mean(axis=0)
        assert np.abs(blue - (86, 180, 233)).max() < 12
        assert np.abs(film.slice_at(k)[30, 70:].astype(int) - 40).max() < 12
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "plays before it is loaded"


def test_a_gif_moves_at_its_rate(tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    write_film(path, pictures(9), rate=12.5)
    with Picture.open(path) as film:
        assert (film.n_frames, film.info["duration"], film.info["loop"]) == (9, 80, 0)
        assert film.size == (83, 61)


def test_films_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"as \.mp4 or \.gif"):
        write_film(tmp_path / "film.avi", pictures(3), rate=10)
    with pytest.raises(FormatError, match="no pictures"):
        write_film(tmp_path / "film.gif", iter(()), rate=10)

    def broken() -> Iterator[np.ndarray]:
        yield from pictures(3)
        raise FormatError("frame 3 is damaged")

    for suffix in ("gif", "mp4"):
        if suffix == "mp4":
            pytest.importorskip("av", reason="video files need the extra 'video'")
        with pytest.raises(FormatError, match="frame 3"):
            write_film(tmp_path / f"film.{suffix}", broken(), rate=10)
    assert not list(tmp_path.iterdir()), "nothing half-written"


@pytest.mark.slow
def test_pictures_are_made_one_by_one(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="video files need the extra 'video'")
    made, told = [], []

    def plane(index: int) -> np.ndarray:
        made.append(index)
        return np.full((40, 60), index, np.uint8)

    def never() -> np.ndarray:
        raise AssertionError("all frames at once")

    geometry = limner.Geometry.from_spacing((30, 40, 60))
    image = limner.Image(never, geometry, kind="video", dtype=np.uint8, read_slice=plane)
    labels = Labels(geometry, array=np.zeros(geometry.shape, np.uint8))
    path = tmp_path / "film.mp4"
    write_timeline_film(
        path,
        image,
        labels,
        FrameTimeline(),
        progress=lambda done, total: told.append((done, total)),
    )
    assert made[-30:] == list(range(30))
    assert told[-1] == (30, 30)
    assert max(limner.read(path).shape[1:3]) <= LARGEST


def test_what_is_shown(tmp_path: Path) -> None:
    image = video_of(12)
    array = np.zeros(image.shape, np.uint8)
    array[3:9, 10:30, 20:40] = 1
    labels = Labels(image.geometry, array=array, names={1: "polyp"})
    prompts = {4: [limner.Click((20, 30))]}
    story = FrameTimeline(
        scores=dict.fromkeys(range(12), 0.9),
        annotated=frozenset([4]),
        to_review=frozenset([8]),
        unreadable=frozenset([10]),
        prompts=prompts,
        frames=range(2, 12),
    )
    path = tmp_path / "film.gif"
    write_timeline_film(path, image, labels, story)
    film = limner.read(path)
    assert film.shape[0] == 10
    corner = [np.asarray(film.slice_at(k))[4:22, -140:].astype(int) for k in (0, 2, 6, 8)]
    plain, marked, doubted, lost = ((c.max(axis=2) - c.min(axis=2) > 60) for c in corner)
    assert not plain.any()
    for badge in (marked, doubted, lost):
        assert badge.any()
    with pytest.raises(FormatError, match="Cannot write"):
        write_timeline_film(tmp_path / "no" / "film.gif", image, labels, story)


@pytest.mark.slow
def test_a_long_gif_is_thinned_and_keeps_its_speed(tmp_path: Path) -> None:
    image = video_of(MOST_GIF_FRAMES * 2, (8, 10), frames_per_second=20.0)
    labels = Labels(image.geometry, array=np.zeros(image.shape, np.uint8))
    path = tmp_path / "film.gif"
    write_timeline_film(path, image, labels, FrameTimeline())
    with Picture.open(path) as film:
        assert film.n_frames == MOST_GIF_FRAMES
        assert film.info["duration"] == 100


def test_frame_rates() -> None:
    assert frame_rate(video_of(3, frames_per_second=29.97)) == 29.97
    assert frame_rate(video_of(3, frame_time_ms=50.0)) == 20.0
    assert frame_rate(video_of(3)) == 10.0
    assert frame_rate(video_of(3, frames_per_second=float("nan"))) == 10.0
    volume = limner.Image(np.zeros((3, 4, 5)), limner.Geometry.from_spacing((3, 4, 5)))
    assert frame_rate(volume) == 10.0
