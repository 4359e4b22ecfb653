"""Refinement that somebody else has decided: levels and boxes of simulations, read and written."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from adaptok.cells.boxes import cells_from_boxes
from adaptok.cells.cells import Cells


class Boxes(NamedTuple):
    """Boxes over space, the same in all frames.

    Attributes:
        origin: first grid point of each box, (n, D).
        size: extent of each box in grid points, (n, D).
        sizes: cell size of each level, coarse to fine, if they are known.
    """

    origin: Any
    size: Any
    sizes: tuple[tuple[int, ...], ...] | None = None


class Patches(NamedTuple):
    """Patches of a block-structured mesh, in points of its finest level.

    Attributes:
        origin: first point of each patch.
        size: extent of each patch in points.
        level: how often its mesh was halved.
        shape: points of the domain per axis.
    """

    origin: Int[np.ndarray, "n d"]
    size: Int[np.ndarray, "n d"]
    level: Int[np.ndarray, " n"]
    shape: tuple[int, ...]

    def levels(self) -> Int[Tensor, "*s"]:
        """The finest level at each point, -1 at points without a patch."""
        field = torch.full(self.shape, -1, dtype=torch.int8)
        for row in np.argsort(self.level, kind="stable"):
            field[self._box(row)] = int(self.level[row])
        return field

    def leaves(self) -> Boxes:
        """The patches that are not refined all over: a tiling if every patch is refined all over or
        not at all, as the blocks of a tree are; else they overlap.
        """
        field = self.levels()
        kept = [i for i, level in enumerate(self.level) if (field[self._box(i)] == level).any()]
        return Boxes(self.origin[kept], self.size[kept])

    def _box(self, row: Any) -> tuple[slice, ...]:
        ends = zip(self.origin[row].tolist(), self.size[row].tolist(), strict=True)
        return tuple(slice(start, start + extent) for start, extent in ends)


def read_patches(source: Any) -> Patches:
    """Reads the patches of a data set of an AMR code by yt: AMReX, FLASH, Enzo, Athena++ and more.

    Args:
        source: path of a plotfile or output, or what ``yt.load`` gives.

    Raises:
        ValueError: yt is missing, no such file, a data set without patches (of particles, or of an
            octree that stores single cells), a refinement by other than powers of two, or patches
            off the mesh of their level.
    """
    dataset = _load(source) if isinstance(source, (str, Path)) else source
    index, ndim = dataset.index, int(dataset.dimensionality)
    if getattr(index, "grid_left_edge", None) is None:
        raise ValueError(
            f"{dataset} has no patches ({type(index).__name__}): give its levels as an array"
        )
    factor = int(dataset.refine_by)
    if factor < 2 or factor & (factor - 1):
        raise ValueError(f"{dataset} refines by {factor}, which is no power of two")
    coarse = np.asarray(dataset.domain_dimensions)[:ndim].astype(np.int64)
    low = np.asarray(dataset.domain_left_edge, dtype=np.float64)[:ndim]
    width = np.asarray(dataset.domain_right_edge, dtype=np.float64)[:ndim] - low
    own = np.asarray(index.grid_levels).reshape(-1).astype(np.int64)
    left = np.asarray(index.grid_left_edge, dtype=np.float64)[:, :ndim]
    start = (left - low) / width * (coarse * factor ** own[:, None])
    origin = np.rint(start).astype(np.int64)
    if np.abs(start - origin).max() > 1e-2:
        row = int(np.abs(start - origin).max(1).argmax())
        raise ValueError(f"patch {row} of {dataset} begins at point {start[row]} of its level")
    finest = int(own.max())
    scale = factor ** (finest - own)[:, None]
    size = np.asarray(index.grid_dimensions)[:, :ndim].astype(np.int64) * scale
    halvings = own * (factor.bit_length() - 1)
    return Patches(origin * scale, size, halvings, tuple((coarse * factor**finest).tolist()))


def _load(path: str | Path) -> Any:
    try:
        import yt  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"{path} is read as a plotfile, by yt, which is not installed: pip install "
            "'adaptok[amr]'. Levels are also read from .npy, boxes from .npz"
        ) from error
    if not Path(path).exists():
        raise ValueError(f"there is no plotfile {path}")
    try:
        return yt.load(str(path))
    except Exception as error:  # of any of its readers
        raise ValueError(f"yt cannot read {path}: {error}") from error


def boxes_of(cells: Cells, sample: int = 0) -> Boxes:
    """Returns the cells of one sample as boxes over (t, *space), (n, 1 + D), clipped to the domain;
    without the first column they are what a tokenizer takes as ``boxes=``.
    """
    own = cells.samples(sample, sample + 1)
    end = own.origin.new_tensor(own.shape)
    far = torch.minimum(own.origin + own.size, end)
    near = torch.minimum(own.origin.clamp(min=0), end)
    inside = (far > near).all(1)
    return Boxes(near[inside], (far - near)[inside])


def save_boxes(path: str | Path, cells: Cells) -> None:
    """Writes cells as boxes, as an ``.npz`` file: ``origin`` and ``size`` (n, a), ``lengths`` and
    ``shapes`` of the samples, and ``sizes`` of the levels.

    Cells that stick out of the domain are clipped to it.
    """
    each = [boxes_of(cells, sample) for sample in range(int(cells.batch_size))]
    arrays: dict[str, Any] = {
        "origin": torch.cat([box.origin for box in each]).cpu().numpy(),
        "size": torch.cat([box.size for box in each]).cpu().numpy(),
        "lengths": np.array([len(box.origin) for box in each]),
        "shapes": np.array(cells.shapes),
        "sizes": np.array(cells.sizes),
    }
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def load_boxes(path: str | Path) -> Cells:
    """Reads cells that `save_boxes` has written.

    Raises:
        ValueError: no such file, or one that holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            origin, size = (torch.from_numpy(file[name]) for name in ("origin", "size"))
            lengths, sizes, shapes = (
                file[name].tolist() for name in ("lengths", "sizes", "shapes")
            )
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} has no boxes as `save_boxes` writes them: {error}") from error
    return cells_from_boxes(origin, size, lengths, shape=shapes, sizes=sizes)


