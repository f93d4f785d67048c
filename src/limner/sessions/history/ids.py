"""Object ids and frame numbers as users give them, checked."""

from __future__ import annotations

import numpy as np

from limner.errors import PromptError

LARGEST_ID = 2**31 - 1


def check_object_id(object_id: int) -> int:
    """An object id as a plain integer.

    Raises:
        ValueError: not an integer from 1 to 2³¹ − 1.
    """
    if isinstance(object_id, bool) or not isinstance(object_id, (int, np.integer)):
        raise ValueError(f"An object id is an integer, not {object_id!r}.")
    if not 1 <= object_id <= LARGEST_ID:
        raise ValueError(f"An object id is 1…{LARGEST_ID} (0 is background), not {object_id}.")
    return int(object_id)


def check_frame(frame: int) -> int:
    """The number of a frame or slice as a plain integer.

    Raises:
        PromptError: not an integer.
    """
    if isinstance(frame, bool) or not isinstance(frame, (int, np.integer)):
        raise PromptError(f"A frame or slice is a whole number, not {frame!r}.")
    return int(frame)
