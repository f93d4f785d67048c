"""Prompts: clicks, boxes, scribbles, lassos, masks, words and examples, as values."""

from limner.prompts.types import (
    Box,
    Click,
    Example,
    Lasso,
    MaskPrompt,
    Prompt,
    Scribble,
    TextPrompt,
    from_json,
    to_json,
)

__all__ = [
    "Box",
    "Click",
    "Example",
    "Lasso",
    "MaskPrompt",
    "Prompt",
    "Scribble",
    "TextPrompt",
    "from_json",
    "to_json",
]
