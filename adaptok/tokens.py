"""TokenSet: features and their cells, the contract of tokenizer, processor and decoder."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from adaptok.cells import Cells, owners, product, register_pytree
from adaptok.patches import finest_owner, rows_of_levels
from adaptok.registry import Part, choice
from adaptok.utils.arguments import (
    Dimensions,
    LevelSizes,
    Positive,
    check_fields,
    kind_of,
    shown,
)
from adaptok.utils.magnitude import wide
from adaptok.utils.precision import check_alike
from adaptok.utils.reading import reads_are_free


def cell_center(cells: Cells) -> Float[Tensor, "n a"]:
    """Centres of the cells in grid points."""
    return cells.center


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
    """Describes a tokenizer's cells and features; processors and decoders are built from it.

    Attributes:
        ndim: number of space dimensions, 1 to 3.
        in_channels: channels that the tokenizer embeds.
        dim: width of the features.
        sizes: cell size of each level, coarse to fine, time first.
        tiling: whether cells cover the domain exactly once.
        layout: type of ``Cells.layout``, or None if boxes say everything.
        on_grid: whether all cells lie on the grids of their levels, see `Cells`; parts that index
            such grids refuse a spec without it.
        rooted: whether the coarsest cell is the whole domain, so that the cells of a call have as
            many sizes as the domain asks for; `sizes` is then the finest alone. Parts with weights
            per size refuse such a spec, see `check_sizes`.
        decoder: the decoder that belongs to the tokenizer, name or mapping of name and knobs; None:
            one that paints cells of these sizes, see `adaptok.decoders.auto`.
        position_center: centres (n, a) in grid points that processors compute positions from. Only
            a tokenizer that reproduces the misplaced positions of published code has others than
            those of its cells (`adaptok.layers.positions.misplaced_center`).
    """

    ndim: Dimensions
    in_channels: Positive
    dim: Positive
    sizes: LevelSizes
    tiling: bool = True
    layout: type | None = None
    on_grid: bool = dataclasses.field(default=False, kw_only=True)
    rooted: bool = dataclasses.field(default=False, kw_only=True)
    decoder: Part | None = dataclasses.field(default=None, hash=False, kw_only=True)
    position_center: Callable[[Cells], Tensor] = dataclasses.field(
        default=cell_center, kw_only=True
    )

    def __post_init__(self):
        check_fields(self)


@runtime_checkable
class Tokenizer(Protocol):
    """Turns fields into tokens; `controls` names what may change per call, such as "budget"."""

    spec: TokenizerSpec

    @property
    def controls(self) -> tuple[str, ...]:
        """Names that may change per call."""
        ...

    def cells(self, field: Tensor, *, boundary: Tensor | None = None, **control: Any) -> Cells:
        """Scores and refines; needs no weights."""
        ...

    def embed(self, x: Tensor, cells: Cells, *, boundary: Tensor | None = None) -> TokenSet:
        """Embeds cells; x may differ from the scored field (normalised, lifted)."""
        ...

    def __call__(
        self, field: Tensor, *, boundary: Tensor | None = None, **control: Any
    ) -> TokenSet:
        """``embed(field, cells(field))``."""
        ...


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TokenSet:
    """Packed features with their cells; immutable, a pytree.

    Attributes:
        features: differentiable, one row per token of the whole batch.
        cells: geometry of the same rows.
        cond: conditioning per sample (lead time, parameters), as wide as the features, or None;
            processors add it to all tokens of the sample.
        payload: further tensors with a row per token, by name, such as weights of merged tokens,
            scores or run lengths; they follow the rows.

    Raises:
        ValueError: features or payload with another number of rows than there are cells, such as
            those of class tokens, which have no cell (see ``Cells.groups(prefix=...)``).
    """

    features: Float[Tensor, "n d"]
    cells: Cells
    cond: Float[Tensor, "b e"] | None = None
    payload: Mapping[str, Shaped[Tensor, "n ..."]] = dataclasses.field(
        default_factory=dict, kw_only=True
    )

    def __post_init__(self):
        if not torch.compiler.is_compiling():
            check_fields(self)
        rows = self.cells.count
        for name, value in {"features": self.features, **self.payload}.items():
            if (
                value.ndim == 0
                or value.shape[0] != rows
                or (name == "features" and value.ndim != 2)
            ):
                what = "are (n, d)" if name == "features" else "has a row per token"
                raise ValueError(
                    f"{name} {what} with n = {rows} cells, got {tuple(value.shape)}; rows "
                    "without a cell (class tokens) stay outside of a TokenSet"
                )
        cond, samples = self.cond, self.cells.batch_size
        if cond is not None and (cond.ndim != 2 or cond.shape[0] != samples):
            given = tuple(cond.shape)
            raise ValueError(f"cond has a row for each of {samples} samples, got {given}")

    def __repr__(self) -> str:
        n, dim = self.features.shape
        extra = "".join(f", {name} {tuple(x.shape)}" for name, x in self.payload.items())
        cond = "" if self.cond is None else f", cond {tuple(self.cond.shape)}"
        return (
            f"TokenSet({n} tokens of width {dim}, {self.features.dtype}, "
            f"{self.features.device}{cond}{extra}; {self.cells})"
        )

    def __len__(self) -> int:
        return len(self.cells)

    def replace(self, **changes: Any) -> TokenSet:
        """Returns a copy with other features, cells, cond or payload."""
        return dataclasses.replace(self, **changes)

    def _each(self, change: Callable[[Tensor], Tensor], cells: Cells | None = None) -> TokenSet:
        """Returns a copy with every tensor but those of the cells changed."""
        return TokenSet(
            change(self.features),
            self.cells if cells is None else cells,
            None if self.cond is None else change(self.cond),
            payload={name: change(value) for name, value in self.payload.items()},
        )

    def to(self, *args: Any, **kwargs: Any) -> TokenSet:
        """Moves everything; a dtype applies to what is floating point (not to the cells)."""
        device = torch.empty(0, device=self.features.device).to(*args, **kwargs).device

        def move(x: Tensor) -> Tensor:
            return x.to(*args, **kwargs) if x.is_floating_point() else x.to(device)

        return self._each(move, self.cells.to(device))

    def detach(self) -> TokenSet:
        """Cuts all tensors off the graph."""
        return self._each(lambda x: x.detach())

    def pin_memory(self) -> TokenSet:
        """Copies everything into page-locked memory, for loaders."""
        return self._each(lambda x: x.pin_memory(), self.cells.pin_memory())

    @staticmethod
    def cat(parts: Sequence[TokenSet]) -> TokenSet:
        """Puts the samples of several batches into one, such as a loader's; shapes may differ.

        Raises:
            ValueError: no parts, parts with other payloads, or only some with cond; what
                `Cells.cat` refuses.
        """
        cells = Cells.cat([part.cells for part in parts])
        conds = [part.cond for part in parts if part.cond is not None]
        names = parts[0].payload.keys()
        if len(conds) not in (0, len(parts)) or any(p.payload.keys() != names for p in parts):
            raise ValueError("all parts have cond and the same payload, or none has")
        return TokenSet(
            torch.cat([part.features for part in parts]),
            cells,
            torch.cat(conds) if conds else None,
            payload={name: torch.cat([part.payload[name] for part in parts]) for name in names},
        )

    def samples(self, start: int, stop: int) -> TokenSet:
        """Takes the samples start..stop - 1; without host lengths this reads two offsets.

        Raises:
            ValueError: the batch has no such samples.
        """
        rows = self.cells.rows(start, stop)
        return TokenSet(
            self.features[rows],
            self.cells.samples(start, stop),
            None if self.cond is None else self.cond[start:stop],
            payload={name: value[rows] for name, value in self.payload.items()},
        )

    def select(self, rows: Bool[Tensor, " n"] | Int64[Tensor, " m"]) -> TokenSet:
        """Keeps some rows, so that the cells are no tiling any more; see `Cells.select`.

        Args:
            rows: a mask with one value per row, or indices from 0 that keep the order of the
                samples; one may come several times, so that its row is copied.

        Raises:
            ValueError: what `Cells.select` refuses.
        """
        rows, longest = self.cells._chosen(rows)
        return TokenSet(
            self.features[rows],
            self.cells._take(rows, longest),
            self.cond,
            payload={name: value[rows] for name, value in self.payload.items()},
        )

    @property
    def weight(self) -> Float[Tensor, " n"]:
        """What each token stands for, in finest cells: ``payload["weight"]``, such as that of
        merged tokens, else the volume of its cell. In at least float32.

        Raises:
            ValueError: a payload that is not one number of at least 0 per token.
        """
        dtype = torch.promote_types(self.features.dtype, torch.float32)
        if "weight" not in self.payload:
            return self.cells.volume.to(dtype) / product(self.cells.sizes[-1])
        weight = self.payload["weight"]
        if weight.ndim != 1 or (reads_are_free(weight) and not bool((weight >= 0).all())):
            raise ValueError(f"weight is a number of at least 0 per token, got {shown(weight)}")
        return weight.to(dtype)

    def pool(self, how: str = "mean", weight: str | None = None) -> Float[Tensor, "b d"]:
        """Reduces the features of each sample; without tokens its mean is NaN, its maximum -inf.

        Args:
            how: "mean", "sum" or "max".
            weight: "volume" (grid points of the cell) or a name in `payload`, for a weighted mean
                or sum.

        Raises:
            ValueError: an unknown `how` or weight, a weight that is not one number per token, or a
                weighted maximum.
        """
        choice("how", how, ("mean", "sum", "max"))
        sample, shape = self.cells.sample, (self.cells.batch_size, self.features.shape[1])
        if how == "max":
            if weight is not None:
                raise ValueError("a maximum has no weight")
            index = sample[:, None].expand_as(self.features)
            lowest = self.features.new_full(shape, -torch.inf)
            return lowest.scatter_reduce(0, index, self.features, "amax")
        x = wide(self.features)  # half precision has no room for sums
        own = torch.ones_like(x[:, :1])
        if weight is not None:
            choice("weight", weight, ("volume", *self.payload))
            given = self.cells.volume if weight == "volume" else self.payload[weight]
            if given.numel() != x.shape[0]:
                raise ValueError(f"weight {weight!r} is one number per token, got {shown(given)}")
            own = given.to(own.dtype).view(-1, 1)
        total = x.new_zeros(shape).index_add(0, sample, x * own)
        if how == "mean":
            total = total / own.new_zeros(shape[0], 1).index_add(0, sample, own)
        return total.to(self.features.dtype)

    def dense(self) -> Float[Tensor, "b t d *s"]:
        """Features on the grid points of their cells: where cells overlap those of the smallest,
        zeros in holes. The slow reference is ``features[cells.owner_map()]``, channels last.
        """
        cells = self.cells
        if isinstance(cells.count, int) and not cells.count:
            (t, *space), d = cells.shape, self.features.shape[1]
            return self.features.new_zeros(cells.batch_size, t, d, *space)
        owner = finest_owner(cells) if cells.on_grid else owners(cells, rows_of_levels(cells))
        values = self.features[owner.clamp(min=0)] * (owner >= 0)[..., None]
        return values.movedim(-1, 2)

    def split(self) -> list[Tensor]:
        """Splits the features by sample, ``[(n_i, d)]``; concatenated they are `features` again."""
        lengths = self.cells.lengths or tuple(self.cells.cu_seqlens.diff().tolist())
        return list(self.features.split(lengths))

    def padded(self) -> tuple[Float[Tensor, "b m d"], Bool[Tensor, "b m"]]:
        """Pads each sample with zero rows to `max_seqlen`; returns features and a mask of the real
        rows (torch's ``key_padding_mask`` is True for padding: use ``~mask``).
        """
        cells = self.cells
        b, m = cells.batch_size, cells.max_seqlen
        dense = self.features.new_zeros(b * m, self.features.shape[1])
        dense = dense.index_copy(0, self._padded_rows(), self.features)
        mask = torch.arange(m, device=cells.device) < cells.cu_seqlens.diff()[:, None]
        return dense.unflatten(0, (b, m)), mask

    def from_padded(self, dense: Float[Tensor, "b m e"]) -> TokenSet:
        """Inverts `padded` exactly; drops whatever stands in the padding.

        Raises:
            ValueError: a tensor of another batch or length than `padded` gives.
        """
        wanted = (self.cells.batch_size, self.cells.max_seqlen)
        if dense.ndim != 3 or dense.shape[:2] != wanted:
            raise ValueError(
                f"padded features are (b, m, e) with (b, m) = {wanted}, got {tuple(dense.shape)}"
            )
        return self.replace(features=dense.flatten(0, 1)[self._padded_rows()])

    def _padded_rows(self) -> Int64[Tensor, " n"]:
        cells = self.cells
        shift = torch.arange(cells.batch_size, device=cells.device) * cells.max_seqlen
        shift = shift - cells.cu_seqlens[:-1]
        return torch.arange(cells.count, device=cells.device) + shift[cells.sample]


register_pytree(TokenSet, ("features", "cells", "cond", "payload"))


def check_sizes(spec: TokenizerSpec, part: str) -> None:
    """Raises ``ValueError`` for a part with weights per cell size and a tokenizer whose sizes
    follow the domain.
    """
    if spec.rooted:
        raise ValueError(
            f"{part} has weights for each cell size, and the sizes of this tokenizer follow the "
            "domain; 'paste' and 'boxes' have one set of weights for all sizes"
        )


def check_tokens(tokens: Any, spec: TokenizerSpec | None, module: nn.Module) -> None:
    """Checks what a processor or decoder is called with.

    Raises:
        ValueError: no tokens, tokens of another width than `spec` says, or features of another
            dtype or on another device than the weights of the module.
    """
    if not isinstance(tokens, TokenSet):
        raise ValueError(f"tokens are a TokenSet, got {shown(tokens)}")
    width = tokens.features.shape[1]
    if spec is not None and width != spec.dim:
        raise ValueError(f"built for tokens of width {spec.dim}, these are {width} wide")
    check_alike(tokens.features, module, "features of the tokens")


def as_field(
    field: Tensor, ndim: int, in_channels: int | None = None, *, what: str = "field"
) -> Float[Tensor, "b t c *s"]:
    """Checks a field and gives ``(b, c, *space)`` its time axis.

    Values are checked for NaN and infinity in eager mode on the CPU only: elsewhere it would sync.

    Raises:
        ValueError: not floating point, wrong rank, wrong number of channels, empty, or not finite.
    """
    if not isinstance(field, Tensor) or not field.is_floating_point():
        given = f"a {field.dtype} tensor" if isinstance(field, Tensor) else kind_of(field)
        raise ValueError(f"a {what} is a floating-point tensor, got {given}")
    if field.ndim == ndim + 2:
        field = field.unsqueeze(1)
    if field.ndim != ndim + 3:
        raise ValueError(
            f"a {what} with {ndim} space dimension(s) is (b, t, c, *space) or (b, c, *space), "
            f"got shape {tuple(field.shape)}"
        )
    if in_channels is not None and field.shape[2] != in_channels:
        last = field.shape[-1] == in_channels
        hint = f"; channels come before space: {what}.movedim(-1, -{ndim + 1})" if last else ""
        raise ValueError(
            f"built for {in_channels} channel(s), the {what} has {field.shape[2]}{hint}"
        )
    if 0 in field.shape:
        raise ValueError(f"the {what} is empty: shape {tuple(field.shape)}")
    if torch.compiler.is_compiling():
        batch = isinstance(field.shape[0], torch.SymInt)  # torch.export with a dynamic batch
        for extent in field.shape[batch:]:
            operator.index(extent)  # trees and groups are constants of a graph: one per shape
    elif reads_are_free(field):
        _check_finite(field, what)
    return field


def _check_finite(field: Tensor, what: str) -> None:
    # The sum needs no mask of the field's size; it can overflow, hence the second look.
    if torch.isfinite(field.detach().sum()) or torch.isfinite(field).all():
        return
    sample, frame, channel, *point = torch.nonzero(~torch.isfinite(field))[0].tolist()
    value = float(field[(sample, frame, channel, *point)])
    raise ValueError(
        f"the {what} is not finite: {value} in sample {sample}, frame {frame}, channel {channel} "
        f"at grid point {tuple(point)}"
    )
