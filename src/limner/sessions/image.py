"""Sessions on one 2D image."""

from __future__ import annotations

from functools import cached_property

from limner.adapters.intensity import robust_limits
from limner.errors import PromptError
from limner.prompts.convert import check_inside
from limner.prompts.types import Prompt
from limner.sessions.answers.finite import finite
from limner.sessions.answers.image_view import ImageView
from limner.sessions.base import BaseSession


class ImageSession(BaseSession):
    """A conversation about one picture; prompts in ``(row, column)``."""

    def _placed(self, prompt: Prompt, frame: int | None) -> tuple[Prompt, int | None]:
        if frame is not None:
            raise PromptError(f"A 2D image has no frames, so frame={frame} means nothing here.")
        check_inside(prompt, self.image.geometry.shape)
        return prompt, None

    def _scene(self, frame: int | None) -> ImageView:
        return self._picture

    @cached_property
    def _picture(self) -> ImageView:
        array = finite(self.image.array, self.image)
        intensity = self.options.window or robust_limits(array)
        return ImageView(
            array,
            self.image.spacing,
            intensity,
            self.image.modality,
            windowed=self.options.window is not None,
        )
