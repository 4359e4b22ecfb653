"""timm's transformer blocks on packed rows: the same modules, attention through `attend`.

Modules are called, so that hooks fire and modules around them (adapters, checkpoints, shards,
compiled ones) work. What the rows share goes with the call, under the name of timm's argument
`attn_mask`, which is what modules around a block or an attention hand on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from timm.layers.attention import Attention, AttentionRope
from timm.layers.diff_attention import DiffAttention
from timm.layers.drop import DropPath
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from torch import Tensor, nn

from adaptok.cells import Count, Groups
from adaptok.cells.lengths import common
from adaptok.layers.attention import attend, automatic
from adaptok.vision.rope import Rope

Between = Callable[[Tensor, Any], tuple[Tensor, Any]]


class Packing(NamedTuple):
    """Holds what the rows of one block share.

    Attributes:
        groups: rows that attend to each other.
        sample: image of each row, for stochastic depth.
        samples: number of images.
        rope: rotation of queries and keys, or None.
        key_bias: added to the scores of each row as a key, or None.
        observed: list that gets input, queries and keys of the attention, before rotation.
        between: what a block does with its rows between attention and MLP.
    """

    groups: Groups
    sample: Int64[Tensor, " n"]
    samples: Count
    rope: Rope | None
    key_bias: Float[Tensor, " n"] | None = None
    observed: list[Tensor] | None = None
    between: Between | None = None

    def reduced(self, x: Tensor) -> tuple[Tensor, Packing]:
        """The rows between attention and MLP, and what they share from there on."""
        return (x, self) if self.between is None else self.between(x, self)


class PackedBlock(nn.Module):
    """A block of timm's on packed rows."""

    def forward(
        self, x: Float[Tensor, "*b n d"], attn_mask: Packing | None = None, **_: Any
    ) -> Float[Tensor, "*b n d"]:
        """Runs it; `attn_mask` says which rows attend to which."""
        packing = _packing(self, attn_mask)
        length = _length(packing)
        if packing.between is None and length is not None:  # timm's own pass does it with less
            inside = not isinstance(self, (ParallelScalingBlock, DiffParallelScalingBlock))
            own: Any = super()
            out = own.forward(_by_image(x, length), attn_mask=packing if inside else None)
            return out if out.shape == x.shape else out.reshape(x.shape)
        return run_of(self)(self, x, packing)


class PackedAttention(nn.Module):
    """A self-attention of timm's on packed rows."""

    def forward(
        self, x: Float[Tensor, "*b n d"], attn_mask: Packing | None = None, **_: Any
    ) -> Float[Tensor, "*b n d"]:
        """Runs it; `attn_mask` says which rows attend to which."""
        packing = _packing(self, attn_mask)
        length = _length(packing)
        if length is not None:
            own: Any = super()
            out = own.forward(_by_image(x, length))
            return out if out.shape == x.shape else out.reshape(x.shape)
        return attention(self, x.flatten(0, -2), packing).reshape(x.shape)


def _packing(module: nn.Module, given: Any) -> Packing:
    if isinstance(given, Packing):
        return given
    raise ValueError(
        f"{type(module).__name__} runs on packed rows inside an adapted model only, and a module "
        "around it has to hand on its argument attn_mask"
    )


def _length(packing: Packing) -> int | None:
    """Returns the length of the groups if they are rows of one, nothing else is asked for, and no
    back end of attention is forced; else None.
    """
    if packing.rope is not None or packing.key_bias is not None or packing.observed is not None:
        return None
    if packing.groups.order is not None or not automatic():
        return None
    return common(packing.groups.lengths)


def _by_image(x: Float[Tensor, "*b n d"], length: int) -> Float[Tensor, "i m d"]:
    return x if x.ndim == 3 and x.shape[1] == length else x.reshape(-1, length, x.shape[-1])


def pack_modules(blocks: nn.Module) -> None:
    """Lets the blocks and attentions of timm's inside a module run on packed rows."""
    for module in blocks.modules():
        module.__class__ = PACKED.get(type(module), type(module))


def run_of(block: nn.Module) -> Callable[[Any, Tensor, Packing], Tensor]:
    """Returns how a block runs, by the class of timm's that it derives from."""
    return next(BLOCKS[kind] for kind in type(block).__mro__ if kind in BLOCKS)


