"""Frames of a DICOM video, which is one MPEG-2, MPEG-4 or HEVC stream (endoscopy, microscopy)."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError, require
from limner.io.video.frame_cache import FrameCache

Array = NDArray[Any]

# The containers and bare streams that PS3.5 annex A allows; nothing that names other files.
_FORMATS = "mpeg,mpegts,mpegvideo,m4v,h264,hevc,mov,mp4,m4a,3gp,3g2,mj2"


class StreamFrames:
    """Decodes a stream frame by frame; going forward is cheap. Going back starts again and keeps
    some of the frames on the way.

    Args:
        content: the whole stream.
        size: rows and columns that every frame must have.
        path: for messages.
    """

    def __init__(self, content: bytes, size: tuple[int, int], path: Path) -> None:
        self._content = content
        self._size = size
        self._path = path
        self._lock = threading.Lock()
        self._frames: Iterator[Array] = iter(())
        self._current: Array | None = None
        self._index = -1
        self._kept = FrameCache(3 * size[0] * size[1])

    def frame(self, index: int) -> Array:
        """Frame `index` as 8-bit RGB ``(row, column, 3)``.

        Raises:
            FormatError: the stream ends before it or has another size.
            MissingDependency: PyAV is not installed.
        """
        with self._lock:
            if index in self._kept:
                return np.asarray(self._kept[index])
            back = self._current is not None and index < self._index
            if self._current is None or back:
                self._kept.clear()
                self._frames, self._index = self._decode(), -1
            while self._index < index:
                self._current = next(self._frames, None)
                self._index += 1
                if self._current is None:
                    raise FormatError(f"{self._path}: its video stream ends at {self._index}.")
                if back:
                    self._kept.keep(self._index, self._current)
            assert self._current is not None
            return self._current

    def _decode(self) -> Iterator[Array]:
        av = require("av", extra="video", purpose="decode the video stream in a DICOM file")
        options = {"protocol_whitelist": "", "format_whitelist": _FORMATS}
        with av.open(io.BytesIO(self._content), container_options=options) as container:
            for frame in container.decode(video=0):
                if (frame.height, frame.width) != self._size:
                    raise ValueError(f"a video frame of {frame.height}×{frame.width} pixels")
                yield np.asarray(frame.to_ndarray(format="rgb24"))
