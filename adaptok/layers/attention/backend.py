"""Back ends of attention, and the requests that they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adaptok.cells import Groups
from adaptok.cells.lengths import common, distinct

HALF = (torch.float16, torch.bfloat16)


class Options(NamedTuple):
    """What `attend` does beside softmax(scale q k) v; see its arguments.

    Attributes:
        bias: (h or 1, max_q, max_k) by rank inside the group, or None.
        key_bias: (nk,) per key, in the order of the gathered rows, or None.
        causal: hide keys of higher rank.
        scale: of the scores; None is ``e ** -0.5``.
        dropout: probability of dropping a weight.
    """

    bias: Tensor | None = None
    key_bias: Tensor | None = None
    causal: bool = False
    scale: float | None = None
    dropout: float = 0.0


class Request(NamedTuple):
    """Everything that the choice of a back end depends on.

    Attributes:
        device: its type, such as "cuda".
        dtype: of queries, keys and values.
        head_dim: width of a head.
        known: the host knows the lengths of all groups.
        equal: all groups of queries have one known length, and so have those of keys.
        bias: a bias by rank is added to the scores.
        key_bias: a bias per key is added to the scores.
        value_dim: width of a head of values; None is that of keys.
        dropout: weights are dropped at random.
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    known: bool
    equal: bool
    bias: bool
    key_bias: bool = False
    value_dim: int | None = None
    dropout: bool = False

    @property
    def wide(self) -> bool:
        """Whether values are not as wide as keys."""
        return self.value_dim is not None and self.value_dim != self.head_dim

    @classmethod
    def of(
        cls,
        q: Tensor,
        groups_q: Groups,
        groups_k: Groups,
        options: Options = Options(),  # noqa: B008, immutable
        v: Tensor | None = None,
    ) -> Request:
        """Describes what `attend` is asked to do with these arguments."""
        both = groups_q.lengths, groups_k.lengths
        known = None not in both
        equal = None not in [common(lengths) for lengths in both]
        width = None if v is None else v.shape[2]
        biases = options.bias is not None, options.key_bias is not None
        lengths, more = (known, equal), (width, options.dropout > 0)
        return cls(q.device.type, q.dtype, q.shape[2], *lengths, *biases, *more)

    def __str__(self) -> str:
        lengths = "equal" if self.equal else "ragged" if self.known else "unknown"
        text = f"{self.device}, {self.dtype}, head_dim {self.head_dim}, {lengths} lengths"
        text += ", a bias" * self.bias + ", a bias per key" * self.key_bias
        return text + f", values {self.value_dim} wide" * self.wide + ", dropout" * self.dropout


class Backend(NamedTuple):
    """One way to compute attention.

    Attributes:
        run: function of gathered rows ``(q, k, v, groups_q, groups_k, options)``.
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


def fold_key_bias(
    q: Tensor, k: Tensor, v: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Queries and keys whose products contain the bias per key, for kernels that know no bias, and
    one head of keys per head of queries.

    Eight more channels (kernels want multiples of eight): the query has 1 / scale in two of them,
    the key the bias and what its rounding to the dtype of the keys lost. Values get zeros.
    """
    scale = q.shape[2] ** -0.5 if options.scale is None else options.scale
    if q.shape[1] != k.shape[1]:  # grouped queries
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    if options.key_bias is None:
        return q, k, v, scale
    high = options.key_bias.to(k.dtype)
    low = (options.key_bias - high).nan_to_num(0.0).to(k.dtype)  # -inf hides a key
    extra = torch.stack([high, low], -1)[:, None].expand(-1, k.shape[1], -1)
    k = torch.cat([k, extra, k.new_zeros(*k.shape[:2], 6)], -1)
    ones = q.new_full((*q.shape[:2], 2), 1 / scale)
    q = torch.cat([q, ones, q.new_zeros(*q.shape[:2], 6)], -1)
    return q, k, torch.nn.functional.pad(v, (0, 8)), scale


def check_tail(groups: Groups, rows: int) -> None:
    """Asserts on the device that the groups end at the last row, if the host does not know it.

    Kernels leave the gradient of rows beyond the last offset uninitialised, which would silently
    make all weights NaN. `attend` checks what the host knows; this neither copies nor waits.
    """
    if groups.lengths is None:
        torch._assert_async(groups.cu_seqlens[-1] == rows)  # type: ignore[attr-defined]


def check_tails(groups_q: Groups, groups_k: Groups, rows_q: int, rows_k: int) -> None:
    """Asserts the same of queries and keys."""
    check_tail(groups_q, rows_q)
    if groups_k is not groups_q:
        check_tail(groups_k, rows_k)


def zero_where_no_keys(rows: Tensor, groups_q: Groups, groups_k: Groups) -> Tensor:
    """Zeroes the rows (n, h, e) of queries without keys, and their gradient, whatever a kernel
    returned for them; waits for no device.
    """
    lengths = groups_k.lengths
    if groups_k is groups_q or (lengths is not None and 0 not in distinct(lengths)):
        return rows
    empty = groups_k.cu_seqlens.diff() == 0
    sizes = groups_q.cu_seqlens.diff().long()
    alone = empty.repeat_interleave(sizes, output_size=rows.shape[0])
    return rows.masked_fill(alone[:, None, None], 0)
