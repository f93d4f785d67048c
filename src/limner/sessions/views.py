"""What a session knows of its image: where prompts lie on it, and what models see of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from limner.errors import PromptError
from limner.io.image import Image
from limner.prompts.convert import check_inside
from limner.prompts.types import Prompt
from limner.sessions.answers.image_view import ImageView
from limner.sessions.propagation.prefetch import FrameView

_CACHED_FRAMES = 4


class ImageViews(Protocol):
    """One image, volume or video."""

    @property
    def image(self) -> Image:
        """The image."""

    def place_prompt(
        self, prompt: Prompt, frame: int | None, axis: int
    ) -> tuple[Prompt, int | None]:
        """The prompt as the model will see it, and the frame it is about; None for the whole.

        Args:
            prompt: as given to `limner.Session.add`, like the others.
            frame: frame or slice.
            axis: across which a volume's slice lies.

        Raises:
            PromptError: it does not fit the image.
        """

    def resolve_frame(
        self, frame: int | None, object_id: int, frames_of: Callable[[int], Sequence[int]]
    ) -> int | None:
        """The frame that `limner.Session.predict` means; None for the whole.

        Args:
            frame: as given.
            object_id: which object's.
            frames_of: the frames with prompts about an object.

        Raises:
            PromptError: it could be several.
        """

    def view(self, frame: int | None) -> ImageView:
        """What the model sees of a frame, or (None) of the whole."""


@runtime_checkable
class FrameViews(ImageViews, Protocol):
    """A volume or video, whose slices or frames masks are carried over."""

    @property
    def frame_name(self) -> str:
        """What a frame is called: ``"frame"`` or ``"slice"``."""

    @property
    def frames(self) -> FrameCache:
        """The frames as models see them."""


class FrameCache:
    """Frames as models see them; the newest are kept with their embeddings.

    Args:
        make: a frame.
        more: how many more than `_CACHED_FRAMES` are kept: as many as are encoded ahead.
    """

    def __init__(self, make: Callable[[int], FrameView], more: int) -> None:
        self._make, self._size = make, _CACHED_FRAMES + more
        self._kept: OrderedDict[tuple[int, bool], FrameView] = OrderedDict()

    def view(self, frame: int, *, propagator: bool = False) -> FrameView:
        """A frame for the model or for its propagator: what was encoded is of use to one of them
        only.
        """
        key = (frame, propagator)
        if key not in self._kept:
            self._kept[key] = self._make(frame)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return self._kept[key]


def check_on_frame(prompt: Prompt, frame: int, image: Image, frame_name: str) -> None:
    """Refuse a 2D prompt that does not fit a frame.

    Raises:
        PromptError: no such frame, or it lies outside.
    """
    count, *shape = image.geometry.shape
    if not 0 <= frame < count:
        raise PromptError(f"There is no {frame_name} {frame}; they are 0…{count - 1}.")
    check_inside(prompt, shape, what=frame_name)


def check_first_axis(axis: int, image: Image) -> None:
    """Refuse a slice across another axis than the first, which only volumes have.

    Raises:
        PromptError: it is another one.
    """
    if axis != 0:
        raise PromptError(
            f"Only a volume has slices across axis {axis!r}; this is one {image.kind}."
        )
