"""Draws the cells of every tokenizer on a field and on a photograph, for the pages of the methods.

    python experiments/method_pictures.py [NAME ...]

Without names all of them; nothing is trained, so that learned ones choose by chance. Writes
docs/images/methods/NAME.png.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptok import TOKENIZERS, create_tokenizer, plots
from adaptok.cells import Cells
from adaptok.evaluation.bench.vision import photographs
from adaptok.evaluation.changes import changes_of
from adaptok.plots.drawing import color_of_cells, color_scale, draw_cells, draw_values
from adaptok.plots.fields import tokens_of
from adaptok.plots.style import style, subplots
from adaptok.tokenizers import part_at_budget
from adaptok.tokenizers.ladder import with_ladder

OUT = Path(__file__).parents[1] / "docs" / "images" / "methods"
FLOW = {"velocity": [3, 4], "density": 0}  # channels of the field below
BUDGET = {"field": 192, "photograph": 256}


def inputs() -> dict[str, Tensor]:
    """A flow with shocks, four frames of it, and a photograph."""
    torch.manual_seed(0)
    flow = changes_of("euler_multi_quadrants_periodicBC", resolution=64, trajectories=1).field[:1]
    images, _ = photographs(1, 128)
    return {"field": flow, "photograph": 255 * images[:, None]}


def cells_of(name: str, kind: str, x: Tensor) -> Cells:
    """Tiles one sample into about the wanted number of cells; of `rlt`, those of a second frame in
    which one half has changed.
    """
    torch.manual_seed(0)
    make = {"ndim": 2, "in_channels": x.shape[2], "dim": 12}
    part: dict[str, Any] = {"name": name}
    if name == "amr":
        part |= FLOW if kind == "field" else {"velocity": [0, 1]}
    if name == "focus":
        part["points"] = [[0.35, 0.6]]
    if name == "given":
        levels = (x.mean((1, 2)) - x.mean()).abs()
        levels = (levels > levels.quantile(0.75)).long() + (levels > levels.quantile(0.9)).long()
        tokenizer = create_tokenizer("given", min_size=4, max_size=16, **make)
        return tokenizer.cells(x, levels=levels[:, None])
    if name == "rlt":
        x = torch.cat([x, x], 1)
        x[:, 1, :, x.shape[3] // 2 :] += x.std()
        cells = create_tokenizer("rlt", size=x.shape[3] // 16, threshold=0.1, **make).cells(x)
        return cells.select(cells.origin[:, 0] == 1)
    part = with_ladder(part, x.shape[3:], BUDGET[kind])
    source, knobs = TOKENIZERS.split(part)
    tokenizer = create_tokenizer(source, **make, **knobs)
    found = part_at_budget(part, tokenizer, BUDGET[kind], x)
    source, knobs = TOKENIZERS.split(found)
    tokenizer = create_tokenizer(source, **make, **knobs)
    return tokenizer.train(name == "patch_dropout").cells(x)


def draw(name: str, given: dict[str, Tensor]) -> Path:
    """Draws both panels of a method and writes the picture."""
    with style():
        figure, axes = subplots(1, len(given), (5.2, 2.8))
        for ax, (kind, x) in zip(axes[0], given.items(), strict=True):
            cells = cells_of(name, kind, x)
            image = kind == "photograph"
            values = (x[0, 0].mean(0) if image else x[0, 0, 0]).numpy()
            limits, cmap = ((0.0, 255.0), "gray") if image else color_scale(values)
            draw_values(ax, values, limits=limits, cmap=cmap, image=image)
            color = "#e8590c" if image else color_of_cells(cmap, 2)
            draw_cells(ax, cells, frame=cells.shape[0] - 1, color=color, image=image)
            ax.set_title(f"{kind}, {tokens_of(cells)}", fontsize=7)
        return plots.save(figure, OUT / f"{name}.png", dpi=130, small=True)


def main(names: list[str]) -> None:
    """Draws the methods of these names."""
    given = inputs()
    for name in names or [n for n in TOKENIZERS.names() if n != "composed"]:
        print(draw(name, given))


if __name__ == "__main__":
    main(sys.argv[1:])
