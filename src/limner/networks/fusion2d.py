"""Input channels and constants of the promptable networks, shared by training and inference.

No PyTorch here, so that an adapter that runs the exported network can paint the same input.

The channels, in order: image (3, grey repeated), previous logits, positive marks, negative marks,
region (box or lasso, filled). Marks and regions are 0 or 1.
"""

from __future__ import annotations

NUM_CHANNELS = 7
PREVIOUS, POSITIVE, NEGATIVE, REGION = 3, 4, 5, 6

# The image's 0…1 is shown as -1…1. Padding, added below and to the right until both sizes divide by
# the network's stride, is black: 0 before this.
IMAGE_CENTRE, IMAGE_SCALE = 0.5, 2.0

# Previous logits are shown as tanh(logits / LOGIT_SCALE): "no answer yet" is 0 everywhere and so
# differs from "all background", which is -1.
LOGIT_SCALE = 4.0

# A rough mask is shown as if it were the previous answer, given without conviction: a real answer
# has logits of ±10. A box or lasso that comes first is shown as a region and as such a mask, too:
# of a box the inscribed ellipse, of a lasso all of it. Refining that guess is easier to learn than
# finding an object of an unknown kind in a rectangle.
MASK_LOGIT = 2.0

CLICK_RADIUS = 2.5  # pixels of the view; the disk has 21 of them
LEAST_STROKE_RADIUS = 0.5  # pixels of the view: thinner strokes are painted so wide
