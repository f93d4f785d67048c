"""Add a prompt kind: a file in ``prompts/kinds/``, its name in a union of ``prompts/types.py``."""

from __future__ import annotations

from package_copy import PackageCopy

KIND = '''
"""Ellipses around an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from limner.prompts.kinds.base import CornersPrompt, Layer, Mask


@dataclass(frozen=True, init=False)
class Ellipse(CornersPrompt):
    """An ellipse or ellipsoid, given by the half-open box around it."""

    kind: ClassVar[str] = "ellipse"

    @property
    def layer(self) -> Layer:
        """Painted as closed lines are: models that take marks and areas understand it."""
        return "lasso"

    def paint(self, mask: Mask, click_radius: float | Sequence[float]) -> None:
        """All pixels whose centre is in the ellipse."""
        inside = np.zeros(mask.shape)
        for axis, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            away = (np.arange(mask.shape[axis]) - (low + high - 1) / 2) / ((high - low) / 2)
            inside = inside + away.reshape([-1 if k == axis else 1 for k in range(mask.ndim)]) ** 2
        mask |= inside <= 1
'''

USE = """
import numpy as np, limner
from limner.prompts import types
ellipse = types.Ellipse((5, 5), (35, 25))
assert types.from_json(types.to_json(ellipse)) == ellipse
image = np.zeros((40, 40)); image[10:30, 8:22] = 100
with limner.open_session(image, "toy") as session:
    session.add(ellipse)
    assert session.predict().mask.any()
    session.undo()
    session.redo()
    assert session.prompts == (ellipse,)
"""

with PackageCopy() as copy:
    copy.write("prompts/kinds/ellipse.py", KIND)
    copy.edit("prompts/types.py", "Area: TypeAlias = Box | ", "Area: TypeAlias = Box | Ellipse | ")
    copy.edit(
        "prompts/types.py",
        "from limner.prompts.kinds.example",
        "from limner.prompts.kinds.ellipse import Ellipse\nfrom limner.prompts.kinds.example",
    )
    copy.run(code=USE)
print(
    "a prompt kind: prompts/kinds/ellipse.py and prompts/types.py; mypy names the arms that miss it"
)
