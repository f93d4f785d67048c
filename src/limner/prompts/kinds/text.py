"""Words as prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from limner.errors import PromptError
from limner.prompts.kinds.base import PlacelessPrompt


@dataclass(frozen=True)
class TextPrompt(PlacelessPrompt):
    """A word or phrase naming the object, such as ``"liver"``.

    Attributes:
        text: not empty.
    """

    text: str
    kind: ClassVar[str] = "text"
    json_fields: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("text",), ())

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise PromptError(f"A text prompt needs words, not {self.text!r}.")
        object.__setattr__(self, "text", self.text.strip())

    def to_fields(self) -> dict[str, Any]:
        """The text."""
        return {"text": self.text}
