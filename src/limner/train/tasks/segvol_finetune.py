"""Stage 2: masks from prompts (SegVol, https://arxiv.org/abs/2311.13385).

Each object of a batch is an optimiser step of its own, in which the losses of six combinations of
prompts are added up, and a tenth of those of prompts about pseudo labels. The volume is encoded
once for all of them, and each prompt's graph is gone before the next is made: its gradient waits at
the encoder's output, so that memory does not grow with the number of prompts.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from limner.models.segvol import vocabulary as words
from limner.models.segvol.network import SegVolDecode, SegVolNetwork
from limner.models.segvol.tokens import sentence
from limner.train.data.segvol_cases import PreparedCase
from limner.train.data.segvol_views import TrainingView, draw_view, flip_view, jitter_intensity
from limner.train.losses import dice
from limner.train.segvol_config import FinetuneConfig
from limner.train.simulate.segvol import (
    EncodedPrompts,
    encode_prompts,
    list_pseudo_objects,
    prompt_pseudo_object,
)
from limner.train.tasks import segvol_files
from limner.train.tasks.segvol_encoder import encode, initialise

_MODEL = "segvol/vit_b"
_TRIES = 16  # views of a batch, until one shows an object

_log = logging.getLogger(__name__)


def mask_loss(low_res: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Soft Dice and cross-entropy of logits that are first enlarged linearly.

    Args:
        low_res: (B, 1, d, h, w).
        target: (B, 1, D, H, W), 0 or 1.

    Returns:
        Mean loss over the batch, and the mean Dice of the mask.
    """
    logits = functional.interpolate(
        low_res.float(), size=target.shape[2:], mode="trilinear", align_corners=False
    )
    share, axes = torch.sigmoid(logits), (1, 2, 3, 4)
    both, either = (share * target).sum(axes), share.sum(axes) + target.sum(axes)
    soft = 1 - 2 * both / (either + 1)
    entropy = functional.binary_cross_entropy_with_logits(logits, target)
    found = dice((logits.detach() > 0).float(), target).mean()
    return soft.mean() + entropy, found


