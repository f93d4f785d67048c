"""Training what iMOS adds to XMem: adapters in the key encoder, and nothing else
(https://arxiv.org/abs/2309.17264; where the adapters are is ours, see `limner.models.imos`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limner.atomic import atomic_path
from limner.checkpoints.load import fill, read_checkpoint
from limner.errors import CheckpointError
from limner.models.xmem.network import Adapter, XMemNetwork
from limner.train.config import TrainConfig
from limner.train.data.pack import PackedImages
from limner.train.data.pack3d import PackedVolumes
from limner.train.data.rng import BatchRandom
from limner.train.data.sequences import SequenceSampler
from limner.train.data.targets3d import TargetTable3d
from limner.train.losses import dice
from limner.train.tasks.tracking import measure_held_out_dice
from limner.train.tasks.xmem_losses import hard_share, masks_loss
from limner.train.tasks.xmem_sequence import (
    SequenceBatch,
    XMemRollout,
    add_second_object,
    with_one_object,
)

_DEEP = 0.2  # share of remembered frames that the sensory memory takes in, too
_OWN = ".adapter."  # in the names of what learns
_STAGES = (("res2", 3, 256), ("layer2", 4, 512), ("layer3", 6, 1024))  # blocks and channels
_KNOWN = ("key_encoder.conv1.weight", "key_proj.key_proj.weight", "decoder.pred.weight")
_COUNTER = "num_batches_tracked"


class Adapters(nn.Module):
    """All that learns, with the names that it has in a whole file.

    Args:
        width: channels inside.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        stages = {
            name: nn.ModuleList(
                nn.ModuleDict({"adapter": Adapter(channels, width)}) for _ in range(count)
            )
            for name, count, channels in _STAGES
        }
        self.key_encoder = nn.ModuleDict(stages)

    def put_into(self, network: XMemNetwork) -> None:
        """Be the adapters of a network."""
        for name, _, _ in _STAGES:
            blocks = getattr(network.key_encoder, name)
            for number, block in enumerate(blocks):
                block.adapter = self.get_submodule(f"key_encoder.{name}.{number}.adapter")


@dataclass(frozen=True, eq=False)
class Base:
    """What stays as it is, from a file with the authors' names.

    Attributes:
        path: of the file.
        frozen: weights of XMem by name, of the types in the file.
        adapters: those that the file has besides; empty for the authors' own.
        facts: ``file``, its name; ``sha256`` of it; ``weights``, the hash of `frozen` alone, which
            is the same in any container.
    """

    path: Path
    frozen: dict[str, Tensor]
    adapters: dict[str, Tensor]
    facts: dict[str, str]

    def network(self) -> XMemNetwork:
        """XMem without adapters, frozen.

        Raises:
            CheckpointError: the file is of another network.
        """
        shapes = {name: tuple(value.shape) for name, value in self.frozen.items()}
        network = XMemNetwork.for_weights(shapes)
        fill(network, self.frozen, self.path)
        network.requires_grad_(False)
        return network.eval()


def read_base(path: Path) -> Base:
    """Read a file of XMem.

    Args:
        path: as the authors publish it, or a whole file with adapters.

    Raises:
        CheckpointError: unreadable, or adapters alone.
    """
    read = read_checkpoint(path, _KNOWN)
    adapters = {name: value for name, value in read.tensors.items() if _OWN in name}
    frozen = {name: value for name, value in read.tensors.items() if _OWN not in name}
    if adapters and not frozen:
        raise CheckpointError(
            f"{path} holds adapters alone; join them with what they were trained on first: "
            f"limner train export {path} --base XMem.pth -o DIR"
        )
    facts = {"file": path.name, "sha256": read.sha256, "weights": _digest(frozen)}
    return Base(path, frozen, adapters, facts)


