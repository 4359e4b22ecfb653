"""Transformer parts on packed tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Count, Groups
from adaptok.layers.attention import attend
from adaptok.layers.norms import Segments, create_norm
from adaptok.layers.positions import Rotary
from adaptok.registry import choice
from adaptok.tokens import TokenSet

# Rows after attention, and its input, queries and keys -> rows, their sample and segments.
Between = Callable[[Tensor, list[Tensor]], tuple[Tensor, Tensor, Segments | None]]


class Mlp(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, dim: int, ratio: float = 4.0):
        super().__init__()
        self.up = nn.Linear(dim, int(dim * ratio))
        self.down = nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Maps each row."""
        return self.down(nn.functional.gelu(self.up(x)))


class Attention(nn.Module):
    """Multi-head attention inside groups: self-attention, or cross-attention with a context.

    Args:
        dim: width, divisible by `heads`.
        heads: number of heads.
        qk_norm: layer norm on the queries and keys of each head.
        norm_out: norm of the heads' results before the output projection; default none.

    Raises:
        ValueError: heads that do not divide dim.
    """

    def __init__(
        self, dim: int, heads: int, qk_norm: bool = False, norm_out: nn.Module | None = None
    ):
        super().__init__()
        width = head_width(dim, heads)
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.norm_q = nn.LayerNorm(width) if qk_norm else nn.Identity()
        self.norm_k = nn.LayerNorm(width) if qk_norm else nn.Identity()
        self.norm_out = norm_out
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "n d"],
        groups: Groups | Sequence[Groups],
        rotate: Rotary | None = None,
        *,
        segments: Segments | None = None,
        context: Float[Tensor, "m d"] | None = None,
        context_groups: Groups | None = None,
        context_rotate: Rotary | None = None,
        key_bias: Float[Tensor, " m"] | None = None,
        observed: list[Tensor] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Each row of x attends to the rows of its group in x, or in the context, whose scores get
        the `key_bias`.

        With several partitions into groups, the results are averaged. A list `observed` gets x, the
        queries and the keys, before rotation.
        """
        source = x if context is None else context
        source_rotate = rotate if context is None else context_rotate
        q, (k, v) = self.queries(x), self.keys_values(source)
        if observed is not None:
            observed += [x, q, k]
        q = q if rotate is None else rotate(q)
        k = k if source_rotate is None else source_rotate(k)
        partitions = (groups,) if isinstance(groups, Groups) else groups
        pairs = [(partition, context_groups) for partition in partitions]
        return self.mixed(q, k, v, pairs, segments=segments, key_bias=key_bias)

    def queries(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n h e"]:
        """Computes queries, before rotation."""
        return self.norm_q(self.q(x).unflatten(-1, (self.heads, -1)))

    def keys_values(
        self, x: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n h e"], Float[Tensor, "n h e"]]:
        """Computes keys, before rotation, and values."""
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).unbind(1)
        return self.norm_k(k), v

    def mixed(
        self,
        q: Float[Tensor, "n h e"],
        k: Float[Tensor, "m h e"],
        v: Float[Tensor, "m h e"],
        partitions: Sequence[tuple[Groups, Groups | None]],
        *,
        segments: Segments | None = None,
        key_bias: Float[Tensor, " m"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Attends inside the groups of queries and keys of each partition (None: the same), and
        projects the mean.
        """
        q, k = q.to(v.dtype), k.to(v.dtype)  # under CUDA autocast a layer norm returns float32
        results = [attend(q, k, v, *pair, key_bias=key_bias) for pair in partitions]
        out = results[0] if len(results) == 1 else torch.stack(results).mean(0)
        out = out.flatten(1)
        return self.out(out if self.norm_out is None else self.norm_out(out, segments))


class DropPath(nn.Module):
    """Drops a residual branch per sample while training (stochastic depth)."""

    def __init__(self, rate: float):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"the drop path rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(
        self, x: Float[Tensor, "n d"], sample: Int64[Tensor, " n"], samples: Count
    ) -> Float[Tensor, "n d"]:
        """Scales the rows of each sample by 0 or by ``1 / (1 - rate)``."""
        if self.rate == 0 or not self.training:
            return x
        keep = torch.rand(samples, device=x.device) >= self.rate
        return x * (keep.to(x.dtype) / (1 - self.rate))[sample, None]


