"""The generic adaptive tokenizer: indicator × marking × embedding × order on a 2^D-tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.layers.boundary import Boundary, check_boundary, codes_of_frames
from adaptok.layers.mixed import takes_lists
from adaptok.registry import EMBEDDINGS, INDICATORS, MARKINGS, TOKENIZERS, Part, is_factory
from adaptok.tokenizers.asked import check_count, check_marks, check_scores, learns, scores_of_cells
from adaptok.tokenizers.base import (
    FIXED,
    CellTokenizer,
    check_controls,
    check_exportable,
    frames_of_cells,
    per_axis,
)
from adaptok.tokenizers.coherence import (
    PAST,
    ancestors,
    check_past,
    check_previous,
    check_sensitivity,
    favoured,
    present,
    spread,
    weighed,
)
from adaptok.tokenizers.ignoring import Ignore, IgnoresChannels, as_ignore, only
from adaptok.tokenizers.indicators import Indicator, relative_errors
from adaptok.tokenizers.marking import Budget, BudgetMarking, Marking, Marks
from adaptok.tokens import TokenizerSpec, TokenSet, as_field
from adaptok.tree import (
    Sizes,
    Tree,
    cells_from_nodes,
    cells_from_splits,
    existing,
    leaves,
    sum_pyramid,
)
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, checked


class _Refined(NamedTuple):
    scores: Tensor
    tree: Tree
    cells: Cells
    split: Tensor


class TreeTokenizer(IgnoresChannels, CellTokenizer):
    """Scores the nodes of a tree, marks which ones split, and embeds the leaves.

    If ``spec.tiling`` is False, cells that split stay beside their children.

    The choice of cells is piecewise constant, so no gradient goes through it. An indicator that
    learns (it has parameters that require gradients, or says ``learned = True``) is called with a
    graph all the same: it may report a loss on its scores (`adaptok.utils.auxiliary`), and tokens
    carry them as ``payload["score"]`` (n,), the score of the cell, or of its parent for a finest
    cell, which nothing scores. What multiplies tokens by it trains the indicator.

    Args:
        spec: sizes with the extent in time first.
        indicator: node scores.
        marking: which nodes split.
        embedding: patches to features, called as ``embedding(x, cells)``.
        order: order of the cells of a frame; frames follow one another. "depth_first": root tiles
            in raster order, each followed by its subtree. "level": coarse cells first, each level
            in raster order.
        per_frame: a tiling per frame instead of one for all frames.
        ignore: channels that the indicator does not see: "constants" (those that `tell_channels`
            was told; none of a tokenizer alone), or a list of numbers, negative ones from the end.
        border: "clip" or "split" cells that cross the border, see `Tree`.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        indicator: Indicator,
        marking: Marking,
        embedding: nn.Module,
        *,
        order: str = "depth_first",
        per_frame: bool = False,
        ignore: Ignore = "constants",
        border: str = "clip",
    ):
        super().__init__(dataclasses.replace(spec, on_grid=True), embedding)
        self.indicator = INDICATORS.checked(indicator)
        self.marking = MARKINGS.checked(marking)
        self.order, self.border = order, border
        self.per_frame = per_frame
        self.ignore = as_ignore(ignore)
        self.tree((1,) * spec.ndim)  # raises here if the sizes are wrong

    def tell_channels(self, constants: Sequence[int], channels: int) -> None:
        """Tells which of the channels are static constants; a surrogate does so.

        Raises:
            ValueError: a channel is ignored that does not exist, or all are; or the indicator asks
                for one that does not exist.
        """
        super().tell_channels(constants, channels)
        if (check := getattr(self.indicator, "check_channels", None)) is not None:
            check(channels, self.spec.ndim)

    @property
    def controls(self) -> tuple[str, ...]:
        """Names that may change from call to call."""
        return self.marking.controls

    @property
    def static(self) -> bool:
        """Whether the number of tokens follows from the settings of a call (see `Marking`)."""
        return getattr(self.marking, "static", False)

    def _described(self) -> str:
        name = (getattr(self, "config", None) or {}).get("name", type(self).__name__)
        return f"tokenizer {name!r} with the marking {type(self.marking).__name__}"

    def _fixed(self) -> str:
        """Says how to have a fixed number of cells: named tokenizers choose their own marking."""
        config = getattr(self, "config", None) or {}
        if "marking" in TOKENIZERS.knobs(config.get("name", "composed")):
            return f"give {FIXED}"
        return f"use the tokenizer 'composed' with an indicator and {FIXED}"

    def tree(self, space: Sequence[int]) -> Tree:
        """Returns the tree over a domain."""
        sizes = tuple(size[1:] for size in self.spec.sizes)
        return Tree(tuple(space), sizes, self.order, self.border)

    @takes_lists
    def cells(
        self,
        field: Float[Tensor, "b *tcs"],
        *,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> Cells:
        """Scores the field and refines; needs no weights.

        Args:
            field: what the indicator sees.
            boundary: codes (ndim, 2) or (b, ndim, 2): wall 0, open 1, periodic 2.
            control: what the marking takes (`controls`), and, for fields that follow one another:
                ``previous``, the cells of the step before, whose splits ``hysteresis`` favours: the
                scores of nodes that were split are multiplied by 1 + hysteresis (default 0), frame
                by frame. ``buffer=k`` spreads scores to k neighbours of the same level along each
                axis, for what will have moved before cells are chosen again. ``sensitivity`` (b,
                *space) weighs the scores by what lies in a node, see `Surrogate.sensitivity`.

        Raises:
            ValueError: a wrong field, an unknown control, a budget below what the domain needs,
                previous cells of another batch, shape or sizes, or (eagerly on the CPU) an
                indicator or marking that breaks its promise.
        """
        return self._refine(field, boundary, control).cells

    @takes_lists
    def tokenize(
        self,
        scored: Float[Tensor, "b *tcs"],
        x: Float[Tensor, "b *tds"],
        *,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> TokenSet:
        """``embed(x, cells(scored))``, with ``payload["score"]`` if the indicator learns."""
        chosen_here = type(self).cells is TreeTokenizer.cells  # else a subclass has other cells
        if not (chosen_here and learns(self.indicator) and len(self.spec.sizes) > 1):
            return super().tokenize(scored, x, boundary=boundary, **control)
        refined = self._refine(scored, boundary, control)
        tokens = self.embed(x, refined.cells, boundary=boundary)
        score = scores_of_cells(*refined[:3], per_frame=self.per_frame)
        return tokens.replace(payload={**tokens.payload, "score": score})

    def _refine(self, field: Tensor, boundary: Tensor | None, control: dict[str, Any]) -> _Refined:
        past = {name: control[name] for name in PAST if name in control}
        control = {name: value for name, value in control.items() if name not in past}
        check_controls(control, self.controls, self.marking)
        if not self.static and torch.compiler.is_exporting():
            check_exportable(self._described(), False, self._fixed())
        field = as_field(field, self.spec.ndim)  # it may have other channels than are embedded
        frame_size = self.spec.sizes[0][0]
        frames = frames_of_cells(field.shape[1], frame_size)
        scores, tree = self._scores(field, boundary)
        with torch.no_grad():
            shared = 1 if self.per_frame else frames
            hints = {"monotone": getattr(self.indicator, "monotone", False), "shared": shared}
            if getattr(self.marking, "needs_errors", False):
                hints["errors"] = self._errors(field, boundary)
            ranked = self._coherent(scores.detach(), tree, field, boundary, **past)
            marks = self.marking(ranked, tree, **hints, **control)
            check_marks(marks, tuple(scores.shape), self.marking)
            cells = self._packed(marks, tree, frames)
        return _Refined(scores, tree, cells, marks.split)

    def _coherent(
        self,
        scores: Tensor,
        tree: Tree,
        field: Tensor,
        boundary: Tensor | None,
        *,
        previous: Cells | None = None,
        hysteresis: float | None = None,
        buffer: int | None = None,
        sensitivity: Tensor | None = None,
    ) -> Tensor:
        """Favours what is felt, what was split before, and the neighbours of what scores high."""
        hysteresis, buffer = hysteresis or 0, buffer or 0
        check_past(hysteresis, buffer)
        if sensitivity is not None:
            check_sensitivity(sensitivity, (field.shape[0], *field.shape[3:]))
            scores = weighed(scores, sensitivity, tree)
        if buffer:
            scores = spread(scores, tree, boundary, buffer)
        if previous is None:
            return scores
        sizes = tuple((self.spec.sizes[0][0], *size) for size in self._cell_sizes(tree))
        check_previous(previous, field.shape[0], (field.shape[1], *field.shape[3:]), sizes)
        if not hysteresis:
            return scores
        return favoured(scores, self._split_before(previous, tree, scores.shape[1]), hysteresis)

    def _cell_sizes(self, tree: Tree) -> Sizes:
        return tree.sizes

    def _split_before(self, previous: Cells, tree: Tree, frames: int) -> Bool[Tensor, "b f inner"]:
        return ancestors(present(previous, tree, frames, self.spec.sizes[0][0]), tree)

    def _packed(self, marks: Marks, tree: Tree, frames: int) -> Cells:
        size: dict[str, Any] = {"frames": frames, "frame_size": self.spec.sizes[0][0]}
        if not self.spec.tiling:  # more than the leaves, whose number does not help
            node = existing(marks.split, tree) & tree.nodes(marks.split.device).inside
            return cells_from_nodes(node, tree, **size, tiling=False)
        known = {"lengths": marks.lengths, "total": marks.total}
        cells = cells_from_splits(marks.split, tree, **size, **known)
        check_count(marks, cells, self.marking)
        return cells

    def scores(
        self,
        field: Float[Tensor, "b *tcs"],
        *,
        boundary: Int[Tensor, "..."] | None = None,
    ) -> tuple[Float[Tensor, "b f inner"], Tree]:
        """Scores every inner node, and returns the tree that numbers them; f is 1, or with a tiling
        per frame the number of frames of cells. They have a graph only if the indicator learns.
        """
        return self._scores(as_field(field, self.spec.ndim), boundary)

    @takes_lists
    @torch.no_grad()
    def certificate(
        self,
        field: Float[Tensor, "b *tcs"],
        *,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> Float[Tensor, " b"]:
        """Computes the error of what cells hold, ``||f - Pf|| / ||f - mean f||`` of each sample.

        P is the best polynomial on each cell and frame, of the channels that the indicator sees;
        its degree is that of the indicator, if it has ``errors`` as `near_best` does, else 0: a
        cell holds its mean. With a tiling per frame the worst frame counts. A field that does not
        vary has 0.

        Args:
            control: as for `cells`.
        """
        refined = self._refine(field, boundary, control)
        errors = self._errors(as_field(field, self.spec.ndim), boundary)
        return _certified(errors, self._covering(refined.split, refined.tree), refined.tree)

    def _covering(self, split: Bool[Tensor, "b f inner"], tree: Tree) -> Bool[Tensor, "b f inner"]:
        """The splits whose leaves are cells and tile the domain."""
        return split

    def _errors(self, field: Tensor, boundary: Tensor | None) -> Float[Tensor, "b f nodes"]:
        b = field.shape[0]
        field, _, given = self.as_scored(field, boundary)
        if given:  # an indicator that sees all channels
            field = only(field, given["seen"])
        tree = self.tree(field.shape[3:])
        errors = getattr(self.indicator, "errors", relative_errors)(field, tree)
        return errors.unflatten(0, (b, -1))

    def _scores(self, field: Tensor, boundary: Tensor | None) -> tuple[Tensor, Tree]:
        b = field.shape[0]
        field, boundary, given = self.as_scored(field, boundary)
        tree = self.tree(field.shape[3:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns(self.indicator)):
            scores = self.indicator(field, tree, boundary=boundary, **given)
        check_scores(scores, (field.shape[0], tree.inner), self.indicator)
        return scores.unflatten(0, (b, -1)), tree

    def as_scored(
        self, field: Float[Tensor, "b t c *s"], boundary: Boundary
    ) -> tuple[Float[Tensor, "bf fs k *s"], Boundary, dict[str, Any]]:
        """Returns what the indicator is called with: field, boundary, and which channels are not
        ignored if it sees all; each frame of cells is a sample if these have tilings of their own.
        """
        check_boundary(boundary, field.shape[0], self.spec.ndim)
        frame_size = self.spec.sizes[0][0]
        frames = frames_of_cells(field.shape[1], frame_size)
        field, given = self._seen(field)
        if self.per_frame:
            field = rearrange(field, "b (f fs) ... -> (b f) fs ...", fs=frame_size)
            boundary = codes_of_frames(boundary, frames)
        return field, boundary, given

    def _seen(self, field: Tensor) -> tuple[Tensor, dict[str, Any]]:
        seen = self.seen(field.shape[2])
        if getattr(self.indicator, "sees_all", False):
            return field, {"seen": seen}
        return only(field, seen), {}

    def score_map(
        self, field: Float[Tensor, "b *tcs"], *, boundary: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b *s"]:
        """Scores each grid point: by the indicator's own map, else by the score of the finest inner
        node around it.
        """
        field = as_field(field, self.spec.ndim)
        check_boundary(boundary, field.shape[0], self.spec.ndim)
        field, given = self._seen(field)
        points = getattr(self.indicator, "score_map", None)
        if points is not None:
            return points(field, boundary=boundary, **given)
        tree = self.tree(field.shape[3:])
        if tree.n_levels == 1:  # nothing can be split, so that nothing is scored
            return field.new_zeros(field.shape[0], *tree.shape)
        finest = tree.per_level(self.indicator(field, tree, boundary=boundary, **given))[-1]
        x = finest.unflatten(1, tree.grids[-2])
        for axis, (size, n) in enumerate(zip(tree.sizes[-2], tree.shape, strict=True)):
            x = x.repeat_interleave(size, dim=axis + 1).narrow(axis + 1, 0, n)
        return x


def _certified(
    errors: Float[Tensor, "b f nodes"], split: Bool[Tensor, "b f inner"], tree: Tree
) -> Float[Tensor, " b"]:
    """Adds up the errors of the leaves; of several trees the largest counts."""
    return (errors * leaves(split, tree)).sum(-1).amax(1).sqrt()


def level_sizes(
    min_size: int | Sequence[int], max_size: int | Sequence[int], ndim: int, frame_size: int = 1
) -> Sizes:
    """Lists cell sizes from coarse to fine by halving, time first.

    Raises:
        ValueError: max_size is not min_size times one power of two on all axes.
    """
    fine, coarse = per_axis(min_size, ndim, "min_size"), per_axis(max_size, ndim, "max_size")
    factors = {c / f for c, f in zip(coarse, fine, strict=True)}
    factor = int(max(factors))
    if len(factors) > 1 or factor not in factors or factor & (factor - 1) or factor < 1:
        raise ValueError(
            f"max_size must be min_size times one power of two on every axis, "
            f"got min_size {min_size} and max_size {max_size}"
        )
    levels = [factor >> i for i in range(factor.bit_length())]
    return tuple((frame_size, *(f * level for f in fine)) for level in levels)


@TOKENIZERS.register("composed")
@checked
def composed(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    indicator: Part = "gradient",
    marking: Part = "budget",
    embedding: Part = "linear",
    order: str = "depth_first",
    min_size: PerAxis | None = None,
    max_size: PerAxis | None = None,
    frame_size: Positive = 1,
    per_frame: bool = False,
    ignore: Ignore = "constants",
    border: str = "clip",
) -> TreeTokenizer:
    """Combines any indicator × marking × embedding × order; a part is a name, or a name with knobs.

    In Python it may also be a class, a factory or an object, see `Registry.build`.

    Args:
        indicator: scores the nodes of the tree; the names are those of `adaptok list indicators`.
        marking: decides which nodes split, see `adaptok list markings`.
        embedding: turns patches into features, see `adaptok list embeddings`.
        order: order of the cells of a sample: "depth_first" or "level" (coarse cells first).
        min_size: finest cell in grid points, one number or one per axis; None: 2, or what suits the
            budget of a run.
        max_size: coarsest cell, min_size times a power of two; None: 16, or likewise.
        frame_size: extent of every cell in time, in frames.
        per_frame: a tiling per frame instead of one shared by all frames of a sample.
        ignore: what the indicator does not see: "constants" (the static fields of a surrogate),
            fields by name or channels by number; [] for none.
        border: what a cell does that crosses the border of a domain that does not divide: "clip"
            (it may stay whole; beyond the border it sees the field continued by the boundary's
            rule) or "split" (it splits down to the finest, which is padded with zeros).
    """
    sizes = level_sizes(
        2 if min_size is None else min_size, 16 if max_size is None else max_size, ndim, frame_size
    )
    spec = TokenizerSpec(ndim, in_channels, dim, sizes)
    return TreeTokenizer(
        spec,
        INDICATORS.build(
            _by_channel(indicator, in_channels), in_channels=in_channels, sizes=spec.sizes
        ),
        MARKINGS.build(marking),
        EMBEDDINGS.build(embedding, in_channels=in_channels, dim=dim, sizes=spec.sizes),
        order=order,
        per_frame=per_frame,
        ignore=ignore,
        border=border,
    )


def _by_channel(indicator: Part, channels: int) -> Part:
    """Keeps the three fields that ignoring constants leaves of more from being scored as a color
    image.
    """
    source, knobs = INDICATORS.split(indicator)
    made = isinstance(source, str) or is_factory(source)
    if channels in (1, 3) or not made or "color" not in INDICATORS.knobs(source):
        return indicator
    color = knobs.get("color")
    return {"name": source, **knobs, "color": "channels" if color is None else color}


@checked
def cells_from_score(
    score: Float[Tensor, "b *s"],
    *,
    min_size: PerAxis,
    max_size: PerAxis,
    budget: Budget,
    splits_per_step: Positive = 1,
    border: str = "clip",
) -> Cells:
    """Refines a score map best-first to a token budget; returns cells of one frame.

    The score of a node is the sum of its points, which may be negative. Ties split the coarser node
    first, then in raster order.

    Args:
        score: one floating-point map per sample, 1 to 3 space dimensions.
        min_size: finest cell in grid points, one number or one per axis.
        max_size: coarsest cell, min_size times a power of two.
        budget: cells per sample, one number or one per sample; never exceeded.
        splits_per_step: 1 is exact; K > 1 runs the paper's loop (IAP, Algorithms 1 and 2).
        border: "clip" or "split" cells that cross the border of the domain, see `composed`.

    Raises:
        ValueError: not a finite floating-point map, sizes that do not nest, or a budget below the
            number of coarsest cells.
    """
    ndim = score.ndim - 1
    if ndim not in (1, 2, 3):
        raise ValueError(f"a score map is (b, *space) with 1 to 3 axes, got {tuple(score.shape)}")
    score = as_field(score.unsqueeze(1), ndim, what="score map")[:, 0].detach()  # (b, 1, *space)
    score = score.to(torch.promote_types(score.dtype, torch.float32))  # sums overflow float16
    sizes = tuple(size[1:] for size in level_sizes(min_size, max_size, ndim))
    tree = Tree(tuple(score.shape[2:]), sizes, border=border)
    marking = BudgetMarking(splits_per_step=splits_per_step)
    marks = marking(sum_pyramid(score, tree), tree, budget=budget)
    return cells_from_splits(marks.split, tree, frames=1, lengths=marks.lengths)
