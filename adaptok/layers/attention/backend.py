"""Back ends of attention, and the requests that they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adaptok.cells import Groups

HALF = (torch.float16, torch.bfloat16)


class Request(NamedTuple):
    """Everything that the choice of a back end depends on.

    Attributes:
        device: its type, such as "cuda".
        dtype: of queries, keys and values.
        head_dim: width of a head.
        known: the host knows the lengths of all groups.
        equal: all groups of queries have one known length, and so have those of keys.
        bias: a bias is added to the scores.
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    known: bool
    equal: bool
    bias: bool

    @classmethod
    def of(cls, q: Tensor, groups_q: Groups, groups_k: Groups, bias: Tensor | None) -> Request:
        """Describes what `attend` is asked to do with these arguments."""
        both = groups_q.lengths, groups_k.lengths
        known = None not in both
        equal = known and all(bool(n) and n.count(n[0]) == len(n) for n in both if n is not None)
        return cls(q.device.type, q.dtype, q.shape[2], known, equal, bias is not None)

    def __str__(self) -> str:
        lengths = "equal" if self.equal else "ragged" if self.known else "unknown"
        bias = "a bias" if self.bias else "no bias"
        return (
            f"{self.device}, {self.dtype}, head_dim {self.head_dim}, {lengths} lengths and {bias}"
        )


class Backend(NamedTuple):
    """One way to compute attention.

    Attributes:
        run: function of gathered rows ``(q, k, v, groups_q, groups_k, bias, causal, scale)``.
        needs: its requirements, in words.
        can: tells whether it can serve a request.
        missing: tells why it cannot run on this machine at all; None if it can.
    """

    run: Callable[..., Tensor]
    needs: str
    can: Callable[[Request], bool]
    missing: Callable[[], str | None] = lambda: None


def no_cuda() -> str | None:
    """Tells why nothing runs on CUDA here; None if CUDA works."""
    return None if torch.cuda.is_available() else "no CUDA device"


def check_tail(groups: Groups, rows: int) -> None:
    """Asserts on the device that the groups end at the last row, if the host does not know it.

    Kernels leave the gradient of rows beyond the last offset uninitialised, which would silently
    make all weights NaN. `attend` checks what the host knows; this neither copies nor waits.
    """
    if groups.lengths is None:
        torch._assert_async(groups.cu_seqlens[-1] == rows)  # type: ignore[attr-defined]


def zero_where_no_keys(out: Tensor, groups_q: Groups, groups_k: Groups) -> Tensor:
    """Zeroes the rows (n, h, e) of queries without keys, whatever a kernel returned for them."""
    if groups_k is groups_q:
        return out
    empty = groups_k.cu_seqlens.diff() == 0
    sizes = groups_q.cu_seqlens.diff().long()
    rows = empty.repeat_interleave(sizes, output_size=len(out))
    return out.masked_fill(rows[:, None, None], 0)
