"""Checks of indicators and markings."""

from __future__ import annotations

from typing import Any

import torch

from adaptok.testing.inputs import attempt, random_errors, random_fields, require, trees
from adaptok.tokenizers.indicators import Indicator
from adaptok.tokenizers.marking import Marking
from adaptok.tree import Tree, leaves


def check_indicator(indicator: Indicator, *, ndim: int = 2, channels: int = 2) -> None:
    """Scores have the promised shape, are finite, do not look across samples, and are monotone if
    the indicator says so.

    Args:
        ndim: space dimensions of the fields that it is tried on.
        channels: of those fields.

    Raises:
        AssertionError: names the promise that is broken.
    """
    monotone = getattr(indicator, "monotone", False)
    for tree in trees(ndim):
        for what, field in random_fields(ndim, channels, space=tree.shape):
            scores = attempt(
                indicator, f"scoring {what}", lambda f=field, t=tree: indicator(f, t, boundary=None)
            )
            wanted = (len(field), tree.inner)
            given = tuple(getattr(scores, "shape", ()))
            require(given == wanted, indicator, f"scores are (b, inner) = {wanted}, got {given}")
            require(scores.isfinite().all(), indicator, f"scores are finite, not so on {what}")
            alone = torch.cat([indicator(f[None], tree, boundary=None) for f in field])
            largest = float(scores.detach().abs().max()) if scores.numel() else 0.0
            close = torch.allclose(scores, alone, rtol=1e-4, atol=1e-6 * largest)
            require(close, indicator, f"scores of a sample depend on it alone, not so on {what}")
            if monotone:
                _check_monotone(indicator, scores, tree, what)


def _check_monotone(indicator: Indicator, scores: torch.Tensor, tree: Tree, what: str) -> None:
    levels = tree.per_level(scores)
    inside = tree.per_level(tree.nodes(scores.device).inside[: tree.inner])
    for level, parents in enumerate(levels[:-1]):
        above = tree.expand(parents, level)
        holds = (levels[level + 1] <= above) | ~inside[level + 1]
        require(
            holds.all(),
            indicator,
            f"it says monotone = True, but on {what} a child outscores its parent",
        )


def check_marking(marking: Marking, *, ndim: int = 2, **control: Any) -> None:
    """Marks have the promised shape and type, tell the true number of leaves, follow the hint
    `monotone` without changing the result, and `static` means that scores do not change counts.

    Args:
        ndim: space dimensions of the trees that it is tried on.
        control: settings of the calls, such as ``budget=40``.

    Raises:
        AssertionError: names the promise that is broken.
    """
    generator = torch.Generator().manual_seed(0)
    for name in control:
        require(name in marking.controls, marking, f"{name!r} is one of its controls")
    for tree in trees(ndim):
        counts = []
        points = torch.rand(3, 1, tree.inner, generator=generator)
        if getattr(marking, "needs_errors", False):
            control["errors"] = random_errors(tree)
        for scores in (points, points * 100, _falling(points, tree)):
            marks = attempt(marking, "marking", lambda s=scores, t=tree: marking(s, t, **control))
            split = marks.split
            require(
                split.dtype == torch.bool and split.shape == scores.shape,
                marking,
                f"split is bool {tuple(scores.shape)}, got {split.dtype} {tuple(split.shape)}",
            )
            forced = tree.nodes(split.device).forced
            true = tuple(leaves(split | forced, tree).sum((1, 2)).tolist())
            for known, word in ((marks.lengths, "lengths"), (marks.total, "total")):
                expected = true if word == "lengths" else sum(true)
                require(
                    known is None or known == expected,
                    marking,
                    f"{word} is the number of leaves {expected}, it says {known}",
                )
            counts.append(sum(true))
        same = marking(scores, tree, monotone=True, **control).split
        require(
            torch.equal(leaves(same | forced, tree), leaves(split | forced, tree)),
            marking,
            "monotone = True changes nothing on scores that are monotone",
        )
        if getattr(marking, "static", False):
            require(len({*counts}) == 1, marking, "static = True, but counts depend on the scores")


def _falling(scores: torch.Tensor, tree: Tree) -> torch.Tensor:
    """Scores where no child outscores its parent."""
    levels = tree.per_level(scores)
    out = [levels[0]] if levels else []
    for level, own in enumerate(levels[1:]):
        out.append(tree.expand(out[-1], level) * own)
    return torch.cat(out, -1) if out else scores
