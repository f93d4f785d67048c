"""Videos: files decoded by PyAV, animated images, and folders with one image per frame.

A video is ``(frame, row, column[, channel])`` in order of presentation. Frames are decoded when
they are needed: all in order cost one decoding, one at random those since the last key frame.
Grey stays grey, 8 or 16 bit; everything else becomes 8-bit RGB. A rotation in the container is not
applied, as EXIF's is not in images. Frame rates may vary: frames are counted, not timed, and a
warning says so (`frame_times` has the times). Of a cut-off file all but MPEG transport and
elementary streams say so; those have no stated end.

A folder is a video if it holds images of one size and type, in natural order of their names (2
before 10), or one folder named ``frames`` that does.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import require
from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.limits import check_allocation
from limner.io.raster.pixels import (
    check_channel,
    check_not_empty,
    choose_channel,
    fitted_geometry,
    labels_from_pixels,
)
from limner.io.video.animation import is_animation, read_animation
from limner.io.video.clip import Clip, open_clip
from limner.io.video.frames import is_frame_folder, read_folder, read_label_folder
from limner.io.video.lenient import LenientReader, stack_frames

Array = NDArray[Any]

_log = logging.getLogger(__name__)

NAME = "video"

_MAGIC = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"0&\xb2u\x8ef\xcf\x11",  # ASF: wmv
    b"\x00\x00\x01\xba",  # MPEG programme stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"FLV\x01",
    b"OggS",
    b"YUV4MPEG2",
)
_QUICKTIME_BOXES = (b"ftyp", b"moov", b"mdat", b"wide")
# Of pictures and bursts of them, which FFmpeg would take for a video of their parts.
_STILL_BRANDS = (b"avif", b"heic", b"heix", b"mif1", b"avis", b"hevc", b"msf1", b"jp2 ", b"jpx ")
_TRANSPORT_PACKET = 188  # bytes between the sync bytes of an MPEG transport stream


def sniff(path: Path, head: bytes) -> bool:
    """Whether this is a video file, an animated image or a folder of frames."""
    if not head:
        return path.is_dir() and is_frame_folder(path)
    if is_animation(path, head) or head.startswith(_MAGIC):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return True
    if head[4:8] in _QUICKTIME_BOXES:
        return head[4:8] != b"ftyp" or head[8:12] not in _STILL_BRANDS
    sync = head[0:1] + head[_TRANSPORT_PACKET : _TRANSPORT_PACKET + 1]
    return sync == b"GG"


def read(
    path: Path, *, channel: int | None = None, series: str | None = None, strict: bool = True
) -> Image:
    """Open a video; its frames are found now and decoded when they are asked for.

    Args:
        path: a file, or a folder of frames.
        channel: of a colour video, the one to take as grey.
        series: of a file with several video streams, the number of one.
        strict: False takes what can be decoded of a truncated or damaged file or folder. Frames
            that cannot be read are then shown as the last one before them that can, and
            `Image.damaged` names them once they were asked for.

    Raises:
        FormatError: not a video, damaged, without frames, or too large for this machine.
        MissingDependency: a video file (not a folder, not an animated image) without PyAV.
    """
    if path.is_dir():
        return read_folder(path, channel=channel, name=NAME, strict=strict)
    check_not_empty(path)
    with path.open("rb") as file:
        head = file.read(4096)
    if is_animation(path, head):
        return read_animation(path, channel=channel, name=NAME, strict=strict)
    require("av", extra="video", purpose=f"read the video {path.name}")
    clip = open_clip(path, series=series, strict=strict)
    if not clip.metadata["constant_rate"]:
        _log.warning(
            "%s has a varying frame rate; frames are counted from 0 to %d, not timed.",
            path,
            clip.shape[0] - 1,
        )
    return _image(clip, channel)


def read_labels(path: Path, *, like: Image | None = None) -> Labels:
    """Read a video as label maps: a folder with one per frame, an animation, a lossless grey video.

    Raises:
        FormatError: the values cannot be labels.
        GeometryError: it has not the shape of `like`.
    """
    if path.is_dir():
        return read_label_folder(path, like=like)
    image = read(path)
    geometry = fitted_geometry(image.geometry, like, path)
    return labels_from_pixels(image.array, geometry, path)


def frame_times(path: Path, *, series: str | None = None) -> Array:
    """Seconds at which each frame of a video file is shown, float64, from 0 for the first.

    Raises:
        FormatError: as `read`.
        MissingDependency: PyAV is not installed.
    """
    require("av", extra="video", purpose=f"read the video {path.name}")
    times: Array = np.array(open_clip(path, series=series, strict=False).times, dtype=np.float64)
    return np.asarray(times - times[0])


def _image(clip: Clip, channel: int | None) -> Image:
    check_channel(channel, clip.num_channels, clip.path)

    def chosen(index: int) -> Array:
        return choose_channel(clip.frame(index), channel, clip.num_channels)

    read_frame = chosen if clip.strict else LenientReader(chosen, clip.shape[0])

    def load() -> Array:
        check_allocation(clip.shape, clip.dtype.itemsize, clip.path)
        return stack_frames(
            read_frame, clip.shape if channel is None else clip.shape[:3], clip.dtype
        )

    return Image(
        load,
        Geometry.from_spacing(clip.shape[:3]),
        kind="video",
        dtype=clip.dtype,
        num_channels=None if channel is not None else clip.num_channels,
        read_slice=read_frame,
        path=clip.path,
        format=NAME,
        metadata=clip.metadata,
        damaged=read_frame.damaged if isinstance(read_frame, LenientReader) else None,
    )
