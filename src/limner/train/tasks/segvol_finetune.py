"""SegVol, stage 2: masks from points, boxes and words (https://arxiv.org/abs/2311.13385).

Each object of a batch is an optimiser step of its own, in which the losses of six combinations of
prompts are added up, and a tenth of those of prompts about pseudo labels. The volume is encoded
once for all of them, and each prompt's graph is gone before the next is made: its gradient waits at
the encoder's output, so that memory does not grow with the number of prompts.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from limner.datasets import volume_folders
from limner.models.segvol import vocabulary
from limner.models.segvol.network import SegVolDecode, SegVolNetwork
from limner.models.segvol.sizes import Plan
from limner.models.segvol.tokens import sentence
from limner.train.config import Fraction, NotNegative, Whole, Words
from limner.train.data.segvol_cases import PreparedCase, PseudoLabelOptions, prepare_cases
from limner.train.data.segvol_views import TrainingView, draw_view, flip_view, jitter_intensity
from limner.train.losses import dice
from limner.train.parts import segvol_files
from limner.train.parts.segvol_encoder import SegVolConfig, encode, initialise
from limner.train.simulate.segvol import (
    EncodedPrompts,
    encode_prompts,
    list_pseudo_objects,
    prompt_pseudo_object,
)
from limner.train.task import (
    MAIN,
    MicroBatch,
    Networks,
    StepContext,
    TaskInputs,
    TrainingTask,
    split_batch,
)

COMBINATIONS = ("point+text", "box+text", "text", "box", "point", "box+point")

_MODEL = "segvol/vit_b"
_TRIES = 16  # views of a batch, until one shows an object

_log = logging.getLogger(__name__)


class Config(SegVolConfig):
    """Masks from prompts.

    Attributes:
        text_dim: channels of the text tower.
        text_depth: its blocks.
        text_heads: of its attention.
        text_hidden: channels inside its MLPs.
        clip: file with CLIP's text tower, for runs that do not start from a whole SegVol; empty for
            none.
        combinations: of prompts, whose losses are added up in every step.
        most_positive: points inside, besides the first one.
        most_negative: points outside.
        jitter: voxels by which each side of a box is moved at most.
        train_dim_align: the layer from the text tower to the tokens learns, too.
        most_objects: of a batch that are learnt from, drawn at random; 0 is all.
        scale_shift: how far intensities are scaled and shifted at most.
        scale_shift_share: how often each of the two happens.
        positive_crops: share of crops around a labelled voxel.
        pseudo: learn from pseudo labels, too.
        pseudo_weight: of their loss.
        pseudo_rounds: prompts about them in a step; points and boxes in turn.
        pseudo_rule: ``"adaptive"`` as published, ``"threshold"`` as in the authors' code.
        pseudo_scale: of ``"adaptive"``, for grey values of 0…255.
        pseudo_sigma: of the Gaussian before, in voxels within slices.
        pseudo_min_size: voxels of the smallest region.
    """

    method: Literal["segvol-finetune"] = "segvol-finetune"
    name: str = "segvol"
    text_dim: int = 512
    text_depth: int = 12
    text_heads: int = 8
    text_hidden: int = 2048
    clip: str = ""
    combinations: Words = COMBINATIONS
    most_positive: Whole = 10
    most_negative: Whole = 10
    jitter: Whole = 0
    train_dim_align: bool = False
    most_objects: Whole = 0
    scale_shift: NotNegative = 0.1
    scale_shift_share: Fraction = 0.1
    positive_crops: Fraction = 2 / 3
    pseudo: bool = True
    pseudo_weight: NotNegative = 0.1
    pseudo_rounds: Whole = 6
    pseudo_rule: Literal["adaptive", "threshold"] = "adaptive"
    pseudo_scale: NotNegative = 16.0
    pseudo_sigma: float = 0.8
    pseudo_min_size: Whole = 1000

    @model_validator(mode="after")
    def _check_combinations(self) -> Config:
        if not self.combinations or set(self.combinations) - set(COMBINATIONS):
            raise ValueError(
                f"combinations={list(self.combinations)}; use some of {', '.join(COMBINATIONS)}."
            )
        return self

    @property
    def has_text(self) -> bool:
        """Whether words are among the prompts."""
        return any("text" in c for c in self.combinations)

    def plan(self) -> Plan:
        """Sizes of the network."""
        return dataclasses.replace(
            super().plan(),
            text_dim=self.text_dim,
            text_depth=self.text_depth,
            text_heads=self.text_heads,
            text_hidden=self.text_hidden,
        )

    def pseudo_labels(self) -> PseudoLabelOptions | None:
        """How pseudo labels are made; None without."""
        if not self.pseudo:
            return None
        rule, scale, sigma = self.pseudo_rule, self.pseudo_scale, self.pseudo_sigma
        return PseudoLabelOptions(self.size, rule, scale, sigma, self.pseudo_min_size)


def open_task(config: Config, inputs: TaskInputs) -> SegVolFinetuning:
    """The task on a folder of labelled volumes; see `limner.datasets.volume_folders`."""
    found = volume_folders.labelled(inputs.data, named=config.has_text)
    cases, digest = prepare_cases(found, inputs.out / "volumes", config.pseudo_labels())
    return SegVolFinetuning(config, cases, digest, inputs.device, inputs.start)


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


class SegVolFinetuning(TrainingTask):
    """Learning masks from prompts.

    Args:
        config: of the run.
        cases: what to learn from.
        digest: of them.
        device: that learns; the text tower, which does not, stays on the CPU.
        beside: a file beside which CLIP's list of merges may lie, for names with unknown words.

    Raises:
        PromptError: words are among the prompts, and a name cannot be read.
    """

    def __init__(
        self,
        config: Config,
        cases: Sequence[PreparedCase],
        digest: str,
        device: torch.device,
        beside: Path | None = None,
    ) -> None:
        self.digest = digest
        self.facts: dict[str, Any] = {}
        self._config, self._device = config, device
        groups: dict[tuple[str, ...], list[PreparedCase]] = defaultdict(list)
        for case in cases:
            groups[tuple(case.names)].append(case)
        self._cases, self._groups = cases, groups
        self._clip = Path(config.clip).expanduser() if config.clip else None
        self._knows_words = self._clip is not None
        self._sentences: dict[str, tuple[int, ...]] = {}
        if config.has_text:
            names = dict.fromkeys(name for case in cases for name in case.names)
            merges = beside or self._clip
            self._sentences = {n: sentence(vocabulary.find(n), _MODEL, merges) for n in names}
        self._vectors: dict[str, Tensor] = {}  # of the text tower, by name

    def networks(self) -> Networks:
        """A new SegVol; its text tower does not learn.

        Raises:
            CheckpointError: the recipe's file of CLIP does not fit.
        """
        network = SegVolNetwork(self._config.plan())
        initialise(network.image_encoder)
        positions = network.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        torch.nn.init.normal_(positions)
        if self._clip is not None:
            segvol_files.fill_text_tower(self._clip, network)
        network.text_encoder.requires_grad_(False)
        network.text_encoder.dim_align.requires_grad_(self._config.train_dim_align)
        network.to(self._device)
        network.text_encoder.clip_text_model.to("cpu")
        return {MAIN: network}

    def start(self, path: Path, networks: Networks) -> None:
        """From a whole SegVol, or from stage 1."""
        network = networks[MAIN]
        assert isinstance(network, SegVolNetwork)
        self._knows_words = segvol_files.start_finetuning(path, network) or self._knows_words

    def draw(self, context: StepContext) -> Iterator[MicroBatch]:
        """Views of cases with the same objects; each object is an update of its own."""
        if context.step == 0 and self._config.has_text and not self._knows_words:
            _log.warning(
                "the text tower is random and stays so: words will only be told apart. Start from "
                "a whole SegVol, or name a file of CLIP as 'clip' in the recipe."
            )
        views, names = self._draw_views(context.rng)
        for name in names:
            shown = [view for view in views if view.mask(name).any()]
            first = 0
            for part in split_batch(len(shown), self._config.micro_batch):
                chosen = shown[first : first + part.samples]
                first += part.samples
                yield dataclasses.replace(part, data=(name, chosen))

    def step(self, batch: MicroBatch, context: StepContext) -> dict[str, Tensor]:
        """Learn one object in all the views of it."""
        config, (name, views) = self._config, batch.data
        network = context.networks[MAIN]
        assert isinstance(network, SegVolNetwork)
        image = torch.from_numpy(np.stack([v.image for v in views])[:, None]).to(self._device)
        features = encode(
            network.image_encoder,
            image,
            bf16=config.precision == "bf16",
            checkpointing=config.checkpointing,
        )
        waiting = features.detach().requires_grad_()
        measured = self._learn_object(name, views, waiting, context)
        if config.pseudo:
            measured |= self._learn_pseudo(views, waiting, context)
        assert waiting.grad is not None
        features.backward(waiting.grad)  # type: ignore[no-untyped-call]
        return measured

    def write(self, folder: Path, name: str, networks: Networks, facts: dict[str, Any]) -> Path:
        """Write the network in the authors' container, ``NAME.pth``."""
        network, path = networks[MAIN], folder / f"{name}.pth"
        assert isinstance(network, SegVolNetwork)
        segvol_files.write_network(path, network, facts)
        return path

    def _draw_views(self, rng: np.random.Generator) -> tuple[list[TrainingView], list[str]]:
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

    def _learn_object(
        self, name: str, views: Sequence[TrainingView], features: Tensor, context: StepContext
    ) -> dict[str, Tensor]:
        """Gradients of all combinations of prompts, one after the other."""
        config = self._config
        masks = [v.mask(name) for v in views]
        encoded = [
            encode_prompts(
                mask,
                context.rng,
                most_positive=config.most_positive,
                most_negative=config.most_negative,
                jitter=config.jitter,
            )
            for mask in masks
        ]
        target = self._make_target(masks)
        measured = {"loss": torch.zeros((), device=self._device)}
        for combination in config.combinations:
            word = name if "text" in combination else None
            logits = self._predict(features, encoded, combination, word, context)
            loss, found = mask_loss(logits, target)
            context.backward(loss)
            measured["loss"] = measured["loss"] + loss.detach()
            measured[f"dice_{combination}"] = found
        return measured

    def _learn_pseudo(
        self, views: Sequence[TrainingView], features: Tensor, context: StepContext
    ) -> dict[str, Tensor]:
        """Gradients of prompts about pseudo labels."""
        config, share = self._config, 1 / len(views)
        measured: dict[str, Tensor] = {}
        for k, seen in enumerate(views):
            assert seen.pseudo is not None
            choices = list_pseudo_objects(seen.pseudo)
            for turn in range(config.pseudo_rounds if choices else 0):
                kind = ("point", "box")[turn % 2]
                found = prompt_pseudo_object(seen.pseudo, choices, kind, context.rng)
                if found is None:
                    continue
                mask, encoded = found
                logits = self._predict(features[k : k + 1], [encoded], kind, None, context)
                loss, _ = mask_loss(logits, self._make_target([mask]))
                weight = context.weight * share
                (loss * weight * config.pseudo_weight).backward()  # type: ignore[no-untyped-call]
                sums = measured.get("pseudo", torch.zeros((), device=self._device))
                measured["pseudo"] = sums + loss.detach() * share
        return measured

    def _predict(
        self,
        features: Tensor,
        encoded: Sequence[EncodedPrompts],
        combination: str,
        word: str | None,
        context: StepContext,
    ) -> Tensor:
        """Low-resolution logits, (B, 1, d, h, w)."""
        network = context.networks[MAIN]
        assert isinstance(network, SegVolNetwork)
        tokens = [prompts.tokens(combination) for prompts in encoded]
        points, labels = (
            torch.from_numpy(np.stack([pair[k] for pair in tokens])).to(self._device)
            for k in (0, 1)
        )
        text = features.new_zeros((len(encoded), 0, features.shape[1]))
        if word is not None:
            aligned = network.text_encoder.dim_align(self._embed_word(word, network))
            text = aligned.expand(len(encoded), 1, -1)
        decoder = SegVolDecode(network.prompt_encoder, network.mask_decoder)
        low_res: Tensor = decoder(features, points, labels, text)
        return low_res

    @torch.no_grad()
    def _embed_word(self, word: str, network: SegVolNetwork) -> Tensor:
        """The text tower's vector of a word, (1, 1, text_dim); computed once."""
        if word not in self._vectors:
            tokens = torch.tensor([self._sentences[word]])
            vector = network.text_encoder.clip_text_model(tokens)
            self._vectors[word] = vector[:, None].to(self._device)
        return self._vectors[word]

    def _make_target(self, masks: Sequence[NDArray[np.bool_]]) -> Tensor:
        return torch.from_numpy(np.stack(masks)[:, None]).to(self._device).float()
