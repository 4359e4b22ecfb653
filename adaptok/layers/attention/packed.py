"""Back ends that take packed rows and offsets: FlashAttention and its relatives."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from adaptok.layers.attention.backend import (
    HALF,
    Backend,
    Request,
    check_tails,
    fold_key_bias,
    no_cuda,
    zero_where_no_keys,
)
from adaptok.utils.constants import constant_in_graphs


def run_varlen(q, k, v, groups_q, groups_k, options) -> Tensor:
    """Runs torch.nn.attention.varlen."""
    from torch.nn.attention.varlen import varlen_attn

    check_tails(groups_q, groups_k, len(q), len(k))
    offsets = groups_q.cu_seqlens, groups_k.cu_seqlens
    longest = groups_q.max_seqlen, groups_k.max_seqlen
    width = v.shape[2]
    q, k, v, scale = fold_key_bias(q, k, v, options)
    window = (-1, 0) if options.causal else (-1, -1)
    out = varlen_attn(q, k, v, *offsets, *longest, scale=scale, window_size=window)
    assert isinstance(out, Tensor)
    return zero_where_no_keys(out[..., :width], groups_q, groups_k)


@constant_in_graphs
def _varlen_lacks() -> str | None:
    """Tells which arguments torch's own varlen_attn lacks; None if it has all."""
    missing = {"scale", "window_size"} - _varlen_keywords()  # the first versions had others
    return f"varlen_attn of torch {torch.__version__} has no {sorted(missing)}" if missing else None


@functools.cache
def _varlen_keywords() -> frozenset[str]:
    try:
        varlen_attn = import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


@constant_in_graphs
def _capability() -> int:
    """Major compute capability of the GPU; 0 without one."""
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0


def _before_ampere() -> str | None:
    """Tells that the GPU is too old for FlashAttention and bfloat16; None if it is not."""
    major = _capability()
    return f"a GPU of compute capability {major}, below 8" if 0 < major < 8 else None


def _no_varlen() -> str | None:
    return no_cuda() or _before_ampere() or _varlen_lacks()


class Flash(NamedTuple):
    """An installed flash-attn package."""

    generation: int
    varlen: Callable


@functools.cache
def find_flash() -> Flash | None:
    """Finds the newest flash-attn with kernels for this device; None without one."""
    if not torch.cuda.is_available():
        return None
    major = torch.cuda.get_device_capability()[0]
    homes = {4: "flash_attn.cute", 3: "flash_attn_interface", 2: "flash_attn"}
    made_for = {4: 9 <= major <= 11, 3: major == 9, 2: major >= 8}
    for generation, home in homes.items():
        try:
            found = getattr(import_module(home), "flash_attn_varlen_func", None)
        except Exception:  # a broken build may raise anything
            found = None
        if found is not None and made_for[generation]:
            return Flash(generation, found)
    return None


@constant_in_graphs
def flash_generation() -> int:
    """The generation of flash-attn that is used here; 0 without one."""
    flash = find_flash()
    return 0 if flash is None else flash.generation


def _widest_of_flash() -> int:
    """Widest head that the installed flash-attn takes: 4 has no wider ones for Blackwell yet."""
    return 128 if _capability() >= 10 and flash_generation() == 4 else 256


def run_flash_attn(q, k, v, groups_q, groups_k, options) -> Tensor:
    """Runs flash_attn_varlen_func of the newest installed flash-attn package."""
    check_tails(groups_q, groups_k, len(q), len(k))
    flash = find_flash()
    assert flash is not None
    width = v.shape[2]
    q, k, v, scale = fold_key_bias(q, k, v, options)
    out = flash.varlen(
        q,
        k,
        v,
        cu_seqlens_q=groups_q.cu_seqlens,
        cu_seqlens_k=groups_k.cu_seqlens,
        max_seqlen_q=groups_q.max_seqlen,
        max_seqlen_k=groups_k.max_seqlen,
        softmax_scale=scale,
        causal=options.causal,
    )
    out = out[0] if isinstance(out, tuple) else out  # some versions add the log-sum-exp
    return zero_where_no_keys(out[..., :width], groups_q, groups_k)


def _no_flash() -> str | None:
    if no_cuda():
        return no_cuda()
    return None if find_flash() else "no flash-attn package with kernels for this device"


def run_efficient(q, k, v, groups_q, groups_k, options) -> Tensor:
    """Runs torch's memory-efficient attention on packed rows; the operator is private to torch."""
    check_tails(groups_q, groups_k, len(q), len(k))
    width = v.shape[2]
    # The kernel writes no gradient of queries without keys: that of the masking is zero for them.
    q = zero_where_no_keys(q, groups_q, groups_k)
    q, k, v, scale = fold_key_bias(q, k, v, options)
    # The backward pass refuses a bound above the number of rows.
    longest = min(groups_q.max_seqlen, len(q)), min(groups_k.max_seqlen, len(k))
    from_top_left = 1  # causal by rank within a group, not aligned to its last key
    out, *_ = torch.ops.aten._efficient_attention_forward(
        q[None],
        k[None],
        v[None],
        None,
        groups_q.cu_seqlens,
        groups_k.cu_seqlens,
        *longest,
        0.0,
        from_top_left if options.causal else 0,
        compute_log_sumexp=True,
        scale=scale,
    )
    return zero_where_no_keys(out[0][..., :width], groups_q, groups_k)


def _no_efficient() -> str | None:
    if not hasattr(torch.ops.aten, "_efficient_attention_forward"):
        return f"torch {torch.__version__} lacks _efficient_attention_forward"
    return no_cuda()


def _flash_can(request: Request, widest: int = 256) -> bool:
    fits = request.head_dim % 8 == 0 and request.head_dim + 8 * request.key_bias <= widest
    simple = fits and not (request.bias or request.wide or request.dropout)
    return request.device == "cuda" and request.dtype in HALF and simple


def _varlen_can(request: Request) -> bool:
    return _flash_can(request) and not (_before_ampere() or _varlen_lacks())


def _flash_attn_can(request: Request) -> bool:
    return flash_generation() > 0 and _flash_can(request, _widest_of_flash())


def _efficient_can(request: Request) -> bool:
    fits = request.head_dim % (8 if request.dtype in HALF else 4) == 0
    known = request.dtype in (torch.float16, torch.float32)
    known = known or (request.dtype == torch.bfloat16 and not _before_ampere())
    simple = not (request.bias or request.wide or request.dropout)
    return request.device == "cuda" and known and fits and simple


FLASH_NEEDS = (
    "CUDA of compute capability 8 or newer, float16 or bfloat16, head_dim <= 256 divisible by 8 "
    "(248 with a bias per key), values as wide as keys, no other bias and no dropout"
)
EFFICIENT_NEEDS = (
    "CUDA, float32 with head_dim divisible by 4 or half precision with one divisible by 8 "
    "(bfloat16: compute capability 8 or newer), values as wide as keys, no bias but per key and no "
    "dropout"
)
VARLEN = Backend(run_varlen, FLASH_NEEDS, _varlen_can, _no_varlen)
FLASH_ATTN = Backend(
    run_flash_attn,
    f"the package flash-attn, {FLASH_NEEDS}; FlashAttention 4 on Blackwell: head_dim <= 128 (120)",
    _flash_attn_can,
    _no_flash,
)
EFFICIENT = Backend(run_efficient, EFFICIENT_NEEDS, _efficient_can, _no_efficient)
