"""Attention among slices: soft groups of the rows of a sample."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from adaptok.cells import Groups, repeated
from adaptok.cells.lengths import offsets_of
from adaptok.layers.attention import attend
from adaptok.layers.blocks import head_width


class SliceAttention(nn.Module):
    """Rows are averaged into slices, these attend to one another, and rows read them back.

    Physics-attention (Wu et al., "Transolver", ICML 2024, Sec. 3.1): per head, row i belongs to
    slice g by ``w = softmax(W_s f_i / T)``, the token of a slice is
    ``sum_i w_ig v_i / (sum_i w_ig + 1e-5)``, and a row gets ``sum_g w_ig out_g``. The cost is
    linear in the rows.

    Args:
        dim: width, divisible by `heads`.
        heads: number of heads.
        slices: per head.

    Raises:
        ValueError: heads that do not divide dim.
    """

    def __init__(self, dim: int, heads: int, slices: int):
        super().__init__()
        width = head_width(dim, heads)
        self.heads, self.slices = heads, slices
        self.assign, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.slice = nn.Linear(width, slices)
        nn.init.orthogonal_(self.slice.weight)
        self.temperature = nn.Parameter(torch.full((heads, 1), 0.5))
        self.qkv = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "n d"],
        groups: Groups,
        rotate: None = None,
        *,
        segments: Any = None,
        key_bias: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Mixes the rows of each group.

        Args:
            key_bias: logarithm of what a row counts in the averages, such as that of its volume,
                which makes them quadratures.
        """
        value = self.value(x).unflatten(-1, (self.heads, -1))
        share = self.slice(self.assign(x).unflatten(-1, (self.heads, -1)))
        share = (share / self.temperature.clamp(min=0.01)).softmax(-1)  # (n, h, g)
        mass = share if key_bias is None else share * key_bias.exp()[:, None, None]
        mass = padded(mass, groups)  # (b, n, h, g)
        # Divided first: sums of values times areas may leave half precision.
        mass = (mass / (mass.sum(1, keepdim=True) + 1e-5)).to(value.dtype)
        mean = torch.einsum("bnhg,bnhc->bhgc", mass, padded(value, groups))
        mean = mean.to(value.dtype).transpose(1, 2).flatten(0, 1)  # (b g, h, c)
        lengths = repeated(self.slices, groups.cu_seqlens.shape[0] - 1)
        among = Groups(None, None, offsets_of(lengths, x.device), self.slices, lengths)
        q, k, v = (linear(mean) for linear in self.qkv)
        out = attend(q, k, v, among)
        out = out.unflatten(0, (-1, self.slices))  # (b, g, h, c)
        share = padded(share.to(out.dtype), groups)
        out = torch.einsum("bghc,bnhg->bnhc", out, share).flatten(0, 1)
        return self.out(groups.scatter(out[groups.slots(x.shape[0])].flatten(1)))


def padded(rows: Shaped[Tensor, "n ..."], groups: Groups) -> Shaped[Tensor, "g m ..."]:
    """Lays rows out group by group, zeros behind those that are shorter than the longest."""
    slots, count = groups.slots(rows.shape[0]), groups.cu_seqlens.shape[0] - 1
    dense = rows.new_zeros(count * groups.max_seqlen, *rows.shape[1:])
    return dense.index_copy(0, slots, groups.gather(rows)).unflatten(0, (count, -1))
