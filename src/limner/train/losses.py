"""Training losses: soft Dice, focal cross-entropy, consistency with clicks, IoU-head loss; XMem's
bootstrapped cross-entropy (https://arxiv.org/abs/2207.07115, section 4 of the supplement).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_FOCUS = 1.0  # exponent of the focal loss: pixels that are right already count less
# Weight of the focal term beside soft Dice. Cross-entropy wants honest probabilities, and where an
# object is unclear, honest is below one half everywhere: an empty answer. Dice wants a decision.
_HONESTY = 0.25
_OBEDIENCE = 0.3  # weight of the marked pixels
_HARDEST = 0.15  # of a frame's pixels, in the end
_ALL_UNTIL, _HARDEST_FROM = 0.18, 0.64  # of the run; the authors: 20 and 70 of 110 thousand steps


def answer_loss(logits: Tensor, target: Tensor, inside: Tensor, marked: Tensor) -> Tensor:
    """Soft Dice, focal cross-entropy, and cross-entropy on the pixels that the user has marked,
    which an answer that does not obey gets wrong.

    Args:
        logits: (B, 1, S, S), or of volumes (B, 1, D, H, W).
        target: 0 or 1.
        inside: 1 on the image; the rest is not counted.
        marked: 1 on clicks and strokes.

    Returns:
        Mean over the batch.
    """
    logits = logits.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    share = torch.sigmoid(logits)
    surprise = torch.where(target > 0, 1 - share, share)
    axes = _axes(logits)
    pixels = inside.sum(axes).clamp_min(1.0)
    # Scaled to the object: in a view with a small object nearly all cross-entropy is background's.
    weight = (pixels / (4 * (target * inside).sum(axes) + 64)).clamp(1.0, 20.0)
    focal = (surprise**_FOCUS * entropy * inside).sum(axes) / pixels * weight
    both = (share * target * inside).sum(axes)
    either = ((share + target) * inside).sum(axes)
    dice = 1 - (2 * both + 1) / (either + 1)
    marked = marked * inside
    obeyed = (entropy * marked).sum(axes) / marked.sum(axes).clamp_min(1.0)
    return (dice + _HONESTY * focal + _OBEDIENCE * obeyed).mean()


def quality_loss(quality: Tensor, logits: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Cross-entropy between predicted and true IoU of the answer.

    Args:
        quality: logit of the prediction, (B,).
        logits: (B, 1, S, S).
        target: 0 or 1.
        inside: 1 on the image.
    """
    wanted = iou((logits.detach() > 0).float() * inside, target * inside)
    return functional.binary_cross_entropy_with_logits(quality.float(), wanted)


def choose_hard_fraction(done: float) -> float:
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
        inside: (B, 1, S, S), 1 on the image; the rest is not counted.
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


def iou(answer: Tensor, target: Tensor) -> Tensor:
    """(B,): 1 where both are empty."""
    both = (answer * target).sum(dim=_axes(target))
    either = answer.maximum(target).sum(dim=_axes(target))
    return torch.where(either > 0, both / either.clamp_min(1.0), 1.0)


def dice(answer: Tensor, target: Tensor) -> Tensor:
    """(B,): 1 where both are empty."""
    both = 2 * (answer * target).sum(dim=_axes(target))
    total = answer.sum(dim=_axes(target)) + target.sum(dim=_axes(target))
    return torch.where(total > 0, both / total.clamp_min(1.0), 1.0)


def _axes(values: Tensor) -> tuple[int, ...]:
    return tuple(range(1, values.ndim))
