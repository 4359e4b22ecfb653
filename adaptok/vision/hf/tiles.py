"""Image tokens of models that cut an image into tiles: cells of all tiles in lines, as LLaVA-NeXT
lays patches out (Liu et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    unpad_image,
)

from adaptok.cells import Cells, product
from adaptok.patches import level_grid, owner_grid

Size = Sequence[int]  # height and width of an image, before it was cut


def pack_tiles(
    config: Any,
    newline: Float[Tensor, " d"],
    rows: Float[Tensor, "n d"],
    cells: Cells,
    tiles: Sequence[int],
    image_sizes: Sequence[Size],
    most: int | None = None,
) -> tuple[list[Float[Tensor, "m d"]], list[int]]:
    """Lays out the cells of each image: those of the whole image, then those of its tiles.

    The cells of the tiles come line by line, each at its first patch, without those that lie in the
    padding; a newline ends each line of patches in which a cell begins. So finest cells only give
    what the model gives. A model that thins large images has the mean of the thinned patches of
    each cell; cells that keep none are left out.

    Args:
        config: of the model.
        newline: the model's embedding of the end of a line.
        rows: features of the cells.
        cells: of the tiles of all images; of each image first the whole of it.
        tiles: of each image.
        image_sizes: of each image.
        most: tiles above which the patches of an image are thinned.

    Returns:
        Features of each image, and how many the model has of it without merging.
    """
    newline = newline.to(rows)[None]
    grid = level_grid(cells.shape, cells.sizes[-1])[1:]
    owner = owner_grid(cells).unflatten(1, grid)
    out, unmerged, at = [], [], 0
    for count, size in zip(tiles, image_sizes, strict=True):
        whole = rows[cells.rows(at, at + 1)]
        if count == 1:
            out.append(torch.cat([whole, newline]))
            unmerged.append(product(grid) + 1)
        else:
            place = _whole_grid(config, owner[at + 1 : at + count], size)
            features, lines, (h, w) = _in_lines(rows, place, _thinned(place, grid[0], most))
            # A line's newline sorts behind its tokens; counts decide the prompt, so they leave
            # the device.
            keys = torch.cat([2 * lines, 2 * lines.unique() + 1])
            ended = torch.cat([features, newline.expand(len(keys) - len(lines), -1)])
            out.append(torch.cat([whole, ended[keys.argsort(stable=True)]]))
            unmerged.append(product(grid) + h * (w + 1))
        at += count
    return out, unmerged


def _whole_grid(config: Any, owner: Int64[Tensor, "k gh gw"], size: Size) -> Int64[Tensor, "h w"]:
    """Puts tiles side by side, and cuts off the patches that are padding."""
    side = config.vision_config.image_size
    high, wide = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, side)
    place = owner.unflatten(0, (high, wide)).transpose(1, 2).flatten(2).flatten(0, 1)
    return unpad_image(place[None], size)[0]


def _thinned(place: Int64[Tensor, "h w"], side: int, most: int | None) -> tuple[int, int]:
    """Returns height and width after thinning, as LLaVA-OneVision decides on them."""
    h, w = place.shape
    ratio = 1.0 if most is None else math.sqrt(h * w / (most * side**2))
    return (int(h // ratio), int(w // ratio)) if ratio > 1.1 else (h, w)


def _in_lines(
    rows: Float[Tensor, "n d"], place: Int64[Tensor, "h w"], size: tuple[int, int]
) -> tuple[Float[Tensor, "m d"], Int64[Tensor, " m"], tuple[int, int]]:
    """Returns one feature per cell in the order of their first patches, the lines of those, and
    the size of the grid.
    """
    if size == place.shape:
        found, first, _ = _first_places(place)
        features = rows[found]
    else:
        patches = rows[place].movedim(-1, 0)[None]
        patches = torch.nn.functional.interpolate(patches, size, mode="bilinear")[0]
        ends = zip(place.shape, size, strict=True)
        h, w = (((torch.arange(n) + 0.5) * old / n).long().to(place.device) for old, n in ends)
        found, first, own = _first_places(place[h][:, w])
        sums = rows.new_zeros(len(found), rows.shape[1]).index_add(0, own, patches.flatten(1).T)
        features = sums / own.bincount()[:, None]
    order = first.argsort()
    return features[order], first[order] // size[1], size


def _first_places(
    place: Int64[Tensor, "h w"],
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"], Int64[Tensor, " hw"]]:
    """Returns the cells on a grid, the first place of each, and the number of each place's cell."""
    flat = place.flatten()
    found, own = flat.unique(return_inverse=True)
    at = torch.arange(len(flat), device=flat.device)
    return found, own.new_full((len(found),), len(flat)).scatter_reduce(0, own, at, "amin"), own
