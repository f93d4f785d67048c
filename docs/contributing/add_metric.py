"""Add a metric: a function in ``metrics/`` that takes two masks and, where it measures, spacing."""

from __future__ import annotations

from package_copy import PackageCopy

METRIC = '''

def volume_similarity(a: ArrayLike, b: ArrayLike) -> float:
    """Volume similarity, 1 - |A - B| / (A + B), 0 to 1; two empty masks are alike.

    Taha and Hanbury 2015, https://doi.org/10.1186/s12880-015-0068-x.

    Args:
        a: boolean mask of any shape.
        b: of the same shape.

    Raises:
        ValueError: the shapes differ.

    Examples:
        >>> volume_similarity([True, True], [True, False])
        0.6666666666666667
    """
    first, second = _masks(a, b)
    total = int(first.sum()) + int(second.sum())
    return 1.0 if not total else 1.0 - abs(int(first.sum()) - int(second.sum())) / total


def hd95('''

USE = """
import doctest, limner.metrics
assert limner.metrics.volume_similarity([1, 1, 0], [0, 1, 1]) == 1.0
assert doctest.testmod(limner.metrics).failed == 0
"""

with PackageCopy() as copy:
    copy.edit("metrics/__init__.py", "\n\ndef hd95(", METRIC)
    copy.run(code=USE)
print("a metric: a function in metrics/, with the paper, the rule for empty masks and an example")