def join_adapters(
    base: Path, adapters: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> dict[str, Tensor]:
    """A whole network's weights.

    Args:
        base: file that the adapters were trained on, or any other with the same weights.
        adapters: what was learnt.
        facts: of the run.

    Raises:
        CheckpointError: the adapters were trained on other weights, or are of another network.
    """
    known, wanted = read_base(base), facts["base"]
    if known.facts["weights"] != wanted["weights"]:
        raise CheckpointError(
            f"{base} is not what the adapters were trained on: that was {wanted['file']}, "
            f"SHA-256 {wanted['sha256']}; this has {known.facts['sha256']}."
        )
    fill(Adapters(int(facts["config"]["adapters"])), adapters, base)
    return known.frozen | {name: value.float() for name, value in adapters.items()}


def write_whole(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a whole network as safetensors, its values as they are."""
    from safetensors.torch import save_file

    values = {name: value.contiguous() for name, value in weights.items()}
    with atomic_path(path) as temporary:
        save_file(values, temporary, metadata={"limner": json.dumps(facts)})


class Adapting:
    """Learning to follow with XMem as it is and adapters that are new.

    Args:
        config: of the run.
        volumes: to train on.
        pack: pictures of the plane, which are moved.
        device: that trains.
        base: file of XMem.

    Attributes:
        digest: of what is trained on and of what stays as it is.
        facts: about the file, ``base``.

    Raises:
        CheckpointError: the file is of something else.
    """

    def __init__(
        self,
        config: TrainConfig,
        volumes: PackedVolumes,
        pack: PackedImages,
        device: torch.device,
        base: Path,
    ) -> None:
        self._config, self._device = config, device
        read = read_base(base)
        self._given = read.adapters
        self._frozen = read.network().to(device)
        self._frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.facts: dict[str, Any] = {"base": read.facts}
        self.digest = f"{volumes.digest}+{pack.digest}+{read.facts['weights']}"
        self._maker = SequenceSampler(config, volumes, pack, device)
        self._held_out: TargetTable3d | None = None
        if any(s.split for s in volumes.volumes):
            self._held_out = TargetTable3d(volumes, split=1, invented=0.0)

    def network(self) -> Adapters:
        """New adapters, which do nothing yet."""
        return Adapters(self._config.adapters).to(self._device)

    def start(self, path: Path, network: nn.Module) -> None:
        """With the adapters that the file of XMem has, if any."""
        if self._given:
            fill(network, self._given, path)

    def learn(
        self,
        network: nn.Module,
        rng: np.random.Generator,
        generator: torch.Generator,
        done: float,
    ) -> tuple[int, dict[str, Tensor]]:
        """Gradients of one batch; frames after the first are learnt from."""
        config = self._config
        size = int(rng.choice(np.asarray(config.sizes)))
        batch_rng = BatchRandom(config.batch_size, generator)
        sequences = self._maker.draw(config.batch_size, size, rng, batch_rng)
        shown = (
            add_second_object(sequences, batch_rng)
            if config.batch_size > 1
            else with_one_object(sequences)
        )
        walk = XMemRollout(self._with(network), shown, config.precision)
        losses: dict[str, Tensor] = {}
        total = torch.zeros((), device=shown.image.device)
        for t in range(1, config.frames):
            logits = walk.step(t, _references(t, config.references, rng))
            target, inside = shown.target[:, t], shown.inside[:, t]
            loss = masks_loss(logits, target, inside, shown.there, hard_share(done))
            total = total + loss / (config.frames - 1)
            found = mask_probabilities(logits, shown, t)
            hard = (found.detach() > 0.5).float()
            losses[f"loss{t}"], losses[f"dice{t}"] = loss.detach(), dice(hard, target).mean()
            if t + 1 < config.frames:
                walk.remember(t, found, deep=bool(rng.random() < _DEEP))
        total.backward()  # type: ignore[no-untyped-call]
        copied = shown.target[:, 0] * shown.inside[:, -1]
        losses["copied"] = dice(copied, shown.target[:, -1]).mean()
        return len(shown.image), losses

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, dict[str, float]] | None:
        """Mean Dice per set, of held-out volumes followed from their middle slice on, and of the
        first mask copied.
        """
        if self._held_out is None:
            return None
        whole = self._with(network)
        return measure_held_out_dice(
            self._maker.device_data,
            self._held_out,
            self._config,
            lambda sequences: track_sequences(whole, with_one_object(sequences), self._config),
        )

    def _with(self, network: nn.Module) -> XMemNetwork:
        assert isinstance(network, Adapters)
        network.put_into(self._frozen)
        return self._frozen.eval()  # counts of normalisation stay as they are


def track_sequences(network: XMemNetwork, shown: SequenceBatch, config: TrainConfig) -> Tensor:
    """Masks (B, T - 1, 1, S, S) of the frames after the first, as memory of the first and of the
    last ones tells.
    """
    walk = XMemRollout(network, shown, config.precision)
    answers = []
    for t in range(1, shown.image.shape[1]):
        last = range(max(1, t - config.references + 1), t)
        found = mask_probabilities(walk.step(t, [0, *last]), shown, t)
        answers.append((found > 0.5).float())
        walk.remember(t, found, deep=False)
    return torch.stack(answers, dim=1)


def mask_probabilities(logits: Tensor, shown: SequenceBatch, t: int) -> Tensor:
    """Probabilities (B, K, S, S) of the objects on frame `t`; 0 beside the picture."""
    found: Tensor = logits.softmax(dim=1)[:, 1:] * shown.inside[:, t]
    return found * shown.there[..., None, None]


def _references(t: int, most: int, rng: np.random.Generator) -> list[int]:
    """Frames whose memory is read on frame `t`: the first one, and chance chooses from the rest."""
    rest = rng.permutation(np.arange(1, t))[: most - 1]
    return [0, *sorted(int(k) for k in rest)]


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Of names and values, in single precision; the same for every container."""
    found = hashlib.sha256()
    for name in sorted(n for n in weights if not n.endswith(_COUNTER)):
        found.update(name.encode())
        found.update(weights[name].detach().float().contiguous().numpy().tobytes())
    return found.hexdigest()
