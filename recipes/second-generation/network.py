"""The second-generation network of the plane: an ImageNet encoder that sees the prompts, and four
answers with a predicted quality each.

The encoder is EfficientNet-Lite0 (Apache-2.0; batch-norm statistics stay as ImageNet left them).
Prompts join at its stem and at every level of a light residual decoder. Beside what the first
generation sees, a channel shows the newest mark alone. Of the four answers the first is given when
the prompts leave no doubt; the other three are candidates for a lone mark (part, object, group).
"""

from __future__ import annotations

import torch
from limner.layers.unet2d import ResidualBlock
from torch import Tensor, nn
from torch.nn import functional

NUM_ANSWERS = 4  # one for prompts that leave no doubt, three candidates
NUM_IMAGE, NUM_PROMPTS = 3, 5  # channels: image; previous, positive, negative, region, newest
NEWEST = 7  # channel of the newest mark: +1 positive, -1 negative, 0 where there was no answer yet
STRIDE = 32
_FOLD = 2  # pixels per axis that become channels
_WIDTHS = (32, 48, 64, 96, 160)  # of the decoder, finest first
_FEATURES = (16, 24, 40, 112, 320)  # of the encoder at strides 2 to 32
_TAPS = (0, 2, 4, 10, 15)  # encoder blocks whose output the decoder sees
# Repeats, kernel, stride, expansion, channels in and out.
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_STEM, _JUDGE = 32, 64
_SHIFTS = (0.0, 1.5, -1.5)  # of the candidates' logits at the start: as it is, larger, smaller


