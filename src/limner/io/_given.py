"""Labels from what is given to be written: label maps, masks by object id or name, `Labels`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from limner.errors import GeometryError
from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.labels import LabelArray, Labels
from limner.io.placement import place_on_grid
from limner.label_values import labels_of_values


def as_labels(
    labels: Labels | Mapping[int, ArrayLike] | Mapping[str, ArrayLike] | ArrayLike,
    like: tuple[Image | None, Geometry | None],
    names: Mapping[int, str] | None,
    path: Path,
    *,
    placed: bool,
) -> Labels:
    """Labels of anything that `write` takes.

    Args:
        labels: see `write`.
        like: the image and its grid.
        names: by object id.
        path: of the file, for messages.
        placed: whether the file says where its voxels are.
    """
    image, geometry = like
    if isinstance(labels, LabelArray) and labels.source is not None:
        labels = labels.source
    if isinstance(labels, Labels):
        found = copy.copy(labels)
        if geometry is not None and found.geometry != geometry:
            found = place_on_grid(found, geometry, None, placeless=False, image=image)
    elif geometry is None and placed:
        raise GeometryError(
            f"{path}: an array does not say where it lies, and {_suffix_of(path)} does; give its "
            "image (or the path of it) as like=, or write what knows its grid: session.labels, "
            "session.export() or limner.read_labels(…)."
        )
    elif isinstance(labels, Mapping):
        if geometry is None and not labels:
            raise ValueError("No masks and no image to write like: the size is unknown.")
        masks, own_names = _numbered(labels)
        shape = np.shape(next(iter(masks.values()), ()))
        found = Labels(geometry or Geometry(shape, has_spacing=False), masks=masks, names=own_names)
    else:
        array = np.asarray(labels)
        if array.ndim == 0:
            raise TypeError(
                f"limner.write takes a label map, masks by object id or limner.Labels, not "
                f"{type(labels).__name__}; of a prediction write prediction.mask with "
                "like=image, of a session session.export()."
            )
        try:
            array = labels_of_values(array, name=str(path))
        except ValueError as error:
            raise GeometryError(
                f"{path}: what is to be written is no label map: {error}."
            ) from None
        found = Labels(geometry or Geometry(array.shape, has_spacing=False), array=array)
    found.names = {**found.names, **{int(i): str(n) for i, n in (names or {}).items()}}
    return found


def check_priority(priority: Sequence[int]) -> tuple[int, ...]:
    """Object ids, checked: the first of them keeps the pixels that others want, too.

    Raises:
        ValueError: no ids.
    """
    ids = tuple(priority)
    if any(isinstance(i, bool) or not isinstance(i, (int, np.integer)) or i < 1 for i in ids):
        raise ValueError(f"A priority is a list of object ids such as [2, 1], not {priority!r}.")
    return tuple(int(i) for i in ids)


def _numbered(masks: Mapping[Any, ArrayLike]) -> tuple[dict[int, ArrayLike], dict[int, str]]:
    """Masks by object id, and names where masks are given by name: objects 1, 2, … in order."""
    if masks and all(isinstance(key, str) for key in masks):
        return (
            dict(enumerate(masks.values(), start=1)),
            dict(enumerate(map(str, masks), start=1)),
        )
    if not all(isinstance(key, int | np.integer) for key in masks):
        raise TypeError("Masks are given by object id (1, 2, …), or all of them by name.")
    return {int(key): mask for key, mask in masks.items()}, {}


def _suffix_of(path: Path) -> str:
    suffixes = "".join(path.suffixes[-2:]).lower()
    return suffixes if suffixes in (".nii.gz", ".seg.nrrd") else path.suffix.lower()
