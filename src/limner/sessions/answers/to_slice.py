"""Prompts in 3D that lie in one slice or frame, as 2D prompts on it."""

from __future__ import annotations

from collections.abc import Sequence

from limner.prompts.types import Box, Click, Lasso, Prompt, Scribble


def onto_plane(prompt: Prompt, axis: int = 0) -> tuple[Prompt, int] | None:
    """The 2D prompt and its slice or frame; None if a prompt is not 3D or spans several.

    Args:
        prompt: in 3D.
        axis: across which the slices lie.
    """

    def rest(position: Sequence[float]) -> tuple[float, ...]:
        return tuple(x for k, x in enumerate(position) if k != axis)

    match prompt:
        case Click(at=at) if len(at) == 3:
            return Click(rest(at), prompt.positive), round(at[axis])
        case Box(low=low, high=high) if len(low) == 3:
            planes = range(int(low[axis]), int(high[axis]))
            return (Box(rest(low), rest(high)), planes[0]) if len(planes) == 1 else None
        case Scribble() | Lasso() if len(prompt.points[0]) == 3:
            touched = {round(point[axis]) for point in prompt.points}
            if len(touched) > 1:
                return None
            points = tuple(rest(point) for point in prompt.points)
            if isinstance(prompt, Lasso):
                return Lasso(points), touched.pop()
            return Scribble(points, prompt.positive, prompt.radius), touched.pop()
    return None