class FrozenNormConv(nn.Module):
    """A convolution, batch norm with fixed statistics (scale and shift learn) and perhaps ReLU6,
    padded as TensorFlow does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        active: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2 if stride == 1 else 0
        before = (kernel - stride) // 2
        self._pad = (before, kernel - stride - before) * 2 if stride > 1 else None
        self._active = active
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride).

        The norm, being fixed, is folded into the convolution: the same numbers, and a tenth of a
        training step saved.
        """
        bn = self.bn
        scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
        kernel = self.conv.weight * scale[:, None, None, None]
        shift = bn.bias - bn.running_mean * scale
        if self._pad is not None:
            x = functional.pad(x, self._pad)
        conv = self.conv
        x = functional.conv2d(x, kernel, shift, conv.stride, conv.padding, groups=conv.groups)
        return functional.relu6(x) if self._active else x


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = FrozenNormConv(in_channels, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = FrozenNormConv(inner, inner, kernel, stride, groups=inner)
        self.project = FrozenNormConv(inner, out_channels, 1, active=False)
        self._adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self._adds else y


class LiteEncoder(nn.Module):
    """EfficientNet-Lite0 up to its last stage; something may be added to the stem's output.

    Attributes:
        frozen: so many of the first blocks, and the stem with what is added to it, do not learn:
            they cost more than half of a training step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frozen = 0
        self.stem = FrozenNormConv(NUM_IMAGE, _STEM, 3, 2)
        blocks = [
            InvertedResidual(before if k == 0 else after, after, kernel, stride if k == 0 else 1, e)
            for repeats, kernel, stride, e, before, after in _STAGES
            for k in range(repeats)
        ]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor, prompts: Tensor) -> list[Tensor]:
        """Features at strides 2, 4, 8, 16, 32.

        Args:
            image: (B, 3, H, W), -1…1.
            prompts: (B, 32, H / 2, W / 2), added after the stem.
        """
        learns = torch.is_grad_enabled()
        found = []
        with torch.set_grad_enabled(learns and not self.frozen):
            x = self.stem(image) + prompts
        for number, block in enumerate(self.blocks):
            with torch.set_grad_enabled(learns and number >= self.frozen):
                x = block(x)
            if number in _TAPS:
                found.append(x)
        return found


class CandidateUNet2d(nn.Module):
    """Image and prompts to four answers.

    Attributes:
        stride: both sizes of the input must be multiples of it.
    """

    stride = STRIDE

    def __init__(self) -> None:
        super().__init__()
        self.encoder = LiteEncoder()
        self.fold = nn.PixelUnshuffle(_FOLD)
        self.unfold = nn.PixelShuffle(_FOLD)
        folded = _FOLD**2
        self.prompt = nn.Sequential(
            nn.Conv2d(NUM_PROMPTS * folded, _STEM, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_STEM, _STEM, 3, padding=1),
        )
        finest, deepest = _WIDTHS[0], _WIDTHS[-1]
        self.fine = nn.Conv2d((NUM_IMAGE + NUM_PROMPTS) * folded, finest, 3, padding=1)
        self.lateral = nn.ModuleList(
            nn.Conv2d(f, w, 1) for f, w in zip(_FEATURES, _WIDTHS, strict=True)
        )
        self.top = ResidualBlock(deepest, deepest)
        levels = range(len(_WIDTHS) - 2, -1, -1)
        self.lift = nn.ModuleList(nn.Conv2d(_WIDTHS[k + 1], _WIDTHS[k], 1) for k in levels)
        self.told = nn.ModuleList(nn.Conv2d(NUM_PROMPTS, _WIDTHS[k], 1) for k in levels)
        self.up = nn.ModuleList(ResidualBlock(_WIDTHS[k], _WIDTHS[k]) for k in levels)
        self.to_logits = nn.Conv2d(finest, folded, 3, padding=1)
        self.vary = ResidualBlock(finest, finest)
        self.to_candidates = nn.Conv2d(finest, (NUM_ANSWERS - 1) * folded, 3, padding=1)
        self.judge = nn.Sequential(nn.Linear(deepest + 3 * finest + 2, _JUDGE), nn.ReLU())
        self.to_quality = nn.Linear(_JUDGE, 1)
        self.quality_shift = nn.Parameter(torch.zeros(NUM_ANSWERS))

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Answer.

        Args:
            fused: (B, 8, H, W): image (3, -1…1), previous logits through tanh, positive marks,
                negative marks, region, newest mark; H and W multiples of `stride`.

        Returns:
            Logits (B, 4, H, W), above 0 inside; and the logits of the predicted IoU of each answer
            with the whole object, (B, 4).
        """
        image, prompts = fused[:, :NUM_IMAGE], fused[:, NUM_IMAGE:]
        folded = self.fold(fused).contiguous(memory_format=torch.channels_last)
        shown = self.prompt(folded[:, NUM_IMAGE * _FOLD**2 :])
        features = self.encoder(image.contiguous(memory_format=torch.channels_last), shown)
        deepest = x = self.top(self.lateral[-1](features[-1]))
        for step, (lift, told, up) in enumerate(zip(self.lift, self.told, self.up, strict=True)):
            level = len(_WIDTHS) - 2 - step
            wide = functional.interpolate(
                lift(x), scale_factor=2.0, mode="bilinear", align_corners=False
            )
            wide = wide + self.lateral[level](features[level])
            wide = wide + told(functional.avg_pool2d(prompts, 2 ** (level + 1)))
            if level == 0:
                wide = wide + self.fine(folded)
            x = up(wide)
        # Candidates learn in a block of their own: they must not change the first answer.
        candidates = self.to_candidates(self.vary(x.detach()))
        logits = torch.cat([self.to_logits(x), candidates], dim=1)
        return self.unfold(logits), self._quality(deepest, x, logits, prompts)

    def _quality(self, deepest: Tensor, finest: Tensor, logits: Tensor, prompts: Tensor) -> Tensor:
        """From the whole view, the inside and the rim of each answer, the positive marks, and how
        much of the view and of its border the answer takes. Gradients stop here: judging must not
        change the answer.
        """
        batch, _, rows, columns = logits.shape
        inside = logits.detach().float().view(batch, NUM_ANSWERS, -1, rows, columns).mean(2)
        inside = inside.sigmoid()
        features = finest.detach().float()
        marks = functional.avg_pool2d(prompts[:, 1:2].float(), _FOLD)
        whole = deepest.detach().float().mean(dim=(2, 3))
        border = (
            inside[:, :, 0].sum(2)
            + inside[:, :, -1].sum(2)
            + inside[:, :, :, 0].sum(2)
            + inside[:, :, :, -1].sum(2)
        ) / (2 * (rows + columns))
        parts = [
            whole[:, None].expand(-1, NUM_ANSWERS, -1),
            _averages(features, inside),
            _averages(features, inside * (1 - inside)),
            _averages(features, marks).expand(-1, NUM_ANSWERS, -1),
            torch.stack([inside.mean(dim=(2, 3)), border], dim=2),
        ]
        quality: Tensor = self.to_quality(self.judge(torch.cat(parts, dim=2)))[..., 0]
        return quality + self.quality_shift


def _averages(features: Tensor, weights: Tensor) -> Tensor:
    """(B, N, C): means of (B, C, H, W), weighted by each of (B, N, H, W)."""
    total = weights.sum(dim=(2, 3)).clamp_min(1e-3)
    return torch.einsum("bchw,bnhw->bnc", features, weights) / total[..., None]


_RENAMED = (
    ("enc.", "encoder."),
    (".dw.", ".depthwise."),
    (".proj.", ".project."),
    ("lat.", "lateral."),
    ("pp.", "told."),
)


def from_probe(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of the probe (one answer, no channel of the newest mark) as weights of this network,
    whose first answer is the probe's. New inputs weigh nothing; candidates begin as the probe's
    answer, as it is, larger and smaller, a little disturbed.
    """
    found = {}
    for name, value in weights.items():
        for old, new in _RENAMED:
            if name.startswith(old) or (old.startswith(".") and old in name):
                name = name.replace(old, new)
        found[name] = value.float() if value.is_floating_point() else value
    for name in ("prompt.0.weight", "fine.weight", *(f"told.{k}.weight" for k in range(4))):
        kernel = found[name]
        extra = 1 if name.startswith("told") else _FOLD**2
        nothing = kernel.new_zeros(kernel.shape[0], extra, *kernel.shape[2:])
        found[name] = torch.cat([kernel, nothing], dim=1)
    kernel, bias = found["to_logits.weight"], found["to_logits.bias"]
    noise = torch.randn(len(_SHIFTS), *kernel.shape, generator=generator) * kernel.std() * 0.1
    noise[0] = 0
    found["to_candidates.weight"] = (kernel + noise).flatten(0, 1)
    found["to_candidates.bias"] = torch.cat([bias + shift for shift in _SHIFTS])
    judge = found["judge.0.weight"]
    found["judge.0.weight"] = torch.cat([judge, judge.new_zeros(len(judge), _WIDTHS[0] + 2)], dim=1)
    found["quality_shift"] = torch.zeros(NUM_ANSWERS)
    return found


def load_weights(network: CandidateUNet2d, weights: dict[str, Tensor]) -> None:
    """Weights of this network or of the probe, in any precision."""
    if any(name.startswith("enc.") for name in weights):
        weights = from_probe(weights, torch.Generator().manual_seed(0))
    if "to_candidates.weight" not in weights:
        weights = _separated(weights)
    for name, value in network.vary.state_dict().items():  # begins as if it were not there
        weights.setdefault(f"vary.{name}", value)
    network.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    )


def _separated(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Candidates that shared the first answer's convolution, in one of their own."""
    kernel, bias = weights["to_logits.weight"], weights["to_logits.bias"]
    own = _FOLD**2
    parts = {"to_logits.weight": kernel[:own], "to_logits.bias": bias[:own]}
    parts |= {"to_candidates.weight": kernel[own:], "to_candidates.bias": bias[own:]}
    return weights | parts
