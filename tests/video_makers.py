"""Videos made for tests: of any codec, whole, damaged or odd."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

SIZE = (64, 96)


def moving_square(count: int = 24, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A bright square that moves to the right: pixels (frame, row, column) and where it is."""
    rng = np.random.default_rng(11)
    ground = rng.integers(30, 50, size, dtype=np.uint8)
    truth = np.zeros((count, *size), bool)
    for k in range(count):
        truth[k, 20:44, 8 + 2 * k : 32 + 2 * k] = True
    return np.where(truth, np.uint8(200), ground), truth


def write_video(
    path: Path,
    pixels: np.ndarray,
    codec: str = "libx264",
    *,
    steps_ms: Sequence[int] = (40,),
    group: int = 6,
    pixel_format: str = "yuv420p",
    **options: str,
) -> Path:
    """Encode grey frames; a key frame begins every `group`."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.options = {"bf": "0", **options} if codec == "libx264" else dict(options)
        stream.codec_context.gop_size = group
        if len(steps_ms) > 1:
            stream.codec_context.time_base = Fraction(1, 1000)
        time = 0
        for k, plane in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(plane, format="gray")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            time += steps_ms[k % len(steps_ms)]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def damage(path: Path, number: int) -> Path:
    """Overwrite the compressed data of one frame."""
    import av

    with av.open(str(path)) as container:
        payload = [bytes(p) for p in container.demux(video=0)][number]
    content = path.read_bytes()
    assert content.count(payload) == 1
    path.write_bytes(content.replace(payload, b"\xff" * len(payload)))
    return path


def write_sound(path: Path) -> Path:
    """A file with sound and no picture."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
