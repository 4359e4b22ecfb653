"""Run-length tokens: a cell that does not change is extended in time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, product, repeated
from adaptok.layers.boundary import Boundary, check_boundary
from adaptok.layers.mixed import takes_lists
from adaptok.patches import check_levels
from adaptok.registry import EMBEDDINGS, TOKENIZERS, Part, choice
from adaptok.tokenizers.base import CellTokenizer, check_controls, frames_of_cells, per_axis
from adaptok.tokenizers.embeddings.halo import means
from adaptok.tokenizers.ignoring import Ignore, IgnoresChannels, as_ignore, only
from adaptok.tokenizers.marking import OutOfReachError
from adaptok.tokens import TokenizerSpec, as_field, cell_center
from adaptok.tree import Tree, cells_from_nodes, true_entries
from adaptok.utils.arguments import (
    Dimensions,
    NonNegativeFloat,
    PerAxis,
    Positive,
    check_value,
    checked,
)
from adaptok.utils.magnitude import wide


@TOKENIZERS.register("rlt")
class RltTokenizer(IgnoresChannels, CellTokenizer):
    """RLT: cells of one size in space, each as long in time as it hardly changes.

    Run-length tokenization (Choudhury et al., "Don't Look Twice", NeurIPS 2024, Sec. 3): a tubelet
    is dropped, and the run before it gets longer, if it hardly differs from the tubelet before it.
    A token is embedded from the first tubelet of its run; it is a cell of the length of the run.
    The number of tokens follows from the content, but for fields of a single frame of cells, which
    are those of `uniform`.

    Args:
        size: in grid points, one number or one per space axis (authors' code: 16); None: 8, or what
            suits the budget of a run.
        frame_size: frames of a tubelet (authors' code: 2).
        threshold: a run goes on while the mean over patch and channels of the absolute difference
            of the tubelet's last frame to the first one of the tubelet before is at most this, in
            the units of the field that is scored; also per call.
        longest: most tubelets of a run, after which a new one begins whatever the change (authors'
            code: no bound); the levels of the cells are lengths of powers of two up to it.
        embedding: of tubelets, see `adaptok list embeddings`.
        length_embedding: add a learned vector per length of a run.
        place: where positions see a token: in the middle of its "run", or at its "first" tubelet as
            in the authors' code.
        ignore: channels whose changes do not count: "constants" (the static fields of a surrogate),
            fields by name or channels by number; [] for none.
        border: what a cell does that crosses the border of the domain: "clip" (it stays whole and
            sees the field continued by the boundary's rule) or "split" (it is cut off, and padded
            with zeros).
    """

    controls = ("threshold",)

    @checked
    def __init__(
        self,
        ndim: Dimensions,
        in_channels: Positive,
        dim: Positive,
        *,
        size: PerAxis | None = None,
        frame_size: Positive = 1,
        threshold: NonNegativeFloat = 0.1,
        longest: Positive = 16,
        embedding: Part = "linear",
        length_embedding: bool = False,
        place: str = "run",
        ignore: Ignore = "constants",
        border: str = "clip",
    ):
        self.size = per_axis(8 if size is None else size, ndim)
        tubelet = (frame_size, *self.size)
        longest = int(longest)  # of numpy too
        lengths = [1 << k for k in reversed(range((longest - 1).bit_length() + 1))]
        spec = TokenizerSpec(
            ndim,
            in_channels,
            dim,
            tuple((frame_size * length, *self.size) for length in lengths),
            position_center=PLACES[choice("place", place, PLACES)],
        )
        make = {"in_channels": in_channels, "dim": dim, "sizes": (tubelet,)}
        # Tubelets lie on their grid, runs of them need not.
        super().__init__(
            dataclasses.replace(spec, on_grid=True), EMBEDDINGS.build(embedding, **make)
        )
        self.spec = spec
        self.threshold, self.longest = threshold, longest
        self.ignore, self.border = as_ignore(ignore), border
        self.lengths = nn.Embedding(longest, dim) if length_embedding else None
        if self.lengths is not None:
            nn.init.normal_(self.lengths.weight, std=0.02)
        self.tree((1,) * ndim)  # raises here for an unknown border

    @property
    def extents(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """Grid points of a tubelet, which is what a token sees."""
        return {self.spec.sizes[-1]: self.spec.sizes[-1]}

    def tree(self, space: Sequence[int]) -> Tree:
        """Returns the grid of cells over a domain, a tree of one level."""
        return Tree(tuple(space), (self.size,), border=self.border)

    def embedded(self, cells: Cells) -> Cells:
        """Returns the first tubelet of each run."""
        check_levels(cells, self.spec.sizes)
        tubelet = self.spec.sizes[-1]
        size = torch.cat([torch.full_like(cells.size[:, :1], tubelet[0]), cells.size[:, 1:]], 1)
        level = torch.zeros_like(cells.level)
        kept = {"sizes": (tubelet,), "on_grid": True, "tiling": False}
        return cells.replace(size=size, level=level, **kept)

    def features(
        self, x: Float[Tensor, "b t c *s"], cells: Cells, boundary: Boundary
    ) -> Float[Tensor, "n d"]:
        """Embeds the first tubelet of each run, and its length if there is a table."""
        features = super().features(x, cells, boundary)
        if self.lengths is None:
            return features
        return features + self.lengths(cells.size[:, 0] // self.spec.sizes[-1][0] - 1)

    @takes_lists
    @torch.no_grad()
    def cells(
        self,
        field: Float[Tensor, "b *tcs"],
        *,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> Cells:
        """Finds the runs; needs no weights, and the host waits for their number.

        Raises:
            ValueError: a wrong field or control, or an exported program of several frames of cells.
        """
        check_controls(control, self.controls)
        given = control.get("threshold")
        threshold = self.threshold if given is None else given
        check_value(threshold, NonNegativeFloat, "threshold")
        threshold = float(threshold)
        field = as_field(field, self.spec.ndim)  # it may have other channels than are embedded
        check_boundary(boundary, field.shape[0], self.spec.ndim)
        frame_size, tree = self.spec.sizes[-1][0], self.tree(field.shape[3:])
        frames = frames_of_cells(field.shape[1], frame_size)
        size: dict[str, Any] = {"frames": frames, "frame_size": frame_size}
        starts = run_starts(self.changes(field) <= threshold, self.longest)
        if 1 in (frames, self.longest):
            every = repeated(frames * tree.counts().leaves, field.shape[0])
            cells = cells_from_nodes(starts, tree, **size, lengths=every)
        else:
            if torch.compiler.is_exporting():
                raise ValueError(
                    "tokenizer 'rlt' makes as many cells as the content asks for, and an exported "
                    "program has a fixed number per sample: longest=1 gives each tubelet a cell"
                )
            cells = cells_from_nodes(starts, tree, **size)
        run = run_lengths(starts).flatten()[true_entries(starts.flatten(), cells.count)]
        extent = torch.cat([run.int()[:, None] * frame_size, cells.size[:, 1:]], 1)
        finer = [run > length[0] // frame_size for length in self.spec.sizes[1:]]
        level = len(finer) - sum(finer, torch.zeros_like(run))
        kept = {"sizes": self.spec.sizes, "on_grid": False}
        return cells.replace(size=extent, level=level.to(torch.int8), **kept)

    def changes(
        self, field: Float[Tensor, "b t c *s"], size: tuple[int, ...] | None = None
    ) -> Float[Tensor, "b f g"]:
        """Mean absolute change of each tubelet but those of the first frame of cells, over the
        patch (inside the domain; of another size than the own if one is given) and the channels
        that are not ignored.
        """
        size = size or self.size
        frame_size = self.spec.sizes[-1][0]
        x = wide(only(field, self.seen(field.shape[2])))
        change = x[:, 2 * frame_size - 1 :: frame_size] - x[:, :-frame_size:frame_size]
        if change.shape[1] == 0:
            patches = product(-(-n // k) for n, k in zip(x.shape[3:], size, strict=True))
            return change.new_zeros(x.shape[0], 0, patches)
        return means(change.abs().mean(2, keepdim=True), size).flatten(2)

    def tokens_between(self, shape: Sequence[int], size: tuple[int, ...]) -> tuple[int, int]:
        """Counts the fewest and most tokens per sample of fields of shape (t, *space), in patches
        of this size.
        """
        frames = frames_of_cells(shape[0], self.spec.sizes[-1][0])
        patches = product(-(-n // k) for n, k in zip(shape[1:], size, strict=True))
        return -(-frames // self.longest) * patches, frames * patches

    def threshold_for(
        self, fields: Sequence[Tensor], tokens: float, size: tuple[int, ...] | None = None
    ) -> float:
        """Finds the threshold that gives a mean number of tokens per sample, the closest from
        below; see `adaptok.calibrate`.

        Args:
            fields: batches of what is scored.
            tokens: mean over all samples.
            size: of the patches, if not the own.

        Raises:
            OutOfReachError: more or fewer tokens than these fields can give.
        """
        batches = [as_field(field, self.spec.ndim) for field in fields]
        found = [self.changes(field, size).double() for field in batches]
        samples = sum(len(change) for change in found)
        values = torch.cat([change.flatten() for change in found]).unique().tolist()
        bars = [-1.0, *values]  # what is at most a bar extends a run

        def count(bar: float) -> float:
            starts = (run_starts(change <= bar, self.longest) for change in found)
            return sum(int(start.sum()) for start in starts) / samples

        least, most = count(math.inf), count(max(bars[0], 0.0))
        if not least <= tokens <= most:
            raise OutOfReachError(
                f"these fields give {least:g} to {most:g} tokens per sample, {tokens:g} are asked "
                "for; other cell sizes reach more or fewer"
            )
        # A longer run never adds tokens, so that counts fall with the bar.
        low, high = 0, len(bars) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if count(bars[middle]) <= tokens else (middle + 1, high)
        bar = max(bars[low], 0.0)
        above = bars[low + 1] if low + 1 < len(bars) else 2 * bar
        return (bar + above) / 2 if float(torch.tensor((bar + above) / 2)) < above else bar


def first_center(cells: Cells) -> Float[Tensor, "n a"]:
    """Centres of the first tubelets of runs in grid points."""
    center = cells.center
    time = cells.origin[:, :1] + cells.sizes[-1][0] / 2
    return torch.cat([time, center[:, 1:]], 1)


PLACES = {"run": cell_center, "first": first_center}


def run_starts(still: Bool[Tensor, "b k g"], longest: int) -> Bool[Tensor, "b f g"]:
    """Where runs begin: at the first frame of cells, where something moves, and after `longest`.

    Args:
        still: of each later frame, whether it extends the run before it.
    """
    moved = torch.nn.functional.pad(~still, (0, 0, 1, 0), value=True)
    frame = torch.arange(moved.shape[1], device=still.device)[:, None]
    start = torch.where(moved, frame, 0).cummax(1).values
    return (frame - start) % longest == 0


def run_lengths(starts: Bool[Tensor, "b f g"]) -> Int64[Tensor, "b f g"]:
    """Number of frames from each one to the next start, itself included: at a start, its run."""
    frames = starts.shape[1]
    frame = torch.arange(frames, device=starts.device)[:, None]
    following = torch.where(starts, frame, frames)[:, 1:]
    following = torch.nn.functional.pad(following, (0, 0, 0, 1), value=frames)
    return following.flip(1).cummin(1).values.flip(1) - frame
