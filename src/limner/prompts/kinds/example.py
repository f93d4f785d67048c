"""Examples: another image with its mask, for in-context segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from limner.errors import PromptError
from limner.label_values import mask_of_values
from limner.packed_arrays import pack, unpack
from limner.prompts.kinds.base import PlacelessPrompt
from limner.prompts.kinds.checks import check_fields
from limner.prompts.kinds.mask import MaskPrompt, mask_from_json, mask_to_json


@dataclass(frozen=True, eq=False)
class Example(PlacelessPrompt):
    """Another image with its mask: "segment this like that" (UniverSeg,
    https://arxiv.org/abs/2304.06131).

    Attributes:
        image: ``(row, column)`` or ``(row, column, channel)``, intensities as stored.
        mask: boolean ``(row, column)``.
    """

    image: NDArray[Any]
    mask: NDArray[np.bool_]
    kind: ClassVar[str] = "example"
    json_fields: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (
        ("image", "dtype", "mask"),
        ("shape",),
    )

    def __post_init__(self) -> None:
        image = np.array(self.image)
        try:
            mask = mask_of_values(self.mask, name="The mask of an example")
        except ValueError as error:
            raise PromptError(f"The mask of an example is none: {error}.") from error
        if mask.ndim != 2 or image.shape[:2] != mask.shape or image.ndim not in (2, 3):
            raise PromptError(
                f"An example pairs an image with a 2D mask of the same rows and columns, "
                f"not {image.shape} with {mask.shape}."
            )
        image.flags.writeable = mask.flags.writeable = False
        object.__setattr__(self, "image", image)
        object.__setattr__(self, "mask", mask)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Example)
            and self.image.dtype == other.image.dtype
            and np.array_equal(self.image, other.image)
            and np.array_equal(self.mask, other.mask)
        )

    def __hash__(self) -> int:
        return hash((self.image.tobytes(), np.packbits(self.mask).tobytes()))

    def to_fields(self) -> dict[str, Any]:
        """The pixels whole, compressed without loss, and the mask's runs."""
        return {
            "image": pack(self.image),
            "dtype": self.image.dtype.str,
            "shape": list(self.image.shape),
            "mask": mask_to_json(self.mask),
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Inverse of `to_fields`; pixels may also be written out as nested lists."""
        image, dtype, mask = fields["image"], fields["dtype"], fields["mask"]
        check_fields(mask, "mask", *MaskPrompt.json_fields)
        kind = np.dtype(dtype)
        if kind.kind not in "biuf":
            raise ValueError(f"an example's pixels are numbers, not {dtype!r}")
        if isinstance(image, str):
            shape = fields.get("shape")
            pixels = unpack(image, kind, () if shape is None else shape)
        else:
            pixels = np.asarray(image, dtype=kind)
        return cls(pixels, mask_from_json(**mask))
