"""Files: `read` an image, `read_labels` a segmentation, `write` one.

The reader is chosen by content, then by suffix. Every format is one module with functions of the
same names; each is imported only when a file of that format is met.
"""

from __future__ import annotations

from limner.io.image import Image

__all__ = ["Image"]
