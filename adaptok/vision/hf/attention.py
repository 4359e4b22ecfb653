"""Attention of transformers' layers through `adaptok.attend`, by their ``AttentionInterface``.

What the rows of a layer share takes the place of its attention mask, which every layer hands on as
it is: nothing is kept between calls, and a checkpoint that runs a layer again gets the same.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from timm.layers.drop import DropPath
from torch import Tensor, nn
from transformers import AttentionInterface

from adaptok.layers.attention import attend
from adaptok.vision.blocks import Packing, dropped

NAME = "adaptok"  # of the attention implementation


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "b h n e"],
    key: Float[Tensor, "b h n e"],
    value: Float[Tensor, "b h n e"],
    attention_mask: Any,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "b n h e"], None]:
    """Attends among the rows of each group.

    Raises:
        ValueError: the mask is no `Packing`.
    """
    if not isinstance(attention_mask, Packing):
        raise ValueError(
            f"the attention {NAME!r} is for models that apply_apt or apply_reducer has made; set "
            'another by set_attn_implementation, such as "sdpa"'
        )
    packing = attention_mask
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    if packing.observed is not None:
        rope = packing.rope
        back = None if rope is None else rope._replace(sin=-rope.sin)  # reducers see them unturned
        packing.observed.extend((q, k) if back is None else (back(q), back(k)))
    q, k = q.type_as(v), k.type_as(v)
    out = attend(q, k, v, packing.groups, key_bias=packing.key_bias, scale=scaling)
    return out.unflatten(0, (query.shape[0], -1)), None


AttentionInterface.register(NAME, packed_attention)


class SampleDropPath(DropPath):
    """Draws stochastic depth per image; transformers would draw once for all packed rows."""

    def __init__(self, rate: float):
        super().__init__(rate)
        self.packing: Packing | None = None

    def follow(self, attention: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Notes the rows of the layer: a hook before its attention."""
        self.packing = kwargs["attention_mask"]

    def forward(self, x: Float[Tensor, "1 n d"]) -> Float[Tensor, "1 n d"]:
        """Drops the branch of whole images."""
        return x if self.packing is None else dropped(self, x, self.packing)


def draw_per_image(layers: nn.Module) -> None:
    """Replaces the stochastic depth of layers that have it."""
    for layer in layers.children():
        rate = getattr(getattr(layer, "drop_path", None), "drop_prob", 0.0)
        if rate:
            drop = SampleDropPath(rate)
            layer.drop_path = drop
            layer.attention.register_forward_pre_hook(drop.follow, with_kwargs=True)  # pyright: ignore
