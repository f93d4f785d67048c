"""Sessions on one video: prompts in ``(row, column)`` on frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property

import numpy as np

from limner.adapters.intensity import robust_limits
from limner.errors import FormatError, PromptError
from limner.io.image import Image
from limner.io.inversion import invert_for_display, invert_window
from limner.prompts.types import Prompt
from limner.sessions.answers.finite import finite
from limner.sessions.answers.image_view import ImageView
from limner.sessions.propagation.prefetch import FrameView
from limner.sessions.views import FrameCache, check_first_axis, check_on_frame

_SAMPLED_FRAMES = 8  # for the limits of black and white


class VideoViews:
    """One video; see `limner.sessions.views.FrameViews`. Every prompt is about a frame, and a 3D
    one says which. Frames are read when needed, never all at once.

    Args:
        image: the video.
        window: intensities for black and white, or None for robust limits of the video.
        prefetched: frames that are encoded ahead.
    """

    frame_name = "frame"

    def __init__(self, image: Image, window: tuple[float, float] | None, prefetched: int) -> None:
        self.image = image
        self.frames = FrameCache(self._make_view, prefetched)
        self._shown, self._window = invert_for_display(image), invert_window(image, window)

    def place_prompt(
        self, prompt: Prompt, frame: int | None, axis: int
    ) -> tuple[Prompt, int | None]:
        """The 2D prompt, and its frame."""
        check_first_axis(axis, self.image)
        if frame is None:
            dropped = prompt.to_slice()
            if dropped is None:
                raise PromptError(
                    "A prompt on a video needs its frame: add it with frame=K (--slice K), or give "
                    "frame, row and column."
                )
            prompt, frame = dropped
        check_on_frame(prompt, frame, self.image, self.frame_name)
        return prompt, frame

    def resolve_frame(
        self, frame: int | None, object_id: int, frames_of: Callable[[int], Sequence[int]]
    ) -> int | None:
        """Without a frame: the one frame that has prompts."""
        if frame is not None:
            return frame
        prompted = frames_of(object_id)
        if len(prompted) > 1:
            raise PromptError(
                f"Object {object_id} has prompts on frames {', '.join(map(str, prompted))}; "
                "name one: predict(frame=K)."
            )
        return prompted[0] if prompted else None

    def view(self, frame: int | None) -> ImageView:
        """A frame."""
        assert frame is not None
        return self.frames.view(frame)

    def _make_view(self, frame: int) -> FrameView:
        return FrameView(
            finite(self._shown.slice_at(frame), self.image),
            self.image.geometry.slice_at(frame).spacing,
            self._limits,
            self.image.modality,
            windowed=self._window is not None,
        )

    @cached_property
    def _limits(self) -> tuple[float, float]:
        """Intensities for black and white, the same for all frames: of some, spread evenly."""
        if self._window is not None:
            return self._window
        count = self.image.geometry.shape[0]
        sampled = np.linspace(0, count - 1, _SAMPLED_FRAMES).astype(int)
        seen = []
        for k in sorted(set(sampled.tolist())):
            with suppress(FormatError):  # a damaged frame is an error where it is looked at
                seen.append(self._shown.slice_at(k))
        return robust_limits(np.stack(seen or [self._shown.slice_at(0)]))
