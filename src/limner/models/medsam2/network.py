"""SAM 2's network (https://arxiv.org/abs/2408.00714) in the parts that an adapter needs, over
the modules of `transformers`, and the names of the authors' weights.

Its inference session is not used: that keeps every frame. Shapes below are for a side of S pixels,
g = S / 16 and T = g * g places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limner import errors
from limner.models.medsam2.memory import MOST_POINTERS

SIGMOID_SCALE, SIGMOID_BIAS = 20.0, -10.0  # of masks as the memory encoder sees them

# Names of the authors, as regular expressions, and those of transformers.
_NAMES = (
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"\bpatch_embed\.proj\.", "patch_embed.projection."),
    (r"^sam_mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^sam_mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^sam_mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^sam_prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"\bmask_downsampler\.encoder\.12\.", "mask_downsampler.final_conv."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"(\bmemory_fuser\.layers\.\d)\.gamma$", r"\1.scale"),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm(\d?)\.", r".layer_norm\1."),
)  # fmt: skip
_POSITIONS = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_POINT = re.compile(r"^sam_prompt_encoder\.point_embeddings\.(\d)\.weight$")
_DOWNSAMPLER = re.compile(r"^(memory_encoder\.mask_downsampler\.)encoder\.(\d+)\.")
_PERCEPTRON = re.compile(
    r"^(.*\b(?:mlp|\w+_head|output_hypernetworks_mlps\.\d|obj_ptr_proj)\.)layers\.(\d)\."
)


def remap(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names to those of `transformers`; names of other networks stay as they are.

    Two things are laid out differently: four embeddings of points are one table, and the positions
    of prompts are held twice.
    """
    found: dict[str, Tensor] = {}
    points: dict[int, Tensor] = {}
    last = _last_layers(tensors)
    for name, value in tensors.items():
        if name == _POSITIONS:
            found["shared_image_embedding.positional_embedding"] = value
            found["prompt_encoder.shared_embedding.positional_embedding"] = value
        elif point := _POINT.match(name):
            points[int(point[1])] = value
        else:
            found[_renamed(name, last)] = value
    if points:
        found["prompt_encoder.point_embed.weight"] = torch.cat([points[k] for k in sorted(points)])
    return found


