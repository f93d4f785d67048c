"""Settings of a pack: how many slices and volumes of each data set are kept."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Count = Annotated[int, Field(ge=1)]


class PackSettings(BaseModel):
    """How data sets become a pack.

    Attributes:
        slices: of each volume and direction that are kept as images, at most.
        slices_of: likewise by shell pattern of the data set's name; the first that fits counts.
        volumes: of a data set at most, spread evenly: small volumes that are all alike would fill
            the pack.
        seed: of superpixels and supervoxels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    slices: _Count = 8
    slices_of: dict[str, _Count] = {}
    volumes: _Count = 80
    seed: Annotated[int, Field(ge=0)] = 0

    def num_slices(self, name: str) -> int:
        """Slices of each volume and direction of a data set."""
        fits = (n for pattern, n in self.slices_of.items() if fnmatchcase(name, pattern))
        return next(fits, self.slices)


def parse_slices(given: Sequence[str]) -> dict[str, int]:
    """``PATTERN=N`` as numbers by pattern.

    Raises:
        ValueError: one of them is something else.
    """
    found: dict[str, int] = {}
    for text in given:
        pattern, _, number = text.rpartition("=")
        if not pattern or not number.isdigit() or int(number) < 1:
            raise ValueError(
                f"slices of {text!r}: write PATTERN=N with a number of 1 or more, such as "
                "'*hippocampus*=6'."
            )
        found[pattern] = int(number)
    return found
