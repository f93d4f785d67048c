"""Video files opened in PyAV, and the choice of one of their streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limner.errors import FormatError, require

# What FFmpeg may take a file for. Left out are the formats that name other files or addresses to
# read (playlists, concat scripts, DASH, SDP), devices, and folders of images.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,yuv4mpegpipe,"
    "h264,hevc,m4v,ivf,nut,mjpeg,gif,apng,dv,mxf"
)


def open_container(path: Path) -> Any:
    """Open a video file in PyAV so that it cannot name other files or addresses to read."""
    av = require("av", extra="video", purpose=f"read the video {path.name}")
    return av.open(
        f"file:{path.resolve()}",
        container_options={"protocol_whitelist": "file", "format_whitelist": _CONTAINERS},
        metadata_errors="replace",
    )


def video_stream(container: Any, series: str | None, path: Path) -> Any:
    streams = [s for s in container.streams.video if not _is_cover(s)]
    if not streams:
        raise FormatError(f"{path}: the file has no video stream.")
    if series is None:
        return streams[0]
    if not series.isdecimal() or int(series) >= len(streams):
        raise FormatError(
            f"{path}: there is no video stream {series!r}; the file has {len(streams)}, "
            "counted from 0."
        )
    return streams[int(series)]


def _is_cover(stream: Any) -> bool:
    return "attached_pic" in str(getattr(stream, "disposition", "")).lower()
