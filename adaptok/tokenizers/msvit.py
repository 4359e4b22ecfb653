"""MSViT, a learned gate between two scales (Havtorn et al., "MSViT: Dynamic Mixed-Scale
Tokenization for Vision Transformers")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Interval
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptok.layers.mixed import takes_lists
from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.base import per_axis
from adaptok.tokenizers.embeddings import LearnedPositions, LinearEmbedding, PositionedEmbedding
from adaptok.tokenizers.ignoring import Ignore
from adaptok.tokenizers.indicators.gate import GateIndicator
from adaptok.tokenizers.marking import Budget, BudgetMarking, Marks, ThresholdMarking
from adaptok.tokenizers.matey import nested_sizes
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.tokens import TokenizerSpec, TokenSet
from adaptok.tree import Tree, existing
from adaptok.utils.arguments import (
    Dimensions,
    NonNegativeFloat,
    PerAxis,
    Positive,
    PositiveFloat,
    checked,
)
from adaptok.utils.auxiliary import is_collecting, report_figure, report_loss

Target = Annotated[float, Interval(gt=0, lt=1)]  # at 0 or 1 one of the sizes has no token


class GateMarking:
    """Splits cells whose gate is at least 0.5, or to a budget those with the highest gates.

    Args:
        budget: cells per sample over all frames; None: as many as the gates say. Also per call.
    """

    controls: tuple[str, ...] = ("budget",)

    def __init__(self, budget: int | None = None):
        self.budget = budget
        self._threshold, self._best = ThresholdMarking(thresholds=0.5), BudgetMarking()

    @property
    def static(self) -> bool:
        """Whether the number of cells follows from the settings."""
        return self.budget is not None

    def __call__(
        self,
        scores: Float[Tensor, "b f inner"],
        tree: Tree,
        *,
        monotone: bool = False,
        shared: int = 1,
        budget: Budget | None = None,
    ) -> Marks:
        """Marks the nodes to split; raises ``ValueError`` for a budget below what the domain
        needs.
        """
        budget = self.budget if budget is None else budget
        if budget is None:
            return self._threshold(scores, tree, monotone=monotone, shared=shared)
        return self._best(scores, tree, monotone=monotone, shared=shared, budget=budget)


class MsvitTokenizer(TreeTokenizer):
    """A tree whose gates are trained: by a loss on their rate, and through the tokens.

    Forward, a gate is 0 or 1; backward, it is the probability that the gate indicator gives
    (straight-through). Each token is multiplied by the gate that chose it, which is 1: that of its
    parent if it is one of the finest cells, else one minus its own. The loss is that of the rate,
    the share of the gates of a batch that split: ``(rate - target)²``, reported as ``gate_rate``; a
    budget decides the rate, and then there is none.

    Args:
        spec: sizes with the extent in time first, coarse to fine.
        embedding: patches to features, called as ``embedding(x, cells)``.
        indicator: probability of each node to split.
        marking: which nodes split.
        target: mean share of the cells that split.
        weight: of the loss.
        options: those of `TreeTokenizer`.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        embedding: nn.Module,
        indicator: GateIndicator,
        marking: GateMarking,
        *,
        target: float,
        weight: float,
        **options: Any,
    ):
        super().__init__(spec, indicator, marking, embedding, **options)
        self.target, self.weight = target, weight

    @takes_lists
    def tokenize(
        self,
        scored: Float[Tensor, "b *tcs"],
        x: Float[Tensor, "b *tds"],
        *,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> TokenSet:
        """``embed(x, cells(scored))``, through which gradients reach the gates."""
        tokens = super().tokenize(scored, x, boundary=boundary, **control)
        if "score" not in tokens.payload:  # the gate is frozen
            return tokens
        score = tokens.payload["score"]
        split = tokens.cells.level == len(self.spec.sizes) - 1
        gate = score.where(split, 1 - score)
        gate = (1 + (gate - gate.detach())).to(tokens.features.dtype)
        return tokens.replace(features=tokens.features * gate[:, None])

    def _refine(self, field: Tensor, boundary: Tensor | None, control: dict[str, Any]) -> Any:
        refined = super()._refine(field, boundary, control)
        if is_collecting():
            fixed = self.static or control.get("budget") is not None
            self._report(refined.scores, refined.split, refined.tree, fixed)
        return refined

    def _report(self, scores: Tensor, split: Tensor, tree: Tree, fixed: bool) -> None:
        real = existing(split, tree)[..., : tree.inner] & ~tree.nodes(split.device).outside
        gate = split.to(scores.dtype) + (scores - scores.detach())
        rate = (gate * real).sum() / real.sum()
        report_figure("gate_share", rate)
        if not fixed:
            report_loss("gate_rate", (rate - self.target).square(), weight=self.weight)


@TOKENIZERS.register("msvit")
@checked
def msvit(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    sizes: Sequence[PerAxis] | None = None,
    target: Target = 0.5,
    budget: Positive | None = None,
    weight: NonNegativeFloat = 1.0,
    width: Positive = 64,
    temperature: PositiveFloat = 1.0,
    positions: PerAxis | None = None,
    frame_size: Positive = 1,
    per_frame: bool = False,
    ignore: Ignore = "constants",
    border: str = "clip",
) -> MsvitTokenizer:
    """MSViT: a gate that is learned with the model says which cells are refined.

    Gate and scales: Sec. 3. Inference: a cell whose gate exceeds 0.5 stays coarse, others are
    replaced by fine ones; the gate here is that of splitting, one minus the paper's. Each scale
    has an embedding of its own. The number of tokens depends on the data unless there is a budget.

    Args:
        sizes: cell sizes from fine to coarse, each one number or one per space axis (paper: two);
            None: 8 and 16, or what suits the budget of a run.
        target: mean share of the cells that the gates are trained to split.
        budget: tokens per sample over all frames, by the highest gates, in place of the threshold
            of 0.5 and of the loss on the rate; also per call, one number or one per sample.
        weight: of the loss on the rate of the gates.
        width: hidden width of the gate.
        temperature: of the relaxed gate, see the indicator `gate`.
        positions: side of a learned table of positions in finest cells, one number or one per axis;
            coarse cells have the mean of theirs. None: no table (rotary positions belong to the
            processor).
        frame_size: extent of every cell in time.
        per_frame: a tiling per frame.
        ignore: what the gate does not see: "constants" (the static fields of a surrogate), fields
            by name or channels by number; [] for none.
        border: "clip" or "split" cells that cross the border of the domain, see `composed`.

    Raises:
        ValueError: sizes that do not nest or are fewer than two, or a target at which one of the
            sizes has no token.
    """
    levels = tuple(
        (frame_size, *s) for s in nested_sizes((8, 16) if sizes is None else sizes, ndim)
    )
    embedding: nn.Module = LinearEmbedding(in_channels, dim, levels)
    if positions is not None:
        table = LearnedPositions(dim, per_axis(positions, ndim, "positions"), pooled=True)
        embedding = PositionedEmbedding(embedding, table)
    return MsvitTokenizer(
        TokenizerSpec(ndim, in_channels, dim, levels),
        embedding,
        GateIndicator(levels, width=width, temperature=temperature),
        GateMarking(budget),
        target=target,
        weight=weight,
        per_frame=per_frame,
        ignore=ignore,
        border=border,
    )
