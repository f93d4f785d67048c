"""What the second generation is punished for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_FOCUS = 2.0  # exponent of the focal loss
_HONESTY = 0.3  # weight of the focal loss beside soft Dice
_OBEDIENCE = 0.3  # weight of the marked pixels
_HARM = 1.0  # additional weight of pixels that were right before a correction and are wrong after
_OTHERS = 0.05  # weight of each candidate that is not the best


def answer_losses(
    logits: Tensor, wanted: Tensor, inside: Tensor, marked: Tensor, previous: Tensor
) -> Tensor:
    """Soft Dice, normalised focal loss (RITM, https://arxiv.org/abs/2102.06583) and cross-entropy
    on marked pixels, of each answer.

    Args:
        logits: (B, N, S, S).
        wanted: (B, 1, S, S), 0 or 1.
        inside: 1 on the picture; the rest is not counted.
        marked: 1 on clicks and strokes that are true.
        previous: logits of the answer before, 0 where there was none: pixels that were right there
            and are wrong now count double.

    Returns:
        (B, N).
    """
    logits = logits.float()
    wanted = wanted.expand_as(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    share = torch.sigmoid(logits)
    surprise = torch.where(wanted > 0, 1 - share, share)
    was_right = (previous != 0) & ((previous > 0) == (wanted > 0))
    weight = inside * (1 + _HARM * (was_right & (surprise.detach() > 0.5)))
    axes = (2, 3)
    hard = surprise.detach() ** _FOCUS * weight
    focal = (hard * entropy).sum(axes) / hard.sum(axes).clamp_min(1e-3)
    # Normalised, the weights sum to one, however few pixels are hard; with none they count less.
    sure = (hard.sum(axes) / (0.02 * (wanted * inside).sum(axes) + 1)).clamp(max=1.0)
    both = (weight * share * wanted).sum(axes)
    either = (weight * (share + wanted)).sum(axes)
    dice = 1 - (2 * both + 1) / (either + 1)
    marked = (marked * inside).expand_as(logits)
    obeyed = (entropy * marked).sum(axes) / marked.sum(axes).clamp_min(1.0)
    return dice + _HONESTY * sure * focal + _OBEDIENCE * obeyed


def best_candidate_loss(losses: Tensor) -> Tensor:
    """Of candidates' losses (B, N) nearly only the smallest counts; (B,)."""
    number = losses.shape[1]
    best = functional.one_hot(losses.detach().argmin(dim=1), number).to(losses.dtype)
    weight = _OTHERS + (1 - number * _OTHERS) * best
    return (weight * losses).sum(dim=1)


def whole_iou(logits: Tensor, target: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """IoU of answers (B, N, S, S) with the whole object, of which `outside` (B,) pixels are not in
    view; (B, N).
    """
    answer = (logits > 0).float() * inside
    both = (answer * target).sum(dim=(2, 3))
    either = answer.maximum(target).sum(dim=(2, 3)) + outside[:, None]
    return torch.where(either > 0, both / either.clamp_min(1.0), 1.0)
