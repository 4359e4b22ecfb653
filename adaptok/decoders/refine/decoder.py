"""The decoder `refine`: a decoder around a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Interval
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptok.decoders.auto import painter
from adaptok.decoders.refine.choice import BlockChoice
from adaptok.decoders.refine.smoothing import Smoothing
from adaptok.decoders.refine.solver import PointSolver
from adaptok.layers.boundary import check_boundary, codes_of_frames
from adaptok.layers.mixed import gives_lists
from adaptok.registry import DECODERS, Part
from adaptok.tokenizers.base import check_shape
from adaptok.tokenizers.ignoring import Ignore
from adaptok.tokens import TokenizerSpec, TokenSet, as_field
from adaptok.utils.arguments import (
    LARGEST,
    Depth,
    NonNegative,
    Positive,
    PositiveShare,
    Rate,
    checked,
)
from adaptok.utils.precision import check_alike

Block = Annotated[int, Interval(ge=2, le=LARGEST)]  # an indicator scores what can be divided


@DECODERS.register("refine")
class RefineDecoder(nn.Module):
    """Another decoder's field, refined by a small convolutional solver where the scores are
    highest.

    The solver (`PointSolver`) runs at full resolution on blocks of grid points, chosen per sample
    and frame, and its cost follows them. Its gain and bias come from the token that owns the
    point, so coarse tokens carry the attention and the solver the detail. A narrow dense network
    over the result (`Smoothing`) sees across the borders of cells. Both begin at zero.

    It reads the field besides the tokens: `Surrogate` and `Multiphysics` hand it on, own code
    calls ``decoder(tokens, field=x)``.

    Args:
        spec: specification of the tokenizer.
        out_channels: channels of the decoded field.
        base: the decoder whose field is refined; "auto" is the one that suits the tokenizer.
        share: of the blocks that are refined, unless points, tolerance or marking says otherwise;
            1 for all, without scores.
        points: refine at most this many grid points per frame.
        tolerance: refine the fewest blocks that leave out at most this share of the summed scores.
        marking: refine the blocks that this marking splits (whole blocks and the parts of split
            ones are the cells that it counts).
        indicator: scores the blocks; one that learns from what comes next is trained with the
            model.
        ignore: what the indicator does not see: "constants" (the static fields of a surrogate), or
            channels by number; [] for none.
        block: grid points per axis of a block.
        width: channels of the solver.
        depth: pointwise layers of the solver between its stencils and its output.
        stencil: spacings of the solver's stencils of 3 points per axis, odd; that of spacing s
            reads means over s points per axis.
        smooth: channels of the dense network over the result; 0 for none.

    Raises:
        ValueError: cells of any size, a base that reads the field itself, several rules that choose
            points, a rule that leaves none, or an even spacing.
    """

    reads_field = True
    own_sizes = ("depth",)

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        out_channels: Positive,
        *,
        base: Part = "auto",
        share: PositiveShare = 0.25,
        points: Positive | None = None,
        tolerance: Rate | None = None,
        marking: Part | None = None,
        indicator: Part = "gradient",
        ignore: Ignore = "constants",
        block: Block = 2,
        width: Positive = 32,
        depth: Depth = 1,
        stencil: Sequence[Positive] = (1, 3),
        smooth: NonNegative = 4,
    ):
        super().__init__()
        self.spec = spec
        if getattr(spec.layout, "any_size", False):
            raise ValueError(
                "decoder 'refine' looks up the token over each grid point by the sizes of levels, "
                "and these cells have any size: use 'boxes'"
            )
        self.base = painter(base, spec, out_channels)
        rules = {"points": points, "tolerance": tolerance, "marking": marking}
        choice = BlockChoice(spec, indicator, block=block, share=share, ignore=ignore, **rules)
        every = share == 1 and all(rule is None for rule in rules.values())
        self.choice = None if every else choice
        channels = (spec.ndim, spec.in_channels)
        sizes: dict[str, Any] = {"width": width, "depth": depth, "stencil": stencil}
        self.solver = PointSolver(*channels, spec.dim, out_channels, **sizes)
        self.smoothing = Smoothing(*channels, out_channels, smooth) if smooth else None

    @property
    def static(self) -> bool:
        """Whether the number of refined points follows from the shape of the field alone."""
        return self.choice is None or self.choice.static

    def tell_channels(self, constants: Sequence[int], channels: int) -> None:
        """Tells which of the channels are static constants; a surrogate does so."""
        if self.choice is not None:
            self.choice.tell_channels(constants, channels)

    @gives_lists
    def forward(
        self,
        tokens: TokenSet,
        *,
        field: Float[Tensor, "b *tcs"] | None = None,
        scored: Float[Tensor, "b *tes"] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b t c *s"]:
        """Decodes a field of the shape that the cells were made for.

        Args:
            field: what the tokenizer embedded; a list of (t, c, *space) for samples of different
                size.
            scored: what the indicator sees, default the same; it may have other channels.
            boundary: codes (ndim, 2) or (b, ndim, 2): wall 0, open 1, periodic 2.

        Raises:
            ValueError: no field, or one of other channels or another shape than the cells are for.
        """
        if field is None:
            raise ValueError(
                "decoder 'refine' computes from the inputs at grid points: call it as "
                "decoder(tokens, field=x) with the field that the tokenizer embedded"
            )
        x, cells = as_field(field, self.spec.ndim, self.spec.in_channels), tokens.cells
        scored = x if scored is None else as_field(scored, self.spec.ndim, what="scored field")
        for each in (x, scored):
            check_shape(each, cells)
        check_alike(x, self, "field")
        check_boundary(boundary, x.shape[0], self.spec.ndim)
        b, t = x.shape[:2]
        blocks = None if self.choice is None else self.choice(scored, boundary)
        boundary = codes_of_frames(boundary, t)
        x = x.flatten(0, 1)
        out = self.base(tokens).flatten(0, 1)
        out = out + self.solver(x, tokens.features, cells, boundary, blocks)
        if self.smoothing is not None:
            out = out + self.smoothing(out, x, boundary)
        return out.unflatten(0, (b, t))
