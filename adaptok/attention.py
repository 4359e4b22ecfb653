"""Attention over groups of packed rows: the one place that knows attention kernels.

Back ends:
    loop: scaled_dot_product_attention per group. The reference: any device, dtype and mask.
    dense: groups of one length, one reshape, one kernel call.
    padded: groups padded to the longest, with a mask; static shapes and no synchronisation where
        the host does not know the lengths, as in a compiled graph.
    varlen: torch.nn.attention.varlen (FlashAttention) for ragged groups on CUDA in half precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from adaptok.cells import Groups

BACKENDS = ("auto", "loop", "dense", "padded", "varlen")
_forced = "auto"


def attend(
    q: Float[Tensor, "nq h e"],
    k: Float[Tensor, "nk h e"],
    v: Float[Tensor, "nk h e"],
    groups_q: Groups,
    groups_k: Groups | None = None,
    *,
    bias: Float[Tensor, "#h max_q max_k"] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "nq h e"]:
    """Softmax attention of each row with the rows of its own group.

    A query whose group has no keys gets zeros.

    Args:
        groups_k: groups of the keys, as many as of the queries; default `groups_q`.
        bias: added to the scores, by rank of query and key inside their group; one for all heads
            or one per head.
        causal: a query sees keys of rank up to its own; for self-attention only.
        scale: default ``e ** -0.5``.

    Raises:
        ValueError: shapes or groups do not match, or a forced back end cannot do what is asked.
    """
    keys = groups_q if groups_k is None else groups_k
    _check(q, k, v, groups_q, keys, bias, causal, groups_k is not None)
    backend = _choose(q, groups_q, keys, bias)
    q, k, v = groups_q.gather(q), keys.gather(k), keys.gather(v)
    if backend == "dense":
        out = _dense(q, k, v, groups_q, keys, bias, causal, scale)
    elif backend == "varlen":
        out = _varlen(q, k, v, groups_q, keys, causal, scale)
    elif backend == "padded":
        out = _padded(q, k, v, groups_q, keys, bias, causal, scale)
    else:
        out = _loop(q, k, v, groups_q, keys, bias, causal, scale)
    return groups_q.scatter(out)


@contextlib.contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Forces a back end inside the block ("auto" restores the choice); for tests and benchmarks."""
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"unknown attention back end {name!r}; accepted: {', '.join(BACKENDS)}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def _check(q, k, v, groups_q, groups_k, bias, causal, cross) -> None:
    if q.ndim != 3 or k.shape != v.shape or q.shape[1:] != k.shape[1:]:
        shapes = [tuple(x.shape) for x in (q, k, v)]
        raise ValueError(f"attend takes packed (n, heads, head_dim) q, k, v; got {shapes}")
    if groups_q.cu_seqlens.shape != groups_k.cu_seqlens.shape:
        counts = groups_q.cu_seqlens.shape[0] - 1, groups_k.cu_seqlens.shape[0] - 1
        raise ValueError(f"queries have {counts[0]} groups and keys have {counts[1]}")
    for rows, groups in ((len(q), groups_q), (len(k), groups_k)):
        known = groups.lengths is not None  # else asking would sync
        covered = sum(groups.lengths) if known else rows
        if covered != rows or (groups.order is not None and len(groups.order) != rows):
            raise ValueError(f"the groups do not cover the {rows} rows given, each exactly once")
    if causal and cross:
        raise ValueError("causal attention is for self-attention: leave groups_k out")
    if bias is not None:
        need = (q.shape[1], groups_q.max_seqlen, groups_k.max_seqlen)
        fits = bias.ndim == 3 and bias.shape[0] in (1, need[0])
        if not fits or bias.shape[1] < need[1] or bias.shape[2] < need[2]:
            raise ValueError(f"bias must cover (heads, max_q, max_k) = {need}: {tuple(bias.shape)}")


def _equal(groups: Groups) -> bool:
    lengths = groups.lengths
    return bool(lengths) and lengths.count(lengths[0]) == len(lengths)


