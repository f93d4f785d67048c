"""SAM-Med2D's adapter in every block of SAM's image encoder (https://arxiv.org/abs/2308.16184).
Named as in the published file.
"""

from __future__ import annotations

from torch import Tensor, nn

_DIM = 768  # channels in the image encoder
_GATE = 192  # channels inside the gate


class Adapter(nn.Module):
    """What was learnt beside SAM's frozen MLP: channels gated by their means, then a look around.

    Args:
        dim: channels.
        gate: channels inside the gate.
    """

    def __init__(self, dim: int = _DIM, gate: int = _GATE) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)  # with PyTorch's epsilon, 1e-5
        self.channel = nn.Sequential(
            nn.Linear(dim, gate, bias=False),
            nn.ReLU(),
            nn.Linear(gate, dim, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(dim, dim, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid, grid, dim), grid even, to the same."""
        gate = self.channel(x.mean(dim=(1, 2)))
        gated = x.permute(0, 3, 1, 2) * gate[:, :, None, None]
        seen: Tensor = x + self.spatial(gated).permute(0, 2, 3, 1)
        out: Tensor = self.norm(seen)
        return out
