"""The transformer that the processors with a constructor in common extend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells, Count, Groups
from adaptok.layers.blocks import (
    AttentionBranch,
    Block,
    bias_by_weight,
    conditioned,
    drop_path_rates,
)
from adaptok.layers.norms import Segments, create_norm
from adaptok.layers.positions import Rotary
from adaptok.processors.reducers import Flow, Reducer, advance, begin, subset
from adaptok.processors.reuse import Reuse, check_layers
from adaptok.registry import POSITIONS, PROCESSORS, REDUCERS, Part
from adaptok.tokens import TokenizerSpec, TokenSet, check_tokens
from adaptok.utils.arguments import (
    Base,
    Depth,
    Positive,
    Rate,
    Ratio,
    Scale,
    Weighted,
    checked,
)


class Rows(NamedTuple):
    """What the layers of a stack are called with beside the rows themselves, see `Block`."""

    groups: Groups | Sequence[Groups]
    rotate: Rotary | None
    sample: Tensor
    samples: Count
    segments: Segments | None
    key_bias: Tensor | None


class Place(NamedTuple):
    """What the layers of a block are told about the rows.

    Attributes:
        cells: of the rows.
        sample: of each row.
        groups: rows that attend to one another, per stack.
        segments: of instance norms, per stack.
        rotate: rotation of queries and keys.
        key_bias: added to the scores of each row as a key.
        flow: state of the reducer, if there is one.
        reuse: what blocks computed in earlier calls, if it is used again.
    """

    cells: Cells
    sample: Tensor
    groups: Sequence[Groups | tuple[Groups, ...]]
    segments: Sequence[Segments | None]
    rotate: Rotary | None
    key_bias: Tensor | None
    flow: Flow | None
    reuse: Reuse | None = None

    @property
    def rows(self) -> list[Rows]:
        """What the layers of each stack are called with."""
        shared = self.rotate, self.sample, self.cells.batch_size
        return [
            Rows(group, *shared, segment, self.key_bias)
            for group, segment in zip(self.groups, self.segments, strict=True)
        ]


class Transformer(nn.Module):
    """Positions, `depth` blocks, and a last norm; each block is one layer of every stack.

    Subclasses name their stacks and say who attends to whom in each.

    Args:
        spec: specification of the tokenizer.
        depth: number of blocks.
        heads: attention heads, a divisor of ``spec.dim``.
        mlp_ratio: hidden width of the MLP over dim.
        qk_norm: layer norm on queries and keys.
        drop_path: stochastic depth rate of the last block, growing linearly from 0; per sample.
        positions: "rotary", "fourier", "sinusoid", "film" or "none", or a mapping of name and
            knobs. One with a method ``in_block(number, x, cells, center)`` also changes the
            features in front of each block.
        rope_base: base of the rotary frequencies, positions in grid points.
        norm: "layer", "rms" or "instance" (over the tokens that the processor names, as MATEY).
        norm_placement: "pre", or "matey": MATEY's norm placement, no final norm.
        layer_scale: initial factor per channel on the output of a branch (MATEY: 1e-6).
        weighted: let a token count as a key for what it stands for, by the logarithm of its area in
            finest cells (or ``payload["weight"]``) added to its scores; a number is a factor on it.
        reducer: merges or drops tokens inside the blocks; a name of `adaptok.reducers`, or a
            mapping of name and knobs.
        unmerge: give every cell the feature of the token that it became part of, at the end. False:
            return the tokens that are left, with what they stand for as ``payload["weight"]``.

    Raises:
        ValueError: a negative depth, heads that do not divide dim, an unknown choice or option.
    """

    stacks: ClassVar[dict[str, type[AttentionBranch]]]  # by the name of their attribute
    reducible: ClassVar[bool] = True  # whether the blocks take a reducer

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        *,
        depth: Depth = 8,
        heads: Positive = 6,
        mlp_ratio: Ratio = 4.0,
        qk_norm: bool = False,
        drop_path: Rate = 0.0,
        positions: Part = "rotary",
        rope_base: Base = 10000.0,
        norm: str = "layer",
        norm_placement: str = "pre",
        layer_scale: Scale | None = None,
        weighted: Weighted = False,
        reducer: Part | None = None,
        unmerge: bool = True,
        **unknown: Any,
    ):
        PROCESSORS.check_knobs(type(self), unknown)  # says more than Python would
        super().__init__()
        rates = drop_path_rates(depth, drop_path)
        self.spec, self.by_segment, self.weighted = spec, norm == "instance", float(weighted)
        head_dim = spec.dim // max(heads, 1)  # the attention refuses heads that do not fit
        self.positions = POSITIONS.build(
            positions, spec=spec, depth=depth, head_dim=head_dim, rope_base=rope_base
        )
        options: dict[str, Any] = {"qk_norm": qk_norm, "norm": norm, "layer_scale": layer_scale}
        options["norm_placement"] = norm_placement
        for name, layer in self.stacks.items():
            more = {"mlp_ratio": mlp_ratio} if issubclass(layer, Block) else {}
            layers = (layer(spec.dim, heads, drop_path=r, **more, **options) for r in rates)
            setattr(self, name, nn.ModuleList(layers))
        self.norm = create_norm(norm, spec.dim) if norm_placement == "pre" else None
        self.unmerge, self.reducer = unmerge, None
        if reducer is not None:
            if not self.reducible:
                raise ValueError(
                    f"{type(self).__name__} takes no reducer: its blocks do not attend among the "
                    "same tokens all along"
                )
            sizes = {"dim": spec.dim, "heads": heads, "depth": depth}
            self.reducer: Reducer | None = REDUCERS.build(reducer, **sizes)

    def forward(self, tokens: TokenSet, reuse: Reuse | None = None) -> TokenSet:
        """Maps tokens to tokens of the same cells; with a reducer and without `unmerge`, to those
        that are left.

        Args:
            tokens: of any cells.
            reuse: what blocks computed in earlier calls and may use again.

        Raises:
            ValueError: reuse where it has no place, see `Transformer.check_reuse`.
        """
        check_tokens(tokens, self.spec, self)
        cells = tokens.cells
        if reuse is not None:
            self.check_reuse()
            reuse.begin(cells)
        x, rotate = self.positions(conditioned(tokens), cells, self.spec.position_center(cells))
        flow = begin(self.reducer, tokens, self.weighted) if self.reducer is not None else None
        bias = bias_by_weight(tokens, self.weighted) if flow is None else flow.key_bias
        start = self._place(cells, rotate, bias, flow)._replace(reuse=reuse)
        x, place = self.run(x, start)
        if place.flow is not None and self.unmerge:
            x, place = place.flow.trail.unmerge(x), start
        x = x if self.norm is None else self.norm(x, place.segments[-1])
        if place.flow is None or self.unmerge:
            return tokens.replace(features=x)
        return place.flow.reduced(tokens, x, place.cells)

    def check_reuse(self) -> None:
        """Checks that blocks can keep what they computed in earlier calls.

        Raises:
            ValueError: says why they cannot.
        """
        who = type(self).__name__
        if type(self).run is not Transformer.run:
            raise ValueError(f"reuse keeps every token, and not all blocks of {who} see them")
        if self.reducer is not None:
            raise ValueError(f"reuse keeps every token, and this {who} merges or drops some")
        if self.by_segment:
            raise ValueError("reuse keeps tokens, and an instance norm changes all if one does")
        check_layers((each for name in self.stacks for each in getattr(self, name)), who)

    def run(self, x: Float[Tensor, "n d"], place: Place) -> tuple[Float[Tensor, "m d"], Place]:
        """Runs the blocks; returns the rows that are left, and what is known of them."""
        for i, layers in enumerate(
            zip(*(getattr(self, name) for name in self.stacks), strict=True)
        ):
            x, place = self._block(i, layers, self.placed(i, x, place), place)
        return x, place

    def placed(self, i: int, x: Float[Tensor, "n d"], place: Place) -> Float[Tensor, "n d"]:
        """Lets positions that act in every block change the features in front of block i."""
        if (in_block := getattr(self.positions, "in_block", None)) is None:
            return x
        return in_block(i, x, place.cells, self.spec.position_center(place.cells))

    def _block(
        self, i: int, layers: Sequence[AttentionBranch], x: Tensor, place: Place
    ) -> tuple[Tensor, Place]:
        """Runs one layer of every stack; the reducer acts in the last one, or before the first."""
        reducer, last = self.reducer, layers[-1]
        where = reducer.place if reducer is not None and reducer.acts(i) else None
        if where == "before":
            x, place = self.reduce(i, x, place)
        before = x
        step = _Step(self, i, place)
        for layer, own in zip(layers, place.rows, strict=True):
            if place.reuse is not None:
                x = place.reuse.through(layer, x, own)
                continue
            more: Any = {}
            if where == "between" and layer is last:
                more = {"between": step}
            x = layer(x, *own, **more)
        place = step.place
        return (x if place.flow is None else place.flow.gated(before, x)), place

    def reduce(
        self, i: int, x: Tensor, place: Place, observed: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Place]:
        """Lets the reducer act on the rows of a block; for `observed` see `advance`."""
        assert self.reducer is not None
        assert place.flow is not None
        groups = self.merge_groups(place.cells, place.groups)
        more: Any = {"rotate": place.rotate, "key_bias": place.key_bias}
        x, flow, found = advance(self.reducer, place.flow, i, x, groups, observed=observed, **more)
        if found is None:
            return x, place._replace(flow=flow, key_bias=flow.key_bias)
        rotate = place.rotate and place.rotate.rows(found.kept)
        cells = subset(place.cells, groups, found)
        return x, self._place(cells, rotate, flow.key_bias, flow)

    def _place(
        self, cells: Cells, rotate: Rotary | None, bias: Tensor | None, flow: Flow | None
    ) -> Place:
        groups = self.groups(cells)
        segments: list[Segments | None] = [None] * len(groups)
        if self.by_segment:
            segments = [Segments.of(each, cells.count) for each in self.norm_groups(cells, groups)]
        return Place(cells, cells.sample, groups, segments, rotate, bias, flow)

    def groups(self, cells: Cells) -> Sequence[Groups | tuple[Groups, ...]]:
        """Groups whose tokens attend to one another, per stack; several partitions are averaged."""
        raise NotImplementedError

    def norm_groups(self, cells: Cells, groups: Sequence[Any]) -> Sequence[Groups]:
        """Groups over which an instance norm takes its statistics, per stack.

        Args:
            groups: the result of `groups`.
        """
        raise NotImplementedError

    def merge_groups(self, cells: Cells, groups: Sequence[Any]) -> Groups:
        """Groups inside which a reducer merges tokens.

        Args:
            groups: the result of `groups`.
        """
        return groups[-1]


class _Step:
    """What a block does between attention and MLP; keeps what the rows share from there on."""

    def __init__(self, processor: Transformer, block: int, place: Place):
        self.processor, self.block, self.place = processor, block, place

    def __call__(
        self, rows: Tensor, observed: list[Tensor]
    ) -> tuple[Tensor, Tensor, Segments | None]:
        rows, self.place = self.processor.reduce(self.block, rows, self.place, observed)
        return rows, self.place.sample, self.place.segments[-1]
