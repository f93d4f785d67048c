"""The colour of each object, in previews and in masks that show themselves."""

from __future__ import annotations

import colorsys
from typing import TypeAlias

Color: TypeAlias = tuple[int, int, int]  # RGB, 0…255

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart, without
# black; the order keeps neighbours in the list far apart. Then those that are farthest from all
# before them in CIELAB, and from the colours of clicks.
PALETTE: tuple[Color, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
    (105, 0, 255),
    (255, 0, 210),
    (105, 90, 30),
    (0, 255, 0),
    (0, 105, 255),
    (255, 180, 150),
    (240, 0, 120),
    (0, 255, 255),
    (210, 240, 165),
    (105, 150, 0),
    (150, 60, 180),
    (180, 165, 255),
    (165, 240, 30),
)


def color_of(object_id: int) -> Color:
    """The colour in which an object is drawn; after `PALETTE`, hues a golden ratio apart."""
    if object_id <= len(PALETTE):
        return PALETTE[object_id - 1]
    turn = object_id - len(PALETTE)
    value, saturation = (1.0, 0.75, 0.9)[turn % 3], (0.55, 0.9)[turn % 2]
    red, green, blue = colorsys.hsv_to_rgb(turn * 0.618034 % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
