"""Prompts in 3D that lie in one slice or frame, as 2D prompts on it."""

from __future__ import annotations

from limner.prompts.types import Box, Click, Lasso, Prompt, Scribble


def onto_plane(prompt: Prompt) -> tuple[Prompt, int] | None:
    """The 2D prompt and its slice or frame; None if a prompt is not 3D or spans several."""
    match prompt:
        case Click(at=(first, *rest)) if len(rest) == 2:
            return Click(tuple(rest), prompt.positive), round(first)
        case Box(low=(first, *low), high=(last, *high)) if len(low) == 2:
            planes = range(int(first), int(last))
            return (Box(tuple(low), tuple(high)), planes[0]) if len(planes) == 1 else None
        case Scribble() | Lasso() if len(prompt.points[0]) == 3:
            touched = {round(point[0]) for point in prompt.points}
            if len(touched) > 1:
                return None
            points = tuple(point[1:] for point in prompt.points)
            if isinstance(prompt, Lasso):
                return Lasso(points), touched.pop()
            return Scribble(points, prompt.positive, prompt.radius), touched.pop()
    return None
