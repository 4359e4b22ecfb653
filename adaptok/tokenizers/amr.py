"""AMR-Transformer (Xu et al., "AMR-Transformer: enabling efficient long-range interaction for
complex neural fluid simulation", CVPR 2025), rebuilt from the paper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.layers.boundary import Boundary
from adaptok.registry import EMBEDDINGS, INDICATORS, MARKINGS, TOKENIZERS, Part, choice
from adaptok.tokenizers.ignoring import Ignore
from adaptok.tokenizers.indicators.base import Field, Scores
from adaptok.tokenizers.indicators.flow import Channels, FlowIndicator
from adaptok.tokenizers.passing import PassingTokenizer
from adaptok.tokenizers.tree import TreeTokenizer, level_sizes
from adaptok.tokens import TokenizerSpec
from adaptok.tree import Tree
from adaptok.utils.arguments import (
    Dimensions,
    NonNegativeFloat,
    PerAxis,
    Positive,
    PositiveFloat,
    checked,
)

FLOW = ("velocity_gradient", "vorticity", "momentum")
RULES = {"any": torch.maximum, "all": torch.minimum}
MODES = ("add", "passing", "replace")


class FlowTests:
    """Several indicators of a flow over their thresholds: a node above 1 passes.

    Args:
        indicators: what is tested.
        thresholds: one per indicator.
        rule: whether "any" or "all" of them have to be above theirs.
    """

    sees_all = True

    def __init__(self, indicators: Sequence[FlowIndicator], thresholds: Sequence[float], rule: str):
        self.indicators, self.thresholds = list(indicators), tuple(map(float, thresholds))
        self.rule = RULES[choice("rule", rule, RULES)]
        self.monotone = all(indicator.monotone for indicator in indicators)

    def check_channels(self, channels: int, ndim: int) -> None:
        """Raises ``ValueError`` for roles of channels that a field does not have, or too few."""
        for indicator in self.indicators:
            indicator.check_channels(channels, ndim)

    def _over(self, scores: Callable[[FlowIndicator], Tensor]) -> Tensor:
        pairs = zip(self.indicators, self.thresholds, strict=True)
        return functools.reduce(self.rule, [scores(one) / bar for one, bar in pairs])

    def __call__(
        self,
        field: Field,
        tree: Tree,
        *,
        boundary: Boundary = None,
        seen: Sequence[int] | None = None,
    ) -> Scores:
        """Scores every inner node."""
        return self._over(lambda one: one(field, tree, boundary=boundary, seen=seen))

    def score_map(
        self, field: Field, *, boundary: Boundary = None, seen: Sequence[int] | None = None
    ) -> Float[Tensor, "b *s"]:
        """Scores each grid point."""
        return self._over(lambda one: one.score_map(field, boundary=boundary, seen=seen))


@TOKENIZERS.register("amr")
@checked
def amr(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    min_size: PerAxis | None = None,
    max_size: PerAxis | None = None,
    indicators: Sequence[str] = FLOW,
    thresholds: PositiveFloat | Sequence[PositiveFloat] = 2.0,
    rule: str = "any",
    price: NonNegativeFloat = 1.0,
    mode: str = "add",
    velocity: Channels | None = None,
    density: Channels | None = None,
    statistic: str = "max",
    spacing: Sequence[PositiveFloat] | None = None,
    embedding: Part = "linear",
    frame_size: Positive = 1,
    per_frame: bool = False,
    ignore: Ignore = "constants",
    border: str = "clip",
) -> TreeTokenizer:
    """AMR-Transformer: a cell of a flow that passes tests of its physics is kept and subdivided.

    Tests are asked depth by depth, from coarse to fine. The thresholds of the paper are not
    published; here they are in units of the mean over the sample.

    Args:
        min_size: finest cell in grid points; None: 2, or what suits the budget of a run.
        max_size: coarsest cell, min_size times a power of two; None: 16, or likewise.
        indicators: quantities that are tested: "velocity_gradient", "vorticity", "momentum".
        thresholds: a cell passes above this many times the mean of the quantity over the sample;
            one number, or one per indicator.
        rule: a cell passes if "any" or "all" of its quantities do.
        price: factor on all thresholds; also per call, and found by `adaptok.calibrate` for a mean
            number of tokens.
        mode: "add": cells that pass stay beside all their children. "passing": of the children only
            those that pass are kept (the paper; the coarsest cells stay all the same, so that no
            point is without a token). "replace": children take their place, a tiling.
        velocity: channels of the velocity by name or number, one per space axis; with a folded
            history, numbers of each frame in turn. None: the first channels.
        density: channel of the density by name or number; None: 1 everywhere.
        statistic: "max", "mean" or "std" over the points of a cell.
        spacing: of the grid along each space axis; None: the same.
        embedding: patches to features.
        frame_size: extent of every cell in time.
        per_frame: cells of their own for each frame.
        ignore: what None of `velocity` passes over: "constants" (the static fields of a surrogate),
            fields by name or channels by number; [] for none.
        border: "clip" or "split" cells that cross the border of the domain, see `composed`.

    Raises:
        ValueError: an unknown indicator, rule or mode, another number of thresholds, or (in a call)
            a channel that the field does not have.
    """
    choice("mode", mode, MODES)
    if not indicators:
        raise ValueError(f"indicators are some of {', '.join(FLOW)}, got none")
    roles: dict[str, Any] = {"velocity": velocity, "density": density}
    known = roles | {"statistic": statistic, "spacing": spacing}
    parts = []
    for name in indicators:
        knobs = INDICATORS.knobs(choice("each of indicators", name, FLOW))
        parts.append(INDICATORS.create(name, **{k: v for k, v in known.items() if k in knobs}))
    bars = list(thresholds) if isinstance(thresholds, Sequence) else [thresholds] * len(parts)
    if len(bars) != len(parts):
        raise ValueError(f"thresholds: one, or one for each of {list(indicators)}, got {bars}")
    sizes = level_sizes(
        2 if min_size is None else min_size, 16 if max_size is None else max_size, ndim, frame_size
    )
    spec = TokenizerSpec(ndim, in_channels, dim, sizes, tiling=mode == "replace")
    make = PassingTokenizer if mode == "passing" else TreeTokenizer
    return make(
        spec,
        FlowTests(parts, bars, rule),
        MARKINGS.create("price", price=float(price)),
        EMBEDDINGS.build(embedding, in_channels=in_channels, dim=dim, sizes=sizes),
        per_frame=per_frame,
        ignore=ignore,
        border=border,
    )