def run_block(block: nn.Module, x: Float[Tensor, "1 n d"], packing: Packing) -> Tensor:
    """Calls one block, or a module around one."""
    return block(x, attn_mask=packing)


class PackedDropPath(DropPath):
    """timm's stochastic depth, drawn per image rather than for the whole packed batch."""

    def forward(
        self, x: Float[Tensor, "*b n d"], packing: Packing | None = None
    ) -> Float[Tensor, "*b n d"]:
        """Drops the branch of whole images; without a packing each entry of the batch is one."""
        return super().forward(x) if packing is None else dropped(self, x, packing)


def drop_path(module: Any, x: Tensor, packing: Packing) -> Tensor:
    """Calls what stands for stochastic depth in a block, which may be anything but for timm's."""
    return module(x, packing) if isinstance(module, PackedDropPath) else module(x)


def dropped(module: DropPath, x: Tensor, packing: Packing) -> Tensor:
    """Drops and scales rows by the rate of a module, the rows of an image together."""
    rate = module.drop_prob
    if not (module.training and rate):
        return x
    keep = x.new_empty(packing.samples, 1).bernoulli_(1 - rate)
    if module.scale_by_keep and rate < 1:
        keep = keep / (1 - rate)
    return x * keep[packing.sample]


def attention(attn: Any, x: Tensor, packing: Packing) -> Tensor:
    """Runs the self-attention of `Attention`, `AttentionRope`, `EvaAttention`, `DiffAttention`."""
    if isinstance(attn, DiffAttention):
        q, k, v = attn.qkv(x).chunk(3, dim=-1)
        return attn.proj_drop(attn.proj(attn.norm(_differential(attn, q, k, v, packing))))
    q, k, v = _qkv(attn, x)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if packing.observed is not None:
        packing.observed.extend((x, q, k))
    if packing.rope is not None:
        q, k = packing.rope(q), packing.rope(k)
    groups = getattr(attn, "num_kv_groups", 1)
    if groups > 1:  # grouped-query attention
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    out = attn.norm(_attend(q, k, v, packing).flatten(1))
    if attn.gate is not None:
        out = out * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(out))


def _attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    return attend(q.type_as(v), k.type_as(v), v, packing.groups, key_bias=packing.key_bias)


