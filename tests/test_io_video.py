"""Videos: every frame at its place whatever the order, damage named, folders and animations."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from limner.errors import FormatError, GeometryError, MissingDependency
from limner.geometry import Geometry
from limner.io import video
from limner.io.image import Image
from limner.io.video import clip as _clip

av = pytest.importorskip("av", reason="video files need the extra 'video'")

NUM_FRAMES = 40
SIZE = (96, 128)


def frame_pixels(k: int, *, grey: type | None = None) -> np.ndarray:
    """Frame `k`: unlike every other."""
    if grey is not None:
        pixels = np.full(SIZE, k * (5 if grey is np.uint8 else 1000), grey)
        pixels[20:40, 10:20] = 7
        return pixels
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[..., 0], pixels[:, : 3 * k, 1] = 6 * k % 256, 255
    return pixels


def write_video(
    path: Path,
    codec: str,
    pixel_format: str,
    *,
    steps_ms: tuple[int, ...] = (40,),
    num_frames: int = NUM_FRAMES,
    **options: str,
) -> Path:
    grey = {"gray": np.uint8, "gray16le": np.uint16}.get(pixel_format)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = SIZE
        stream.pix_fmt = pixel_format
        stream.options = options
        stream.codec_context.gop_size = 12
        if len(steps_ms) > 1:
            stream.codec_context.time_base = Fraction(1, 1000)
        time = 0
        for k in range(num_frames):
            frame = av.VideoFrame.from_ndarray(
                frame_pixels(k, grey=grey), format=pixel_format if grey else "rgb24"
            )
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            time += steps_ms[k % len(steps_ms)]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path: Path, pixel_format: str) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [f.to_ndarray(format=pixel_format) for f in container.decode(video=0)]


KINDS = [
    ("a.mp4", "libx264", "yuv420p", {"bf": "3"}),
    ("a.mov", "libx264", "yuv420p", {"bf": "3", "x264-params": "open-gop=1"}),
    ("a.mkv", "ffv1", "gray", {}),
    ("b.mkv", "ffv1", "gray16le", {}),
    ("a.webm", "libvpx-vp9", "yuv420p", {}),
    ("a.avi", "mpeg4", "yuv420p", {"bf": "2"}),
    ("b.avi", "libx264", "yuv420p", {"bf": "2"}),
    ("c.avi", "mjpeg", "yuvj420p", {}),
    ("a.ts", "libx264", "yuv420p", {}),
    ("a.h264", "libx264", "yuv420p", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec", "pixel_format", "options"), KINDS, ids=lambda v: str(v))
def test_frames_in_any_order(
    tmp_path: Path, name: str, codec: str, pixel_format: str, options: dict[str, str]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg cannot write {codec}")
    path = write_video(tmp_path / name, codec, pixel_format, **options)
    grey = pixel_format.startswith("gray")
    expected = decoded(path, pixel_format if grey else "rgb24")
    assert len(expected) == NUM_FRAMES
    image = video.read(path)
    assert image.kind == "video"
    assert image.shape == (NUM_FRAMES, *SIZE) + (() if grey else (3,))
    assert image.dtype == expected[0].dtype
    for k in np.random.default_rng(3).permutation(NUM_FRAMES):
        np.testing.assert_array_equal(image.slice_at(int(k)), expected[k])
    assert not image.is_loaded
    np.testing.assert_array_equal(image.array, expected)
    if grey:
        np.testing.assert_array_equal(image.array[9], frame_pixels(9, grey=image.dtype.type))
    if path.suffix != ".h264":  # an elementary stream has no signature; its suffix must do
        assert video.sniff(path, path.read_bytes()[:512])


def test_frames_in_order_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", "libx264", "yuv420p")
    image = video.read(path)
    opened = []
    original = _clip.open_container

    def counting(path: Path) -> object:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(_clip, "open_container", counting)
    for k in range(NUM_FRAMES):
        image.slice_at(k)
        image.slice_at(k)
    assert len(opened) == 1


def test_variable_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", "libx264", "yuv420p", steps_ms=(20, 50, 110))
    image = video.read(path)
    assert image.shape[0] == NUM_FRAMES
    assert not image.metadata["constant_rate"]
    assert video.frame_times(path)[:4] == pytest.approx([0.0, 0.02, 0.07, 0.18], abs=2e-3)
    np.testing.assert_array_equal(image.slice_at(31), decoded(path, "rgb24")[31])


def test_channel_and_bounds(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", "libx264", "yuv420p")
    image = video.read(path, channel=1)
    assert image.shape == (NUM_FRAMES, *SIZE)
    np.testing.assert_array_equal(image.slice_at(20), decoded(path, "rgb24")[20][..., 1])
    with pytest.raises(FormatError, match=r"Frame 40 is outside 0…39"):
        image.slice_at(NUM_FRAMES)
    with pytest.raises(FormatError, match="no video stream '1'; the file has 1"):
        video.read(path, series="1")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.8])
def test_truncated_video_is_refused(tmp_path: Path, name: str, share: float) -> None:
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    path = write_video(tmp_path / name, "libx264", "yuv420p", **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FormatError) as caught:
        video.read(path).array  # noqa: B018
    assert "\n" not in str(caught.value)


def test_truncated_video_can_be_taken_as_it_is(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", "ffv1", "gray")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.6)])
    with pytest.raises(FormatError, match=f"states {len(content)} bytes but holds"):
        video.read(path)
    image = video.read(path, strict=False)
    assert 10 < image.shape[0] < NUM_FRAMES
    np.testing.assert_array_equal(image.slice_at(5), frame_pixels(5, grey=np.uint8))


def test_damaged_frame_is_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", "libx264", "yuv420p", bf="0", sc_threshold="0")
    expected = decoded(path, "rgb24")
    with av.open(str(path)) as container:
        payload = [bytes(p) for p in container.demux(video=0)][17]
    content = path.read_bytes()
    at = content.index(payload)
    path.write_bytes(content[:at] + b"\xff" * len(payload) + content[at + len(payload) :])
    image = video.read(path)
    np.testing.assert_array_equal(image.slice_at(16), expected[16])
    for _ in range(2):  # the failure does not confuse what comes after
        with pytest.raises(FormatError, match=r"frame 17 \(counted from 0\) cannot be decoded"):
            image.slice_at(17)
        np.testing.assert_array_equal(image.slice_at(30), expected[30])  # after the next key frame
        np.testing.assert_array_equal(image.slice_at(3), expected[3])
    with pytest.raises(FormatError, match="frame 17"):
        image.array  # noqa: B018


def test_no_video_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 200)
    with pytest.raises(FormatError, match=r"not a readable video|no video stream"):
        video.read(path)
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(FormatError):
        video.read(tmp_path / "a.wav")


def test_playlists_are_not_followed(tmp_path: Path) -> None:
    write_video(tmp_path / "secret.ts", "libx264", "yuv420p")
    path = tmp_path / "list.mp4"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(FormatError, match="not a readable video"):
        video.read(path)
    path.write_text("ffconcat version 1.0\nfile secret.ts\n")
    with pytest.raises(FormatError, match="not a readable video"):
        video.read(path)


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", "libx264", "yuv420p")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingDependency, match=r"pip install 'limner\[video\]'"):
        video.read(path)


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", "mjpeg", "yuvj420p", num_frames=150)
    image = video.read(path)
    frame_bytes = SIZE[0] * SIZE[1] * 3
    tracemalloc.start()
    try:
        for plane in image.slices():
            assert plane.shape == (*SIZE, 3)
        assert tracemalloc.get_traced_memory()[1] < 10 * frame_bytes
    finally:
        tracemalloc.stop()


# --- folders and animations -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_folder_of_deep_frames_in_natural_order(tmp_path: Path, suffix: str) -> None:
    frames = [np.full((20, 30), k * 3000, np.uint16) for k in range(12)]
    for k, pixels in enumerate(frames):
        iio.imwrite(tmp_path / f"frame{k}.{suffix}", pixels)
    (tmp_path / ".hidden.png").write_bytes(b"not a picture")
    (tmp_path / "notes.json").write_text("{}")
    assert video.sniff(tmp_path, b"")
    image = video.read(tmp_path)
    assert (image.kind, image.shape, image.dtype) == ("video", (12, 20, 30), np.dtype(np.uint16))
    np.testing.assert_array_equal(image.slice_at(10), frames[10])
    np.testing.assert_array_equal(image.array, frames)


def test_folder_of_label_maps(tmp_path: Path) -> None:
    masks = np.random.default_rng(8).integers(0, 3, (3, 20, 30), dtype=np.uint8)
    for k, mask in enumerate(masks):
        picture = Picture.fromarray(mask)
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        picture.save(tmp_path / f"{k}.png")
    assert video.read(tmp_path).num_channels == 3
    labels = video.read_labels(tmp_path)
    np.testing.assert_array_equal(labels.to_array(), masks)
    other = Image(np.zeros((4, 20, 30)), Geometry((4, 20, 30)))
    with pytest.raises(GeometryError, match="do not fit the image"):
        video.read_labels(tmp_path, like=other)


def test_folder_with_a_frame_that_is_not_like_the_others(tmp_path: Path) -> None:
    for k in range(4):
        Picture.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / f"{k}.png")
    Picture.fromarray(np.zeros((20, 31), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(FormatError, match=r"0\.png: this frame is 20×31 uint8, but 3 of 4 are"):
        video.read(tmp_path)
    Picture.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(FormatError, match=r"0\.png: this frame is 20×30×3 uint8"):
        video.read(tmp_path)
    Picture.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "4.jpg")
    with pytest.raises(FormatError, match=r"several kinds \(4 \.png, 1 \.jpg\)"):
        video.read(tmp_path)


def test_folders_that_are_no_video(tmp_path: Path) -> None:
    assert not video.sniff(tmp_path, b"")
    with pytest.raises(FormatError, match="neither DICOM files nor pictures"):
        video.read(tmp_path)
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(FormatError, match="holds several pictures"):
        video.read(tmp_path)


def test_truncated_frame_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for k in range(3):
        pixels = rng.integers(0, 256, (20, 30), dtype=np.uint8)
        Picture.fromarray(pixels).save(tmp_path / f"{k}.png")
    path = tmp_path / "1.png"
    path.write_bytes(path.read_bytes()[:-100])
    image = video.read(tmp_path)
    assert image.slice_at(2).shape == (20, 30)
    with pytest.raises(FormatError, match=r"1\.png"):
        image.slice_at(1)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
@pytest.mark.parametrize("grey", [False, True])
def test_animations(tmp_path: Path, suffix: str, grey: bool) -> None:
    path = tmp_path / f"a.{suffix}"
    base = np.zeros((20, 30), np.uint8) + np.arange(30, dtype=np.uint8) * 8
    frames = [np.roll(base, 3 * k, axis=1) for k in range(7)]
    if not grey:
        frames = [np.dstack((f // 64 * 64, np.full_like(f, 128), f * 0)) for f in frames]
    pictures = [Picture.fromarray(f) for f in frames]
    options = {"lossless": True} if suffix == "webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, **options)
    assert video.sniff(path, path.read_bytes()[:512])
    image = video.read(path)
    assert (image.kind, image.shape[:3]) == ("video", (7, 20, 30))
    expected = np.stack(frames)
    if image.num_channels == 3 and grey:
        expected = np.repeat(expected[..., None], 3, axis=-1)
    assert image.num_channels == (None if grey and suffix == "gif" else 3)
    for k in (6, 0, 3):
        np.testing.assert_array_equal(image.slice_at(k), expected[k])
    np.testing.assert_array_equal(image.array, expected)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_truncated_animation_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(6)
    frames = [Picture.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8)) for _ in range(5)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FormatError) as caught:
        video.read(path).array  # noqa: B018
    assert "\n" not in str(caught.value)


def test_gif_of_one_frame_is_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    pixels = np.arange(120, dtype=np.uint8).reshape(10, 12)
    Picture.fromarray(pixels).save(path)
    image = video.read(path)
    assert (image.kind, image.shape) == ("image", (10, 12))
    np.testing.assert_array_equal(image.array, pixels)


@pytest.mark.slow
def test_every_shared_clip_opens(shared_data: Path) -> None:
    clips = sorted(p.parent for p in (shared_data / "video").glob("*/*/frames"))
    assert clips
    for clip in clips:
        names = sorted((clip / "frames").iterdir())
        image = video.read(clip)
        assert video.sniff(clip, b"")
        assert image.kind == "video"
        assert image.shape[0] == len(names)
        with Picture.open(names[-1]) as picture:
            np.testing.assert_array_equal(image.slice_at(len(names) - 1), np.asarray(picture))
        assert video.read(clip / "frames").shape == image.shape


def test_avi_with_frames_stored_out_of_order(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for k in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_pixels(k))))
        container.mux(stream.encode())
    expected = decoded(path, "rgb24")
    image = video.read(path)
    assert image.geometry.shape[0] == len(expected) == 12
    for k in (11, 0, 5, 3, 4):
        np.testing.assert_array_equal(image.slice_at(k), expected[k])
    assert (np.diff(video.frame_times(path)) > 0).all()
