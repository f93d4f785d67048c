"""Prefetched frames: several of a video or volume encoded together, ahead of their turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from limner.adapters.axes import Bounds
from limner.models import EncodingModel, PromptableModel
from limner.sessions.answers.image_view import ImageView, Shape

_MOST_AHEAD = 4  # frames encoded together; as many views more are kept


class FrameView(ImageView):
    """A frame, perhaps with its embedding made ahead of its turn."""

    ahead: tuple[Any] | None = None

    def embedding(self, model: PromptableModel, bounds: Bounds, shape: Shape) -> Any:
        """See `ImageView.embedding`."""
        if self.ahead is not None and (bounds, shape) == (self.whole, self.shape):
            return self.ahead[0]
        return super().embedding(model, bounds, shape)


def num_prefetched(model: PromptableModel, *, zoom: bool) -> int:
    """Frames to encode together; 1 where nothing is gained, or every object has its window."""
    if not isinstance(model, EncodingModel) or (zoom and 2 in model.card.window):
        return 1
    return min(_MOST_AHEAD, model.views_at_once)


def prefetch_embeddings(
    model: PromptableModel, view: Callable[[int], FrameView], frames: Sequence[int], *, zoom: bool
) -> None:
    """Encode the first frames together if the very first has not been, where the model says that
    this is faster.
    """
    size = num_prefetched(model, zoom=zoom)
    if size < 2 or not isinstance(model, EncodingModel) or view(frames[0]).ahead:
        return
    ahead = [view(k) for k in frames[:size]]
    views = [p.crop(p.whole, p.shape) for p in ahead]
    for p, embedding in zip(ahead, model.embed_batch(views), strict=True):
        p.ahead = (embedding,)
