"""Options of timm's ``forward_intermediates``, for models whose tokens are no grid."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from jaxtyping import Float
from torch import Tensor

from adaptok.registry import choice


def chosen_blocks(indices: int | Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Returns which of `depth` blocks are meant, in ascending order, each once.

    Args:
        indices: how many of the last blocks, or their indices; None for all.

    Raises:
        ValueError: a block that does not exist, or none.
    """
    if indices is None:
        return tuple(range(depth))
    counted = isinstance(indices, Integral)
    if counted and not isinstance(indices, bool) and 0 < int(indices) <= depth:
        return tuple(range(depth - int(indices), depth))
    given = () if isinstance(indices, (int, Integral)) else tuple(indices)
    if not given or not all(-depth <= i < depth for i in given):
        raise ValueError(
            f"the model has {depth} blocks: give a number of the last ones from 1 to {depth}, or "
            f"indices from {-depth} to {depth - 1}, got {indices!r}"
        )
    return tuple(sorted({i % depth for i in given}))


def check_options(output_fmt: str, attn_mask: Any, is_causal: bool) -> None:
    """Raises ``ValueError`` for other formats, and for masks, which are for rows of patches in
    timm's layout.
    """
    choice("output_fmt", output_fmt, ("NCHW", "NLC"))
    if attn_mask is not None or is_causal:
        raise ValueError(
            "attn_mask and is_causal are for patches in raster order; the tokens of an adapted "
            "model are not laid out like that"
        )


def arranged(
    final: Any,
    maps: list[Any],
    prefixes: list[Float[Tensor, "b p d"]],
    *,
    return_prefix_tokens: bool,
    output_fmt: str,
    intermediates_only: bool,
    output_dict: bool,
) -> Any:
    """Returns features in the form that timm's ``forward_intermediates`` has for these options.

    Args:
        final: features after the last norm.
        maps: of each chosen block a dense map (b, d, gh, gw), or a list of maps (d, gh, gw).
        prefixes: class and register tokens after each of them.
    """
    if output_fmt == "NLC":
        maps = [_rows(one) for one in maps]
    with_prefix = return_prefix_tokens and any(prefix.shape[1] for prefix in prefixes)
    if output_dict:
        out: dict[str, Any] = {"image_intermediates": maps}
        out |= {"image_intermediates_prefix": prefixes} if with_prefix else {}
        return out if intermediates_only else out | {"image_features": final}
    between = [*zip(maps, prefixes, strict=True)] if with_prefix else maps
    return between if intermediates_only else (final, between)


def _rows(maps: Any) -> Any:
    if not isinstance(maps, Tensor):
        return [_rows(one) for one in maps]
    return maps.flatten(-2).transpose(-1, -2)
