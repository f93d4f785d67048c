"""Lay the pictures of `limner demo` out as docs/demo.jpg.

Run: limner demo -o demo-output && python docs/make_picture.py demo-output
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

WIDTH, GAP, PAPER = 1500, 10, (18, 18, 20)
ROWS = [
    ["ct-spine", "mr-abdomen", "ultrasound-node", "histology"],
    ["retina", "cell", "phantom-sequence"],
]


def row_of(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side, all of one height, together `WIDTH` wide."""
    room = WIDTH - GAP * (len(pictures) + 1)
    height = round(room / sum(p.width / p.height for p in pictures))
    row = Image.new("RGB", (WIDTH, height + GAP), PAPER)
    x = GAP
    for picture in pictures:
        width = round(picture.width / picture.height * height)
        row.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (x, GAP))
        x += width + GAP
    return row


def main() -> None:
    """Write docs/demo.jpg."""
    folder = Path(sys.argv[1])
    rows = [
        row_of([Image.open(folder / f"{name}.png").convert("RGB") for name in names])
        for names in ROWS
    ]
    page = Image.new("RGB", (WIDTH, sum(r.height for r in rows) + GAP), PAPER)
    y = 0
    for row in rows:
        page.paste(row, (0, y))
        y += row.height
    page.save(Path(__file__).parent / "demo.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    main()
