"""A promptable U-Net on an encoder that has learnt from photographs (EfficientNet-Lite0, ImageNet).

Prompts join at the stem and at every level of a light residual decoder, so that an answer is one
pass as in `limner.networks.unet2d`, whose input and output this network shares: two by two
pixels are folded into channels at the finest level, skip connections are added, the decoder's norm
is by groups. The encoder's batch norm keeps the statistics of ImageNet, so training and inference
are the same function here, too. What it gains, measured, is in docs/notes/second-generation.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.networks.blocks.efficientnet_lite import FEATURES, STEM, EfficientNetLite0
from limner.networks.fusion2d import NUM_CHANNELS, PREVIOUS
from limner.networks.unet2d import FOLD, ResidualBlock, judge_answer

ENCODER = "efficientnet-lite0"
WIDTHS = (32, 48, 64, 96, 160)  # of the decoder, finest first
_NUM_PROMPTS = NUM_CHANNELS - PREVIOUS
_JUDGE = 64


class PromptableLiteUNet2d(nn.Module):
    """Fused image and prompts to logits and a predicted quality, 3.85 M parameters.

    Attributes:
        stride: both sizes of the input must be multiples of it.
    """

    stride = 32

    def __init__(self) -> None:
        super().__init__()
        self.encoder = EfficientNetLite0()
        self.fold = nn.PixelUnshuffle(FOLD)
        self.unfold = nn.PixelShuffle(FOLD)
        last = nn.Conv2d(STEM, STEM, 3, padding=1)
        nn.init.normal_(last.weight, std=0.01)  # prompts disturb the encoder little at first
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.prompt = nn.Sequential(
            nn.Conv2d(_NUM_PROMPTS * FOLD**2, STEM, 3, padding=1), nn.ReLU(), last
        )
        finest, deepest = WIDTHS[0], WIDTHS[-1]
        self.fine = nn.Conv2d(NUM_CHANNELS * FOLD**2, finest, 3, padding=1)
        self.lateral = nn.ModuleList(
            nn.Conv2d(f, w, 1) for f, w in zip(FEATURES, WIDTHS, strict=True)
        )
        self.top = ResidualBlock(deepest, deepest)
        levels = range(len(WIDTHS) - 2, -1, -1)
        self.lift = nn.ModuleList(nn.Conv2d(WIDTHS[k + 1], WIDTHS[k], 1) for k in levels)
        self.prompted = nn.ModuleList(nn.Conv2d(_NUM_PROMPTS, WIDTHS[k], 1) for k in levels)
        self.up = nn.ModuleList(ResidualBlock(WIDTHS[k], WIDTHS[k]) for k in levels)
        self.to_logits = nn.Conv2d(finest, FOLD**2, 3, padding=1)
        self.judge = nn.Sequential(nn.Linear(deepest + 2 * finest, _JUDGE), nn.ReLU())
        self.to_quality = nn.Linear(_JUDGE, 1)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Answer.

        Args:
            fused: (B, 7, H, W) of `limner.networks.unet2d.fuse`; H and W multiples of `stride`.

        Returns:
            Logits (B, 1, H, W), above 0 inside; and the logit of the predicted IoU, (B,).
        """
        image, prompts = fused[:, :PREVIOUS], fused[:, PREVIOUS:]
        folded = self.fold(fused).contiguous(memory_format=torch.channels_last)
        shown = self.prompt(folded[:, PREVIOUS * FOLD**2 :])
        features = self.encoder(image.contiguous(memory_format=torch.channels_last), shown)
        deepest = x = self.top(self.lateral[-1](features[-1]))
        for step, (lift, prompted, up) in enumerate(
            zip(self.lift, self.prompted, self.up, strict=True)
        ):
            level = len(WIDTHS) - 2 - step
            wide = functional.interpolate(
                lift(x), scale_factor=2.0, mode="bilinear", align_corners=False
            )
            wide = wide + self.lateral[level](features[level])
            wide = wide + prompted(functional.avg_pool2d(prompts, 2 ** (level + 1)))
            if level == 0:
                wide = wide + self.fine(folded)
            x = up(wide)
        logits = self.to_logits(x)
        inputs = judge_answer(deepest, x, logits.mean(dim=1, keepdim=True))
        return self.unfold(logits), self.to_quality(self.judge(inputs)).squeeze(1)
