"""What XMem is punished for: cross-entropy of the pixels that it finds hardest, and Dice
(https://arxiv.org/abs/2207.07115, section 4 of the supplement).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_HARDEST = 0.15  # of a frame's pixels, in the end
_ALL_UNTIL, _HARDEST_FROM = 0.18, 0.64  # of the run; the authors: 20 and 70 of 110 thousand steps


def hard_share(done: float) -> float:
    """Which share of the pixels counts: all of them, then fewer and fewer, then the hardest.

    Args:
        done: share of the run's steps that were taken.
    """
    late = (done - _ALL_UNTIL) / (_HARDEST_FROM - _ALL_UNTIL)
    return 1 - (1 - _HARDEST) * min(1.0, max(0.0, late))


def masks_loss(
    logits: Tensor, target: Tensor, inside: Tensor, there: Tensor, share: float
) -> Tensor:
    """Cross-entropy of the hardest pixels, and soft Dice of each object.

    Args:
        logits: (B, 1 + K, S, S) of `aggregated`, background first.
        target: (B, K, S, S), 0 or 1; objects do not overlap.
        inside: (B, 1, S, S), 1 on the picture; the rest is not counted.
        there: (B, K), 1 for objects that this sequence has.
        share: of the pixels that count.

    Returns:
        Mean over the batch.
    """
    nothing = 1 - target.sum(dim=1, keepdim=True)
    answer = torch.cat([nothing, target], dim=1).argmax(dim=1)
    entropy = functional.cross_entropy(logits, answer, reduction="none") * inside[:, 0]
    counted = (inside.sum(dim=(1, 2, 3)) * share).long().clamp_min(1).tolist()
    hardest = [e.flatten().topk(n).values.mean() for e, n in zip(entropy, counted, strict=True)]
    found = logits.softmax(dim=1)[:, 1:] * inside
    wanted = target * inside
    both = (found * wanted).sum(dim=(2, 3))
    either = (found + wanted).sum(dim=(2, 3))
    apart = (1 - (2 * both + 1) / (either + 1)) * there
    dice = apart.sum(dim=1) / there.sum(dim=1)
    return (torch.stack(hardest) + dice).mean()


def aggregated(probabilities: Tensor) -> Tensor:
    """Logits of objects that were judged alone and exclude one another; a softmax of them is
    `limner.networks.blocks.memory.aggregated`.

    Args:
        probabilities: (B, K, S, S), float32, of each object against all else.

    Returns:
        (B, 1 + K, S, S), background first.
    """
    nothing = (1 - probabilities).prod(dim=1, keepdim=True)
    return torch.cat([nothing, probabilities], dim=1).clamp(1e-7, 1 - 1e-7).logit()
