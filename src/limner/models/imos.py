"""imos: iMOS, which is XMem trained on with medical sequences (https://arxiv.org/abs/2309.17264):
one frame is annotated, and its objects are propagated through the sequence in both directions.

The authors offer no weights, and their paper says that adapters align the image encoder, which
stays as it is, to medical images, but not where they are or how wide. What their code trains is
XMem's network with XMem's names, so a file that it wrote, or XMem's own, loads here as it is.

The adapters are therefore limner's own layout: behind each block of the key encoder
``y + alpha * up(relu(down(y)))`` with 1x1 convolutions, named
``key_encoder.STAGE.BLOCK.adapter.{down,up}.{weight,bias}`` and ``….adapter.alpha``; the width is
read from the file (`limner.models.xmem.network.Adapter`).
"""

from __future__ import annotations

from dataclasses import replace

from limner.checkpoints.cards import WeightsCard
from limner.models import xmem

_NOTE = "the authors offer no weights; XMem.pth fits, and so does what was trained from it"

CARD = replace(
    xmem.CARD,
    name="imos/base",
    summary="iMOS: XMem for medical sequences; adapters, if any, in limner's own layout",
    licence="of the weights that you give",
    source="https://arxiv.org/abs/2309.17264",
)
WEIGHTS = WeightsCard(name="imos.pth", sources=(), licence=CARD.licence, note=_NOTE)

VARIANTS = {"base": replace(xmem.XMEM, card=CARD, weights=(WEIGHTS,)).variant()}