def _choose(q: Tensor, groups_q: Groups, groups_k: Groups, bias: Tensor | None) -> str:
    equal = _equal(groups_q) and _equal(groups_k)
    head_dim = q.shape[2]
    half = q.dtype in (torch.float16, torch.bfloat16)
    varlen = q.is_cuda and half and bias is None and head_dim % 8 == 0 and head_dim <= 256
    if _forced == "auto":
        known = groups_q.lengths is not None and groups_k.lengths is not None
        return "dense" if equal else "varlen" if varlen else "loop" if known else "padded"
    if _forced == "dense" and not equal:
        raise ValueError("back end 'dense' needs groups of one length, known to the host")
    if _forced == "varlen" and not varlen:
        raise ValueError(
            "back end 'varlen' needs CUDA, float16 or bfloat16, head_dim <= 256 divisible by 8 and "
            f"no bias; got {q.device.type}, {q.dtype}, head_dim {head_dim}, bias {bias is not None}"
        )
    return _forced


def _dense(q, k, v, groups_q, groups_k, bias, causal, scale) -> Tensor:
    lengths = (groups_q.lengths, groups_k.lengths, groups_k.lengths)
    grids = [(len(length), length[0]) for length in lengths]
    q, k, v = (x.unflatten(0, g).transpose(1, 2) for x, g in zip((q, k, v), grids, strict=True))
    out = _sdpa(q, k, v, bias=bias, causal=causal, scale=scale)  # (g, h, m, e)
    return out.transpose(1, 2).flatten(0, 1)


def _loop(q, k, v, groups_q, groups_k, bias, causal, scale) -> Tensor:
    # Without host lengths this reads the offsets back: free on the CPU, one sync on an accelerator.
    lengths_q = groups_q.lengths or tuple(groups_q.cu_seqlens.diff().tolist())
    lengths_k = groups_k.lengths or tuple(groups_k.cu_seqlens.diff().tolist())
    heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]  # (1, h, n, e)
    lengths = (lengths_q, lengths_k, lengths_k)
    parts = [x.split(each, dim=2) for x, each in zip(heads_first, lengths, strict=True)]
    out = [_sdpa(*qkv, bias=bias, causal=causal, scale=scale) for qkv in zip(*parts, strict=True)]
    return torch.cat(out, 2)[0].transpose(0, 1) if out else q


def _padded(q, k, v, groups_q, groups_k, bias, causal, scale) -> Tensor:
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
    """(n, h, e) to (g, h, m, e), zero where there is no row."""
    dense = x.new_zeros(groups * longest, *x.shape[1:]).index_copy(0, slots, x)
    return dense.unflatten(0, (groups, longest)).transpose(1, 2)


def _slots(groups: Groups, rows: int) -> tuple[Tensor, Tensor]:
    """Padded position of each packed row, and which padded positions are rows (g, m)."""
    starts, lengths = groups.cu_seqlens[:-1].long(), groups.cu_seqlens.diff()
    group = groups.packed.ids(rows)
    rank = torch.arange(rows, device=starts.device) - starts[group]
    real = torch.arange(groups.max_seqlen, device=starts.device) < lengths[:, None]
    return group * groups.max_seqlen + rank, real


def _sdpa(q, k, v, *, bias, causal, scale) -> Tensor:
    """(g, h, m, e) in and out; no keys give zeros."""
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


def _varlen(q, k, v, groups_q, groups_k, causal, scale) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # Rows beyond the last offset would get uninitialised gradients; Cells and Groups end at n.
    offsets = groups_q.cu_seqlens, groups_k.cu_seqlens
    longest = groups_q.max_seqlen, groups_k.max_seqlen
    options = {} if scale is None else {"scale": scale}
    if causal:
        options["window_size"] = (-1, 0)
    out = varlen_attn(q, k, v, *offsets, *longest, **options)
    assert isinstance(out, Tensor)
    return out
