"""What a user says about an object: prompts as values, their JSON, their pictures and a simulated
user.
"""

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
