"""Draws how every tokenizer gets from a field to its cells, for the pages of the methods.

    python experiments/method_pictures.py [NAME ...]

Field, score (if there is one), marks (the side of the cell at each point), cells, and the cells of
a photograph. Without names all tokenizers, and one picture with the cells of all; nothing is
trained, so that learned ones choose by chance. Writes docs/images/methods/NAME.png.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Patch
from torch import Tensor

from adaptok import TOKENIZERS, TokenSet, create_decoder, create_tokenizer, plots
from adaptok.cells import Cells
from adaptok.evaluation.bench.vision import photographs
from adaptok.evaluation.changes import changes_of
from adaptok.plots.drawing import color_of_cells, color_scale, draw_cells, draw_values
from adaptok.plots.fields import tokens_of
from adaptok.plots.style import style, subplots
from adaptok.tokenizers import part_at_budget
from adaptok.tokenizers.ladder import with_ladder
from adaptok.tokenizers.tree import TreeTokenizer

OUT = Path(__file__).parents[1] / "docs" / "images" / "methods"
FLOW = {"velocity": [3, 4], "density": 0}  # channels of the field below
UNSEEN = ("focus", "given", "radial", "random")  # no score of the field
BUDGET = {"field": 192, "photograph": 256}


def inputs() -> dict[str, Tensor]:
    """A flow with shocks, four frames of it, and a photograph."""
    torch.manual_seed(0)
    flow = changes_of("euler_multi_quadrants_periodicBC", resolution=64, trajectories=1).field[:1]
    images, _ = photographs(1, 128)
    return {"field": flow, "photograph": 255 * images[:, None]}


def tile(name: str, kind: str, x: Tensor) -> tuple[Any, Cells]:
    """Builds a tokenizer, and tiles one sample into about the wanted number of cells; of `rlt`,
    those of a second frame in which one half has changed.
    """
    torch.manual_seed(0)
    make = {"ndim": 2, "in_channels": x.shape[2], "dim": 12}
    part: dict[str, Any] = {"name": name}
    if name == "amr":
        part |= FLOW if kind == "field" else {"velocity": [0, 1]}
    if name == "coarse_fine":
        tokenizer = create_tokenizer(name, **make)
        return tokenizer, tokenizer.cells(x)
    if name == "focus":
        part["points"] = [[0.35, 0.6]]
    if name == "given":
        levels = (x.mean((1, 2)) - x.mean()).abs()
        levels = (levels > levels.quantile(0.75)).long() + (levels > levels.quantile(0.9)).long()
        tokenizer = create_tokenizer("given", min_size=4, max_size=16, **make)
        return tokenizer, tokenizer.cells(x, levels=levels[:, None])
    if name == "rlt":
        x = torch.cat([x, x], 1)
        x[:, 1, :, x.shape[3] // 2 :] += x.std()
        tokenizer = create_tokenizer("rlt", size=x.shape[3] // 16, threshold=0.1, **make)
        cells = tokenizer.cells(x)
        return tokenizer, cells.select(cells.origin[:, 0] == 1)
    part = with_ladder(part, x.shape[3:], BUDGET[kind])
    source, knobs = TOKENIZERS.split(part)
    tokenizer = create_tokenizer(source, **make, **knobs)
    found = part_at_budget(part, tokenizer, BUDGET[kind], x)
    source, knobs = TOKENIZERS.split(found)
    tokenizer = create_tokenizer(source, **make, **knobs)
    return tokenizer, tokenizer.train(name == "patch_dropout").cells(x)


def panels(name: str, given: dict[str, Tensor]) -> list[tuple[str, np.ndarray, Cells | None]]:
    """Titles, values and cells of the panels of a method."""
    tokenizer, cells = tile(name, "field", given["field"])
    values = given["field"][0, 0, 0].numpy()
    out: list[tuple[str, np.ndarray, Cells | None]] = [("field", values, None)]
    if isinstance(tokenizer, TreeTokenizer) and name not in UNSEEN:
        with torch.no_grad():
            out.append(("score", tokenizer.score_map(given["field"])[0].numpy(), None))
    if len(cells.sizes) > 1 and bool(cells.level.any()) and cells.tiling:
        side = TokenSet(cells.size[:, 1:2].float(), cells).dense()[0, -1, 0]
        out.append(("marks: side of the cell", side.log2().numpy(), None))
    if name == "coarse_fine":
        out += points(tokenizer, given["field"])
    out.append((f"cells: {tokens_of(cells)}", values, cells))
    _, cells = tile(name, "photograph", given["photograph"])
    out.append(
        (f"a photograph, {tokens_of(cells)}", given["photograph"][0, 0].mean(0).numpy(), cells)
    )
    return out


def points(tokenizer: Any, x: Tensor) -> list[tuple[str, np.ndarray, None]]:
    """The score of each block of points, and the points that the decoder refines."""
    decoder: Any = create_decoder("auto", tokenizer.spec, x.shape[2])
    scores, tree = decoder.choice.scores(x, None)
    chosen = decoder.choice(x, None)
    fine = chosen.scatter(torch.ones(len(chosen.index) * chosen.points, 1), 1)[0, 0]
    grid = scores.detach().view(tree.grids[0]).numpy()
    return [("score", grid.repeat(2, 0).repeat(2, 1), None), ("points", fine.numpy(), None)]


def draw(name: str, given: dict[str, Tensor]) -> Path:
    """Draws the panels of a method and writes the picture."""
    found = panels(name, given)
    with style():
        figure, axes = subplots(1, len(found), (2.3 * len(found), 2.6))
        for ax, panel in zip(axes[0], found, strict=True):
            _draw(ax, *panel)
        return plots.save(figure, OUT / f"{name}.png", dpi=130, small=True)


def draw_all(names: list[str], given: dict[str, Tensor]) -> Path:
    """Draws the cells of all methods on the field in one picture."""
    values, columns = given["field"][0, 0, 0].numpy(), 5
    with style():
        rows = -(-len(names) // columns)
        figure, axes = subplots(rows, columns, (2.0 * columns, 2.15 * rows))
        for ax in axes.flat[len(names) :]:
            ax.set_axis_off()
        for ax, name in zip(axes.flat, names, strict=False):
            _, cells = tile(name, "field", given["field"])
            _draw(ax, f"{name}, {tokens_of(cells)}", values, cells)
        return plots.save(figure, OUT / "all.png", dpi=110, small=True)


def _draw(ax: Axes, title: str, values: np.ndarray, cells: Cells | None) -> None:
    image = title.startswith("a photograph")
    limits, cmap = ((0.0, 255.0), "gray") if image else color_scale(values)
    draw_values(ax, values, limits=limits, cmap=cmap, image=image)
    if cells is not None:
        color = "#e8590c" if image else color_of_cells(cmap, 2)
        draw_cells(ax, cells, frame=cells.shape[0] - 1, color=color, image=image)
    if title.startswith("marks"):
        shade = plt.get_cmap(cmap) if isinstance(cmap, str) else cmap
        sides = sorted({int(v) for v in values.ravel()})
        norm = Normalize(*limits)
        handles = [Patch(color=shade(norm(v)), label=str(2**v)) for v in sides]
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.07), "ncols": len(handles)}
        ax.legend(handles=handles, fontsize=6, frameon=False, handlelength=1, **below)
    ax.set_title(title, fontsize=7)


def main(names: list[str]) -> None:
    """Draws the methods of these names."""
    given, every = inputs(), [n for n in TOKENIZERS.names() if n != "composed"]
    for name in names or every:
        print(draw(name, given))
    if not names:
        print(draw_all(every, given))


if __name__ == "__main__":
    main(sys.argv[1:])
