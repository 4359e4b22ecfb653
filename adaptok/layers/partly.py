"""A block for some of its rows: the others keep what they had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

from adaptok.cells import Count, Groups
from adaptok.cells.groups import sorted_groups
from adaptok.layers.blocks import AttentionBranch, Block
from adaptok.layers.positions import Rotary


class Kept(NamedTuple):
    """What a block computed of each row, when it last did.

    Attributes:
        x: its input.
        out: its output.
        k: key, after rotation.
        v: value.
    """

    x: Float[Tensor, "n d"]
    out: Float[Tensor, "n d"]
    k: Float[Tensor, "n h e"]
    v: Float[Tensor, "n h e"]

    def at(self, rows: Int64[Tensor, " m"]) -> Kept:
        """Takes rows."""
        return Kept(*(part[rows] for part in self))


def partly(
    layer: AttentionBranch,
    x: Float[Tensor, "n d"],
    active: Int64[Tensor, " m"] | None,
    kept: Kept | None,
    groups: Groups | Sequence[Groups],
    rotate: Rotary | None,
    sample: Int64[Tensor, " n"],
    samples: Count,
    key_bias: Float[Tensor, " n"] | None = None,
) -> Kept:
    """Computes some rows of a layer without instance norms; they attend to all rows of their
    groups, of which those that are not active have the keys and values that they had.

    Args:
        active: rows to compute, in order; None for all.
        kept: what there is of all rows, which is written to; None without `active`.
        groups: rows that attend to one another; several partitions are averaged.
        rotate: rotation of queries and keys.
        sample: that each row belongs to.
        samples: number of them.
        key_bias: added to the scores of each row as a key.

    Returns:
        Input, output, keys and values of all rows.
    """
    partitions = (groups,) if isinstance(groups, Groups) else groups
    pairs: list[tuple[Groups, Groups | None]] = [(each, None) for each in partitions]
    own = x
    if active is not None:
        pairs = [(_of_rows(each, active, len(x)), each) for each in partitions]
        own, sample = x[active], sample[active]
        rotate = None if rotate is None else rotate.rows(active)
    normal, attention = layer.norm_attention(own, None), layer.attention
    q, (k, v) = attention.queries(normal), attention.keys_values(normal)
    if rotate is not None:
        q, k = rotate(q), rotate(k)
    keys, values = k, v
    if active is not None and kept is not None:
        keys, values = _written(kept.k, active, k), _written(kept.v, active, v)
    out = attention.mixed(q, keys, values, pairs, key_bias=key_bias)
    out = layer.added(own, out, layer.scale_attention, sample, samples)
    if isinstance(layer, Block):
        out = layer.fed(out, sample, samples)
    if active is not None and kept is not None:
        own, out = _written(kept.x, active, own), _written(kept.out, active, out)
    return Kept(own, out, keys, values)


def _written(whole: Tensor, rows: Tensor, part: Tensor) -> Tensor:
    return whole.to(part.dtype).index_copy_(0, rows, part)


def _of_rows(groups: Groups, rows: Int64[Tensor, " m"], count: int) -> Groups:
    """Groups of some rows, as many as there are of all; some may be empty."""
    ids = groups.ids(count)[rows]
    return sorted_groups(ids, groups.cu_seqlens.shape[0] - 1, groups.max_seqlen)
