"""Interface of a compiled network: arrays in, arrays out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Network(Protocol):
    """A network that is ready to run. May be called from several threads.

    Attributes:
        description: what computes, and in which precision, such as ``"OpenVINO 2026.4.1, bf16"``.
    """

    @property
    def description(self) -> str:
        """What computes, and in which precision."""

    def __call__(self, *inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run once.

        Args:
            inputs: float32, batch first, in the network's order.

        Returns:
            Its outputs in order, float32; the caller's to keep.

        Raises:
            ValueError: the number, type or shape of the inputs is not what the network takes.
        """
