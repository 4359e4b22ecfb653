"""One call for all attention, and the choice of what computes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.cells import Groups
from adaptok.cells.lengths import total
from adaptok.layers.attention import flex, packed, plain
from adaptok.layers.attention.backend import Backend, Options, Request
from adaptok.registry import choice
from adaptok.utils.arguments import Finite, Rate, check_arguments
from adaptok.utils.precision import check_one_dtype

BACKENDS: dict[str, Backend] = {
    "loop": plain.LOOP,
    "dense": plain.DENSE,
    "padded": plain.PADDED,
    "math": plain.MATH,
    "varlen": packed.VARLEN,
    "flash_attn": packed.FLASH_ATTN,
    "efficient": packed.EFFICIENT,
    "flex": flex.FLEX,
}
AUTO = "auto"
_forced = AUTO


def attend(
    q: Float[Tensor, "nq h e"],
    k: Float[Tensor, "nk hk e"],
    v: Float[Tensor, "nk hk f"],
    groups_q: Groups,
    groups_k: Groups | None = None,
    *,
    bias: Float[Tensor, "#h max_q max_k"] | None = None,
    key_bias: Float[Tensor, " nk"] | None = None,
    causal: bool = False,
    scale: Finite | None = None,
    dropout: Rate = 0.0,
) -> Float[Tensor, "nq h f"]:
    """Softmax attention of each row with the rows of its own group.

    ``softmax(scale q k^T + bias + key_bias) v`` per head. A query whose group has no keys gets
    zeros.

    Args:
        q: queries.
        k: keys; h is a multiple of hk, and head i attends to head ``i // (h // hk)`` of the keys
            (grouped queries).
        v: values, of any width f.
        groups_q: groups of the queries.
        groups_k: groups of the keys, one per group of queries; default `groups_q`.
        bias: added to the scores, by rank of query and key inside their group; one for all heads
            or one per head.
        key_bias: added to the scores of a key in every head, such as the log of what a merged
            token stands for; -inf hides a key.
        causal: hide the keys of higher rank from a query; for self-attention only.
        scale: default ``e ** -0.5``.
        dropout: probability of dropping a weight; what stays is scaled up. Pass 0 in evaluation.

    Raises:
        ValueError: shapes, dtypes or groups do not match, or a forced back end cannot serve the
            request.
    """
    keys = groups_q if groups_k is None else groups_k
    options = Options(bias, key_bias, causal, scale, dropout)
    _check(q, k, v, groups_q, keys, options, groups_k is not None)
    options = options._replace(causal=bool(causal))  # numpy has bools of its own
    name = choose(Request.of(q, groups_q, keys, options, v))
    q, k, v = groups_q.gather(q), keys.gather(k), keys.gather(v)
    if key_bias is not None:
        options = options._replace(key_bias=keys.gather(key_bias))
    out = BACKENDS[name].run(q, k, v, groups_q, keys, options)
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
    if request.device != "cuda":
        return fallback
    generation = packed.flash_generation()
    order = ["varlen", "efficient"]
    if generation > 2 or (generation and BACKENDS["varlen"].missing()):
        # varlen runs FlashAttention 2, so an installed package goes first only if it is newer.
        order.insert(0, "flash_attn")
    for name in order:
        if BACKENDS[name].can(request):
            return name
    return fallback


def automatic() -> bool:
    """Whether `attend` chooses its back end, rather than `attention_backend` around the call."""
    return _forced == AUTO


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


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups_q: Groups,
    groups_k: Groups,
    options: Options,
    cross: bool,
) -> None:
    if not all(isinstance(x, Tensor) for x in (q, k, v)):
        given = ", ".join(type(x).__name__ for x in (q, k, v))
        raise ValueError(f"attend takes tensors q, k, v; got {given}")
    if not all(isinstance(each, Groups) for each in (groups_q, groups_k)):
        raise ValueError(
            "attend takes groups_q and groups_k as `Groups`: those of `Cells.groups`, or "
            "adaptok.Groups.from_lengths(lengths, device) of rows that lie group after group"
        )
    if not torch.compiler.is_compiling():
        check_arguments(attend, {**options._asdict()})
    shapes = [tuple(x.shape) for x in (q, k, v)]
    if {len(shape) for shape in shapes} != {3}:
        raise ValueError(f"attend takes packed (n, heads, head_dim) q, k, v; got {shapes}")
    if k.shape[:2] != v.shape[:2] or q.shape[2] != k.shape[2] or q.shape[1] % max(k.shape[1], 1):
        raise ValueError(
            "attend takes packed (n, heads, head_dim) q, k, v: keys and values with the same rows "
            "and heads, queries with the width of keys and a multiple of their heads; got shapes "
            f"{shapes}"
        )
    check_one_dtype(q=q, k=k, v=v)
    if groups_q.cu_seqlens.shape != groups_k.cu_seqlens.shape:
        counts = groups_q.cu_seqlens.shape[0] - 1, groups_k.cu_seqlens.shape[0] - 1
        raise ValueError(f"queries have {counts[0]} groups and keys have {counts[1]}")
    for rows, groups in ((q.shape[0], groups_q), (k.shape[0], groups_k)):
        # Without host lengths asking would sync.
        covered = rows if groups.lengths is None else total(groups.lengths)
        if covered != rows or (groups.order is not None and groups.order.shape[0] != rows):
            raise ValueError(f"the groups do not cover the {rows} rows given, each exactly once")
    if options.causal and cross:
        raise ValueError("causal attention is for self-attention: leave groups_k out")
    if options.key_bias is not None and options.key_bias.shape != k.shape[:1]:
        given = tuple(options.key_bias.shape)
        raise ValueError(f"key_bias has one number per key, ({len(k)},), got {given}")
    if options.bias is not None:
        bias, need = options.bias, (q.shape[1], groups_q.max_seqlen, groups_k.max_seqlen)
        fits = bias.ndim == 3 and bias.shape[0] in (1, need[0])
        if not fits or bias.shape[1] < need[1] or bias.shape[2] < need[2]:
            given = tuple(bias.shape)
            raise ValueError(f"bias must cover (heads, max_q, max_k) = {need}, got {given}")