def _last_layers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of the last layer of each perceptron."""
    last: dict[str, int] = {}
    for name in tensors:
        if layer := _PERCEPTRON.match(name):
            last[layer[1]] = max(int(layer[2]), last.get(layer[1], 0))
    return last


def _renamed(name: str, last: Mapping[str, int]) -> str:
    if layer := _PERCEPTRON.match(name):
        number = int(layer[2])
        inner = f"layers.{number - 1}."
        place = "proj_in." if number == 0 else "proj_out." if number == last[layer[1]] else inner
        name = layer[1] + place + name[layer.end() :]
    if (step := _DOWNSAMPLER.match(name)) and int(step[2]) < 12:
        kind = "layer_norm" if int(step[2]) % 3 else "conv"
        return f"{step[1]}layers.{int(step[2]) // 3}.{kind}.{name[step.end() :]}"
    for pattern, instead in _NAMES:
        name = re.sub(pattern, instead, name)
    return name


def make_network(size: int, *, small: bool = False) -> Any:
    """SAM 2.1 with Hiera-tiny, untrained; a `transformers.Sam2VideoModel`.

    Args:
        size: side of the input in pixels.
        small: with an encoder of fewer channels and blocks, for tests.

    Raises:
        MissingDependency: transformers is not installed.
    """
    errors.require("transformers", extra="sam2", purpose="use the networks of SAM 2")
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig
    from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoPromptEncoderConfig

    sides = [[size // step, size // step] for step in (4, 8, 16)]
    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(image_size=[size, size], **(_SMALL if small else {})),
        backbone_feature_sizes=sides,
        **({"backbone_channel_list": _SMALL["embed_dim_per_stage"][::-1]} if small else {}),
    )
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(image_size=size),
        image_size=size,
        memory_attention_rope_feat_sizes=sides[-1],
        **(_SMALL_REST if small else {}),
    )
    return Sam2VideoModel(config)


_SMALL: dict[str, Any] = {  # of `transformers.Sam2HieraDetConfig`
    "hidden_size": 16,
    "blocks_per_stage": [1, 2, 1, 1],
    "embed_dim_per_stage": [16, 32, 64, 128],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "global_attention_blocks": [2],
}
_SMALL_REST: dict[str, Any] = {  # of `transformers.Sam2VideoConfig`
    "mask_decoder_config": {"mlp_dim": 64, "num_hidden_layers": 1},
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 64,
    "memory_fuser_num_layers": 1,
    "memory_fuser_intermediate_dim": 64,
}


class ImageEncoder(nn.Module):
    """An image (1, 3, S, S) as features (1, 32, 4g, 4g), (1, 64, 2g, 2g) and (1, 256, g, g); and
    what is added to the last where there is no memory, (1, 256).
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = whole.vision_encoder, whole.mask_decoder
        for part in (self.encoder, self.encoder.backbone):
            part._loss_function = None  # or recording, which asks for all attributes, warns of it
        self.alone = whole.no_memory_embedding

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the class."""
        fine, middle, coarse = self.encoder(image).fpn_hidden_states
        alone = self.alone.detach().reshape(1, -1).expand(image.shape[0], -1)
        return self.decoder.conv_s0(fine), self.decoder.conv_s1(middle), coarse, alone


class MaskDecoder(nn.Module):
    """Four masks of an object, the first of which is the one for clear prompts."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.prompts, self.decoder = whole.prompt_encoder, whole.mask_decoder
        self.pointer = whole.object_pointer_proj
        self.register_buffer("places", whole.get_image_wide_positional_embeddings().detach())

    def forward(
        self,
        coarse: Tensor,
        fine: Tensor,
        middle: Tensor,
        coords: Tensor,
        labels: Tensor,
        mask: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Answer a prompt.

        Args:
            coarse: (1, 256, g, g), with what memory says or as it is without.
            fine: (1, 32, 4g, 4g).
            middle: (1, 64, 2g, 2g).
            coords: (1, N, 2), x and y in pixels of the image; N is 1 at least.
            labels: (1, N): 1 inside, 0 outside, 2 and 3 corners of a box, -1 nothing.
            mask: (1, 1, 4g, 4g), logits of a rough mask.
            has_mask: (1,), 1 where it counts and 0 where not.

        Returns:
            Logits (4, 4g, 4g), predicted IoU (4,), pointers to the object in each mask (4, 256),
            and the logit of there being an object, (1,).
        """
        points = self.prompts._embed_points(coords[:, None], labels[:, None].long(), pad=True)
        nothing = self.prompts.no_mask_embed.weight.reshape(1, -1, 1, 1)
        with_mask = has_mask.reshape(-1, 1, 1, 1)
        dense = with_mask * self.prompts.mask_embed(mask) + (1 - with_mask) * nothing
        own = self.decoder
        tokens = [own.obj_score_token.weight, own.iou_token.weight, own.mask_tokens.weight]
        tokens_out, seen = own.transformer(
            point_embeddings=torch.cat([torch.cat(tokens)[None, None], points], dim=2),
            image_embeddings=coarse + dense,
            image_positional_embeddings=self.places,
            attention_similarity=None,
        )
        features = seen.transpose(2, 3).reshape(coarse.shape)
        larger = own.activation(own.upscale_layer_norm(own.upscale_conv1(features) + middle))
        full = own.activation(own.upscale_conv2(larger) + fine)
        objects = tokens_out[0, 0, 2 : 2 + own.num_mask_tokens]
        weights = [head(objects[k]) for k, head in enumerate(own.output_hypernetworks_mlps)]
        logits = (torch.stack(weights) @ full[0].flatten(1)).reshape(-1, *full.shape[2:])
        quality = own.iou_prediction_head(tokens_out[0, 0, 1])
        present = own.pred_obj_score_head(tokens_out[0, 0, 0])
        return logits, quality, self.pointer(objects), present


class MemoryEncoder(nn.Module):
    """What is remembered of an object on a frame."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.encoder, self.prompt = whole.memory_encoder, whole.mask_downsample
        self.absent, self.nobody = (
            whole.occlusion_spatial_embedding_parameter,
            whole.no_object_pointer,
        )

    def forward(
        self, coarse: Tensor, mask: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Remember a mask.

        Args:
            coarse: (1, 256, g, g), without memory.
            mask: (1, 1, S, S), 0…1.
            present: (1,), 1 if there is an object, else 0.

        Returns:
            Features (T, 64), the mask as the decoder takes rough ones (1, 1, 4g, 4g), and the
            pointer to no object (1, 256).
        """
        features = self.encoder(coarse, mask * SIGMOID_SCALE + SIGMOID_BIAS)[0]
        rows = features[0].flatten(1).T + (1 - present) * self.absent
        return rows, self.prompt(mask), self.nobody.detach()


class MemoryAttention(nn.Module):
    """A frame seen through what is remembered of an object."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.attention = whole.memory_attention
        self.times, self.pointer_times = (
            whole.memory_temporal_positional_encoding,
            whole.temporal_positional_encoding_projection_layer,
        )
        grid = whole.backbone_feature_sizes[-1]
        self.here: Tensor
        self.there: Tensor
        self.register_buffer("here", _sine(whole.vision_encoder.neck, 256, grid))
        self.register_buffer("there", _sine(whole.memory_encoder, 64, grid))

    def forward(
        self, coarse: Tensor, features: Tensor, slots: Tensor, pointers: Tensor, ago: Tensor
    ) -> Tensor:
        """Look at a frame.

        Args:
            coarse: (1, 256, g, g), without memory.
            features: (F, T, 64) of frames.
            slots: (F,), their places in the table of times: 0 for the frame before, up to 5; 6 for
                what the user said.
            pointers: (P, 256) to the object on frames.
            ago: (P,), how many frames ago.

        Returns:
            (1, 256, g, g).
        """
        positions = self.there[None] + self.times[slots.long(), 0]
        parts = pointers.reshape(-1, 64)  # four to a pointer
        when = self.pointer_times(_waves(ago / MOST_POINTERS, 256))
        memory = torch.cat([features.flatten(0, 1), parts])
        where = torch.cat([positions.flatten(0, 1), when[:, None].expand(-1, 4, -1).flatten(0, 1)])
        seen: Tensor = self.attention(
            coarse.flatten(2).permute(2, 0, 1),
            memory[:, None],
            self.here[:, None],
            where[:, None],
            parts.shape[0],
        )
        return seen.reshape(1, -1, coarse.shape[1]).transpose(1, 2).reshape(coarse.shape)


def _sine(owner: Any, channels: int, grid: list[int]) -> Tensor:
    """The positions that a part of the network adds, (T, channels)."""
    made: Tensor = owner.position_encoding((1, channels, *grid), "cpu", torch.float32)
    return made[0].flatten(1).T.contiguous()


def _waves(times: Tensor, channels: int) -> Tensor:
    """Times as sines and cosines of falling frequencies, (N, channels)."""
    half = channels // 2
    step = torch.div(torch.arange(half, dtype=torch.float32), 2, rounding_mode="floor")
    angles = times[:, None] / 10_000 ** (2 * step / half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
