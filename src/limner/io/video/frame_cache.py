"""Cache of the frames decoded last, for readers that only go forward."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

_MOST, _MOST_BYTES = 48, 1 << 26  # two frames at least


class FrameCache:
    """A few frames by number; the oldest go first.

    Args:
        frame_bytes: of one frame.
    """

    def __init__(self, frame_bytes: int) -> None:
        self.room = max(2, min(_MOST, _MOST_BYTES // max(1, frame_bytes)))
        self._frames: OrderedDict[int, Any] = OrderedDict()

    def __contains__(self, index: int) -> bool:
        return index in self._frames

    def __getitem__(self, index: int) -> Any:
        return self._frames[index]

    def keep(self, index: int, frame: Any) -> None:
        """Remember a frame."""
        self._frames[index] = frame
        while len(self._frames) > self.room:
            self._frames.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._frames.clear()
