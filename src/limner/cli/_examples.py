"""``--example IMAGE=MASK[:LABEL]``: images with masks that show a model the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from limner.errors import PromptError

if TYPE_CHECKING:
    from limner.prompts.types import Example


@dataclass(frozen=True)
class ExampleFiles:
    """One example as the command line names it.

    Attributes:
        image: 2D.
        mask: a label file of the same rows and columns.
        label: which of its labels is meant; None for all of them.
    """

    image: Path
    mask: Path
    label: int | None = None


def parse_example(text: str) -> ExampleFiles:
    """The files that ``IMAGE=MASK`` or ``IMAGE=MASK:LABEL`` names.

    Names of files may hold ``=`` and ``:`` as well; what exists decides.

    Raises:
        PromptError: there are no such two files.
    """
    for place in (k for k, sign in enumerate(text) if sign == "="):
        image, rest = Path(text[:place]), text[place + 1 :]
        if not image.exists():
            continue
        if rest and Path(rest).exists():
            return ExampleFiles(image, Path(rest))
        name, colon, label = rest.rpartition(":")
        if colon and label.isascii() and label.isdecimal() and Path(name).exists():
            return ExampleFiles(image, Path(name), int(label))
    raise PromptError(
        "--example takes IMAGE=MASK or IMAGE=MASK:LABEL, two files that exist, such as "
        f"a.png=a_mask.png:2; not {text!r}."
    )


def read_examples(files: Sequence[ExampleFiles]) -> list[Example]:
    """Read images with masks, as stored.

    One that holds nothing of the label is an example, too, of an image without the object; but not
    all may be so.

    Raises:
        PromptError: an image is a volume or a video, or no mask holds anything.
        FormatError: a file cannot be read.
        GeometryError: a mask has not the size of its image.
    """
    examples = [_read(file) for file in files]
    if examples and not any(example.mask.any() for example in examples):
        raise PromptError(
            "None of the examples shows anything: their masks hold no such label. Check LABEL in "
            "--example IMAGE=MASK:LABEL, or leave it out for all labels."
        )
    return examples


def _read(file: ExampleFiles) -> Example:
    import limner
    from limner.io.inversion import invert_for_display

    image = limner.read(file.image)
    if image.kind != "image":
        raise PromptError(
            f"--example {file.image} is a {image.kind}; an example is one 2D picture. Save the "
            "slice that is meant as a picture of its own."
        )
    labels = limner.read_labels(file.mask, like=image).to_array()
    mask = labels != 0 if file.label is None else labels == file.label
    return limner.Example(invert_for_display(image).array, mask)