def _qkv(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values (n, heads, head_dim)."""
    if getattr(attn, "q_proj", None) is not None:
        parts = attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
        q, k, v = (part.unflatten(-1, (-1, attn.head_dim)) for part in parts)
        return q, k, v
    fused = attn.qkv(x)
    if getattr(attn, "q_bias", None) is not None:
        # Under autocast the product is in half precision, the biases are not.
        fused = fused + torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)).to(fused.dtype)
    q, k, v = fused.unflatten(-1, (3, attn.num_heads, attn.head_dim)).unbind(1)
    return q, k, v


def _differential(attn: Any, q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """Runs differential attention: the difference of two softmax maps, applied to the values."""
    heads, width = attn.num_heads, attn.head_dim  # values are twice as wide as queries
    # Two maps times two halves of the values make four heads of one width for the same kernels.
    q = attn.q_norm(q.unflatten(-1, (heads, 2, 1, width)))
    k = attn.k_norm(k.unflatten(-1, (heads, 2, 1, width)))
    v = v.unflatten(-1, (heads, 1, 2, width))
    q, k, v = (x.expand(-1, -1, 2, 2, -1).flatten(1, 3) for x in (q, k, v))  # head, map, half
    out = _attend(q, k, v, packing).unflatten(1, (heads, 2, 2))
    first, second = out.flatten(3).unbind(2)
    out = first - attn._compute_lambda().type_as(q) * second
    return (attn.sub_norm(out) * (1 - attn.lambda_init)).flatten(1)


def _block(block: Any, x: Tensor, packing: Packing) -> Tensor:
    y = block.ls1(block.attn(block.norm1(x), attn_mask=packing))
    x, packing = packing.reduced(x + drop_path(block.drop_path1, y, packing))
    return x + drop_path(block.drop_path2, block.ls2(block.mlp(block.norm2(x))), packing)


def _post_norm(block: Any, x: Tensor, packing: Packing) -> Tensor:
    y = block.norm1(block.attn(x, attn_mask=packing))
    x, packing = packing.reduced(x + drop_path(block.drop_path1, y, packing))
    return x + drop_path(block.drop_path2, block.norm2(block.mlp(x)), packing)


def _eva(block: Any, x: Tensor, packing: Packing) -> Tensor:
    y = block.attn(block.norm1(x), attn_mask=packing)
    y = y if block.gamma_1 is None else block.gamma_1 * y
    x, packing = packing.reduced(x + drop_path(block.drop_path1, y, packing))
    y = block.mlp(block.norm2(x))
    y = y if block.gamma_2 is None else block.gamma_2 * y
    return x + drop_path(block.drop_path2, y, packing)


def _parallel_scaling(block: Any, x: Tensor, packing: Packing) -> Tensor:
    """Runs attention and MLP side by side (ViT-22B), plain or differential."""
    rows = block.in_norm(x.flatten(0, -2))
    hidden, q, k, v = block.in_proj(rows).split(block.in_split, dim=-1)
    if block.mlp_bias is not None:
        hidden = hidden + block.mlp_bias
    if hasattr(block, "sub_norm"):
        attended = _differential(block, q, k, v, packing)
    else:
        q, k, v = (part.unflatten(-1, (block.num_heads, -1)) for part in (q, k, v))
        attended = _attend(block.q_norm(q), block.k_norm(k), v, packing).flatten(1)
    hidden = block.mlp_drop(block.mlp_act(hidden))
    if block.out_proj is not None:
        y = block.out_proj(torch.cat((attended, hidden), dim=-1))
    else:
        y = block.attn_out_proj(attended) + block.mlp_out_proj(hidden)
    return x + drop_path(block.drop_path, block.ls(y).reshape(x.shape), packing)


def _parallel_things(block: Any, x: Tensor, packing: Packing) -> Tensor:
    """Runs several attentions side by side, then several MLPs."""
    total = x
    for part in block.attns:
        y = part.ls(part.attn(part.norm(x), attn_mask=packing))
        total = total + drop_path(part.drop_path, y, packing)
    x = total
    for part in block.ffns:
        y = part.ls(part.mlp(part.norm(x)))
        total = total + drop_path(part.drop_path, y, packing)
    return total


BLOCKS: dict[type, Callable[[Any, Tensor, Packing], Tensor]] = {
    Block: _block,
    ResPostBlock: _post_norm,
    ParallelScalingBlock: _parallel_scaling,
    DiffParallelScalingBlock: _parallel_scaling,
    ParallelThingsBlock: _parallel_things,
    EvaBlock: _eva,
    EvaBlockPostNorm: _post_norm,
}
ATTENTIONS = (Attention, AttentionRope, DiffAttention, EvaAttention)


class _Block(PackedBlock, Block): ...


class _ResPostBlock(PackedBlock, ResPostBlock): ...


class _ParallelScalingBlock(PackedBlock, ParallelScalingBlock): ...


class _DiffParallelScalingBlock(PackedBlock, DiffParallelScalingBlock): ...


class _ParallelThingsBlock(PackedBlock, ParallelThingsBlock): ...


class _EvaBlock(PackedBlock, EvaBlock): ...


class _EvaBlockPostNorm(PackedBlock, EvaBlockPostNorm): ...


class _Attention(PackedAttention, Attention): ...


class _AttentionRope(PackedAttention, AttentionRope): ...


class _DiffAttention(PackedAttention, DiffAttention): ...


class _EvaAttention(PackedAttention, EvaAttention): ...


PACKED: dict[type, type[nn.Module]] = {
    Block: _Block,
    ResPostBlock: _ResPostBlock,
    ParallelScalingBlock: _ParallelScalingBlock,
    DiffParallelScalingBlock: _DiffParallelScalingBlock,
    ParallelThingsBlock: _ParallelThingsBlock,
    EvaBlock: _EvaBlock,
    EvaBlockPostNorm: _EvaBlockPostNorm,
    Attention: _Attention,
    AttentionRope: _AttentionRope,
    DiffAttention: _DiffAttention,
    EvaAttention: _EvaAttention,
    DropPath: PackedDropPath,
}
