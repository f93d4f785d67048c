"""Interface of a file format: recognition, readers and writers of images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from limner.io.image import Image
from limner.io.labels import Labels


class Format(Protocol):
    """What the module of every format brings; beside it those of the functions below that it can.

    Files are written whole or not at all, see `limner.atomic`.
    """

    NAME: str  # as `Image.format` has it

    def sniff(self, path: Path, head: bytes) -> bool:
        """Whether a file is of this format; `head` holds its first bytes, up to 1024."""


@runtime_checkable
class ImageReader(Protocol):
    """A format that holds images."""

    def read(
        self,
        path: Path,
        *,
        channel: int | None = None,
        series: str | int | None = None,
        strict: bool = True,
    ) -> Image:
        """Read an image: its header now, its pixels when they are wanted; see `limner.read`."""


@runtime_checkable
class LabelReader(Protocol):
    """A format in which labels are more than pixels: names, overlaps, runs, contours."""

    def read_labels(self, path: Path, *, like: Image | None = None, **options: Any) -> Labels:
        """Read a segmentation; see `limner.read_labels`. Of its options those that the format's
        entry lists in `limner.io.formats.FormatEntry.label_options`.
        """


@runtime_checkable
class MixedFormat(Protocol):
    """A format whose files hold images, or labels without one."""

    def holds_labels(self, path: Path) -> bool:
        """Whether a file of the format holds nothing but labels."""


@runtime_checkable
class LabelWriter(Protocol):
    """A format in which labels are written."""

    def write(self, path: Path, labels: Labels, *, like: Image | None, **options: Any) -> None:
        """Write a segmentation; see `limner.write`."""


@runtime_checkable
class SelectiveWriter(Protocol):
    """A format that cannot hold the labels of every image."""

    def check_writable(self, path: Path, like: Image, **options: Any) -> None:
        """Refuse an image whose labels the format cannot hold, before there are any."""


@runtime_checkable
class ImageWriter(Protocol):
    """A format in which images are written."""

    def write_image(self, path: Path, image: Image) -> None:
        """Write an image; see `limner.io.write_image`."""
