"""Weights of runs in the authors' containers, and what runs may start from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.atomic import atomic_path
from limner.checkpoints.load import fill, read_checkpoint
from limner.errors import CheckpointError
from limner.models.segvol.network import SegVolNetwork, remap

_ENCODER, _WHOLE = "model.encoder.", "module."
_TEXT = "text_encoder.clip_text_model."
_OLD_TEXT = f"{_TEXT}text_model."
_MARKS = (
    "image_encoder.patch_embedding.position_embeddings",
    "prompt_encoder.no_mask_embed.weight",
    "mask_decoder.iou_token.weight",
)


def write_encoder(path: Path, network: nn.Module, facts: Mapping[str, Any]) -> None:
    """Stage 1's result, as the authors' ``ViT_pretrain.ckpt``: an encoder is read from it by the
    names that hold ``model.encoder.``.

    Args:
        path: of the file.
        network: `limner.train.tasks.segvol_pretrain.MaskedVolumes`.
        facts: about the run, kept inside as JSON text.
    """
    state = {f"model.{name}": value.detach().cpu() for name, value in network.state_dict().items()}
    _save(path, {"state_dict": state, "facts": json.dumps(facts)})


def write_network(path: Path, network: SegVolNetwork, facts: Mapping[str, Any]) -> None:
    """Stage 2's result, as the authors' ``SegVol_v1.pth`` without its optimiser: the same names,
    down to the numbers of positions that old versions of transformers keep.

    Args:
        path: of the file.
        network: on any device.
        facts: about the run, kept inside as JSON text.
    """
    state = {}
    for name, value in network.state_dict().items():
        published = name.replace(_TEXT, _OLD_TEXT, 1)
        state[_WHOLE + published] = value.detach().cpu()
    length = network.text_encoder.clip_text_model.embeddings.position_embedding.num_embeddings
    state[f"{_WHOLE}{_OLD_TEXT}embeddings.position_ids"] = torch.arange(length)[None]
    _save(path, {"model": state, "epoch": facts.get("step", 0), "facts": json.dumps(facts)})


def start_pretraining(path: Path, network: nn.Module) -> None:
    """Fill the encoder, and what else stage 1 learns if the file has it.

    Args:
        path: of stage 1, or a whole SegVol.
        network: `limner.train.tasks.segvol_pretrain.MaskedVolumes`.

    Raises:
        CheckpointError: unreadable, or of another network.
    """
    tensors = read_checkpoint(path, wanted=_MARKS).tensors
    own = {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
    if set(own) == set(network.state_dict()):
        fill(network, own, path)
        return
    encoder = network.encoder
    assert isinstance(encoder, nn.Module)
    fill(encoder, _encoder_of(tensors, path), path)


def start_finetuning(path: Path, network: SegVolNetwork) -> bool:
    """Fill the whole network, or its encoder from a file of stage 1.

    Returns:
        Whether it was the whole, text tower included.

    Raises:
        CheckpointError: unreadable, or of another network.
    """
    tensors = remap(read_checkpoint(path, wanted=_MARKS).tensors)
    if any(name.startswith(("mask_decoder.", "prompt_encoder.")) for name in tensors):
        fill(network, tensors, path)
        return True
    fill(network.image_encoder, _encoder_of(tensors, path), path)
    return False


def fill_text_tower(path: Path, network: SegVolNetwork) -> None:
    """Fill the text tower from a file of CLIP.

    Raises:
        CheckpointError: it has none, or another one.
    """
    mark = "text_model."
    found = {
        name.partition(mark)[2]: value
        for name, value in read_checkpoint(path).tensors.items()
        if mark in name and not name.endswith("position_ids")
    }
    if not found:
        raise CheckpointError(
            f"{path} has no text tower of CLIP (names with {mark!r}); use the weights of "
            "openai/clip-vit-base-patch32 as transformers keeps them."
        )
    fill(network.text_encoder.clip_text_model, found, path)


def _encoder_of(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The volume's encoder in a file of either stage."""
    for mark in (_ENCODER, "image_encoder."):
        found = {n.partition(mark)[2]: v for n, v in tensors.items() if mark in n}
        if found:
            return found
    raise CheckpointError(
        f"{path} holds no encoder of SegVol: there are no names with {_ENCODER!r} (as in "
        "ViT_pretrain.ckpt) or 'image_encoder.' (as in SegVol_v1.pth). Start from one of these, "
        "or from what an earlier run wrote."
    )


def _save(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        torch.save(content, temporary)
