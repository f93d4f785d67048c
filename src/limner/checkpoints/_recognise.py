"""Recognition of an architecture from state-dict keys and shapes, for error messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

_POSITIONS = "image_encoder.pos_embed"
_FIRST = "image_encoder.patch_embed.seq.0.c.weight"


@dataclass(frozen=True)
class _Kind:
    """One kind of network: how to tell it, what it is called, which model takes its weights."""

    matches: Callable[[Shapes], bool]
    what: str
    model: str | None


def _has(*names: str) -> Callable[[Shapes], bool]:
    return lambda shapes: all(name in shapes for name in names)


def _of(name: str, *shape: int) -> Callable[[Shapes], bool]:
    return lambda shapes: shapes.get(name) == shape


# The more particular ones first.
_KINDS = (
    _Kind(
        _has("image_encoder.blocks.0.Adapter.channel.0.weight"),
        "SAM-Med2D with adapters",
        "sam_med2d/vit_b",
    ),
    _Kind(_has("image_encoder.sam_encoder.pos_embed"), "IMIS-Net", "imis/vit_b"),
    _Kind(_of(_POSITIONS, 1, 64, 64, 768), "SAM or MedSAM with ViT-B at 1024", "medsam/vit_b"),
    _Kind(_of(_POSITIONS, 1, 16, 16, 768), "SAM with ViT-B at 256, without adapters", None),
    _Kind(_of(_POSITIONS, 1, 64, 64, 1024), "SAM with ViT-L", None),
    _Kind(_of(_POSITIONS, 1, 64, 64, 1280), "SAM with ViT-H", None),
    _Kind(lambda shapes: len(shapes.get(_POSITIONS, ())) == 5, "SAM-Med3D", None),
    _Kind(_of(_FIRST, 32, 3, 1, 1), "LiteMedSAM", "medsam/lite"),
    _Kind(_of(_FIRST, 32, 3, 3, 3), "MobileSAM", None),
    _Kind(
        _of("vision_encoder.pos_embed", 1, 64, 64, 768),
        "SAM or MedSAM with ViT-B as Hugging Face transformers lays it out",
        "medsam/vit_b",
    ),
    _Kind(
        _has("vision_encoder.patch_embed.projection.weight"),
        "SAM as Hugging Face transformers lays it out",
        None,
    ),
    _Kind(
        lambda shapes: (
            shapes.get("image_encoder.trunk.blocks.11.norm1.weight") == (768,)
            and "image_encoder.trunk.blocks.12.norm1.weight" not in shapes
        ),
        "SAM 2 with Hiera-tiny, or MedSAM2",
        "medsam2/tiny",
    ),
    _Kind(
        _has("image_encoder.trunk.patch_embed.proj.weight"),
        "SAM 2 of another size, or a descendant",
        None,
    ),
    _Kind(
        _has("downs.0.conv.0.weight", "final_conv.conv.0.weight"),
        "ScribblePrompt's UNet",
        "scribbleprompt/unet",
    ),
    _Kind(_has("enc_blocks.0.cross.cross_conv.weight"), "UniverSeg", "universeg/v1"),
    _Kind(_has("image_encoder.patch_embedding.position_embeddings"), "SegVol", "segvol/vit_b"),
    _Kind(_has("key_encoder.conv1.weight", "value_encoder.conv1.weight"), "XMem", "xmem/base"),
    _Kind(
        lambda shapes: any(".convs.0.all_modules." in name for name in shapes),
        "a network of nnU-Net",
        None,
    ),
)


def recognise(shapes: Shapes) -> str:
    """A sentence on what the weights are of and what to do.

    Args:
        shapes: of the weights by name.
    """
    for kind in _KINDS:
        if kind.matches(shapes):
            if kind.model is not None:
                return f"It looks like {kind.what}, which --model {kind.model} takes."
            return f"It looks like {kind.what}; give the file of the model that you named."
    return "Give the file of the model that you named; a recipe has to have its widths and depths."
