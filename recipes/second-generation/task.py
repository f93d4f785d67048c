"""The task of the second generation: pictures, conversations, and what is learnt from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from bank import LeanBank
from limner.layers.fusion2d import IMAGE_CENTRE, IMAGE_SCALE, LOGIT_SCALE
from limner.train.augment import disturb
from limner.train.chance import Chance
from limner.train.pack import Pack
from limner.train.synthetic import invent, paint
from limner.train.targets import Targets, TargetTable
from limner.train.views import Scenes, Views, draw_views, plain_views
from network import CandidateUNet2d
from torch import Tensor
from torch.nn import functional
from user import Said, begin, begin_from_mask, begin_with_box, begin_with_click, correct

from limner.train.losses import dice

from losses import answer_losses, best_candidate_loss, whole_iou  # isort: skip

_INVENTED_SHAPES = 0.5  # of the painted pictures
_MOST_MORE_ROUNDS = 7
_CLICKS = 5  # of a validation
_TOGETHER = 16  # samples at once in a validation


@dataclass(frozen=True)
class Settings:
    """What decides a run, apart from the pack.

    Attributes:
        batch_size: samples of a step at the smallest size; of larger ones fewer, so that a step
            costs about the same.
        sizes: sides of the square views in pixels; each step draws one.
        set_power: exponent of a set's number of files in its share of the samples.
        invented: share of samples whose target no label names.
        synthetic: share of samples whose picture is painted or made up.
        disturbed_again: share of pictures that go through all disturbances twice.
        mixed: share of pictures whose channels are mixed.
        wrong: share of prompts that are clumsy.
        rounds: prompts and answers that are learnt from, per sample and step.
        more_rounds: share of steps that begin with rounds that are not learnt from, so that late
            corrections of the network's own answers are seen.
        mask_first: share of steps that begin with a mask with large errors.
        quality_weight: of the loss of the predicted quality.
        learning_rate: after the warm-up, constant until the run is cooled down.
        encoder_share: of the learning rate, for the encoder.
        warmup_steps: of linear growth.
        weight_decay: of kernels.
        ema_decay: of the averaged weights.
        frozen_blocks: of the encoder, that do not learn; 0 where there is more than one core.
        precision: "fp32", or "bf16", which is faster on CPUs with AMX and on GPUs only: elsewhere
            the gradients of depthwise convolutions are three to six times as slow as in fp32.
        seed: fixes pictures, targets and prompts.
    """

    batch_size: int = 8
    sizes: tuple[int, ...] = (192, 192, 256)
    set_power: float = 0.4
    invented: float = 0.12
    synthetic: float = 0.12
    disturbed_again: float = 0.25
    mixed: float = 0.12
    wrong: float = 0.1
    rounds: int = 2
    more_rounds: float = 0.3
    mask_first: float = 0.1
    quality_weight: float = 0.1
    learning_rate: float = 3e-4
    encoder_share: float = 0.3
    warmup_steps: int = 50
    weight_decay: float = 0.02
    ema_decay: float = 0.99
    frozen_blocks: int = 5
    precision: str = "fp32"
    seed: int = 0


class BroadTable(TargetTable):
    """Draws targets, from small sets nearly as often as from large ones.

    Args:
        pack: the pictures.
        power: of a set's number of files.
        invented: share of targets that no label names.
    """

    def __init__(self, pack: Pack, *, power: float, invented: float) -> None:
        super().__init__(pack, split=0, invented=invented)
        sets, counts = np.unique(pack.planes[self.planes, 0], return_counts=True)
        per_plane = np.zeros(len(pack.names))
        per_plane[sets] = pack.num_stems[sets].astype(np.float64) ** power / counts
        self._shares = per_plane[pack.planes[self.planes, 0]]
        self._shares /= self._shares.sum()
        rows = pack.entries.astype(np.int64)
        self._keys = (rows[:, 0] * 4 + rows[:, 1]) * 2**16 + rows[:, 2]
        self._order = np.argsort(self._keys)
        self._areas = rows[:, 3]

    def areas(self, targets: Targets) -> np.ndarray:
        """Pixels of the plane that each target has."""
        keys = (targets.planes * 4 + targets.layers)[:, None] * 2**16 + targets.ids
        place = np.searchsorted(self._keys, keys, sorter=self._order)
        areas = self._areas[self._order[place]].astype(np.float64)
        ids = np.sort(targets.ids, axis=1)
        firsts = np.ones(ids.shape, dtype=bool)  # a repeated id counts once
        firsts[:, 1:] = ids[:, 1:] != ids[:, :-1]
        by_id = np.take_along_axis(areas, np.argsort(targets.ids, axis=1, kind="stable"), axis=1)
        return np.asarray((by_id * firsts).sum(axis=1))


class CandidatePictures:
    """Learning on planes, with candidates for lone marks.

    Args:
        settings: of the run.
        pack: what to train on.
    """

    def __init__(self, settings: Settings, pack: Pack) -> None:
        self._settings = settings
        self.digest = pack.digest
        self._bank = LeanBank(pack, torch.device("cpu"))
        self._table = BroadTable(pack, power=settings.set_power, invented=settings.invented)
        self._held_out = TargetTable(pack, split=1, invented=0.0)

    @torch.no_grad()
    def scenes(
        self, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Scenes, Tensor, Chance]:
        """A batch of disturbed pictures with targets that can be seen; the pixels of each target
        that are not in view; and chance for what is done with them.
        """
        settings = self._settings
        size = int(rng.choice(np.asarray(settings.sizes)))
        number = max(1, round(settings.batch_size * (min(settings.sizes) / size) ** 2))
        chance = Chance(number, generator)
        targets = self._table.draw(number, rng)
        views = draw_views(self._bank.pack, targets, size, rng)
        scenes = self._bank.show(targets, views, size, generator)
        outside = self._outside(targets, views, scenes)
        index = (chance.happens(settings.synthetic).flatten() | scenes.painted).nonzero()[:, 0]
        if len(index):
            regions = self._bank.regions_of(index)
            _repaint(scenes, regions, outside, index, generator)
        image = chance.some(scenes.image, chance.happens(settings.mixed), _channels_mixed)
        image = disturb(image, chance)
        image = chance.some(image, chance.happens(settings.disturbed_again), disturb)
        image = image * scenes.inside
        return replace(scenes, image=image, target=scenes.target * scenes.inside), outside, chance

    def learn(
        self, network: CandidateUNet2d, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[int, dict[str, float]]:
        """Gradients of one batch over all rounds; how many samples it had, what was measured."""
        settings = self._settings
        scenes, outside, chance = self.scenes(rng, generator)
        target, inside = scenes.target, scenes.inside
        said = begin(target, inside, chance, settings.wrong)
        kind = rng.random()
        more = 0
        if kind < settings.mask_first:
            said = begin_from_mask(said, target, inside, chance)
            said = correct(said, said.previous, target, inside, chance, settings.wrong)
        elif kind < settings.mask_first + settings.more_rounds:
            more = min(int(rng.geometric(0.35)), _MOST_MORE_ROUNDS)
        for _ in range(more):
            with torch.no_grad():
                shown, _ = chosen(*ask(network, scenes.image, said, settings.precision), said)
            said = correct(said, shown, target, inside, chance, settings.wrong)
        measured: dict[str, float] = {}
        for number in range(settings.rounds):
            logits, quality = ask(network, scenes.image, said, settings.precision)
            loss, found = _loss(logits, quality, said, scenes, outside, settings.quality_weight)
            (loss / settings.rounds).backward()
            first = "first" if not more and kind >= settings.mask_first and not number else "later"
            measured |= {f"{first}_{k}": v for k, v in found.items()}
            if number + 1 < settings.rounds:
                shown, _ = chosen(logits.detach(), quality.detach(), said)
                said = correct(said, shown, target, inside, chance, settings.wrong)
        return len(target), measured

    @torch.no_grad()
    def validate(
        self, network: CandidateUNet2d, *, size: int, most: int
    ) -> dict[str, dict[str, float]]:
        """Mean Dice per held-out set after a tight box, a click, the best of its candidates and
        five clicks, on the views that a session begins with.
        """
        pack = self._bank.pack
        result: dict[str, dict[str, float]] = {}
        for index in np.unique(pack.planes[self._held_out.planes, 0]):
            targets = self._held_out.named(int(index), most, np.random.default_rng(int(index)))
            generator = torch.Generator().manual_seed(int(index))
            views = plain_views(pack, targets, size)
            scenes = self._bank.show(targets, views, size, generator)
            fit = ~scenes.painted & (scenes.target.sum(dim=(1, 2, 3)) > 0)
            if fit.any():
                parts = (t[fit] for t in (scenes.image, scenes.target, scenes.inside))
                result[pack.names[int(index)]] = _validated(network, *parts, generator)
        kinds = next(iter(result.values()))
        result["mean"] = {k: float(np.mean([r[k] for r in result.values()])) for k in kinds}
        return result

    def _outside(self, targets: Targets, views: Views, scenes: Scenes) -> Tensor:
        scale = np.abs(np.linalg.det(views.steps))
        whole = torch.from_numpy(self._table.areas(targets) / scale).float()
        seen = scenes.target.sum(dim=(1, 2, 3))
        # Resampling changes areas by a little; that is not outside.
        return torch.where(whole > 1.15 * seen + 8, whole - seen, 0.0)


def fuse(image: Tensor, said: Said) -> Tensor:
    """The network's input, (B, 8, S, S)."""
    shown = [(image - IMAGE_CENTRE) * IMAGE_SCALE, torch.tanh(said.previous / LOGIT_SCALE)]
    fused = torch.cat([*shown, said.positive, said.negative, said.region, said.newest], dim=1)
    return fused.contiguous(memory_format=torch.channels_last)


