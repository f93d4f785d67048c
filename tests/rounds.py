"""How often tests with seeds or random examples are repeated: once, or more by ``make test-long``.

A test worth repeating carries ``@pytest.mark.long`` and takes its number of seeds or examples
from `times`.
"""

from __future__ import annotations

import os

ROUNDS = int(os.environ.get("LIMNER_TEST_ROUNDS", "1"))


def times(count: int) -> int:
    """`count` in ``make test``, `ROUNDS` times as many in ``make test-long``."""
    return count * ROUNDS
