"""Thresholds that give a wanted mean number of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from adaptok.marking import ThresholdMarking, level_thresholds
from adaptok.refine import Tree
from adaptok.tokens import as_field
from adaptok.tree import TreeTokenizer, frames_of_cells


@torch.no_grad()
def calibrate(
    tokenizer: TreeTokenizer,
    fields: Float[Tensor, "b *tcs"] | Iterable[Float[Tensor, "b *tcs"]],
    tokens: float,
    *,
    boundary: Int[Tensor, "..."] | None = None,
) -> tuple[float, ...]:
    """The tokenizer's thresholds times the one factor that gives a mean number of tokens.

    The scores are computed once. A node splits iff the factor is at most ``score / threshold`` of
    it and of all its ancestors, so sorting these numbers gives the token count of every factor; no
    search re-runs the tokenizer, and nothing is trained. A budget of the tokenizer is ignored.

    Args:
        tokenizer: one that marks by thresholds, all positive; they say how levels relate.
        fields: what the indicator will see (see `Surrogate.scored`), a batch or several.
        tokens: mean number per sample over all its frames; the result is the closest from below.
        boundary: codes, as in a call of the tokenizer.

    Returns:
        thresholds: in the order of the tokenizer's, for a call or for a new tokenizer.

    Raises:
        ValueError: no threshold marking, thresholds that are not positive, or a number of tokens
            that no thresholds reach.
    """
    marking = tokenizer.marking
    if not isinstance(marking, ThresholdMarking):
        raise ValueError(
            f"calibrate needs a tokenizer that marks by thresholds, got {type(marking).__name__}"
        )
    bars = level_thresholds(marking.thresholds, len(tokenizer.spec.sizes) - 1)
    if not bars or not all(0 < bar < math.inf for bar in bars):
        raise ValueError(f"calibrate scales thresholds that are positive and finite, got {bars}")
    parts, coarsest, samples = [], 0, 0
    for field in [fields] if isinstance(fields, Tensor) else fields:
        scores, tree = tokenizer.scores(field, boundary=boundary)
        b, f, _ = scores.shape
        t = as_field(field, tokenizer.spec.ndim).shape[1]
        shared = frames_of_cells(t, tokenizer.spec.sizes[0][0]) // f
        parts.append(_splits(scores, tree, bars[::-1], shared))
        roots = int(tree.per_level(tree.nodes(scores.device).inside)[0].sum())
        samples, coarsest = samples + b, coarsest + b * f * shared * roots
    if not parts:
        raise ValueError("calibrate needs at least one field")
    factors, gains = (torch.cat(part) for part in zip(*parts, strict=True))
    factor = _factor(factors, gains, coarsest, tokens, samples)
    return tuple(factor * bar for bar in bars)


def _splits(
    scores: Float[Tensor, "b f inner"], tree: Tree, bars: tuple[float, ...], shared: int
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Per node inside the domain the largest factor at which it splits, and the cells this adds."""
    nodes = tree.nodes(scores.device)
    forced, inside = tree.per_level(nodes.forced), tree.per_level(nodes.inside)
    factors, gains = [], []
    for level, (score, bar) in enumerate(zip(tree.per_level(scores), bars, strict=True)):
        own = (score.double() / bar).nan_to_num(math.inf, math.inf, -math.inf)
        own = own.masked_fill(forced[level], math.inf)
        if level:
            own = torch.minimum(own, tree.expand(factors[-1], level - 1))
        factors.append(own)
        children = inside[level + 1].long().unflatten(0, tree.grids[level + 1])
        for axis, ratio in enumerate(tree.ratios[level]):
            children = children.unflatten(axis, (-1, ratio)).sum(axis + 1)
        gains.append(shared * (children.flatten() - 1))
    real = ~nodes.outside
    gain = torch.cat(gains)[real].expand(*scores.shape[:2], -1)
    return torch.cat(factors, -1)[..., real].flatten(), gain.flatten()


def _factor(factors: Tensor, gains: Tensor, coarsest: int, tokens: float, samples: int) -> float:
    """The factor whose splits give the most cells that are not above the wanted number."""
    coarsest += int(gains[factors == math.inf].sum())
    values, order = factors[factors.isfinite()].sort(descending=True)
    added = gains[factors.isfinite()][order].cumsum(0)
    totals = coarsest + torch.cat([added.new_zeros(1), added])  # with the first 0, 1, ... splits
    if not coarsest <= tokens * samples <= int(totals[-1]):
        least, most = coarsest / samples, int(totals[-1]) / samples
        raise ValueError(
            f"these fields give {least:g} to {most:g} tokens per sample, {tokens:g} are asked for"
        )
    if len(values) == 0:
        return 1.0  # the borders decide everything
    first, last = values[:1], values[-1:]
    edges = torch.cat([first + first.abs() + 1, values, last - last.abs() - 1])
    above, below = edges[:-1], edges[1:]
    # Only between values that stay apart in single precision, in which the marking compares.
    possible = (above - below > 1e-6 * above.abs()) & (totals <= tokens * samples)
    best = possible.nonzero()[-1]
    return float((above[best] + below[best]) / 2)
