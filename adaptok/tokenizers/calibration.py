"""Calibration of thresholds, gamma or a price to a mean number of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptok.layers.boundary import Boundary
from adaptok.tokenizers.base import frames_of_cells
from adaptok.tokenizers.marking import (
    MaximumMarking,
    OutOfReachError,
    PriceMarking,
    ThresholdMarking,
    level_thresholds,
)
from adaptok.tokenizers.marking.base import finite
from adaptok.tokenizers.passing import PassingTokenizer
from adaptok.tokenizers.rlt import RltTokenizer
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.tokens import as_field
from adaptok.tree import Tree

Fields = Float[Tensor, "b *tcs"] | Iterable[Float[Tensor, "b *tcs"]]  # a batch or several


@torch.no_grad()
def calibrate(
    tokenizer: TreeTokenizer | RltTokenizer | nn.Module,
    fields: Fields,
    tokens: float,
    *,
    boundary: Boundary = None,
) -> tuple[float, ...] | float:
    """Scales the tokenizer's thresholds by the one factor that gives a mean number of tokens; of a
    marking relative to the maximum or by a price, finds the gamma or the price that does, and of
    `rlt` its threshold.

    Scores are computed once. A node splits iff the factor is at most ``score / threshold`` of the
    node and of all its ancestors (gamma: below ``score / max``; a price: below ``score``), so
    sorting these numbers gives the token count of every factor; no search re-runs the tokenizer,
    and nothing is trained. A budget of the tokenizer is ignored.

    Args:
        tokenizer: one that marks by the maximum, by a price, or by thresholds, all positive, whose
            ratios are kept; or a model of `adaptok.vision.apply_apt`, for its normalised images.
        fields: what the indicator will see (see `Surrogate.scored`), a batch or several.
        tokens: mean number per sample over all its frames; the result is the closest from below.
        boundary: codes, as in a call of the tokenizer.

    Returns:
        thresholds (in the order of the tokenizer's), gamma or price, for a call or for a new
        tokenizer.

    Raises:
        ValueError: another marking, thresholds that are not positive, or a number of tokens out of
            reach.
    """
    if own := getattr(tokenizer, "calibrate", None):  # a model that knows how fields are scored
        return own(fields, tokens)
    if isinstance(tokenizer, RltTokenizer):
        return tokenizer.threshold_for(as_batches(fields), tokens)
    bars = _bars(tokenizer)
    assert isinstance(tokenizer, TreeTokenizer)  # nothing else has such a marking
    priced = isinstance(tokenizer.marking, PriceMarking)
    parts, coarsest, samples = [], 0, 0
    for field in as_batches(fields):
        scores, tree = tokenizer.scores(field, boundary=boundary)
        b, f, _ = scores.shape
        t = as_field(field, tokenizer.spec.ndim).shape[1]
        shared = frames_of_cells(t, tokenizer.spec.sizes[0][0]) // f
        if bars is None:
            own = _over_maximum(scores, tree)
        else:  # per level, coarse to fine, the largest factor at which a node alone splits
            levels = zip(tree.per_level(scores.double()), bars[::-1], strict=True)
            own = [(s / bar).nan_to_num(math.inf, math.inf, -math.inf) for s, bar in levels]
            if priced:  # what scores nothing splits at no price
                own = [s.masked_fill(s <= 0, -math.inf) for s in own]
        if isinstance(tokenizer, PassingTokenizer):
            parts.append(_splits(own, tree, shared, passing=True))
        else:
            parts.append(_splits(own, tree, shared, kept=not tokenizer.spec.tiling))
        roots = int(tree.per_level(tree.nodes(scores.device).inside)[0].sum())
        samples, coarsest = samples + b, coarsest + b * f * shared * roots
    factors, gains = (torch.cat(part) for part in zip(*parts, strict=True))
    relative = bars is None
    options = {"relative": relative, "positive": relative or priced}
    factor = _factor(factors, gains, coarsest, tokens, samples, **options)
    return factor if bars is None or priced else tuple(factor * bar for bar in bars)


def as_batches(fields: Fields) -> list[Tensor]:
    """Lists the batches of one or several; raises ``ValueError`` for none."""
    batches = [fields] if isinstance(fields, Tensor) else list(fields)
    if not batches:
        raise ValueError("to calibrate a number of tokens takes at least one field")
    return batches


def _bars(tokenizer: Any) -> tuple[float, ...] | None:
    """Returns positive thresholds, fine to coarse; None for a marking relative to the maximum."""
    marking: Any = getattr(tokenizer, "marking", None)
    if isinstance(marking, MaximumMarking) and len(tokenizer.spec.sizes) > 1:
        return None
    if not isinstance(marking, (ThresholdMarking, MaximumMarking, PriceMarking)):
        raise ValueError(
            "calibrate needs a tokenizer that marks by thresholds, by the maximum or by a price, "
            f"got {type(tokenizer if marking is None else marking).__name__}"
        )
    if len(tokenizer.spec.sizes) == 1:
        raise ValueError(f"calibrate needs several cell sizes, got {tokenizer.spec.sizes}")
    if isinstance(marking, PriceMarking):
        return (1.0,) * (tokenizer.tree((1,) * tokenizer.spec.ndim).n_levels - 1)
    assert isinstance(marking, ThresholdMarking)
    bars = level_thresholds(marking.thresholds, len(tokenizer.spec.sizes) - 1)
    if not all(0 < bar < math.inf for bar in bars):
        raise ValueError(f"calibrate scales thresholds that are positive and finite, got {bars}")
    return bars


def _over_maximum(scores: Float[Tensor, "b f inner"], tree: Tree) -> list[Float[Tensor, "b f _"]]:
    """Computes per level the gamma below which a node alone splits; zeros never do."""
    outside, scores = tree.nodes(scores.device).outside, finite(scores)
    coarsest = tree.per_level(scores.masked_fill(outside, -torch.inf))[0]
    shares = scores.double() / coarsest.double().amax((1, 2), keepdim=True)
    shares = shares.nan_to_num(-math.inf, math.inf, -math.inf)  # 0 / 0: no score, no split
    return list(tree.per_level(shares.masked_fill(shares <= 0, -math.inf)))


def _splits(
    own: list[Float[Tensor, "b f _"]],
    tree: Tree,
    shared: int,
    *,
    kept: bool = False,
    passing: bool = False,
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Computes, per node inside the domain, the largest factor at which it splits, and how many
    cells this adds.

    Args:
        kept: whether cells that split stay beside their children.
        passing: whether cells that split are kept, and the coarsest ones, but no other children.
    """
    nodes = tree.nodes(own[0].device)
    forced, inside = tree.per_level(nodes.forced), tree.per_level(nodes.inside)
    factors, gains = [], []
    for level, factor in enumerate(own):
        factor = factor.masked_fill(forced[level], math.inf)
        if level:
            factor = torch.minimum(factor, tree.expand(factors[-1], level - 1))
        factors.append(factor)
        children = tree.sum_children(inside[level + 1].long(), level)
        gains.append(shared * (children - int(not kept)))
        if passing:
            gains[-1] = torch.full_like(children, shared if level else 0)
    real = ~nodes.outside
    gain = torch.cat(gains)[real].expand(*own[0].shape[:2], -1)
    return torch.cat(factors, -1)[..., real].flatten(), gain.flatten()


def _factor(
    factors: Tensor,
    gains: Tensor,
    coarsest: int,
    tokens: float,
    samples: int,
    *,
    relative: bool,
    positive: bool,
) -> float:
    """Finds the factor whose splits give the most cells that do not exceed the wanted number.

    One sample as an example: 4 coarsest cells, and nodes that split up to the factors 5, 2 and 2,
    each for 3 more cells. The totals are 4 (no split), 7, 10 and 13; the edges of their intervals
    are 11, 5, 2, 2 and -1 (the outer two are arbitrary). A factor in (5, 11] gives 4 cells, one in
    (2, 5] gives 7, one in (-1, 2] gives 13; no factor gives 10. For 12 tokens the last possible
    total is 7, and the result is the middle of its interval, 3.5, away from both scores.

    Args:
        relative: whether the factor is a gamma, in (0, 1].
        positive: whether it is at least 0.
    """
    coarsest += int(gains[factors == math.inf].sum())
    values, order = factors[factors.isfinite()].sort(descending=True)
    added = gains[factors.isfinite()][order].cumsum(0)
    totals = coarsest + torch.cat([added.new_zeros(1), added])  # after 0, 1, ... splits
    if not coarsest <= tokens * samples <= int(totals[-1]):
        least, most = coarsest / samples, int(totals[-1]) / samples
        raise OutOfReachError(
            f"these fields give {least:g} to {most:g} tokens per sample, {tokens:g} are asked for; "
            "other cell sizes reach more or fewer"
        )
    if len(values) == 0:
        return 1.0  # the borders decide everything
    first, last = values[:1], values[-1:]
    top = torch.ones_like(first) if relative else first + first.abs() + 1
    bottom = torch.zeros_like(last) if positive else last - last.abs() - 1
    edges = torch.cat([top, values, bottom])
    above, below = edges[:-1], edges[1:]
    # The marking compares in single precision, in which both ends have to differ.
    possible = (above - below > 1e-6 * above.abs()) & (totals <= tokens * samples)
    if relative:
        possible[0] = True  # nothing is above the maximum, however close it comes
    best = int(possible.nonzero()[-1])
    return 1.0 if relative and best == 0 else float((above[best] + below[best]) / 2)
