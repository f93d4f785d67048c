"""Sessions on one video: prompts on frames, masks carried along."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property

import numpy as np

from limner.adapters.intensity import robust_limits
from limner.errors import FormatError, PromptError
from limner.prompts.types import Prompt
from limner.sessions.propagation.stack_session import StackSession

_SAMPLED_FRAMES = 8  # for the limits of black and white


class VideoSession(StackSession):
    """A conversation about one video; every prompt is ``(row, column)`` on a frame, or 3D in one.

    Frames are read when needed, never all at once.
    """

    def _placed(self, prompt: Prompt, frame: int | None) -> tuple[Prompt, int | None]:
        if frame is None:
            dropped = prompt.to_slice()
            if dropped is None:
                raise PromptError(
                    "A prompt on a video needs its frame: add it with frame=K (--slice K), or give "
                    "frame, row and column."
                )
            prompt, frame = dropped
        return self._on_frame(prompt, frame)

    def _answered_frame(self, object_id: int, frame: int | None) -> int | None:
        """Without a frame: the one frame that has prompts."""
        if frame is not None:
            return frame
        frames = self._log.frames(object_id)
        if len(frames) > 1:
            raise PromptError(
                f"Object {object_id} has prompts on frames {', '.join(map(str, frames))}; "
                "name one: predict(frame=K)."
            )
        return frames[0] if frames else None

    def _intensity(self) -> tuple[float, float]:
        return self._limits

    @cached_property
    def _limits(self) -> tuple[float, float]:
        if self.options.window is not None:
            return self.options.window
        sampled = np.linspace(0, self.num_frames - 1, _SAMPLED_FRAMES).astype(int)
        seen = []
        for k in sorted(set(sampled.tolist())):
            with suppress(FormatError):  # a damaged frame is an error where it is looked at
                seen.append(self.image.slice_at(k))
        return robust_limits(np.stack(seen or [self.image.slice_at(0)]))
