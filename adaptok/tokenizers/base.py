"""Base class of tokenizers, and checks of what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.layers.boundary import Boundary, check_boundary, pad_beyond
from adaptok.layers.mixed import takes_lists
from adaptok.registry import close_matches
from adaptok.tokens import TokenizerSpec, TokenSet, as_field
from adaptok.utils.arguments import Positive, accepts, check_arguments, shown
from adaptok.utils.precision import check_alike


@runtime_checkable
class Embedding(Protocol):
    """Turns the patches of cells into features.

    An attribute ``needs_grid = True`` says that it takes cells on the grids of their levels only.
    """

    def __call__(self, x: Float[Tensor, "b t c *s"], cells: Cells) -> Float[Tensor, "n d"]:
        """Returns one row per cell."""
        ...


class CellTokenizer(nn.Module):
    """A `Tokenizer` whose subclass writes `cells` and names its `controls`.

    A subclass that embeds in another way than by ``embedding(x, cells)`` writes `features`, so that
    what all tokenizers share (the checks, the `halo` of `with_halo`) stays in one place.

    Args:
        spec: what processors and decoders are built from.
        embedding: patches to features, called as ``embedding(x, cells)``.

    Raises:
        ValueError: an embedding that needs cells on the grids of their levels, and a spec that does
            not promise them.
    """

    controls: tuple[str, ...]

    def __init__(self, spec: TokenizerSpec, embedding: nn.Module):
        super().__init__()
        if not spec.on_grid and getattr(embedding, "needs_grid", False):
            raise ValueError(
                f"{type(embedding).__name__} takes cells on the grids of their levels, which this "
                "spec does not promise (on_grid=True); other cells go with 'linear' or 'boxes'"
            )
        self.spec = spec
        self.embedding = embedding
        self.halo: nn.Module | None = None

    @property
    def extents(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """Grid points (t, *space) that a whole cell of each size covers."""
        return {size: size for size in self.spec.sizes}

    def cells(
        self,
        field: Float[Tensor, "b *tcs"],
        *,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> Cells:
        """Decides where the tokens are; needs no weights."""
        raise NotImplementedError

    @takes_lists
    def embed(
        self,
        x: Float[Tensor, "b *tcs"],
        cells: Cells,
        *,
        boundary: Int[Tensor, "..."] | None = None,
    ) -> TokenSet:
        """Embeds cells; `x` may differ from the field that they were made for.

        Cells that stick out of the domain see it continued by the boundary's rule, see
        `adaptok.layers.boundary.pad_beyond`.

        Raises:
            ValueError: another number of channels than `spec.in_channels`, or another shape.
        """
        x = as_field(x, self.spec.ndim, self.spec.in_channels)
        check_embedded(x, cells, boundary, self)
        features = self.features(x, cells, boundary)
        if self.halo is not None:
            features = features + self.halo(x, self.embedded(cells), boundary)
        return TokenSet(features, cells)

    def embedded(self, cells: Cells) -> Cells:
        """Returns the boxes whose values are embedded, a row per cell: the cells themselves."""
        return cells

    def features(
        self, x: Float[Tensor, "b t c *s"], cells: Cells, boundary: Boundary
    ) -> Float[Tensor, "n d"]:
        """Computes the features of cells from what lies inside them."""
        whole = self.embedded(cells).extended()
        return self.embedding(pad_beyond(x, whole.shape[1:], boundary), whole)

    @takes_lists
    def tokenize(
        self,
        scored: Float[Tensor, "b *tcs"],
        x: Float[Tensor, "b *tds"],
        *,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> TokenSet:
        """``embed(x, cells(scored))``."""
        cells = self.cells(scored, boundary=boundary, **control)
        return self.embed(x, cells, boundary=boundary)

    def forward(
        self,
        field: Float[Tensor, "b *tcs"] | Sequence[Tensor],
        *,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> TokenSet:
        """``embed(field, cells(field))``."""
        return self.tokenize(field, field, boundary=boundary, **control)

    if TYPE_CHECKING:  # torch types every call as Any

        def __call__(
            self,
            field: Float[Tensor, "b *tcs"] | Sequence[Tensor],
            *,
            boundary: Int[Tensor, "..."] | None = None,
            **control: Any,
        ) -> TokenSet:
            """``embed(field, cells(field))``."""
            ...


def per_axis(size: int | Sequence[int], ndim: int, name: str = "size") -> tuple[int, ...]:
    """Returns one positive whole number per space axis; raises ``ValueError`` for anything else."""
    listed = accepts(Sequence, size)
    values: tuple[Any, ...] = tuple(size) if listed else (size,) * ndim  # type: ignore[arg-type]
    if len(values) != ndim or not all(accepts(Positive, v) for v in values):
        raise ValueError(f"{name} is a positive whole number or {ndim} of them, got {shown(size)}")
    return tuple(map(int, values))


def check_embedded(x: Tensor, cells: Any, boundary: Any, tokenizer: CellTokenizer) -> None:
    """Raises ``ValueError`` for cells that are none or of another field, boundary codes that are
    none, or a field of another dtype or device than the weights.
    """
    if not isinstance(cells, Cells):
        raise ValueError(f"cells are those of `Tokenizer.cells`, got {shown(cells)}")
    check_shape(x, cells)
    check_boundary(boundary, x.shape[0], tokenizer.spec.ndim)
    check_alike(x, tokenizer.embedding, "field")


def check_controls(
    control: Mapping[str, Any], accepted: Sequence[str], marking: Any = None
) -> None:
    """Raises ``ValueError`` for a control that the tokenizer does not know, or a value that the
    annotation in the marking's call does not accept; None is the default.
    """
    for name in control:
        if name == "goal":
            raise ValueError(
                "a goal needs the gradient of a surrogate: give it to the calls and rollouts of "
                "one; a tokenizer takes sensitivity=model.sensitivity(field, goal)"
            )
        if name not in accepted:
            hint = "; adaptok.at_budget(tokenizer, budget, field) finds those of a number of tokens"
            raise ValueError(
                f"unknown control {name!r}{close_matches(name, accepted)}; "
                f"accepted: {', '.join(accepted) or 'none'}{hint if name == 'budget' else ''}"
            )
    if not torch.compiler.is_compiling():
        module = isinstance(marking, nn.Module)
        call = type(marking).forward if module else type(marking).__call__
        check_arguments(call, {k: v for k, v in control.items() if v is not None})


FIXED = (
    'marking={"name": "budget", "budget": 256}, or thresholds that are filled up to it, '
    '{"name": "threshold", "thresholds": 5.5, "budget": 256, "fill": True}'
)


def check_exportable(who: str, static: bool, way_out: str) -> None:
    """Raises ``ValueError`` if a program is exported of what makes cells by the content."""
    if torch.compiler.is_exporting() and not static:
        raise ValueError(
            f"{who} makes as many cells as the content asks for, and an exported program has a "
            f"fixed number per sample: {way_out}"
        )


def check_shape(x: Tensor, cells: Cells) -> None:
    """Raises ``ValueError`` if cells were made for a field of another batch, time or space."""
    given = (x.shape[0], x.shape[1], *x.shape[3:])
    if given != (cells.batch_size, *cells.shape):
        raise ValueError(
            f"cells are for (b, t, *space) = {(cells.batch_size, *cells.shape)}, "
            f"the field is {given}"
        )


def frames_of_cells(t: int, frame_size: int) -> int:
    """Counts the frames of cells in t field frames."""
    if t % frame_size:
        raise ValueError(f"{t} frame(s) do not divide into cells of frame_size {frame_size}")
    return t // frame_size