class Finetuning:
    """The task of stage 2, see `limner.train.segvol_loop.Task`.

    Args:
        config: of the run.
        cases: what to learn from.
        digest: of them.
        device: that learns; the text tower, which does not, stays on the CPU.
        beside: a file beside which CLIP's list of merges may lie, for names with unknown words.

    Raises:
        PromptError: words are among the prompts, and a name cannot be read.
        CheckpointError: the recipe's file of CLIP does not fit.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        cases: Sequence[PreparedCase],
        digest: str,
        device: torch.device,
        beside: Path | None = None,
    ) -> None:
        self.digest = digest
        self._config, self._device = config, device
        groups: dict[tuple[str, ...], list[PreparedCase]] = defaultdict(list)
        for case in cases:
            groups[tuple(case.names)].append(case)
        self._cases, self._groups = cases, groups
        clip = Path(config.clip).expanduser() if config.clip else None
        self._sentences: dict[str, tuple[int, ...]] = {}
        if config.speaks:
            names = dict.fromkeys(name for case in cases for name in case.names)
            self._sentences = {n: sentence(words.find(n), _MODEL, beside or clip) for n in names}
        self._said: dict[str, Tensor] = {}
        self.network = SegVolNetwork(config.plan())
        initialise(self.network.image_encoder)
        positions = self.network.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        torch.nn.init.normal_(positions)
        if clip is not None:
            segvol_files.fill_text_tower(clip, self.network)
        self._spoken = clip is not None
        self.network.text_encoder.requires_grad_(False)
        self.network.text_encoder.dim_align.requires_grad_(config.train_dim_align)
        self.network.to(device)
        self.network.text_encoder.clip_text_model.to("cpu")
        network = self.network
        self._decoder = SegVolDecode(network.prompt_encoder, network.mask_decoder)

    def start(self, path: Path) -> None:
        """From a whole SegVol, or from stage 1."""
        self._spoken = segvol_files.start_finetuning(path, self.network) or self._spoken

    def warn(self) -> None:
        """Of a text tower that knows nothing; asked for when a run begins."""
        if self._config.speaks and not self._spoken:
            _log.warning(
                "the text tower is random and stays so: words will only be told apart. Start from "
                "a whole SegVol, or name a file of CLIP as 'clip' in the recipe."
            )

    def learn(self, step: int, update: Callable[[], Tensor]) -> dict[str, Tensor]:
        """One batch, one update per object in it."""
        rng = np.random.default_rng([self._config.seed, step])
        views, found = self._batch(rng)
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self._device))
        for name in found:
            self._object(name, [v for v in views if v.mask(name).any()], rng, sums)
            sums["norm"] = sums["norm"] + update()
        measured = {key: value / max(1, len(found)) for key, value in sums.items()}
        return measured | {"updates": torch.tensor(float(len(found)))}

    def write(self, path: Path, step: int) -> None:
        """The result so far."""
        facts = {"step": step, "data": self.digest, "config": self._config.to_json()}
        segvol_files.write_network(path, self.network, facts)

    def _batch(self, rng: np.random.Generator) -> tuple[list[TrainingView], list[str]]:
        """Views of cases with the same objects, and the objects that are in any of them."""
        config = self._config
        for _ in range(_TRIES):
            first = self._cases[int(rng.integers(len(self._cases)))]
            alike = self._groups[tuple(first.names)]
            others = rng.integers(len(alike), size=config.batch_size - 1)
            views = []
            for case in (first, *(alike[int(k)] for k in others)):
                seen = draw_view(
                    case, config.size, rng, crops=config.crops, positive=config.positive_crops
                )
                seen = flip_view(seen, config.flips, rng)
                share = config.scale_shift_share
                views.append(jitter_intensity(seen, config.scale_shift, share, rng))
            found = [name for name in first.names if any(v.mask(name).any() for v in views)]
            if found:
                break
        if config.most_objects and len(found) > config.most_objects:
            chosen = rng.choice(len(found), config.most_objects, replace=False)
            found = [found[int(k)] for k in np.sort(chosen)]
        return views, found

    def _object(
        self,
        name: str,
        views: list[TrainingView],
        rng: np.random.Generator,
        sums: dict[str, Tensor],
    ) -> None:
        """Gradients of one object in all the views that show it."""
        config = self._config
        for k in range(0, len(views), config.micro):
            part = views[k : k + config.micro]
            weight = len(part) / len(views)
            image = torch.from_numpy(np.stack([v.image for v in part])[:, None]).to(self._device)
            features = encode(
                self.network.image_encoder,
                image,
                bf16=config.precision == "bf16",
                twice=config.checkpointing,
            )
            waiting = features.detach().requires_grad_()
            self._labelled(name, part, waiting, rng, weight, sums)
            if config.pseudo:
                self._pseudo(part, waiting, rng, weight, sums)
            assert waiting.grad is not None
            features.backward(waiting.grad)  # type: ignore[no-untyped-call]

    def _labelled(
        self,
        name: str,
        views: list[TrainingView],
        features: Tensor,
        rng: np.random.Generator,
        weight: float,
        sums: dict[str, Tensor],
    ) -> None:
        config = self._config
        masks = [v.mask(name) for v in views]
        encoded = [
            encode_prompts(
                mask,
                rng,
                most_positive=config.most_positive,
                most_negative=config.most_negative,
                jitter=config.jitter,
            )
            for mask in masks
        ]
        target = self._target(masks)
        for combination in config.combinations:
            word = name if "text" in combination else None
            loss, found = mask_loss(self._ask(features, encoded, combination, word), target)
            (loss * weight).backward()  # type: ignore[no-untyped-call]
            sums["loss"] = sums["loss"] + loss.detach() * weight
            key = f"dice_{combination}"
            sums[key] = sums[key] + found * weight

    def _pseudo(
        self,
        views: list[TrainingView],
        features: Tensor,
        rng: np.random.Generator,
        weight: float,
        sums: dict[str, Tensor],
    ) -> None:
        config = self._config
        weight *= 1 / len(views)
        for k, seen in enumerate(views):
            assert seen.pseudo is not None
            choices = list_pseudo_objects(seen.pseudo)
            for turn in range(config.pseudo_rounds if choices else 0):
                kind = ("point", "box")[turn % 2]
                found = prompt_pseudo_object(seen.pseudo, choices, kind, rng)
                if found is None:
                    continue
                mask, encoded = found
                low_res = self._ask(features[k : k + 1], [encoded], kind, None)
                loss, _ = mask_loss(low_res, self._target([mask]))
                (loss * weight * config.pseudo_weight).backward()  # type: ignore[no-untyped-call]
                sums["pseudo"] = sums["pseudo"] + loss.detach() * weight

    def _ask(
        self,
        features: Tensor,
        encoded: Sequence[EncodedPrompts],
        combination: str,
        word: str | None,
    ) -> Tensor:
        """Low-resolution logits, (B, 1, d, h, w)."""
        tokens = [t.tokens(combination) for t in encoded]
        points, labels = (
            torch.from_numpy(np.stack([pair[k] for pair in tokens])).to(self._device)
            for k in (0, 1)
        )
        text = features.new_zeros((len(encoded), 0, features.shape[1]))
        if word is not None:
            aligned = self.network.text_encoder.dim_align(self._pooled(word))
            text = aligned.expand(len(encoded), 1, -1)
        low_res: Tensor = self._decoder(features, points, labels, text)
        return low_res

    @torch.no_grad()
    def _pooled(self, word: str) -> Tensor:
        """What the text tower says of a word, (1, 1, text_dim); said once."""
        if word not in self._said:
            tokens = torch.tensor([self._sentences[word]])
            said = self.network.text_encoder.clip_text_model(tokens)
            self._said[word] = said[:, None].to(self._device)
        return self._said[word]

    def _target(self, masks: Sequence[NDArray[np.bool_]]) -> Tensor:
        return torch.from_numpy(np.stack(masks)[:, None]).to(self._device).float()
