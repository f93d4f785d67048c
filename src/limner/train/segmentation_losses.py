"""Losses of label maps: soft Dice and cross-entropy over exclusive labels, at several resolutions.

As in nnU-Net (https://doi.org/10.1038/s41592-020-01008-z): the Dice of each label over the whole
batch, without the background, beside the mean cross-entropy. Pixels without a known label count
for neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -1  # a pixel whose label nobody knows


def dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice and cross-entropy.

    Args:
        logits: (B, C, *axes), the background first.
        target: (B, *axes) integers, the channel that is true, or `IGNORED`.

    Returns:
        Their sum: 0 for a sure and perfect answer. Labels that the batch does not hold are not
        counted in the Dice, so that a patch of pure background does not punish every label.
    """
    logits = logits.float()
    known = target != IGNORED
    place = target.clamp_min(0).long()
    entropy = functional.cross_entropy(logits, place, reduction="none")
    count = known.sum().clamp_min(1)
    mean_entropy = (entropy * known).sum() / count
    probabilities = torch.softmax(logits, dim=1)[:, 1:] * known.unsqueeze(1)
    truth = functional.one_hot(place, logits.shape[1]).movedim(-1, 1)[:, 1:] * known.unsqueeze(1)
    axes = (0, *range(2, logits.ndim))
    both = (probabilities * truth).sum(axes)
    sizes = truth.sum(axes)
    dice = (2 * both + 1e-5) / (probabilities.sum(axes) + sizes + 1e-5)
    held = sizes > 0
    missed = ((1 - dice) * held).sum() / held.sum().clamp_min(1)
    return mean_entropy + missed


def deep_supervision(logits: Sequence[Tensor], target: Tensor) -> Tensor:
    """`dice_cross_entropy` at every resolution, each with half the weight of the one before.

    Args:
        logits: of the decoder's stages, full size first; the coarsest of several is left out, as in
            nnU-Net, since hardly a label is left on it.
        target: (B, *axes), full size.
    """
    used = logits[:-1] if len(logits) > 1 else logits
    weights = [0.5**k for k in range(len(used))]
    total = torch.zeros((), device=target.device)
    for weight, part in zip(weights, used, strict=True):
        total = total + weight * dice_cross_entropy(part, shrink_labels(target, part.shape[2:]))
    return total / sum(weights)


def shrink_labels(target: Tensor, size: Sequence[int]) -> Tensor:
    """(B, *axes) labels at a coarser size: those of the nearest pixels."""
    if tuple(target.shape[1:]) == tuple(size):
        return target
    shrunk = functional.interpolate(target[:, None].float(), size=tuple(size), mode="nearest")
    return shrunk[:, 0].long()