class AttentionBranch(nn.Module):
    """Adds attention inside groups, of the normalised rows, to the rows.

    Args:
        dim: width, divisible by `heads`.
        heads: number of heads.
        qk_norm: layer norm on the queries and keys of each head.
        drop_path: stochastic depth rate.
        norm: "layer", "rms" or "instance" (over the rows of a segment).
        norm_placement: "pre": a norm before the attention and before the MLP. "matey": a second
            norm before the output projection, and the norm of the MLP after it.
        layer_scale: initial factor per channel on the output of a branch; default none.

    Raises:
        ValueError: an unknown norm or placement, or heads that do not divide dim.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qk_norm: bool = False,
        drop_path: float = 0.0,
        norm: str = "layer",
        norm_placement: str = "pre",
        layer_scale: float | None = None,
    ):
        super().__init__()
        choice("norm_placement", norm_placement, ("pre", "matey"))
        norm_out = create_norm(norm, dim) if norm_placement == "matey" else None
        self.norm_attention = create_norm(norm, dim)
        self.attention = Attention(dim, heads, qk_norm, norm_out)
        self.scale_attention = _layer_scale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "n d"],
        groups: Groups | Sequence[Groups],
        rotate: Rotary | None,
        sample: Int64[Tensor, " n"],
        samples: Count,
        segments: Segments | None = None,
        key_bias: Float[Tensor, " n"] | None = None,
        observed: list[Tensor] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Adds attention inside the groups to the rows; instance norms need the segments."""
        options: Any = {"segments": segments, "key_bias": key_bias}
        options |= {} if observed is None else {"observed": observed}  # not every attention has it
        out = self.attention(self.norm_attention(x, segments), groups, rotate, **options)
        return self.added(x, out, self.scale_attention, sample, samples)

    def added(
        self, x: Tensor, out: Tensor, scale: Tensor | None, sample: Tensor, samples: Count
    ) -> Tensor:
        """Adds what a branch puts out to its input."""
        return x + self.drop_path(out if scale is None else out * scale, sample, samples)


class Block(AttentionBranch):
    """Transformer block on packed tokens: attention, then an MLP; for the options see
    `AttentionBranch`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        norm: str = "layer",
        norm_placement: str = "pre",
        layer_scale: float | None = None,
        **options: Any,
    ):
        options |= {"norm": norm, "norm_placement": norm_placement, "layer_scale": layer_scale}
        super().__init__(dim, heads, **options)
        self.norm_first = norm_placement == "pre"
        self.norm_mlp = create_norm(norm, dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.scale_mlp = _layer_scale(dim, layer_scale)

    def forward(
        self,
        x: Float[Tensor, "n d"],
        groups: Groups | Sequence[Groups],
        rotate: Rotary | None,
        sample: Int64[Tensor, " n"],
        samples: Count,
        segments: Segments | None = None,
        key_bias: Float[Tensor, " n"] | None = None,
        between: Between | None = None,
    ) -> Float[Tensor, "m d"]:
        """Adds attention inside the groups to the rows, then the MLP to what `between` makes of
        them.
        """
        observed: list[Tensor] | None = None if between is None else []
        x = super().forward(x, groups, rotate, sample, samples, segments, key_bias, observed)
        if between is not None and observed is not None:
            x, sample, segments = between(x, observed)
        return self.fed(x, sample, samples, segments)

    def fed(
        self,
        x: Float[Tensor, "n d"],
        sample: Int64[Tensor, " n"],
        samples: Count,
        segments: Segments | None = None,
    ) -> Float[Tensor, "n d"]:
        """Adds the MLP of the rows to them."""
        if self.norm_first:
            out = self.mlp(self.norm_mlp(x, segments))
        else:
            out = self.norm_mlp(self.mlp(x), segments)
        return self.added(x, out, self.scale_mlp, sample, samples)


def conditioned(tokens: TokenSet) -> Float[Tensor, "n d"]:
    """Adds the conditioning of each sample, if any, to the features of all its tokens.

    Raises:
        ValueError: a conditioning of another width.
    """
    if tokens.cond is None:
        return tokens.features
    if tokens.cond.shape[1] != tokens.features.shape[1]:
        raise ValueError(
            f"the conditioning is {tokens.cond.shape[1]} wide, the tokens are "
            f"{tokens.features.shape[1]}"
        )
    return tokens.features + tokens.cond[tokens.cells.sample]


def bias_by_weight(tokens: TokenSet, weighted: float) -> Float[Tensor, " n"] | None:
    """Returns the logarithm of what each token stands for (`TokenSet.weight`) times a power, to be
    added to the scores of keys; None for the power 0.

    With the power 1 a token counts as that many equal ones ("proportional attention" of ToMe:
    Bolya et al., "Token merging: your ViT but faster", Sec. 3). What stands for nothing, a cell
    beyond the border, keeps a vanishing weight, so that a group of such cells has a softmax.
    """
    if not weighted:
        return None
    weight = tokens.weight
    return weighted * weight.clamp(min=torch.finfo(torch.float32).tiny).log()


def head_width(dim: int, heads: int) -> int:
    """Width of a head.

    Raises:
        ValueError: heads that do not divide dim.
    """
    if heads < 1 or dim % heads:
        raise ValueError(f"dim {dim} is not divisible by {heads} heads")
    return dim // heads


def drop_path_rates(depth: int, last: float) -> list[float]:
    """Stochastic depth rate of each block, growing linearly from 0 to `last`."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def _layer_scale(dim: int, value: float | None) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(torch.full((dim,), float(value)))
