"""Pictures of benchmark results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptok.utils.palette import OKABE_ITO

COLORS = tuple(OKABE_ITO.values())  # as in adaptok.plots, which takes seconds to import
Row = Mapping[str, Any]
Draw = Callable[[Sequence[Row], Path], None]


def bars(group: str | None, label: str, value: str, reference: float | None = 1.0) -> Draw:
    """Draws horizontal bars: a panel per value of the column `group` (None: one panel), a bar per
    row, and a line at `reference`.
    """

    def of(row: Row) -> Any:
        return None if group is None else row[group]

    def draw(rows: Sequence[Row], path: Path) -> None:
        import matplotlib.pyplot as plt

        shown = [row for row in rows if isinstance(row.get(value), (int, float))]
        panels = list(dict.fromkeys(of(row) for row in shown))
        figure, axes = plt.subplots(
            len(panels),
            figsize=(7, 0.9 + 0.27 * len(shown) + 0.4 * len(panels)),
            height_ratios=[sum(of(r) == p for r in shown) + 1 for p in panels],
            layout="constrained",
            squeeze=False,
            sharex=True,
        )
        for axis, panel in zip(axes[:, 0], panels, strict=True):
            own = [row for row in shown if of(row) == panel]
            axis.barh([str(r[label]) for r in own], [r[value] for r in own], color=COLORS[0])
            axis.invert_yaxis()
            if group is not None:
                axis.set_title(f"{group} {panel}", fontsize=9)
            if reference is not None:
                axis.axvline(reference, color="0.3", ls="--", lw=1)
        axes[-1, 0].set_xlabel(f"{value} (lower is better)")
        figure.savefig(path, dpi=120)
        plt.close(figure)

    return draw


def curves(panel: str, x: str, series: str, value: str) -> Draw:
    """Draws log-log lines: a panel per value of the column `panel`, a line per `series`."""

    def draw(rows: Sequence[Row], path: Path) -> None:
        import matplotlib.pyplot as plt

        rows = [row for row in rows if value in row]
        panels = list(dict.fromkeys(row[panel] for row in rows))
        names = list(dict.fromkeys(row[series] for row in rows))
        figure, axes = plt.subplots(
            1,
            len(panels),
            figsize=(1 + 3.3 * len(panels), 3.4),
            layout="constrained",
            squeeze=False,
            sharey=True,
        )
        for axis, one in zip(axes[0], panels, strict=True):
            for color, name in zip(COLORS, names, strict=False):
                own = [r for r in rows if r[panel] == one and r[series] == name]
                points = [r[x] for r in own], [r[value] for r in own]
                axis.loglog(*points, marker="o", ms=3.5, color=color, label=name)
            axis.set(title=one, xlabel=one)
            ticks = sorted({r[x] for r in rows if r[panel] == one})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.xaxis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0, 0].set_ylabel(f"{value} (lower is better)")
        axes[0, 0].legend(fontsize=8)
        figure.savefig(path, dpi=120)
        plt.close(figure)

    return draw
