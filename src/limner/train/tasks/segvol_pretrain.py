"""Stage 1: the encoder learns to fill in what is masked (SimMIM, https://arxiv.org/abs/2111.09886).

Masked tokens are replaced by one learnt token and keep their positions, the encoder sees all of
them, and one linear layer says the voxels; only the masked ones count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limner.models.segvol.network import Plan
from limner.networks.blocks.vit3d import VolumeEncoder
from limner.train.data.segvol_cases import PreparedCase
from limner.train.data.segvol_views import draw_view, flip_view
from limner.train.segvol_config import PretrainConfig
from limner.train.tasks import segvol_files
from limner.train.tasks.segvol_encoder import encode, initialise


class MaskedVolumes(nn.Module):
    """The encoder, the token of what is masked, and the head that says voxels.

    Args:
        plan: sizes of the network.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.encoder = VolumeEncoder(
            plan.size,
            plan.patch,
            dim=plan.dim,
            depth=plan.depth,
            heads=plan.heads,
            hidden=plan.hidden,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, plan.dim))
        self.head = nn.Linear(plan.dim, plan.patch[0] * plan.patch[1] * plan.patch[2])
        initialise(self.encoder)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self, volume: Tensor, masked: Tensor, *, bf16: bool = False, twice: bool = False
    ) -> Tensor:
        """Fill in.

        Args:
            volume: (B, 1, D, H, W).
            masked: bool (B, tokens); what is below is not seen.
            bf16: see `encode`.
            twice: likewise.

        Returns:
            All voxels by token, (B, tokens, voxels), in the order in which the encoder cuts them.
        """
        places = self.encoder.patch_embedding.position_embeddings

        def hide(tokens: Tensor) -> Tensor:
            hidden = (self.mask_token + places).to(tokens.dtype)
            return torch.where(masked[..., None], hidden, tokens)

        seen = encode(self.encoder, volume, bf16=bf16, twice=twice, change=hide)
        filled: Tensor = self.head(seen.flatten(2).transpose(1, 2))
        return filled


def voxels_by_token(volume: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, 1, D, H, W) cut as the encoder does it, to (B, tokens, voxels)."""
    batch, _, depth, height, width = volume.shape
    d, h, w = patch
    cut = volume.reshape(batch, depth // d, d, height // h, h, width // w, w)
    return cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, -1, d * h * w)


def draw_mask(config: PretrainConfig, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which tokens of one volume are masked, (tokens,): a fixed number of random blocks."""
    blocks = [n // m for n, m in zip(config.size, config.mask_patch, strict=True)]
    number = int(np.prod(blocks))
    chosen = np.zeros(number, dtype=np.bool_)
    chosen[rng.permutation(number)[: max(1, round(config.mask_ratio * number))]] = True
    fine = chosen.reshape(blocks)
    for axis in range(3):
        fine = np.repeat(fine, config.mask_patch[axis] // config.patch[axis], axis=axis)
    return fine.ravel()


def fill_loss(filled: Tensor, volume: Tensor, masked: Tensor, patch: Sequence[int]) -> Tensor:
    """Mean absolute error of the masked voxels."""
    wanted = voxels_by_token(volume, patch)
    error = (filled.float() - wanted).abs().mean(dim=-1)
    return (error * masked).sum() / masked.sum()


class Pretraining:
    """The task of stage 1, see `limner.train.segvol_loop.Task`.

    Args:
        config: of the run.
        cases: what to learn from.
        digest: of them.
        device: that learns.
    """

    def __init__(
        self,
        config: PretrainConfig,
        cases: Sequence[PreparedCase],
        digest: str,
        device: torch.device,
    ) -> None:
        self.digest = digest
        self._config, self._cases, self._device = config, cases, device
        self.network = MaskedVolumes(config.plan()).to(device)

    def start(self, path: Path) -> None:
        """From an earlier run, of either stage."""
        segvol_files.start_pretraining(path, self.network)

    def learn(self, step: int, update: Callable[[], Tensor]) -> dict[str, Tensor]:
        """One batch, one update."""
        config = self._config
        rng = np.random.default_rng([config.seed, step])
        images, masks = [], []
        for _ in range(config.batch_size):
            case = self._cases[int(rng.integers(len(self._cases)))]
            seen = flip_view(
                draw_view(case, config.size, rng, crops=config.crops), config.flips, rng
            )
            images.append(seen.image)
            masks.append(draw_mask(config, rng))
        total = torch.zeros((), device=self._device)
        for k in range(0, config.batch_size, config.micro):
            part = slice(k, k + config.micro)
            volume = torch.from_numpy(np.stack(images[part])[:, None]).to(self._device)
            masked = torch.from_numpy(np.stack(masks[part])).to(self._device)
            filled = self.network(
                volume, masked, bf16=config.precision == "bf16", twice=config.checkpointing
            )
            loss = fill_loss(filled, volume, masked, config.patch)
            loss = loss * (len(volume) / config.batch_size)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return {"loss": total, "norm": update()}

    def write(self, path: Path, step: int) -> None:
        """The result so far."""
        facts = {"step": step, "data": self.digest, "config": self._config.to_json()}
        segvol_files.write_encoder(path, self.network, facts)
