"""Window of a CT image where the user names none: the file's own, or that of soft tissue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from limner.adapters.intensity import WINDOWS, resolve_window, sample_values
from limner.io.image import Image

WindowSource: TypeAlias = Literal["given", "header", "soft tissue", "robust"]

ROBUST = "robust"  # as a window's name: limits of the image itself, also in CT
SOFT_TISSUE = WINDOWS["abdomen"]
LUNG, TISSUE = (-880.0, -650.0), -200.0
MOST_LUNG = 0.12  # of the tissue: with more, the chest is shown whole
AIR, DARKEST, BRIGHTEST = -900.0, -4096.0, 30000.0  # Hounsfield units; a gantry is far below air


class ChosenWindow(NamedTuple):
    """Intensities for black and white, and whose choice they are.

    Attributes:
        limits: None for robust limits of the image.
        source: ``"given"`` by the user, of the DICOM ``"header"``, for ``"soft tissue"`` in CT,
            or ``"robust"``.
    """

    limits: tuple[float, float] | None
    source: WindowSource

    def describe(self) -> str | None:
        """What is used and why, in one line; None where there is nothing to say."""
        if self.limits is None or self.source == "given":
            return None
        low, high = self.limits
        why = "the file's own" if self.source == "header" else "soft tissue, as this is CT"
        return f"window {low:g} to {high:g} ({why}; --window names another, or {ROBUST})"


def choose_window(image: Image, window: str | Sequence[float] | None) -> ChosenWindow:
    """The window that is asked for, or the default of a CT image.

    Without one a CT image has the window of its DICOM header, else that of soft tissue: robust
    limits of a body in air leave the organs one grey. A chest, whose lungs that window shows black,
    keeps robust limits. An image of unknown modality counts as CT where its values look like
    Hounsfield units.

    Args:
        image: headers only are read where they tell its modality.
        window: a preset's name, ``(low, high)``, ``"robust"``, or None.

    Raises:
        ValueError: an unknown name, or no pair.
    """
    if isinstance(window, str) and window == ROBUST:
        return ChosenWindow(None, "robust")
    limits = resolve_window(window)
    if limits is not None:
        return ChosenWindow(limits, "given")
    if image.kind == "video" or (image.num_channels or 1) > 1:
        return ChosenWindow(None, "robust")
    if image.modality == "CT" and (own := _header_window(image)) is not None:
        return ChosenWindow(own, "header")
    if image.modality in ("CT", None) and _shows_soft_tissue(image):
        return ChosenWindow(SOFT_TISSUE, "soft tissue")
    return ChosenWindow(None, "robust")


def _header_window(image: Image) -> tuple[float, float] | None:
    """The first window of the header, if it is one (DICOM PS3.3 C.11.2.1.2)."""
    centers, widths = (image.metadata.get(f"window_{k}") or [] for k in ("center", "width"))
    if not centers or not widths:
        return None
    center, width = float(centers[0]), float(widths[0])
    if not (math.isfinite(center) and math.isfinite(width) and width > 1):
        return None
    return center - width / 2, center + width / 2


def _shows_soft_tissue(image: Image) -> bool:
    """Whether there is air below -900, little lung, and nothing that CT does not hold."""
    if image.dtype.kind not in "if" or image.dtype.itemsize < 2:
        return False
    values = sample_values(image.array)
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not values.size:
        return False
    low, middle, high = np.percentile(values, (1, 50, 99.5))
    if not (DARKEST <= low <= AIR and middle < 1000 and 0 < high <= BRIGHTEST):
        return False
    lung = np.count_nonzero((values > LUNG[0]) & (values < LUNG[1]))
    return bool(lung <= MOST_LUNG * np.count_nonzero(values > TISSUE))
