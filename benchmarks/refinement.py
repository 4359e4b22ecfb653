"""One-shot refinement against a heap per sample.

Run ``python -m benchmarks.refinement [folder]``.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from adaptok.cells import Cells
from adaptok.evaluation.bench.timing import median_ratio, paired, target_of, write_results
from adaptok.tokenizers.indicators import GradientIndicator
from adaptok.tokenizers.marking import BudgetMarking
from adaptok.tokenizers.tree import cells_from_score
from adaptok.tree import Tree, cells_from_splits, sum_pyramid

BATCH, SIDE, FINEST, COARSEST = 16, 256, 2, 32
BUDGETS = (1024, 2048, 4096, 8192)
NOTE = (
    "Refinement of 16 score maps of 256² (cells 32 to 2) to a budget, from the score map to the "
    "table of cells; medians of paired runs in milliseconds, one thread. `heap` refines sample by "
    "sample with Python's heapq and sums a child's scores when it is made, as in IAP's Algorithm "
    "1; `heap, sums looked up` gets all sums from numpy beforehand. `one shot` is what `iap` runs; "
    "`any score` also takes scores where a child may exceed its parent. The last columns are "
    "medians of the ratios of paired runs."
)


def heap_refinement(
    score: np.ndarray, budget: int, sums: Mapping | None = None, coarsest: int = COARSEST
) -> list:
    """Refines one square map best first, the obvious way; returns (y, x, size) of each cell.

    The score of a new child is computed when it is made (IAP, Algorithm 1), or looked up in `sums`.
    """

    def entry(size: int, y: int, x: int) -> tuple[float, int, int, int]:
        if sums is None:
            return -float(score[y : y + size, x : x + size].sum()), -size, y, x
        return -float(sums[size][y // size, x // size]), -size, y, x

    corners = range(0, len(score), coarsest)
    heap = [entry(coarsest, y, x) for y in corners for x in corners]
    heapq.heapify(heap)
    cells, count = [], len(heap)
    while heap and count + 3 <= budget:
        _, size, y, x = heapq.heappop(heap)
        half, count = -size // 2, count + 3
        for cy in (y, y + half):
            for cx in (x, x + half):
                if half > FINEST:
                    heapq.heappush(heap, entry(half, cy, cx))
                else:
                    cells.append((cy, cx, half))
    return cells + [(y, x, -size) for _, size, y, x in heap]


def heap_batch(maps: Sequence[np.ndarray], budget: int, lookup: bool) -> torch.Tensor:
    """Refines all maps one after the other; returns one tensor of rows (y, x, size)."""
    rows = []
    for score in maps:
        sums = None
        if lookup:
            sizes = (32, 16, 8, 4)
            sums = {s: score.reshape(SIDE // s, s, SIDE // s, s).sum((1, 3)) for s in sizes}
        rows += heap_refinement(score, budget, sums)
    return torch.tensor(rows)


def one_shot(points: torch.Tensor, budget: int) -> Cells:
    """Does what `iap` does after its score map."""
    tree = Tree((SIDE, SIDE), tuple((s, s) for s in (32, 16, 8, 4, 2)))
    scores = sum_pyramid(points[:, None], tree)
    split, lengths, _ = BudgetMarking()(scores, tree, monotone=True, budget=budget)
    return cells_from_splits(split, tree, frames=1, lengths=lengths)


def measure(repeats: int = 7) -> list[dict[str, object]]:
    """One row per budget."""
    fields = torch.randn(BATCH, 1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for _ in range(3):  # smooth noise: scores on all scales
        fields = fields + torch.nn.functional.avg_pool2d(fields[:, 0], 9, 1, 4)[:, None]
    points = GradientIndicator().score_map(fields)
    maps = list(points.numpy())
    rows = []
    for budget in BUDGETS:
        seconds = paired(
            {
                "heap": lambda t=budget: heap_batch(maps, t, lookup=False),
                "heap, sums looked up": lambda t=budget: heap_batch(maps, t, lookup=True),
                "one shot": lambda t=budget: one_shot(points, t),
                "any score": lambda t=budget: cells_from_score(
                    points, min_size=FINEST, max_size=COARSEST, budget=t
                ),
            },
            repeats=repeats,
        )
        row: dict[str, object] = {"budget": budget}
        row |= {f"{k} ms": round(1e3 * statistics.median(v), 2) for k, v in seconds.items()}
        for slow in ("heap", "heap, sums looked up"):
            for fast in ("one shot", "any score"):
                ratio = median_ratio(seconds[slow], seconds[fast])
                row[f"{slow} / {fast}"] = round(ratio, 1)
        rows.append(row)
    return rows


if __name__ == "__main__":
    target = target_of(__doc__)
    torch.set_num_threads(1)
    print(write_results(target, "refinement", measure(), NOTE).read_text())
