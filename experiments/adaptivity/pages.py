"""Tables, claims and pictures of the rows that there are, written into the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from adaptivity.claims import CLAIMS, counts, judged, seeds_of
from adaptivity.costs import SETS
from adaptivity.results import Results
from adaptivity.rows import ENDING, MAIN, TUNED, ablations, all_rows
from studies import Found, Study, mean, replace_part, spread

from adaptok.plots.style import COLORS
from adaptok.utils.tables import table

PICTURE = "adaptivity.png"
STUDY, ROWS = "adaptivity.md", "adaptivity-rows.md"
METHOD = "methods/coarse-fine.md"
HEADER = [
    *("model", "tokens", "MFLOP", "s, training step", "s, inference step", "VRMSE", "worst"),
    *("rollout, 16th step", "last sixth", "seeds"),
]
NAMED = ("uniform", "coarse_fine")  # and the best of all
PLACED = ("coarse_fine_random", "random", "radial")  # without content
NOT_ADAPTIVE = ("uniform", "tuned", "ckm", "csm", "coarse_fine_dense")
GROUPS = ("not adaptive", "adaptive points", "adaptive cells", "placed without content")
KINDS = dict(zip(GROUPS, COLORS, strict=False))
COSTS = {"flops": "MFLOP per sample", "seconds": "seconds of one core per training step"}
Pair = tuple[str, str]


def write(results: Results, pages: Path) -> str:
    """Writes the generated parts of three pages and the picture; returns what is missing or bad."""
    study = results.read()
    tables = [result_table(study, data) for data in SETS]
    texts = [claim_table(study), spent(results)]
    if study.done:
        (pages / "images").mkdir(exist_ok=True)
        draw(study, pages / "images" / PICTURE)
        texts.insert(0, f"![Error against cost](images/{PICTURE})")
    for page, parts in ((STUDY, texts), (ROWS, [*tables, left_out(study)])):
        replace_part(pages / page, "rows", "\n\n".join(text for text in parts if text))
    replace_part(pages / METHOD, "ablations", ablation_table(study) or "No rows yet.")
    return left_out(study)


def names_of(data: str) -> list[str]:
    """Lists the models of a set in the order of the rows."""
    return list(dict.fromkeys(row.name for row in all_rows() if row.data == data))


def result_table(study: Study, data: str) -> str:
    """Makes the table of a set, the lowest error first; empty without rows."""
    found = {name: list(seeds_of(study, data, name).values()) for name in names_of(data)}
    found = {name: rows for name, rows in found.items() if rows}
    if not found:
        return ""
    still = next(iter(found.values()))[0]["persistence"]
    about = SETS[data]
    size = "³" if about.ndim == 3 else "²"
    title = f"**{data}**, {about.points}{size} (persistence {still['vrmse']:.4f}"
    title += f"; at the 16th step {still['rollout'][-1]:.3f})\n\n"
    ordered = sorted(found, key=lambda name: mean(row["vrmse"] for row in found[name]))
    return title + table(HEADER, [[f"`{n}`", *cells_of(found[n])] for n in ordered]).rstrip()


def cells_of(rows: Sequence[Found]) -> list[str]:
    """Returns the cells of a model: means over seeds, and the spread of the error."""
    last = [row["rollout"][-1] for row in rows]
    rolled = "diverged" if None in last else f"{mean(last):.3f}"
    falls = [1 - row["curve"][-1][1] / row["curve"][-2][1] for row in rows if len(row["curve"]) > 1]
    return [
        f"{mean(row['tokens'] for row in rows):.0f}",
        f"{mean(row['flops'] for row in rows) / 1e6:.0f}",
        f"{mean(row['seconds']['training'] for row in rows):.3f}",
        f"{mean(row['seconds']['inference'] for row in rows):.3f}",
        spread([row["vrmse"] for row in rows]),
        f"{mean(row['worst'] for row in rows):.3f}",
        rolled,
        f"{-100 * mean(falls):.0f} %" if falls else "",
        str(len(rows)),
    ]


def claim_table(study: Study) -> str:
    """Makes the table of the claims; empty without any."""
    body = []
    for claim in CLAIMS:
        for data in SETS:
            if (verdict := judged(claim, study, data)) is None:
                continue
            ratio = f"{verdict.ratio:.3f}"
            ratio += f" ± {verdict.spread:.3f}" if verdict.seeds > 1 else ""
            rolled = "diverged" if verdict.rollout is None else f"{verdict.rollout:.2f}"
            over = f"`{claim.behind}`: {claim.text}"
            if claim.behind == "tuned" and data not in MAIN:
                over = "`uniform_help`: dense help of equal operations, not tuned"
            about = [claim.earner, f"`{claim.ahead}`", over, data]
            numbers = [ratio, f"{verdict.worst:.2f}", rolled, str(verdict.seeds)]
            body.append([*about, *numbers, verdict.said])
    if not body:
        return ""
    header = ["what differs", "model", "over", "set", "ratio of errors", "of worst samples"]
    header += ["of 16th steps", "seeds", "verdict"]
    return "**Who earned it**\n\n" + table(header, body).rstrip()


def ablation_table(study: Study) -> str:
    """Makes the table of `coarse_fine` and of what it is without a part; empty without rows."""
    body = []
    for data in SETS:
        if not (whole := list(seeds_of(study, data, "coarse_fine").values())):
            continue
        base = mean(row["vrmse"] for row in whole)
        changed = ablations(SETS[data]) if data in MAIN else {}
        for name in ("coarse_fine", "coarse_fine_random", *changed):
            rows = list(seeds_of(study, data, name).values())
            if rows:
                error = [row["vrmse"] for row in rows]
                cost = f"{mean(row['flops'] for row in rows) / 1e6:.0f}"
                ratio = f"{mean(error) / base:.3f}"
                body.append([data, f"`{name}`", cost, spread(error), ratio, str(len(rows))])
    header = ["set", "model", "MFLOP", "VRMSE", "error / that of `coarse_fine`", "seeds"]
    return table(header, body).rstrip() if body else ""


def left_out(study: Study) -> str:
    """Names missing and bad rows, and those that do not beat persistence."""
    open_rows = [r for r in all_rows() if r.label not in study.done and r.label not in study.bad]
    missing: dict[str, list[str]] = {}
    for row in open_rows:
        missing.setdefault(f"{row.data}-{row.name}", []).append(str(row.seed))
    groups = {
        "Left out": [f"{label} ({why})" for label, why in study.bad.items()],
        "Behind persistence, not counted": [k for k, row in study.done.items() if not counts(row)],
        "Missing, with their seeds": [f"{k} ({', '.join(seeds)})" for k, seeds in missing.items()],
    }
    lines = [f"{title}: {', '.join(names)}." for title, names in groups.items() if names]
    return "\n\n".join(lines) or f"All {len(all_rows())} rows are there."


def spent(results: Results) -> str:
    """Says what the rows took."""
    return f"Spent so far: {results.spent() / 3600:.2f} core-hours."


def draw(study: Study, path: Path) -> None:
    """Draws error against operations and seconds, with the front of what nothing beats in both;
    without the longer trainings, beside which no other row would count.
    """
    drawn = [data for data in SETS if result_table(study, data)]
    size = {"figsize": (9, 3.4 * len(drawn)), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(len(drawn), len(COSTS), **size)
    for line, data in zip(axes, drawn, strict=True):
        names = [n for n in names_of(data) if n not in TUNED and not n.endswith(ENDING)]
        found = {name: list(seeds_of(study, data, name).values()) for name in names}
        found = {name: rows for name, rows in found.items() if rows}
        for axis, (cost, label) in zip(line, COSTS.items(), strict=True):
            points = {n: (cost_of(rows, cost), error_of(rows)) for n, rows in found.items()}
            best = front([(x, y[0]) for x, y in points.values()])
            lowest = min(points, key=lambda n: points[n][1][0])
            for kind, names in by_kind(points).items():
                own = {"marker": "o", "ms": 5, "ls": "none", "color": KINDS[kind], "label": kind}
                x, y, spread = zip(*[(points[n][0], *points[n][1]) for n in names], strict=True)
                axis.errorbar(x, y, yerr=spread, **own)
            for name, (x, y) in points.items():
                if name in (*NAMED, lowest):  # names of all would cover one another
                    where = {"xytext": (5, -9 if name == lowest else 5)}
                    behind = {"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5}
                    where |= {"textcoords": "offset points", "bbox": behind}
                    axis.annotate(name, (x, y[0]), fontsize=6, **where)
            line_of_best = {"color": "0.5", "lw": 1, "zorder": 0, "label": "not beaten in both"}
            axis.plot(*zip(*best, strict=True), **line_of_best)
            axis.set(xlabel=label, title=data)
            axis.set_xlim(0, 1.3 * max(x for x, _ in points.values()))  # room for the names
            axis.margins(y=0.12)
            axis.grid(alpha=0.3)
        line[0].set_ylabel("one-step VRMSE")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups models by what is adaptive in them."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(kind_of(name), []).append(name)
    return found


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points of which no other is lower in both, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, error in sorted(points):
        if not best or error < best[-1][1]:
            best.append((cost, error))
    return best


def kind_of(name: str) -> str:
    """Tells what is adaptive in a model."""
    if name.startswith(PLACED):
        return "placed without content"
    if name.startswith(NOT_ADAPTIVE):
        return "not adaptive"
    return "adaptive points" if name.startswith("coarse_fine") else "adaptive cells"


def cost_of(rows: Sequence[Found], cost: str) -> float:
    if cost == "flops":
        return mean(row["flops"] for row in rows) / 1e6
    return mean(row["seconds"]["training"] for row in rows)


def error_of(rows: Sequence[Found]) -> tuple[float, float]:
    errors = [row["vrmse"] for row in rows]
    return mean(errors), statistics.stdev(errors) if len(errors) > 1 else 0.0