def read_refinement(path: str | Path) -> Boxes | Shaped[Tensor, "*s"]:
    """Reads refinement that all samples share.

    Args:
        path: ``.npy``: a field of levels; ``.npz``: boxes of one sample; anything else: a plotfile
            for yt, as its field of levels.

    Raises:
        ValueError: it cannot be read, or a file of boxes that are not those of one frame.
    """
    kind = Path(path).suffix
    if kind == ".npy":
        try:
            levels = np.load(path, allow_pickle=False)
            # torch has few operations for unsigned numbers.
            return torch.from_numpy(
                levels.astype(np.int64) if levels.dtype.kind in "bu" else levels
            )
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise ValueError(f"{path} has no field of levels: {error}") from error
    if kind != ".npz":
        return read_patches(path).levels()
    cells = load_boxes(path)
    time = torch.stack([cells.origin[:, 0], cells.origin[:, 0] + cells.size[:, 0]], 1)
    if cells.batch_size != 1 or len(time.unique(dim=0)) != 1:
        raise ValueError(
            f"{path} has the boxes of {cells.batch_size} sample(s), which are not those of one "
            "frame: give boxes per call"
        )
    sizes = tuple(size[1:] for size in cells.sizes)
    return Boxes(cells.origin[:, 1:], cells.size[:, 1:], sizes)


def yt_grids(
    cells: Cells, fields: dict[str, Float[Tensor, "*s"]], *, sample: int = 0
) -> tuple[list[dict[str, Any]], list[int]]:
    """Makes of the cells of one sample and frame what ``yt.load_amr_grids`` takes: a patch of as
    many points as a finest cell has for each cell, and one for each coarser cell around it.

    The domain of the data set is in grid points: give ``bbox=[(0, n), ...]`` of the domain.

    Args:
        cells: a tiling into cells on the grids of their levels, which halve.
        fields: on the grid points, averaged over the points of each patch.

    Returns:
        grids: with edges, level, dimensions and the fields.
        dimensions: points of the coarsest mesh per axis, three of them.

    Raises:
        ValueError: other cells, or a domain or field that the coarsest cells do not divide.
    """
    sizes, shape = [size[1:] for size in cells.sizes], cells.shape[1:]
    divides = not any(n % s for n, s in zip(shape, sizes[0], strict=True))
    ratios = {c // f for pair in itertools.pairwise(sizes) for c, f in zip(*pair, strict=True)}
    if not (cells.on_grid and cells.tiling and divides and ratios <= {2} and cells.shape[0] == 1):
        raise ValueError(
            "yt's patches are those of a tiling of one frame by cells on the grids of levels that "
            f"halve, which divide the domain; these are {cells}"
        )
    if wrong := [name for name, values in fields.items() if tuple(values.shape) != shape]:
        raise ValueError(f"fields are {shape}, not so {', '.join(wrong)}")
    own, grids, seen = cells.samples(sample, sample + 1), [], set()
    for origin, level in zip(own.origin[:, 1:].tolist(), own.level.tolist(), strict=True):
        for above in range(level + 1):
            start = tuple(o - o % s for o, s in zip(origin, sizes[above], strict=True))
            if (above, start) not in seen:
                seen.add((above, start))
                grids.append(_grid(start, sizes[above], sizes[-1], above, fields))
    grids.sort(key=lambda grid: grid["level"])
    dimensions = [n // s * f for n, s, f in zip(shape, sizes[0], sizes[-1], strict=True)]
    return grids, dimensions + [1] * (3 - len(shape))


def _grid(
    start: tuple[int, ...],
    size: tuple[int, ...],
    points: tuple[int, ...],
    level: int,
    fields: dict[str, Tensor],
) -> dict[str, Any]:
    rest = 3 - len(size)
    box = tuple(slice(o, o + s) for o, s in zip(start, size, strict=True))
    found: dict[str, Any] = {
        "left_edge": [*start] + [0] * rest,
        "right_edge": [o + s for o, s in zip(start, size, strict=True)] + [1] * rest,
        "level": level,
        # yt's own patches have as many points along an axis that the data does not have.
        "dimensions": [*points] + [2**level] * rest,
    }
    for name, values in fields.items():
        x = values[box]
        for axis, n in enumerate(points):
            x = x.unflatten(axis, (n, -1)).mean(axis + 1)
        x = x.view(*x.shape, *[1] * rest).expand(found["dimensions"])
        found[name] = x.detach().cpu().numpy().copy()
    return found


def check_levels_are_whole(levels: Tensor, what: str) -> None:
    """Raises ``ValueError`` for levels that are no whole numbers of at least 0."""
    wrong = (levels < 0) | (levels != levels.round()) | ~torch.isfinite(levels.double())
    if bool(wrong.any()):
        value = float(levels[wrong].flatten()[0])
        hint = "" if math.isfinite(value) and value == round(value) else " (normalised?)"
        raise ValueError(f"levels are whole numbers of at least 0, {what} has {value:g}{hint}")
