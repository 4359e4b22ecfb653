"""The space-time block of CKM and CSM."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, Count, GridLayout, Groups
from adaptok.layers.attention import attend
from adaptok.layers.blocks import (
    DropPath,
    bias_by_weight,
    conditioned,
    drop_path_rates,
    head_width,
)
from adaptok.layers.norms import Segments, create_norm
from adaptok.layers.positions import Rotary, common_shape, rotary
from adaptok.processors.factorised import frame_groups, time_groups
from adaptok.processors.reducers import Reducer, advance, begin, subset
from adaptok.registry import PROCESSORS, REDUCERS, Part, choice
from adaptok.tokens import TokenizerSpec, TokenSet, check_tokens
from adaptok.utils.arguments import Base, Depth, Positive, Rate, Scale, Weighted, checked


class Context(NamedTuple):
    """Everything that the blocks share in one forward pass."""

    time: Groups  # tokens of one cell
    space: Groups  # tokens of one frame
    rotate: Rotary
    sample: Int64[Tensor, " n"]
    samples: Count
    frames: Segments | None  # for the statistics of group norms
    key_bias: Float[Tensor, " n"] | None  # added to the scores of each token as a key


@PROCESSORS.register("spacetime_parallel")
class ParallelSpaceTime(nn.Module):
    """Attention over time; then attention over space beside a SwiGLU, both on the same norm.

    CKM and CSM, App. B.2, as in the authors' code: layer norm on queries and keys, a T5 bias over
    time, rotary positions over space, a gated MLP of inner width 2 dim in parallel with the space
    attention, layer scale. Takes a history of frames; with one frame, time attention is a
    projection. Without a `GridLayout`, cells of different frames whose centres lie in the same
    cell of the finest grid count as the same cell, and time is counted along these.

    Args:
        spec: specification of the tokenizer, whose cells tile or form a grid.
        depth: number of blocks.
        heads: attention heads, a divisor of ``spec.dim``.
        causal: let a frame see only itself and earlier ones.
        norm: "group" (paper; over a frame, one group per head), "layer" or "rms".
        rope: "cell" (centres in grid points), or "endpoint" as in the authors' code: indices
            scaled to -1 to 1, up to 64 turns; needs a `GridLayout`.
        rope_base: base of the rotary frequencies of "cell".
        layer_scale: initial factor per channel on the output of a branch (paper's code: 1e-6).
        drop_path: stochastic depth rate of the last block, growing linearly from 0; per sample.
        weighted: let a token count as a key for what it stands for, see `Transformer`.
        reducer: merges or drops tokens of a frame after a block, see `Transformer`; time is then
            counted along the tokens that are left.
        unmerge: see `Transformer`.

    Raises:
        ValueError: cells that neither tile nor form a grid, or invalid knobs.
    """

    attends_over_time = True

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        *,
        depth: Depth = 12,
        heads: Positive = 6,
        causal: bool = False,
        norm: str = "group",
        rope: str = "cell",
        rope_base: Base = 10000.0,
        layer_scale: Scale = 1e-6,
        drop_path: Rate = 0.0,
        weighted: Weighted = False,
        reducer: Part | None = None,
        unmerge: bool = True,
    ):
        super().__init__()
        grid = spec.layout is not None and issubclass(spec.layout, GridLayout)
        if not grid and (rope == "endpoint" or not spec.tiling):
            what = "rope 'endpoint'" if spec.tiling else "processor 'spacetime_parallel'"
            raise ValueError(f"{what} needs cells that form a regular grid, such as those of 'ckm'")
        self.rope, self.rope_base = choice("rope", rope, ("cell", "endpoint")), rope_base
        rates = drop_path_rates(depth, drop_path)
        self.spec, self.head_dim = spec, head_width(spec.dim, heads)
        self.by_frame, self.weighted = norm == "group", float(weighted)
        self.time = nn.ModuleList(
            TimeAttention(spec.dim, heads, causal, norm, layer_scale, rate) for rate in rates
        )
        self.space = nn.ModuleList(
            ParallelSpace(spec.dim, heads, norm, layer_scale, rate) for rate in rates
        )
        self.unmerge, self.reducer = unmerge, None
        if reducer is not None:
            sizes = {"dim": spec.dim, "heads": heads, "depth": depth}
            self.reducer: Reducer | None = REDUCERS.build(reducer, **sizes)

    def forward(self, tokens: TokenSet) -> TokenSet:
        """Maps tokens to tokens of the same cells; with a reducer and without `unmerge`, to those
        that are left.
        """
        check_tokens(tokens, self.spec, self)
        if self.reducer is not None:
            return self._reduced(self.reducer, tokens)
        key_bias = bias_by_weight(tokens, self.weighted)
        context, x = self.context(tokens.cells, key_bias), conditioned(tokens)
        for over_time, over_space in zip(self.time, self.space, strict=True):
            x = over_space(over_time(x, context), context)
        return tokens.replace(features=x)

    def _reduced(self, reducer: Reducer, tokens: TokenSet) -> TokenSet:
        """Attention and MLP run side by side, so that the reducer acts after a block."""
        flow, cells, x = begin(reducer, tokens, self.weighted), tokens.cells, conditioned(tokens)
        context = self.context(cells, flow.key_bias)
        for i, (over_time, over_space) in enumerate(zip(self.time, self.space, strict=True)):
            acts, observed = reducer.acts(i), []
            for place in ("before", "between"):
                if place == "between":
                    y = over_space(over_time(x, context), context, observed)
                    x = flow.gated(x, y)
                if acts and reducer.place == place:
                    more: Any = {"rotate": context.rotate, "key_bias": context.key_bias}
                    more["observed"] = observed
                    x, flow, found = advance(reducer, flow, i, x, context.space, **more)
                    if found is not None:
                        cells = subset(cells, context.space, found)
                    context = self.context(cells, flow.key_bias)
        if self.unmerge:
            return flow.unmerged(tokens, x)
        return flow.reduced(tokens, x, cells)

    def context(self, cells: Cells, key_bias: Float[Tensor, " n"] | None = None) -> Context:
        """Computes groups, positions and segments once for all blocks."""
        if self.rope == "endpoint":
            rotate = endpoint_rotary(cells, self.head_dim)
        else:
            center = self.spec.position_center(cells)[:, 1:]
            rotate = rotary(center, common_shape(cells)[1:], self.head_dim, self.rope_base)
        time, space = time_groups(cells), frame_groups(cells)
        frames = Segments.of(space, cells.count) if self.by_frame else None
        return Context(time, space, rotate, cells.sample, cells.batch_size, frames, key_bias)


class TimeAttention(nn.Module):
    """Lets each cell attend to itself in other frames, and adds the result to the rows."""

    def __init__(
        self, dim: int, heads: int, causal: bool, norm: str, scale: float, drop_path: float
    ):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm = create_norm(norm, dim, heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm_q, self.norm_k = nn.LayerNorm(dim // heads), nn.LayerNorm(dim // heads)
        self.bias = RelativeBias(heads, bidirectional=not causal)
        self.out = nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), float(scale)))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """Adds attention over time to x."""
        qkv = self.qkv(self.norm(x, context.frames)).unflatten(-1, (self.heads, 3, -1))
        q, k, v = qkv.unbind(2)
        q, k = self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype)
        biases = {"bias": self.bias(context.time.max_seqlen), "key_bias": context.key_bias}
        out = attend(q, k, v, context.time, causal=self.causal, **biases)
        out = self.scale * self.out(out.flatten(1))
        return x + self.drop_path(out, context.sample, context.samples)


class ParallelSpace(nn.Module):
    """Adds attention inside the frame and a SwiGLU, both of the same norm, to the rows."""

    def __init__(self, dim: int, heads: int, norm: str, scale: float, drop_path: float):
        super().__init__()
        self.heads, self.dim = heads, dim
        self.norm = create_norm(norm, dim, heads)
        self.mlp_qkv = nn.Linear(dim, 7 * dim)
        self.norm_q, self.norm_k = nn.LayerNorm(dim // heads), nn.LayerNorm(dim // heads)
        self.out = nn.Linear(dim, dim, bias=False)
        self.down = nn.Linear(2 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), float(scale)))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "n d"], context: Context, observed: list[Tensor] | None = None
    ) -> Float[Tensor, "n d"]:
        """Adds attention and MLP to x; a list `observed` gets their input, queries and keys before
        rotation.
        """
        widths = 4 * self.dim, 3 * self.dim
        normed = self.norm(x, context.frames)
        mlp, qkv = self.mlp_qkv(normed).split(widths, -1)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(1)
        q, k = self.norm_q(q), self.norm_k(k)
        if observed is not None:
            observed += [normed, q, k]
        q, k = context.rotate(q), context.rotate(k)
        q, k = q.to(v.dtype), k.to(v.dtype)
        attended = attend(q, k, v, context.space, key_bias=context.key_bias)
        value, gate = mlp.chunk(2, -1)
        out = self.scale * (self.out(attended.flatten(1)) + self.down(F.silu(gate) * value))
        return x + self.drop_path(out, context.sample, context.samples)


class RelativeBias(nn.Module):
    """Learned score per head and bucket of the distance in time (T5; Raffel et al., Sec. 2.1).

    Args:
        heads: number of heads.
        bidirectional: give half of the buckets to later frames; otherwise these share bucket 0.
        buckets: number of buckets; in each direction, half of them are exact distances, the
            others grow logarithmically up to max_distance.
    """

    def __init__(self, heads: int, bidirectional: bool, buckets: int = 32, max_distance: int = 32):
        super().__init__()
        self.bidirectional, self.max_distance = bidirectional, max_distance
        self.table = nn.Embedding(buckets, heads)

    def forward(self, length: int) -> Float[Tensor, "h q k"]:
        """Bias of every query (rows) and key (columns) up to a length."""
        rank = torch.arange(length, device=self.table.weight.device)
        return self.table(self.bucket(rank - rank[:, None])).permute(2, 0, 1)

    def bucket(self, distance: Int64[Tensor, "q k"]) -> Int64[Tensor, "q k"]:
        """Looks up the bucket of key rank minus query rank."""
        buckets, first = self.table.num_embeddings, torch.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            first = (distance > 0) * buckets
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = buckets // 2
        growth = (distance.clamp(min=1) / exact).log() / math.log(self.max_distance / exact)
        far = (exact + growth * (buckets - exact)).long().clamp(max=buckets - 1)
        return first + torch.where(distance < exact, distance, far)


def endpoint_rotary(cells: Cells, head_dim: int) -> Rotary:
    """Rotary embedding of grid indices scaled to -1 to 1 per space axis, as in the authors' code.

    Each axis takes a quarter of the head, with frequencies from pi to 128 pi.

    Raises:
        ValueError: a head narrower than 8 channels.
    """
    layout = cells.layout
    assert isinstance(layout, GridLayout)
    pairs = head_dim // 8
    if pairs == 0:
        raise ValueError(f"rope 'endpoint' needs head_dim >= 8, got {head_dim}")
    frequency = torch.linspace(1, 128, pairs, device=cells.device) * math.pi
    angles = []
    for axis in range(1, cells.ndim + 1):
        place = (cells.center[:, axis] - layout.offset[axis]) / layout.pitch[axis]
        scaled = 2 * place.floor() / max(layout.grid[axis] - 1, 1) - 1
        angles.append(scaled[:, None].float() * frequency)
    turned = torch.cat(angles, 1)
    return Rotary(turned.cos(), turned.sin(), head_dim)
