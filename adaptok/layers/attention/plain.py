"""Back ends made of torch's scaled_dot_product_attention: any device, dtype and bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptok.cells import Count, Groups
from adaptok.cells.lengths import common, number
from adaptok.layers.attention.backend import Backend, Options


def run_loop(q, k, v, groups_q, groups_k, options) -> Tensor:
    """Calls the kernel once per group."""
    # Without host lengths this reads the offsets back: free on the CPU, one sync on an accelerator.
    lengths_q = groups_q.lengths or tuple(groups_q.cu_seqlens.diff().tolist())
    lengths_k = groups_k.lengths or tuple(groups_k.cu_seqlens.diff().tolist())
    lengths = (lengths_q, lengths_k, lengths_k)
    parts = [
        x.transpose(0, 1)[None].split(each, dim=2)  # (1, h, n, e)
        for x, each in zip((q, k, v), lengths, strict=True)
    ]
    own: list[Tensor | None] = [None] * len(lengths_k)
    if options.key_bias is not None:
        own = [part[None, None, None] for part in options.key_bias.split(lengths_k)]
    rows = zip(*parts, own, strict=True)
    out = [_sdpa(q, k, v, one, options) for q, k, v, one in rows]
    return torch.cat(out, 2)[0].transpose(0, 1) if out else q.new_zeros(*q.shape[:2], v.shape[2])


def run_dense(q, k, v, groups_q, groups_k, options) -> Tensor:
    """Calls the kernel once for all groups, which have one length."""
    lengths = (groups_q.lengths, groups_k.lengths, groups_k.lengths)
    grids = [(number(each), common(each)) for each in lengths]
    q, k, v = (x.unflatten(0, g).transpose(1, 2) for x, g in zip((q, k, v), grids, strict=True))
    own = options.key_bias
    if own is not None:
        own = own.unflatten(0, grids[1])[:, None, None]  # (g, 1, 1, m)
    out = _sdpa(q, k, v, own, options)  # (g, h, m, e)
    return out.transpose(1, 2).flatten(0, 1)


def run_padded(q, k, v, groups_q, groups_k, options) -> Tensor:
    """Pads groups to the longest and calls the kernel once; the host knows all shapes."""
    slots_q, _ = _slots(groups_q, q.shape[0])
    slots_k, real = _slots(groups_k, k.shape[0])
    longest_q, longest_k = groups_q.max_seqlen, groups_k.max_seqlen
    if longest_q == 0 or longest_k == 0:
        return q.new_zeros(*q.shape[:2], v.shape[2])

    # A group without keys sees its first slot, which is zero, so that no softmax is empty.
    first = torch.arange(longest_k, device=q.device) == 0
    mask = (real | first)[:, None, None]  # (g, 1, 1, m)
    if options.causal:
        mask = mask & torch.ones(longest_q, longest_k, dtype=torch.bool, device=q.device).tril()
    total = _total_bias(q, options, longest_q, longest_k)
    if options.key_bias is not None:
        own = _spread(options.key_bias[:, None, None], slots_k, real.shape[0], longest_k)
        own = own.transpose(2, 3).to(q.dtype)  # (g, 1, 1, m)
        total = own if total is None else total + own
    if total is not None:
        mask = total.masked_fill(~mask, -torch.inf)
    q = _spread(q, slots_q, real.shape[0], longest_q)
    k, v = (_spread(x, slots_k, real.shape[0], longest_k) for x in (k, v))
    out = _kernel(q, k, v, mask, options)
    return out.transpose(1, 2).flatten(0, 1)[slots_q]


def _spread(x: Tensor, slots: Tensor, groups: Count, longest: int) -> Tensor:
    """Spreads (n, h, e) over (g, h, m, e), zero in slots without a row."""
    dense = x.new_zeros(groups * longest, *x.shape[1:]).index_copy(0, slots, x)
    return dense.unflatten(0, (groups, longest)).transpose(1, 2)


def _slots(groups: Groups, rows: Count) -> tuple[Tensor, Tensor]:
    """Slot of each packed row in the padded layout, and which slots hold a row (g, m)."""
    lengths = groups.cu_seqlens.diff()
    real = torch.arange(groups.max_seqlen, device=lengths.device) < lengths[:, None]
    return groups.slots(rows), real


def _sdpa(q, k, v, own, options: Options) -> Tensor:
    """(g, h, m, e) in and out, `own` is the bias per key (g, 1, 1, m); no keys give zeros."""
    nq, nk = q.shape[2], k.shape[2]
    if nk == 0 or nq == 0:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    mask = _total_bias(q, options, nq, nk)
    if own is not None:
        mask = own.to(q.dtype) if mask is None else mask + own.to(q.dtype)
    if mask is None:
        return _kernel(q, k, v, None, options, causal=options.causal)
    if options.causal:
        future = torch.ones(nq, nk, dtype=torch.bool, device=q.device).triu(1)
        mask = mask.masked_fill(future, -torch.inf)
    return _kernel(q, k, v, mask, options)


def _total_bias(q: Tensor, options: Options, nq: int, nk: int) -> Tensor | None:
    return None if options.bias is None else options.bias[:, :nq, :nk].to(q.dtype)


def _kernel(q, k, v, mask, options: Options, *, causal: bool = False) -> Tensor:
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=options.dropout,
        is_causal=causal,
        scale=options.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def run_math(q, k, v, groups_q, groups_k, options) -> Tensor:
    """`padded` by matrix products and a softmax, whose derivatives have derivatives."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        return run_padded(q, k, v, groups_q, groups_k, options)


LOOP = Backend(run_loop, "nothing", lambda _: True)
DENSE = Backend(run_dense, "groups of one length, known to the host", lambda r: r.equal)
PADDED = Backend(run_padded, "nothing", lambda _: True)
MATH = Backend(run_math, "nothing", lambda _: True)
