"""timm's pooling on packed tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from timm.layers.attention_pool import AttentionPoolLatent, AttentionPoolPrr
from torch import Tensor, nn

from adaptok.cells import Cells, Count, Groups, repeated
from adaptok.cells.lengths import offsets_of
from adaptok.layers.attention import attend
from adaptok.utils.precision import as_products
from adaptok.vision.features import VisionTokens, area_bias, patches_per_cell


def pool(model: Any, x: VisionTokens, pooling: str, weighted: float = 0.0) -> Float[Tensor, "b d"]:
    """Pools as ``model.pool`` does, for tokens that stand for different areas.

    Args:
        pooling: "area" weighs each token in a mean by its number of patches, so that merging equal
            patches changes nothing; "plain" counts tokens (the authors' code).
        weighted: power of the number of patches that weighs a key where attention pools.
    """
    if model.attn_pool is not None:
        with_prefix = getattr(model, "pool_include_prefix", True)  # Eva has no such choice
        return _attention_pool(model.attn_pool, x, with_prefix, pooling, weighted)
    if model.global_pool == "token":
        return x.prefix[:, 0]
    prefix = x.prefix if getattr(model, "pool_include_prefix", False) else x.prefix[:, :0]
    if model.global_pool == "avg":
        return _mean(prefix, x.tokens.features, x.cells, pooling)
    highest = _max(prefix, x.tokens.features, x.cells)
    if model.global_pool == "max":
        return highest
    return 0.5 * (highest + _mean(prefix, x.tokens.features, x.cells, pooling))  # "avgmax"


def _mean(prefix: Tensor, features: Tensor, cells: Cells, pooling: str) -> Float[Tensor, "b d"]:
    weight = patches_per_cell(cells)
    weight = torch.ones_like(weight) if pooling == "plain" else weight
    b, sample = cells.batch_size, cells.sample
    total = weight.new_zeros(b).index_add(0, sample, weight) + prefix.shape[1]
    part = (weight / total[sample])[:, None] * features.float()
    mean = part.new_zeros(b, part.shape[1]).index_add(0, sample, part)
    return (mean + prefix.float().sum(1) / total[:, None]).to(features.dtype)


def _max(prefix: Tensor, features: Tensor, cells: Cells) -> Float[Tensor, "b d"]:
    rows = torch.cat([prefix.flatten(0, 1), features])
    images = torch.arange(cells.batch_size, device=cells.device)
    sample = torch.cat([images.repeat_interleave(prefix.shape[1]), cells.sample])
    lowest = rows.new_full((cells.batch_size, rows.shape[1]), -torch.inf)
    return lowest.scatter_reduce(0, sample[:, None].expand_as(rows), rows, "amax")


def _attention_pool(
    attn: Any, x: VisionTokens, with_prefix: bool, pooling: str, weighted: float
) -> Float[Tensor, "b d"]:
    cells = x.cells
    prefix = x.prefix if with_prefix else x.prefix[:, :0]
    p = prefix.shape[1]
    groups = cells.groups(prefix=p) if p else cells.groups()
    rows = groups.gather(torch.cat([prefix.flatten(0, 1), x.tokens.features]))
    bias = area_bias(cells, groups, p, weighted)
    shared = PoolPacking(groups, cells.batch_size, bias, cells, p, pooling)
    return attn(rows[None], attn_mask=shared)


class PoolPacking(NamedTuple):
    """Holds what the rows that attention pools share, see `_attention_pool`.

    Attributes:
        groups: the rows of each image.
        samples: number of images.
        bias: added to the scores of each row as a key, or None.
        cells: of the rows, if pooling needs them.
        prefix: special tokens per image that are pooled too.
        pooling: "area" or "plain", for a mean.
    """

    groups: Groups
    samples: Count
    bias: Float[Tensor, " n"] | None
    cells: Cells | None = None
    prefix: int = 0
    pooling: str = "area"


class PackedLatentPool(AttentionPoolLatent):
    """timm's pooling by a learned query, on packed rows too."""

    def forward(self, x: Float[Tensor, "b n d"], attn_mask: Any = None) -> Float[Tensor, "*b d"]:
        """Pools batches as timm does, and rows (1, n, d) by image."""
        if not isinstance(attn_mask, PoolPacking):
            return super().forward(x, attn_mask)
        groups = attn_mask.groups.packed
        return latent_pool(self, x[0], groups, attn_mask.samples, attn_mask.bias)


class PackedPrrPool(AttentionPoolPrr):
    """timm's pooling by self-attention without projections, on packed rows too."""

    def forward(self, x: Float[Tensor, "b n d"], attn_mask: Any = None) -> Float[Tensor, "*b d"]:
        """Pools batches as timm does, and rows (1, n, d) by image."""
        if not isinstance(attn_mask, PoolPacking):
            return super().forward(x)
        groups, b, bias, cells, p, pooling = attn_mask
        assert cells is not None
        rows = as_products(self.pre_norm(x[0]))  # no projection does so
        heads = rows.unflatten(1, (self.num_heads, self.head_dim))
        out = attend(heads, heads, heads, groups.packed, key_bias=bias)
        rows = groups.scatter(self.post_norm(out.flatten(1)))
        refined = rows[: b * p].unflatten(0, (b, p))
        if self.pool == "token":
            return refined[:, 0]
        return _mean(refined, rows[b * p :], cells, pooling)


def pack_pool(pool: nn.Module | None) -> None:
    """Lets the pooling of a model, perhaps inside a module around it, run on packed rows."""
    packed = {AttentionPoolLatent: PackedLatentPool, AttentionPoolPrr: PackedPrrPool}
    for module in [] if pool is None else pool.modules():
        module.__class__ = packed.get(type(module), type(module))


def latent_pool(
    attn: Any, rows: Tensor, groups: Groups, b: Count, bias: Tensor | None
) -> Float[Tensor, "b d"]:
    """Pools the rows of each of b groups as timm's ``AttentionPoolLatent`` does.

    Args:
        bias: added to the scores of each row as a key, or None.
    """
    length = attn.latent_len
    query = attn.q(attn.latent.expand(b, -1, -1)).flatten(0, 1)
    query = attn.q_norm(query.unflatten(1, (attn.num_heads, attn.head_dim)))
    key, value = attn.kv(rows).unflatten(1, (2, attn.num_heads, attn.head_dim)).unbind(1)
    key = attn.k_norm(key)
    lengths = repeated(length, b)
    queries = Groups(None, None, offsets_of(lengths, rows.device), length, lengths)
    query, key = query.type_as(value), key.type_as(value)
    y = attend(query, key, value, queries, groups, key_bias=bias)
    y = attn.proj_drop(attn.proj(y.flatten(1).unflatten(0, (b, length))))
    if attn.mlp is not None:
        y = y + attn.mlp(attn.norm(y))
    return y[:, 0] if attn.pool == "token" else y.mean(1) if attn.pool == "avg" else y
