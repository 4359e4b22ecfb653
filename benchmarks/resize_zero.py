"""Two ways to embed resized cells: all finest patches at once, or the patches of each cell.

Run ``python -m benchmarks.resize_zero [folder]``.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from adaptok.cells import Cells
from adaptok.evaluation.bench.timing import median_ratio, paired, target_of, write_results
from adaptok.patches import grid_index, patchify, rows_of_levels
from adaptok.tokenizers import apt
from adaptok.tokenizers.embeddings import ResizeZeroEmbedding, restore_rows
from adaptok.tokenizers.embeddings.resize_zero import resized
from benchmarks.entropy import images

CASES = ((768, 384, 16, 4), (1024, 336, 14, 4))
THRESHOLDS = ((-1.0, -1.0), (5.5, 4.0), (9.1, 9.1))
NOTE = (
    "Embedding of images by `resize_zero` (forward, float32), medians of paired runs in "
    "milliseconds per image, one thread. `all finest` is what the embedding does: every finest "
    "patch is embedded once, and cells gather their children's features. `each cell` cuts out and "
    "embeds the patches of the cells of each size; it does the same multiplications. `static` is "
    "the first with the bounded rows that an accelerator or a compiled graph gets. The last "
    "column is the median of the ratios of paired runs."
)


def each_cell(embedding: ResizeZeroEmbedding, x: Tensor, cells: Cells) -> Tensor:
    """`ResizeZeroEmbedding` level by level on cut-out cells; whole cells only, no positions."""
    parts, rows, finest = [], rows_of_levels(cells), cells.sizes[-1]
    for level, (own, size) in enumerate(zip(rows, cells.sizes, strict=True)):
        patches = patchify(x, size).flatten(0, 1)[grid_index(cells, level)[own]]
        if size == finest or len(own) == 0:
            width = patches.shape[1] if size == finest else embedding.patch.in_features
            parts.append(embedding.patch(patches[:, :width]))
            continue
        cut = patches.unflatten(1, (x.shape[2], *size)).movedim(2, 1)  # (m, t, c, *size)
        small = resized(cut, size, finest, embedding.resize)
        tokens = embedding.patch(patchify(small, finest)[:, 0])
        if embedding.merge is not None and embedding.zero is not None:
            detail = embedding.patch(patchify(cut, finest))  # (m, children in raster order, d)
            grid = [s // f for s, f in zip(size, finest, strict=True)]
            tokens = tokens + embedding.zero(_merged(embedding, detail.unflatten(1, grid)))
        parts.append(tokens)
    return restore_rows(torch.cat(parts), torch.cat(rows), len(cells))


def _merged(embedding: ResizeZeroEmbedding, x: Tensor) -> Tensor:
    """(m, *grid, d) merged block by block until one cell is left."""
    assert embedding.merge is not None
    while x.shape[1:-1].numel() > 1:
        for axis, ratio in enumerate(embedding.ratio):
            x = x.unflatten(1 + 2 * axis, (-1, ratio))
        axes = len(embedding.ratio)
        x = x.permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
        x = embedding.merge(x.flatten(1 + axes))
    return x.flatten(0, -2)


def bounded(embedding: ResizeZeroEmbedding, x: Tensor, cells: Cells) -> Tensor:
    """The embedding with static shapes, as on an accelerator."""
    from adaptok import patches
    from adaptok.tokenizers.embeddings import resize_zero

    exact = resize_zero.rows_of_levels
    resize_zero.rows_of_levels = lambda c: [
        patches._bounded_rows(c, level) for level in range(len(c.sizes))
    ]
    try:
        return embedding(x, cells)
    finally:
        resize_zero.rows_of_levels = exact


@torch.no_grad()
def measure(repeats: int = 7) -> list[dict[str, object]]:
    """One row per width, image and thresholds."""
    rows = []
    for dim, side, patch, batch in CASES:
        tokenizer = apt(2, 3, dim, min_size=patch, value_range=(0, 255))
        embedding, fields = tokenizer.embedding, images(side, batch)
        assert isinstance(embedding, ResizeZeroEmbedding)
        x = fields / 255 - 0.5
        for thresholds in THRESHOLDS:
            cells = tokenizer.cells(fields, thresholds=thresholds)
            torch.testing.assert_close(embedding(x, cells), each_cell(embedding, x, cells))
            calls = {
                "all finest": lambda e=embedding, x=x, c=cells: e(x, c),
                "each cell": lambda e=embedding, x=x, c=cells: each_cell(e, x, c),
                "static": lambda e=embedding, x=x, c=cells: bounded(e, x, c),
            }
            seconds = paired(calls, repeats=repeats)
            row: dict[str, object] = {"dim": dim, "image": side, "thresholds": thresholds}
            row |= {"tokens per image": round(len(cells) / batch), "of": (side // patch) ** 2}
            row |= {
                f"{k} ms": round(1e3 * statistics.median(v) / batch, 1) for k, v in seconds.items()
            }
            ratio = median_ratio(seconds["each cell"], seconds["all finest"])
            row["each cell / all finest"] = round(ratio, 2)
            rows.append(row)
    return rows


if __name__ == "__main__":
    target = target_of(__doc__)
    torch.set_num_threads(1)
    print(write_results(target, "resize_zero", measure(), NOTE).read_text())
