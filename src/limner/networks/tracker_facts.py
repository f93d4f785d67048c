"""What a network that follows objects is shown, as facts that training and every runtime share; no
PyTorch here (see `limner.networks.tracker2d`).
"""

from __future__ import annotations

STRIDE = 8  # pixels of a frame, per axis, that memory knows as one
LEVEL = 2  # of the U-Net, whose resolution is that of memory
KEY = 64  # learnt channels of a key; the place follows
PLACE_AXES = 2  # row and column, in steps of memory
PLACE_RANGE = 4.0  # how much a place may count, where a learnt channel counts up to 1
VALUE_LEARNT = 64
# Added to the decoder's logits inside the mask of the frame before, moved along, and taken away
# outside: what is learnt is where that is wrong.
TRUST = 3.0
VALUE = VALUE_LEARNT + 4  # the mask, too: two by two pixels per step of memory
