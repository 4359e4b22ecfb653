"""One call for all attention, and the choice of what computes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from adaptok.cells import Groups
from adaptok.layers.attention import flex, packed, plain
from adaptok.layers.attention.backend import Backend, Request
from adaptok.registry import choice

BACKENDS: dict[str, Backend] = {
    "loop": plain.LOOP,
    "dense": plain.DENSE,
    "padded": plain.PADDED,
    "varlen": packed.VARLEN,
    "flash_attn": packed.FLASH_ATTN,
    "efficient": packed.EFFICIENT,
    "flex": flex.FLEX,
}
AUTO = "auto"
_forced = AUTO


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
        groups_k: groups of the keys, one per group of queries; default `groups_q`.
        bias: added to the scores, by rank of query and key inside their group; one for all heads
            or one per head.
        causal: hide the keys of higher rank from a query; for self-attention only.
        scale: default ``e ** -0.5``.

    Raises:
        ValueError: shapes or groups do not match, or a forced back end cannot serve the request.
    """
    keys = groups_q if groups_k is None else groups_k
    _check(q, k, v, groups_q, keys, bias, causal, groups_k is not None)
    name = choose(Request.of(q, groups_q, keys, bias))
    q, k, v = groups_q.gather(q), keys.gather(k), keys.gather(v)
    out = BACKENDS[name].run(q, k, v, groups_q, keys, bias, causal, scale)
    return groups_q.scatter(out)


def choose(request: Request) -> str:
    """Chooses the back end of `attend`, by name.

    Equal lengths are dense. Ragged ones take FlashAttention on CUDA in half precision, the
    memory-efficient kernel in float32. What neither can do (a bias, another device) loops over
    groups if the host knows them, and is padded if it does not, as in a compiled graph.

    Raises:
        ValueError: a forced back end cannot serve the request.
    """
    if _forced != AUTO:
        backend = BACKENDS[_forced]
        if not backend.can(request):
            raise ValueError(f"back end {_forced!r} needs {backend.needs}; got {request}")
        return _forced
    if request.equal:
        return "dense"
    fallback = "loop" if request.known else "padded"
    if request.device != "cuda" or request.bias:
        return fallback
    flash = packed.find_flash()
    order = ["varlen", "efficient"]
    if flash is not None and (flash.generation > 2 or BACKENDS["varlen"].missing()):
        # varlen runs FlashAttention 2, so an installed package goes first only if it is newer.
        order.insert(0, "flash_attn")
    for name in order:
        if BACKENDS[name].can(request):
            return name
    return fallback


def usable() -> dict[str, str | None]:
    """Maps every back end to the reason why it cannot run on this machine; None if it can."""
    return {name: backend.missing() for name, backend in BACKENDS.items()}


@contextlib.contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Forces a back end inside the block ("auto" restores the choice); for tests and benchmarks.

    Raises:
        ValueError: an unknown name.
    """
    global _forced
    before, _forced = _forced, choice("attention back end", name, (AUTO, *BACKENDS))
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
