"""A tower of transformers with a reducer inside its layers."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersLayer,
)
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTLayer
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer
from transformers.models.vit.modeling_vit import ViTLayer

from adaptok.processors.reducers import Flow, Reducer
from adaptok.vision.blocks import Packing
from adaptok.vision.hf.families import Family, weight_dtype
from adaptok.vision.hf.outputs import Ran
from adaptok.vision.reduce import detached, through
from adaptok.vision.rope import Rope


class ReducedLayer(nn.Module):
    """Runs a layer of transformers on (b, n, d), reduced between attention and MLP."""

    steps: tuple[tuple[str, ...], tuple[str, ...]]  # see `Family`; set on each layer

    def forward(
        self, hidden_states: Float[Tensor, "b n d"], attention_mask: Packing, **_: Any
    ) -> Float[Tensor, "b m d"]:
        """Runs it; the mask describes its rows, one image after the other."""
        x, packing, b = hidden_states, attention_mask, hidden_states.shape[0]
        (norm, attention, *after), mlp = self.steps
        normed = getattr(self, norm)(x)
        if packing.between is not None:  # new lists: a checkpoint runs the layer twice
            packing = packing._replace(observed=[normed.flatten(0, 1)])
        given: dict[str, Any] = {"attention_mask": packing}
        if packing.rope is not None:
            sin, cos = (part.unflatten(0, (b, -1)).movedim(2, 1) for part in packing.rope[:2])
            given["position_embeddings"] = (cos, sin)
        y, _ = getattr(self, attention)(normed, **given)
        for name in after:
            y = getattr(self, name)(y)
        rows, packing = packing.reduced((x + y).flatten(0, 1))
        x = y = rows.unflatten(0, (b, -1))
        for name in mlp:
            y = getattr(self, name)(y)
        return x + y


class ReducedViTLayer(ReducedLayer, ViTLayer):
    """Runs a layer of ViT."""


class ReducedDinov2Layer(ReducedLayer, Dinov2Layer):
    """Runs a layer of DINOv2."""


class ReducedDinov2WithRegistersLayer(ReducedLayer, Dinov2WithRegistersLayer):
    """Runs a layer of DINOv2 with registers."""


class ReducedDINOv3ViTLayer(ReducedLayer, DINOv3ViTLayer):
    """Runs a layer of DINOv3."""


class ReducedCLIPLayer(ReducedLayer, CLIPEncoderLayer):
    """Runs a layer of CLIP."""


class ReducedSiglipLayer(ReducedLayer, SiglipEncoderLayer):
    """Runs a layer of SigLIP."""


LAYERS: dict[type[nn.Module], type[ReducedLayer]] = {
    ViTLayer: ReducedViTLayer,
    Dinov2Layer: ReducedDinov2Layer,
    Dinov2WithRegistersLayer: ReducedDinov2WithRegistersLayer,
    DINOv3ViTLayer: ReducedDINOv3ViTLayer,
    CLIPEncoderLayer: ReducedCLIPLayer,
    SiglipEncoderLayer: ReducedSiglipLayer,
}


class ReducedRun(nn.Module):
    """Runs a tower with a reducer; made by `adaptok.vision.apply_reducer`.

    Args:
        family: where the tower keeps its pieces.
        reducer: what merges or drops tokens.
        options: arguments of `apply_reducer`, in plain values.

    Attributes:
        last: state after the last forward pass, without gradients.
    """

    controls: tuple[str, ...] = ()
    pooling = "area"

    def __init__(self, family: Family, reducer: Reducer, options: dict[str, Any]):
        super().__init__()
        self.family, self.reducer, self.options = family, reducer, options
        self.last: Flow | None = None

    def forward(
        self, tower: Any, images: Float[Tensor, "b c h w"], resample: bool, wanted: set[int]
    ) -> Ran:
        """Runs the tower; `wanted` are indices of hidden states.

        Raises:
            ValueError: a list of images.
        """
        if not isinstance(images, Tensor):
            raise ValueError("a reducer needs images of one size, as one tensor")
        family, images = self.family, images.to(weight_dtype(tower))
        asked = {"interpolate_pos_encoding": True} if resample else {}
        x = tower.embeddings(images, **asked if family.resampled == "asked" else {})
        for name in family.before:
            if not name.startswith("embeddings."):  # those the embedding has run
                x = family.piece(tower, name)(x)
        layers, b = family.piece(tower, family.layers), x.shape[0]
        rope = self._rope(tower, images, x)
        prefix = family.prefix(tower, x.shape[-1])
        take = {i - 1 for i in wanted if i}
        first = x
        x, flow, states = through(
            self.reducer, layers, x, [rope] * len(layers), prefix, _call, take
        )
        if not torch.compiler.is_exporting():
            self.last = detached(flow)
        found: dict[int, Tensor] = {0: first} if 0 in wanted else {}
        found |= {i + 1: y for i, (y, _) in zip(sorted(take), states, strict=True)}
        hidden = [found.get(i) for i in range(len(layers) + 1)]
        x = x if family.norm is None else family.piece(tower, family.norm)(x)
        weight, bias = flow.counted.view(b, -1), flow.key_bias
        bias = None if bias is None else bias.view(b, -1)
        return Ran(x, hidden, torch.ones_like(weight, dtype=torch.bool), weight, bias, None)

    def _rope(self, tower: Any, images: Tensor, x: Tensor) -> Rope | None:
        """DINOv3's rotation of all rows; special tokens do not turn."""
        if not hasattr(tower, "rope_embeddings"):
            return None
        cos, sin = tower.rope_embeddings(images)
        special = cos.new_zeros(x.shape[1] - cos.shape[0], cos.shape[1])
        cos, sin = torch.cat([special + 1, cos]), torch.cat([special, sin])
        return Rope(*(part.repeat(x.shape[0], 1)[:, None] for part in (sin, cos)), half=True)


def _call(layer: nn.Module, x: Tensor, packing: Packing) -> Tensor:
    return layer(x, packing)
