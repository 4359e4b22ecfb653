"""FlexAttention over packed rows: for biases on ragged groups, without padding.

The block mask is computed from the offsets, because comparing all pairs of rows would cost more
than the attention. torch's module is imported on first use: it takes half as long to import as
torch itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adaptok.cells import Groups
from adaptok.layers.attention.backend import HALF, Backend, Options, Request, check_tails

BLOCK = 128  # rows of a block of the mask
NARROWEST = 16  # heads that the kernel for CUDA takes


def run_flex(q, k, v, groups_q, groups_k, options) -> Tensor:
    """Compiled on CUDA; on the CPU the eager reference, which holds all pairs of rows."""
    from torch.nn.attention.flex_attention import flex_attention

    if len(q) == 0 or len(k) == 0:
        return q.new_zeros(*q.shape[:2], v.shape[2])
    check_tails(groups_q, groups_k, len(q), len(k))
    mask = block_mask(groups_q, groups_k, len(q), len(k), options.causal)
    score = None
    if options.bias is not None or options.key_bias is not None:
        score = score_with(options, groups_q, groups_k, len(q), len(k))
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, h, n, e)
    run = _compiled() if q.is_cuda else flex_attention
    more = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    out = run(*heads_first, score_mod=score, block_mask=mask, scale=options.scale, **more)
    assert isinstance(out, Tensor)
    return out[0].transpose(0, 1)


@functools.cache
def _compiled() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def block_mask(groups_q: Groups, groups_k: Groups, rows_q: int, rows_k: int, causal: bool) -> Any:
    """torch's ``BlockMask``: the blocks of keys that each block of queries needs, which are those
    between the groups at its ends.
    """
    from torch.nn.attention.flex_attention import BlockMask

    group_q, rank_q = _places(groups_q, rows_q)
    group_k, rank_k = _places(groups_k, rows_k)

    def sees(b, h, i, j):
        same = group_q[i] == group_k[j]
        return same & (rank_k[j] <= rank_q[i]) if causal else same

    starts, ends = groups_k.cu_seqlens[:-1], groups_k.cu_seqlens[1:]
    first = torch.arange(0, rows_q, BLOCK, device=group_q.device)
    last = (first + BLOCK - 1).clamp_max(rows_q - 1)
    # Blocks of keys [low, high), at least one: flex allows no empty row of the block mask, and the
    # mask inside a block hides what its queries must not see.
    low = (starts[group_q[first]] // BLOCK).long()
    high = ((ends[group_q[last]] + BLOCK - 1) // BLOCK).long()
    blocks = -(-rows_k // BLOCK)
    low = low.clamp_max(blocks - 1)
    count = (high - low).clamp_min(1)
    indices = (low[:, None] + torch.arange(blocks, device=low.device)) % blocks
    return BlockMask.from_kv_blocks(
        count.int()[None, None],
        indices.int()[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(rows_q, rows_k),
    )


def _places(groups: Groups, rows: int) -> tuple[Tensor, Tensor]:
    """Group, and rank within it, of each packed row."""
    group = groups.packed.ids(rows)
    return group, torch.arange(rows, device=group.device) - groups.cu_seqlens[:-1][group]


def score_with(
    options: Options, groups_q: Groups, groups_k: Groups, rows_q: int, rows_k: int
) -> Callable:
    """Function for flex that adds the biases to a score."""
    rank_q, rank_k = _places(groups_q, rows_q)[1], _places(groups_k, rows_k)[1]
    bias, key_bias = options.bias, options.key_bias
    one = bias is not None and bias.shape[0] == 1

    def score(value, b, h, i, j):
        # Rows of other groups are masked, but flex looks up their ranks too.
        if bias is not None:
            value = value + bias[0 if one else h, rank_q[i], rank_k[j]]
        return value if key_bias is None else value + key_bias[j]

    return score


def _can(request: Request) -> bool:
    if request.dropout:
        return False
    if request.device == "cpu":
        return True
    fits = min(request.head_dim, request.value_dim or request.head_dim) >= NARROWEST
    return request.device == "cuda" and request.dtype in (*HALF, torch.float32) and fits


FLEX = Backend(
    run_flex,
    f"CUDA in float32 or half precision, keys and values of head_dim >= {NARROWEST}, or the CPU; "
    "no dropout",
    _can,
)
