"""Back ends made of torch's scaled_dot_product_attention: any device, dtype and bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptok.cells import Groups
from adaptok.layers.attention.backend import Backend


def run_loop(q, k, v, groups_q, groups_k, bias, causal, scale) -> Tensor:
    """Calls the kernel once per group."""
    # Without host lengths this reads the offsets back: free on the CPU, one sync on an accelerator.
    lengths_q = groups_q.lengths or tuple(groups_q.cu_seqlens.diff().tolist())
    lengths_k = groups_k.lengths or tuple(groups_k.cu_seqlens.diff().tolist())
    heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]  # (1, h, n, e)
    lengths = (lengths_q, lengths_k, lengths_k)
    parts = [x.split(each, dim=2) for x, each in zip(heads_first, lengths, strict=True)]
    out = [_sdpa(*qkv, bias=bias, causal=causal, scale=scale) for qkv in zip(*parts, strict=True)]
    return torch.cat(out, 2)[0].transpose(0, 1) if out else q


def run_dense(q, k, v, groups_q, groups_k, bias, causal, scale) -> Tensor:
    """Calls the kernel once for all groups, which have one length."""
    lengths = (groups_q.lengths, groups_k.lengths, groups_k.lengths)
    grids = [(len(length), length[0]) for length in lengths]
    q, k, v = (x.unflatten(0, g).transpose(1, 2) for x, g in zip((q, k, v), grids, strict=True))
    out = _sdpa(q, k, v, bias=bias, causal=causal, scale=scale)  # (g, h, m, e)
    return out.transpose(1, 2).flatten(0, 1)


def run_padded(q, k, v, groups_q, groups_k, bias, causal, scale) -> Tensor:
    """Pads groups to the longest and calls the kernel once; the host knows all shapes."""
    slots_q, _ = _slots(groups_q, len(q))
    slots_k, real = _slots(groups_k, len(k))
    longest_q, longest_k = groups_q.max_seqlen, groups_k.max_seqlen
    if longest_q == 0 or longest_k == 0:
        return torch.zeros_like(q)

    # A group without keys sees its first slot, which is zero, so that no softmax is empty.
    first = torch.arange(longest_k, device=q.device) == 0
    mask = (real | first)[:, None, None]  # (g, 1, 1, m)
    if causal:
        mask = mask & torch.ones(longest_q, longest_k, dtype=torch.bool, device=q.device).tril()
    if bias is not None:
        mask = bias[:, :longest_q, :longest_k].to(q.dtype).masked_fill(~mask, -torch.inf)
    q = _spread(q, slots_q, len(real), longest_q)
    k, v = (_spread(x, slots_k, len(real), longest_k) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).flatten(0, 1)[slots_q]


def _spread(x: Tensor, slots: Tensor, groups: int, longest: int) -> Tensor:
    """Spreads (n, h, e) over (g, h, m, e), zero in slots without a row."""
    dense = x.new_zeros(groups * longest, *x.shape[1:]).index_copy(0, slots, x)
    return dense.unflatten(0, (groups, longest)).transpose(1, 2)


def _slots(groups: Groups, rows: int) -> tuple[Tensor, Tensor]:
    """Slot of each packed row in the padded layout, and which slots hold a row (g, m)."""
    starts, lengths = groups.cu_seqlens[:-1].long(), groups.cu_seqlens.diff()
    group = groups.packed.ids(rows)
    rank = torch.arange(rows, device=starts.device) - starts[group]
    real = torch.arange(groups.max_seqlen, device=starts.device) < lengths[:, None]
    return group * groups.max_seqlen + rank, real


def _sdpa(q, k, v, *, bias, causal, scale) -> Tensor:
    """Attention of (g, h, m, e); zeros without keys."""
    nq, nk = q.shape[2], k.shape[2]
    if nk == 0 or nq == 0:
        return torch.zeros_like(q)
    mask = None
    if bias is not None:
        mask = bias[:, :nq, :nk].to(q.dtype)
        if causal:
            future = torch.ones(nq, nk, dtype=torch.bool, device=q.device).triu(1)
            mask, causal = mask.masked_fill(future, -torch.inf), False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


LOOP = Backend(run_loop, "nothing", lambda _: True)
DENSE = Backend(run_dense, "groups of one length, known to the host", lambda r: r.equal)
PADDED = Backend(run_padded, "nothing", lambda _: True)