def ask(
    network: CandidateUNet2d, image: Tensor, said: Said, precision: str = "bf16"
) -> tuple[Tensor, Tensor]:
    """Logits (B, 4, S, S) and qualities (B, 4)."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bf16"):
        answer: tuple[Tensor, Tensor] = network(fuse(image, said))
    return answer


def chosen(logits: Tensor, quality: Tensor, said: Said) -> tuple[Tensor, Tensor]:
    """The answer that is shown, (B, 1, S, S), and its number (B,): to a lone mark the candidate
    that is judged best, else the first answer.
    """
    best = torch.where(said.lone, 1 + quality[:, 1:].argmax(dim=1), 0)
    return logits[torch.arange(len(best)), best][:, None].float(), best


def _loss(
    logits: Tensor,
    quality: Tensor,
    said: Said,
    scenes: Scenes,
    outside: Tensor,
    quality_weight: float,
) -> tuple[Tensor, dict[str, float]]:
    target, inside = scenes.target, scenes.inside
    marked = said.positive * target + said.negative * (1 - target)  # clumsy ones: not to be obeyed
    sure = answer_losses(logits[:, :1], said.wanted, inside, marked, said.previous)[:, 0]
    true = whole_iou(logits.detach(), target, inside, outside)
    judged = functional.binary_cross_entropy_with_logits(quality.float(), true, reduction="none")
    loss = sure.mean() + quality_weight * judged[:, 0].mean()
    lone = said.lone.nonzero()[:, 0]
    if len(lone):
        parts = [t[lone] for t in (logits[:, 1:], said.wanted, inside, marked, said.previous)]
        candidates = best_candidate_loss(answer_losses(*parts))
        loss = loss + candidates.sum() / len(logits)
        loss = loss + quality_weight * judged[lone, 1:].mean()
    with torch.no_grad():
        shown, _ = chosen(logits, quality, said)
        measured = {
            "loss": float(loss),
            "dice": float(dice((shown > 0).float() * inside, said.wanted).mean()),
            "judge": float((quality[:, 0].float().sigmoid() - true[:, 0]).abs().mean()),
        }
        if len(lone):
            found = (logits[lone, 1:] > 0).float() * inside[lone]
            each = [dice(found[:, k : k + 1], said.wanted[lone]) for k in range(found.shape[1])]
            measured["lone"] = float(dice((shown[lone] > 0).float(), said.wanted[lone]).mean())
            measured["best"] = float(torch.stack(each).amax(dim=0).mean())
    return loss, measured


def _validated(
    network: CandidateUNet2d,
    image: Tensor,
    target: Tensor,
    inside: Tensor,
    generator: torch.Generator,
) -> dict[str, float]:
    network.eval()

    def answered(said: Said) -> tuple[Tensor, Tensor]:
        parts = [
            ask(network, image[k : k + _TOGETHER], _part(said, slice(k, k + _TOGETHER)))
            for k in range(0, len(image), _TOGETHER)
        ]
        logits, quality = (torch.cat(p) for p in zip(*parts, strict=True))
        return chosen(logits, quality, said)[0], logits.float()

    def mean_dice(logits: Tensor) -> Tensor:
        return dice((logits > 0).float() * inside, target)

    chance = Chance(len(target), generator)
    boxed, _ = answered(begin_with_box(target))
    said = begin_with_click(target, chance)
    shown, every = answered(said)
    best = torch.stack([mean_dice(every[:, k : k + 1]) for k in (1, 2, 3)]).amax(dim=0)
    result = {"box": mean_dice(boxed), "click": mean_dice(shown), "best": best}
    for _ in range(_CLICKS - 1):
        said = correct(said, shown, target, inside, chance, 0.0)
        shown, _ = answered(said)
    result["clicks5"] = mean_dice(shown)
    network.train()
    return {kind: float(values.mean()) for kind, values in result.items()}


def _part(said: Said, rows: slice) -> Said:
    names = ("positive", "negative", "region", "previous", "newest", "lone", "wanted")
    return Said(*(getattr(said, name)[rows] for name in names))


def _channels_mixed(image: Tensor, chance: Chance) -> Tensor:
    """Each colour from all three, some of them turned around."""
    weights = chance.normal(3, 3)
    mixed = torch.einsum("bij,bjhw->bihw", weights, image)
    low, high = mixed.amin(dim=(2, 3), keepdim=True), mixed.amax(dim=(2, 3), keepdim=True)
    return (mixed - low) / (high - low).clamp_min(1e-3)


def _repaint(
    scenes: Scenes, regions: Tensor, outside: Tensor, index: Tensor, generator: torch.Generator
) -> None:
    """Paint the pictures of some samples, in place; of some, new shapes instead of the regions."""
    chance = Chance(len(index), generator)
    size = scenes.image.shape[-1]
    target, inside = scenes.target[index], scenes.inside[index]
    made_up = chance.happens(_INVENTED_SHAPES).flatten().nonzero()[:, 0]
    if len(made_up):
        shapes, shape = invent(size, Chance(len(made_up), generator))
        regions[made_up] = shapes.repeat_interleave(2, 1).repeat_interleave(2, 2)
        target[made_up], inside[made_up] = shape.float(), 1.0
        outside[index[made_up]] = 0.0
    picture = functional.avg_pool2d(paint(regions, chance), 2)
    scenes.image[index], scenes.target[index], scenes.inside[index] = picture, target, inside
