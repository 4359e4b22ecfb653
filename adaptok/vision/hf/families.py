"""Where the vision models of transformers keep their pieces."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from transformers.models.dinov2.modeling_dinov2 import Dinov2ForImageClassification, Dinov2Model
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration, LlavaModel
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
)
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionModel,
)
from transformers.models.paligemma.modeling_paligemma import (
    PaliGemmaForConditionalGeneration,
    PaliGemmaModel,
)
from transformers.models.siglip.modeling_siglip import (
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionModel,
)
from transformers.models.vit.modeling_vit import ViTForImageClassification, ViTModel


class Family(NamedTuple):
    """Holds the paths of a model's pieces, and what it does where families differ.

    Attributes:
        patch: convolution of the patches.
        layers: list of layers.
        norm: of the last hidden state, if there is one.
        before: modules between the embedding and the first layer.
        positioned: special tokens whose positions lead the table, in order.
        special: special tokens without positions, after those.
        table: learned positions: a parameter (1, n, d), or an ``Embedding``.
        resampled: when the table is resampled to another image size: "asked", by
            `interpolate_pos_encoding`, or "always".
        pool: returns `pooler_output` from the model, the last hidden state, and which of its rows
            attention must not read (True), or what is added to their scores.
        steps: modules of a layer, of its attention branch and of its MLP branch.
    """

    patch: str
    layers: str
    norm: str | None
    before: tuple[str, ...]
    positioned: tuple[str, ...]
    special: tuple[str, ...]
    table: str | None
    resampled: str
    pool: Callable[[Any, Tensor, Tensor], Tensor | None]
    steps: tuple[tuple[str, ...], tuple[str, ...]]

    def piece(self, model: nn.Module, path: str) -> Any:
        """Returns what stands at a path in a model."""
        return attrgetter(path)(model)

    def prefix(self, model: nn.Module, width: int) -> int:
        """Counts the special tokens of each image."""
        tokens = (*self.positioned, *self.special)
        return sum(self.piece(model, path).numel() // width for path in tokens)


def _first(model: Any, x: Float[Tensor, "b m d"], hidden: Tensor) -> Tensor:
    return x[:, 0]


def _dense(model: Any, x: Float[Tensor, "b m d"], hidden: Tensor) -> Tensor | None:
    return None if model.pooler is None else model.pooler(x)


def _normed(model: Any, x: Float[Tensor, "b m d"], hidden: Tensor) -> Tensor:
    return model.post_layernorm(x[:, 0])


def _probed(model: Any, x: Float[Tensor, "b m d"], hidden: Shaped[Tensor, "b m"]) -> Tensor | None:
    """SigLIP's attention pooling, in which padding has no part."""
    if not model.use_head:
        return None
    head = model.head
    probe = head.probe.expand(x.shape[0], -1, -1)
    y = head.attention(probe, x, x, key_padding_mask=hidden, need_weights=False)[0]
    return (y + head.mlp(head.layernorm(y)))[:, 0]


_CLIP_STEPS = ("layer_norm1", "self_attn"), ("layer_norm2", "mlp")
_VIT_STEPS = ("layernorm_before", "attention", "dropout"), ("layernorm_after", "mlp", "dropout")
_DINO_STEPS = (
    ("norm1", "attention", "layer_scale1", "drop_path"),
    ("norm2", "mlp", "layer_scale2", "drop_path"),
)
_VIT = Family(
    patch="embeddings.patch_embeddings.projection",
    layers="layers",
    norm="layernorm",
    before=("embeddings.dropout",),
    positioned=("embeddings.cls_token",),
    special=(),
    table="embeddings.position_embeddings",
    resampled="asked",
    pool=_dense,
    steps=_VIT_STEPS,
)
_DINO = _VIT._replace(layers="encoder.layer", resampled="always", pool=_first, steps=_DINO_STEPS)
_REGISTERS = ("embeddings.register_tokens",)
_SIGLIP = Family(
    patch="embeddings.patch_embedding",
    layers="encoder.layers",
    norm="post_layernorm",
    before=(),
    positioned=(),
    special=(),
    table="embeddings.position_embedding",
    resampled="asked",
    pool=_probed,
    steps=_CLIP_STEPS,
)
_DINO3 = _DINO._replace(
    patch="embeddings.patch_embeddings",
    layers="model.layer",
    norm="norm",
    before=(),
    positioned=(),
    special=("embeddings.cls_token", *_REGISTERS),
    table=None,
)

FAMILIES: dict[type[nn.Module], Family] = {
    ViTModel: _VIT,
    Dinov2Model: _DINO,
    Dinov2WithRegistersModel: _DINO._replace(special=_REGISTERS),
    DINOv3ViTModel: _DINO3,
    CLIPVisionModel: _SIGLIP._replace(
        norm=None,
        before=("pre_layrnorm",),
        positioned=("embeddings.class_embedding",),
        pool=_normed,
    ),
    SiglipVisionModel: _SIGLIP,
}
# Models that read nothing of their tower but what stays right when tokens merge, by its path.
ROOTS: dict[type[nn.Module], str] = {
    ViTForImageClassification: "vit",
    Dinov2ForImageClassification: "dinov2",
    Dinov2WithRegistersForImageClassification: "dinov2_with_registers",
    CLIPModel: "vision_model",
    CLIPVisionModelWithProjection: "vision_model",
    CLIPForImageClassification: "vision_model",
    SiglipModel: "vision_model",
    SiglipForImageClassification: "vision_model",
    **dict.fromkeys(
        (LlavaModel, LlavaNextModel, LlavaOnevisionModel, PaliGemmaModel), "vision_tower"
    ),
    **dict.fromkeys(
        (
            LlavaForConditionalGeneration,
            LlavaNextForConditionalGeneration,
            LlavaOnevisionForConditionalGeneration,
            PaliGemmaForConditionalGeneration,
        ),
        "model.vision_tower",
    ),
}


def weight_dtype(tower: Any) -> torch.dtype:
    """Returns the dtype of the patches' convolution, which transformers casts images to."""
    family = tower.adaptive.family
    return next(family.piece(tower, family.patch).parameters()).dtype
