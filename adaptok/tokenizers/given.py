"""The refinement that a simulation has already, as cells."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from adaptok.cells import Boxes, Cells, cells_from_boxes, repeated
from adaptok.cells.amr import check_levels_are_whole, read_refinement
from adaptok.cells.lengths import offsets_of
from adaptok.layers.boundary import Boundary, check_boundary
from adaptok.layers.mixed import takes_lists
from adaptok.patches import pad_end, patchify
from adaptok.registry import EMBEDDINGS, TOKENIZERS, Part, choice
from adaptok.tokenizers.base import (
    CellTokenizer,
    check_controls,
    check_exportable,
    frames_of_cells,
    per_axis,
)
from adaptok.tokenizers.tree import level_sizes
from adaptok.tokens import TokenizerSpec, as_field
from adaptok.tree import BORDERS, Sizes, Tree, cells_from_splits
from adaptok.utils.arguments import LARGEST, Dimensions, PerAxis, Positive, checked, shown
from adaptok.utils.constants import cached_constant
from adaptok.utils.reading import reads_are_free

Rows = Sequence[Sequence[int]]
Given = Boxes | Tensor  # boxes, or a field of levels


class _Tiling(NamedTuple):
    """Cells of one frame of one sample."""

    origin: Tensor
    size: Tensor
    level: Tensor
    tiling: bool
    on_grid: bool
    overhang: bool


class GivenTokenizer(CellTokenizer):
    """Cells that are given: by levels, from which a tree follows, or by boxes.

    A level says how often the coarsest cell is halved: a cell of level k splits if a point inside
    it has a level above k. Levels and boxes come with each call, from a channel of the field, or
    are those of all samples; without any the cells are the coarsest.

    Args:
        spec: sizes with the extent in time first, coarse to fine.
        embedding: patches to features, called as ``embedding(x, cells)``.
        fixed: boxes, or levels (*space), of all samples; levels of another resolution by a whole
            factor are repeated, or the finest of a block counts.
        channel: of the field that is scored, which holds levels.
        border: "clip" or "split" cells of a tree that cross the border of the domain.
    """

    controls = ("levels", "boxes")

    def __init__(
        self,
        spec: TokenizerSpec,
        embedding: nn.Module,
        *,
        fixed: Given | None = None,
        channel: int | None = None,
        border: str = "clip",
    ):
        super().__init__(spec, embedding)
        if fixed is not None and channel is not None:
            raise ValueError("cells are given by fixed refinement or by a channel, not by both")
        if isinstance(fixed, Tensor) and fixed.ndim != spec.ndim:
            raise ValueError(
                f"levels of a {spec.ndim}D domain have {spec.ndim} axes, got {shown(fixed)}"
            )
        if isinstance(fixed, Tensor):
            check_levels_are_whole(fixed, "the fixed refinement")
        self.channel, self.border = channel, choice("border", border, BORDERS)
        self.fixed = fixed
        self._remember()

    def _remember(self) -> None:
        make = functools.partial(_fixed_tiling, self.fixed, self.spec, self.border)
        self._tiling = cached_constant(16)(make)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_tiling"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._remember()

    @property
    def static(self) -> bool:
        """Whether calls without controls have a fixed number of tokens."""
        return self.channel is None

    @takes_lists
    @torch.no_grad()
    def cells(
        self, field: Float[Tensor, "b *tcs"], *, boundary: Boundary = None, **control: Any
    ) -> Cells:
        """Makes the cells that are given.

        Args:
            control: ``levels`` (*space), (b, *space) or (b, t, *space), or ``boxes``, `Boxes` of
                all samples or a list of one per sample.

        Raises:
            ValueError: a wrong field, both controls, levels that are no whole numbers or of another
                domain, or boxes that do not suit the spec: that overlap, leave holes or lie off the
                grids of their levels.
        """
        check_controls(control, self.controls)
        field = as_field(field, self.spec.ndim)
        check_boundary(boundary, field.shape[0], self.spec.ndim)
        given = {name: value for name, value in control.items() if value is not None}
        static = self.static and not given
        check_exportable("tokenizer 'given'", static, "build it with refinement or boxes")
        if len(given) == 2:
            raise ValueError("give levels or boxes, not both")
        if "boxes" in given:
            return self._of_boxes(field, given["boxes"])
        if "levels" in given:
            return self._of_levels(field, self._as_levels(given["levels"], field), "levels")
        if self.channel is not None:
            if not -field.shape[2] <= self.channel < field.shape[2]:
                raise ValueError(f"channel {self.channel}: the field has {field.shape[2]} channels")
            what = f"channel {self.channel} of the field"
            return self._of_levels(field, field[:, :, self.channel], what)
        if self.fixed is None and not torch.compiler.is_compiling():
            warnings.warn("nothing is given: all cells are the coarsest", stacklevel=3)
        one = self._tiling(tuple(field.shape[3:]), field.device)
        return self._repeat(one, field.shape[0], field)

    def _of_boxes(self, field: Tensor, boxes: Any) -> Cells:
        b, given = field.shape[0], (self.spec, self.border, tuple(field.shape[3:]), field.device)
        if isinstance(boxes, Boxes):
            return self._repeat(_fixed_tiling(boxes, *given), b, field)
        if not isinstance(boxes, (list, tuple)) or not all(isinstance(x, Boxes) for x in boxes):
            raise ValueError(f"boxes are `Boxes`, or a list of one per sample, got {shown(boxes)}")
        if len(boxes) != b:
            raise ValueError(f"{len(boxes)} boxes for {b} sample(s)")
        made = [_fixed_tiling(one, *given) for one in boxes]
        return Cells.cat([self._repeat(one, 1, field) for one in made])

    def _repeat(self, one: _Tiling, batch: Any, field: Tensor) -> Cells:
        """The same cells in every frame of every sample."""
        t, frame_size = field.shape[1], self.spec.sizes[0][0]
        frames, n = frames_of_cells(t, frame_size), one.origin.shape[0]
        time = torch.arange(frames, dtype=torch.int32, device=field.device) * frame_size
        time = time.view(1, -1, 1, 1).expand(batch, -1, n, 1)
        length = torch.full_like(time, frame_size)
        lengths = repeated(frames * n, batch)
        origin, size, level = (x.expand(batch, frames, *x.shape) for x in one[:3])
        return Cells(
            torch.cat([time, origin], 3).flatten(0, 2),
            torch.cat([length, size], 3).flatten(0, 2),
            level.flatten(),
            offsets_of(lengths, field.device),
            frames * n,
            lengths,
            (t, *field.shape[3:]),
            self.spec.sizes,
            one.tiling,
            on_grid=one.on_grid,
            overhang=one.overhang,
            bounded=one.tiling,
        )

    def _as_levels(self, levels: Any, field: Tensor) -> Float[Tensor, "b f *s"]:
        (b, t, _, *space), ndim = field.shape, self.spec.ndim
        each = levels if isinstance(levels, (list, tuple)) else [levels]
        alike = all(isinstance(x, Tensor) and x.shape == each[0].shape for x in each)
        if not each or not alike:
            raise ValueError(
                f"levels are a tensor, or one per sample of one shape, got {shown(levels)}"
            )
        levels = levels if isinstance(levels, Tensor) else torch.stack(list(each))
        wanted = {ndim: (*space,), ndim + 1: (b, *space), ndim + 2: (b, t, *space)}
        if tuple(levels.shape) != wanted.get(levels.ndim):
            raise ValueError(
                f"levels of a field of (b, t, *space) = {(b, t, *space)} are (*space), (b, *space) "
                f"or (b, t, *space), got {tuple(levels.shape)}"
            )
        x = levels.to(field.device, torch.float32)
        x = x.unsqueeze(1) if x.ndim == ndim + 1 else x
        return x.expand(b, 1, *space) if x.ndim == ndim else x

    def _of_levels(self, field: Tensor, levels: Tensor, what: str) -> Cells:
        frame_size = self.spec.sizes[0][0]
        frames = frames_of_cells(field.shape[1], frame_size)
        if reads_are_free(levels):
            check_levels_are_whole(levels, what)
        if levels.shape[1] > 1:
            levels = levels.unflatten(1, (frames, frame_size)).amax(2)
        tree = _tree(self.spec, tuple(field.shape[3:]), self.border)
        split = splits_of_levels(levels, tree)
        cells = cells_from_splits(split, tree, frames=frames, frame_size=frame_size)
        return cells.replace(tiling=self.spec.tiling)


def splits_of_levels(levels: Float[Tensor, "b f *s"], tree: Tree) -> Bool[Tensor, "b f inner"]:
    """Marks the nodes inside which a point has a finer level, and those that the border forces."""
    x = pad_end(levels, tree.sizes[0]).unsqueeze(2)
    finer = [
        patchify(x, (1, *size)).amax(2).unflatten(1, (x.shape[1], -1)) > level
        for level, size in enumerate(tree.sizes[:-1])
    ]
    empty = torch.zeros(*x.shape[:2], 0, dtype=torch.bool, device=x.device)
    return torch.cat([empty, *finer], 2) | tree.nodes(x.device).forced


def _tree(spec: TokenizerSpec, space: tuple[int, ...], border: str) -> Tree:
    return Tree(space, tuple(size[1:] for size in spec.sizes), border=border)


def _fixed_tiling(
    fixed: Given | None,
    spec: TokenizerSpec,
    border: str,
    space: tuple[int, ...],
    device: torch.device,
) -> _Tiling:
    """Computes cells that all samples share; raises ``ValueError`` if they suit no such domain."""
    with _disable_current_modes():  # a trace holds their numbers
        if isinstance(fixed, Boxes):
            cells = _cells_of_boxes(fixed, spec, space)
        else:
            tree = _tree(spec, space, border)
            levels = torch.zeros(space) if fixed is None else resampled_levels(fixed, space).float()
            cells = cells_from_splits(splits_of_levels(levels[None, None], tree), tree, frames=1)
            cells = cells.replace(tiling=spec.tiling)
        origin, size = cells.origin[:, 1:].tolist(), cells.size[:, 1:].tolist()
        level = cells.level.tolist()
    int32: dict[str, Any] = {"dtype": torch.int32, "device": device}
    return _Tiling(
        torch.tensor(origin, **int32).view(-1, spec.ndim),
        torch.tensor(size, **int32).view(-1, spec.ndim),
        torch.tensor(level, dtype=torch.int8, device=device),
        cells.tiling,
        cells.on_grid,
        cells.overhang,
    )


def _cells_of_boxes(boxes: Boxes, spec: TokenizerSpec, space: tuple[int, ...]) -> Cells:
    origin, size = (_rows(rows) for rows in (boxes.origin, boxes.size))
    if origin.ndim != 2 or origin.shape[1] != spec.ndim:
        raise ValueError(
            f"boxes have an origin and a size of {spec.ndim} number(s) each, got "
            f"{tuple(origin.shape)} and {tuple(size.shape)}"
        )
    frame_size = spec.sizes[0][0]
    columns = (torch.zeros_like(origin[:, :1]), torch.full_like(size[:, :1], frame_size))
    cells = cells_from_boxes(
        torch.cat([columns[0], origin], 1),
        torch.cat([columns[1], size], 1),
        [len(origin)],
        shape=(frame_size, *space),
        sizes=spec.sizes,
        tiling=spec.tiling,
    )
    if spec.on_grid and not cells.on_grid:
        raise ValueError(
            f"not all boxes lie on the grids of the sizes {[s[1:] for s in spec.sizes]}: give "
            "min_size and max_size of the grids, or on_grid=False"
        )
    return cells


def _rows(given: Any) -> Int64[Tensor, "..."]:
    try:
        rows = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"boxes are rows of whole numbers, got {shown(given)}") from error
    small = not rows.is_floating_point() and not rows.is_complex()
    if rows.dtype == torch.bool or not small or bool((rows.long().abs() > LARGEST).any()):
        raise ValueError(f"boxes are rows of whole numbers, got {shown(given)}")
    return rows.long()


def resampled_levels(levels: Int[Tensor, "*s"], space: tuple[int, ...]) -> Int[Tensor, "*r"]:
    """Brings levels to another resolution: repeated, or the finest of each block.

    Raises:
        ValueError: the resolutions differ by other than a whole factor.
    """
    x = levels
    for axis, n in enumerate(space):
        have = x.shape[axis]
        if have % n and n % have:
            raise ValueError(
                f"levels of {tuple(levels.shape)} points do not fit a domain of {space}: the "
                "resolutions differ by a whole factor, or not at all"
            )
        if n >= have:
            x = x.repeat_interleave(n // have, axis)
        else:
            x = x.unflatten(axis, (n, -1)).amax(axis + 1)
    return x


@TOKENIZERS.register("given")
@checked
def given(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    refinement: str | None = None,
    boxes: Sequence[Rows] | None = None,
    channel: int | None = None,
    min_size: PerAxis | None = None,
    max_size: PerAxis | None = None,
    frame_size: Positive = 1,
    embedding: Part = "linear",
    tiling: bool = True,
    on_grid: bool = True,
    border: str = "clip",
) -> GivenTokenizer:
    """Given: the refinement of the simulation itself, or any other that is known.

    Read from a field of levels, from a list of boxes, or from a plotfile of an AMR code. A call
    may bring its own: ``levels=`` or ``boxes=`` (`adaptok.cells.Boxes`). Without any the cells are
    the coarsest.

    Args:
        refinement: file of what all samples share: ``.npy`` with a level per grid point, ``.npz``
            with boxes (`adaptok.cells.save_boxes`), or a plotfile that yt reads (extra ``amr``).
        boxes: of all samples, in place of a file: a list of origins and a list of sizes.
        channel: of the field that holds levels, -1 for the last; a surrogate shows it as it is with
            ``score_on=raw``.
        min_size: finest cell in grid points, one number or one per axis; None: the smallest box, 2,
            or what suits the budget of a run.
        max_size: coarsest cell, that of level 0, min_size times a power of two; None: what holds
            the largest box, or as many halvings as the file has levels, else 16.
        frame_size: extent of every cell in time.
        embedding: "linear", or "boxes" for boxes of many sizes, or a mapping with knobs.
        tiling: False: boxes may overlap, leave holes and stick out.
        on_grid: False: boxes may lie off the grids of their levels; parts that need them refuse.
        border: what cells of levels do that cross the border: "clip" or "split", see `composed`.

    Raises:
        ValueError: more than one source, one that cannot be read, or sizes that do not nest.
    """
    sources = {"refinement": refinement, "boxes": boxes, "channel": channel}
    if len(found := [name for name, value in sources.items() if value is not None]) > 1:
        raise ValueError(f"give one of {', '.join(sources)}, not {' and '.join(found)}")
    fixed: Given | None = None
    if refinement is not None:
        try:
            fixed = read_refinement(refinement)
        except ValueError as error:
            raise ValueError(f"refinement: {error}") from error
    if boxes is not None:
        if len(boxes) != 2 or len(boxes[0]) != len(boxes[1]):
            raise ValueError("boxes are a list of origins and a list of as many sizes")
        fixed = Boxes(boxes[0], boxes[1])
    sizes = sizes_of(fixed, min_size, max_size, ndim, frame_size)
    spec = TokenizerSpec(ndim, in_channels, dim, sizes, tiling, on_grid=on_grid)
    part = EMBEDDINGS.build(embedding, in_channels=in_channels, dim=dim, sizes=sizes)
    return GivenTokenizer(spec, part, fixed=fixed, channel=channel, border=border)


def sizes_of(
    fixed: Given | None,
    min_size: int | Sequence[int] | None,
    max_size: int | Sequence[int] | None,
    ndim: int,
    frame_size: int,
) -> Sizes:
    """Lists cell sizes from coarse to fine, time first; those that are None suit the refinement."""
    halvings = 3
    if isinstance(fixed, Tensor):
        halvings = max(int(fixed.max()), 1) if fixed.numel() else 1
    elif fixed is not None:
        if fixed.sizes is not None and min_size is None and max_size is None:
            return tuple((frame_size, *size) for size in fixed.sizes)
        extent = torch.as_tensor(fixed.size).reshape(-1, ndim)
        if not len(extent):
            raise ValueError("there are no boxes")
        min_size = extent.amin(0).tolist() if min_size is None else min_size
        fine = per_axis(min_size, ndim, "min_size")
        most = zip(extent.amax(0).tolist(), fine, strict=True)
        halvings = max((-(-n // f) - 1).bit_length() for n, f in most)
    fine = per_axis(2 if min_size is None else min_size, ndim, "min_size")
    coarse = [n << halvings for n in fine] if max_size is None else max_size
    return level_sizes(fine, coarse, ndim, frame_size)
