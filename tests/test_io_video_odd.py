"""Odd and damaged videos: an error of one line that says what to do, or the rest on request."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

import limner
from limner.errors import FormatError
from limner.io import video
from limner.io.video import clip
from video_makers import SIZE, damage, moving_square, write_sound, write_video

av = pytest.importorskip("av", reason="video files need the extra 'video'")

KINDS = [
    ("a.mp4", "libx264", {}),
    ("a.mkv", "libx264", {"bf": "2"}),
    ("a.avi", "mjpeg", {"pixel_format": "yuvj420p"}),
    ("b.mkv", "ffv1", {"pixel_format": "gray"}),
]


def readable(image: limner.Image) -> list[int]:
    found = []
    for k in range(image.shape[0]):
        try:
            image.slice_at(k)
            found.append(k)
        except FormatError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec", "options"), KINDS, ids=lambda v: str(v))
def test_a_damaged_frame_is_an_error_or_passed_over(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    pixels, _ = moving_square()
    path = write_video(tmp_path / name, pixels, codec, **options)
    whole = limner.read(path).array
    damage(path, 9)
    strict = limner.read(path)
    bad = [k for k in range(24) if k not in readable(strict)]
    assert bad
    assert set(bad) <= set(range(7, 12)), "the frames of one group, and nothing after it"
    assert not strict.damaged
    with pytest.raises(FormatError, match=rf"^[^\n]*frame {bad[0]} \(counted from 0\)[^\n]*$"):
        strict.slice_at(bad[0])
    lenient = limner.read(path, strict=False)
    for k in (20, 9, 3, *range(24), *range(23, -1, -1)):
        assert lenient.slice_at(k).shape == whole.shape[1:]
    lost = sorted(lenient.damaged)
    assert lost
    assert set(lost) <= set(bad)
    assert str(lost[0]) in lenient.damaged[lost[0]]
    assert np.array_equal(lenient.slice_at(lost[0]), lenient.slice_at(lost[0] - 1)), (
        "the last good one"
    )
    good = [k for k in range(24) if k not in bad]
    assert np.array_equal(lenient.array[good], whole[good])
    assert strict.pixel_hash() == limner.read(path).pixel_hash(), "it has a hash all the same"


def test_reading_a_damaged_group_costs_no_decoding_per_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, _ = moving_square(30, (64, 128))
    path = damage(write_video(tmp_path / "a.mp4", pixels, group=30), 4)
    opened = _count_openings(monkeypatch)
    image = video.read(path)
    assert readable(image) == [0, 1, 2, 3]
    assert len(opened) < 6


def test_going_back_decodes_a_group_of_frames_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, _ = moving_square(30, (64, 128))
    for name, codec, more in (
        ("a.mp4", "libx264", {"group": 30}),
        ("a.avi", "mjpeg", {"pixel_format": "yuvj420p"}),
    ):
        path = write_video(tmp_path / name, pixels, codec, **more)
        whole = limner.read(path).array
        opened = _count_openings(monkeypatch)
        image = video.read(path)
        for k in range(29, -1, -1):
            assert np.array_equal(image.slice_at(k), whole[k])
        assert len(opened) <= 4
        assert image.slice_at(17)[0, 0].tolist() == whole[17, 0, 0].tolist()


def _count_openings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    opened: list[Path] = []
    original = clip.open_container

    def counting(path: Path) -> object:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(clip, "open_container", counting)
    return opened


def test_a_video_whose_size_changes(tmp_path: Path) -> None:
    pixels, _ = moving_square()
    one = write_video(tmp_path / "one.h264", pixels[:10])
    other = write_video(tmp_path / "other.h264", pixels[:6, :48])
    path = tmp_path / "both.h264"
    path.write_bytes(one.read_bytes() + other.read_bytes() + one.read_bytes())
    image = limner.read(path)
    assert image.shape[:3] == (26, *SIZE)
    with pytest.raises(FormatError, match=r"frame 10 .*48×96 pixels, the first frame 64×96"):
        image.slice_at(10)
    assert np.array_equal(image.slice_at(16), image.slice_at(0)), "it goes on after that"
    lenient = limner.read(path, strict=False)
    assert np.array_equal(lenient.slice_at(12), lenient.slice_at(9))
    assert sorted(lenient.damaged) == [10, 11, 12]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (np.random.default_rng(1).bytes(5000), r"not a readable video"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + b"\0" * 200, "not a readable video|no video"),
        (b"\0\0\0\x18ftypisom", "not a readable video|no video"),
    ],
    ids=["empty", "garbage", "no movie", "a head only"],
)
def test_what_is_no_video(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    for strict in (True, False):
        with pytest.raises(FormatError, match=reason) as caught:
            limner.read(path, strict=strict)
        assert "\n" not in str(caught.value)
        assert "a.mp4" in str(caught.value)


def test_sound_alone_and_no_frames(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.mp4")
    with pytest.raises(FormatError, match="no video stream"):
        limner.read(path)
    for name, codec in (("none.mkv", "ffv1"), ("none.avi", "mpeg4")):
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
            stream.codec_context.open(strict=False)
            container.start_encoding()
        assert path.stat().st_size > 0
        for strict in (True, False):
            with pytest.raises(FormatError, match=r"no frames|not a readable video"):
                limner.read(path, strict=strict)


def test_a_file_that_ends_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels, _ = moving_square()
    path = write_video(tmp_path / "a.mkv", pixels)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(FormatError, match=r"it is truncated\. Copy it again\. .*--lenient"):
        limner.read(path)
    image = limner.read(path, strict=False)
    assert "truncated" in caplog.text
    assert 8 < image.shape[0] < 24
    assert image.array.shape[0] == image.shape[0]


def test_frames_are_counted_where_the_rate_varies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels, _ = moving_square()
    path = write_video(tmp_path / "a.mkv", pixels, "ffv1", steps_ms=(20, 50, 110), group=1)
    with caplog.at_level(logging.WARNING):
        image = limner.read(path)
    assert "varying frame rate; frames are counted from 0 to 23" in caplog.text
    assert image.shape[0] == 24
    expected = np.cumsum([0, *([20, 50, 110] * 8)][:24]) / 1000
    assert video.frame_times(path) == pytest.approx(expected, abs=2e-3)
    caplog.clear()
    limner.read(write_video(tmp_path / "b.mkv", pixels, "ffv1"))
    assert not caplog.text


# -- folders and animations ------------------------------------------------------------------------


def write_folder(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir()
    for k, plane in enumerate(pixels):
        Picture.fromarray(plane).save(folder / f"{k:03}.png")
    return folder


def test_a_folder_with_bad_frames(tmp_path: Path) -> None:
    pixels, _ = moving_square(12)
    folder = write_folder(tmp_path / "frames", pixels)
    (folder / "004.png").write_bytes((folder / "004.png").read_bytes()[:400])
    Picture.fromarray(pixels[7, :40]).save(folder / "007.png")
    with pytest.raises(FormatError, match=r"007\.png: this frame is 40×96.*--lenient"):
        limner.read(folder)
    (folder / "009.png").write_bytes(b"")
    with pytest.raises(FormatError, match=r"009\.png"):
        limner.read(folder)
    (folder / "000.png").write_bytes(b"nothing")
    image = limner.read(folder, strict=False)
    assert image.shape == pixels.shape
    for k in range(12):
        image.slice_at(k)
    assert sorted(image.damaged) == [0, 4, 7, 9]
    assert np.array_equal(image.slice_at(0), pixels[1]), "nothing before it: the first one after it"
    assert np.array_equal(image.array[[3, 4, 5, 7, 9]], pixels[[3, 3, 5, 6, 8]])
    for path in folder.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(FormatError):
        limner.read(folder, strict=False)


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_a_cut_animation(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(7)
    path = tmp_path / f"a.{suffix}"
    pictures = [
        Picture.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)) for _ in range(12)
    ]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    whole = limner.read(path).array
    image = limner.read(path)
    for k in range(11, -1, -1):
        assert np.array_equal(image.slice_at(k), whole[k])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(FormatError, match=r"--lenient"):
        limner.read(path)
    lenient = limner.read(path, strict=False)
    for k in range(lenient.shape[0]):
        lenient.slice_at(k)
    assert np.array_equal(lenient.slice_at(4), whole[4])
    assert len(lenient.damaged) + 5 < lenient.shape[0]
