"""Add a model: one file in ``models/``. `models/toy.py` is the longer template."""

from __future__ import annotations

from package_copy import PackageCopy

MODEL = '''
"""Bright-region model: everything in the box that is brighter than the box's mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from limner.adapters.prompt_checks import check_understood, mask_of_prompt
from limner.adapters.protocols import ModelCard, Segmentation, Variant, View
from limner.prompts.types import Prompt

CARD = ModelCard(
    name="bright",
    summary="brighter than the mean of the box",
    ndim=(2, 3),
    prompts=frozenset({"box"}),
    licence="Apache-2.0",
    source="this package; no weights",
    zoom=True,
    window={2: 256, 3: 64},
)


class Bright:
    """The model; stateless, as every model is."""

    card = CARD

    def embed(self, view: View) -> NDArray[np.float32]:
        """Encode a view: here, its mean over channels, 0 to 1."""
        return view.normalized().reshape(*view.shape, -1).mean(axis=-1)

    def segment(
        self,
        embedding: NDArray[np.float32],
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """Predict logits of the view's shape from all prompts so far, in the view's index order."""
        check_understood(self.card, prompts, embedding.shape)
        box = mask_of_prompt(prompts[-1], embedding.shape)
        inside = box & (embedding > embedding[box].mean())
        return Segmentation(np.where(inside, 4.0, -4.0).astype(np.float32), 0.5)


VARIANTS = {"bright": Variant(CARD, lambda **options: Bright())}
'''

USE = """
import numpy as np, limner
image = np.zeros((40, 40)); image[10:20, 12:22] = 100
with limner.open_session(image, "bright") as session:
    session.add(limner.Box((5, 5), (30, 30)))
    assert np.array_equal(session.predict().mask, image > 0)
"""

with PackageCopy() as copy:
    copy.write("models/bright.py", MODEL)
    assert "bright" in copy.run("models")
    copy.run(code=USE)
print("a model: models/bright.py; its conformance: pytest tests/test_models.py -k bright")
