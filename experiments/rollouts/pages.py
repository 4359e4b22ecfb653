"""Tables and picture of the rows that there are, written into the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rollouts.lines import (
    AIM,
    AIMED,
    WINDOWS,
    Gathered,
    Line,
    aim,
    average,
    changes,
    gathered,
)
from rollouts.results import Results
from rollouts.rows import MODELS, PLAIN, SETS, STEPS
from studies import mean, replace_part

from adaptok.plots.style import COLORS
from adaptok.utils.tables import table

PAGE, ROWS, PICTURE = "rollout-study.md", "rollout-rows.md", "rollout-study.png"
HEADER = [
    *("training", "rollout", "tokens", "ms per step", "one step", *WINDOWS.values()),
    *(f"step {AIMED}", f"step {STEPS}", "fine waves", "harmonics", "sums", "flicker", "seeds"),
]


def write(results: Results, pages: Path) -> str:
    """Writes the generated parts of two pages and the picture; returns what is missing or bad."""
    found = gathered(results)
    left = left_out(found, results)
    texts, tables = [aim_table(found)], [result_table(found, data) for data in SETS]
    tables += [change_table(found), price_table(found), left]
    drawn = [data for data in SETS if named_lines(found, data)]
    if drawn:
        (pages / "images").mkdir(exist_ok=True)
        draw(found, drawn, pages / "images" / PICTURE)
        texts.append(f"![Error against the rollout step](images/{PICTURE})")
    for page, parts in ((PAGE, [*texts, spent(results)]), (ROWS, tables)):
        replace_part(pages / page, "rows", "\n\n".join(text for text in parts if text))
    return left


def of_set(found: Gathered, data: str) -> list[Line]:
    """Lists the lines of a set, the least error of step 24 first, diverged ones last."""
    lines = [line for line in found.lines.values() if line.data == data]
    return sorted(lines, key=lambda line: (line.error() is None, line.error() or 0.0))


def still(lines: Sequence[Line]) -> Mapping[str, Any]:
    """Returns persistence, of the longest rollouts."""
    trainings = [one for line in lines for one in line.trainings.values()]
    return max((one["persistence"] for one in trainings), key=lambda one: len(one["rollout"]))


def result_table(found: Gathered, data: str) -> str:
    """Makes the table of a set; empty without rows."""
    lines = of_set(found, data)
    if not lines:
        return ""
    curve = still(lines)["rollout"]
    title = f"**{data}**, persistence {still(lines)['vrmse']:.3f} after one step, "
    title += f"{curve[AIMED - 1]:.2f} after {AIMED}"
    return f"{title}\n\n" + table(HEADER, [cells_of(line) for line in lines]).rstrip()


def cells_of(line: Line) -> list[str]:
    """Returns the cells of a line: means over seeds."""
    tests = list(line.tests.values())
    number = f"{mean(test['vrmse'] for test in tests):.3f}"
    peaks = average([(test["harmonics"] or [None] * AIMED)[AIMED - 1] for test in tests])
    conserved = SETS[line.data].conserved
    off = average([test["sums"][name][1] for test in tests for name in conserved])
    fine = average([test["bands"][1][2] for test in tests])
    flicker = average([test["flicker"] for test in tests])
    return [
        *(f"`{line.name}`", line.variant, f"{line.tokens:.0f}"),
        *(f"{1000 * mean(test['seconds'] for test in tests):.0f}", number),
        *(shown(line.window(name)) for name in WINDOWS),
        shown(line.error()),
        shown(line.error(STEPS)) if len(tests[0]["rollout"]) >= STEPS else "",
        "diverged" if fine is None else f"{fine:.2g}",
        "" if peaks is None else f"{peaks:.1f}",
        "" if not conserved else "diverged" if off is None else f"{off:.0e}",
        "" if flicker is None else f"{100 * flicker:.0f} %",
        str(len(tests)),
    ]


def shown(value: float | None) -> str:
    if value is None:
        return "diverged"
    return f"{value:.3f}" if value < 100 else f"{value:.0e}"


def aim_table(found: Gathered) -> str:
    """Compares the best of the study with the best of before; empty without rows."""
    body = []
    for data in SETS:
        if (one := aim(found, data)) is None:
            continue
        names = [f"`{line.name}`, {line.variant}" for line in one]
        errors = [shown(line.error()) for line in one]
        reached = "yes" if one.ratio <= AIM else "no"
        cells = [names[0], errors[0], names[1], errors[1], f"{one.ratio:.2f}", reached]
        body.append([data, *cells, str(len(one.best.tests))])
    header = ["set", "best of before", f"step {AIMED}", "best of all", f"step {AIMED}"]
    header += ["ratio", f"{AIM} or less", "seeds"]
    return "**The best with no more tokens**\n\n" + table(header, body).rstrip() if body else ""


def change_table(found: Gathered) -> str:
    """Says what each setting and each training changes; empty without rows."""
    body = []
    for one in changes(found):
        if one.model == "priced":  # which has a table of its own
            continue
        ratios = [one.ratio(step) for step in (6, AIMED)]
        cells = ["diverged" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        about = [one.what, f"`{one.model}`", one.line.data, f"{one.line.tokens:.0f}"]
        took = one.seconds()
        cells.append("" if took is None else f"{took:.2f}")
        body.append([*about, *cells, str(len(one.line.tests))])
    header = ["what", "model", "set", "tokens", "error, step 6", f"step {AIMED}", "seconds"]
    title = "**What each changes**, as ratios to the same model without it\n\n"
    return title + table([*header, "seeds"], body).rstrip() if body else ""


def price_table(found: Gathered) -> str:
    """Says how near the mean number of tokens of priced rollouts is to what was asked for."""
    body = []
    for line in found.lines.values():
        if line.name != "priced":
            continue
        asked = next(iter(line.tests.values()))["setting"].get("tokens", SETS[line.data].tokens)
        counts = [n for test in line.tests.values() for n in test["tokens"]]
        off = [mean(test["tokens"]) / asked - 1 for test in line.tests.values()]
        far = max(abs(n / asked - 1) for n in counts)
        numbers = [f"{line.tokens:.1f}", f"{100 * max(off, key=abs):+.1f} %", f"{100 * far:.0f} %"]
        body.append([line.data, line.variant, str(asked), *numbers, shown(line.error())])
    header = ["set", "price", "asked for", "mean tokens", "off", "farthest step", f"step {AIMED}"]
    title = "**Tokens of priced rollouts**\n\n"
    return title + table(header, body).rstrip() if body else ""


def left_out(found: Gathered, results: Results) -> str:
    """Names missing and bad rows, and those that do not beat persistence."""
    bad = [f"{label} ({why})" for label, why in results.read().bad.items()]
    groups = {
        "Left out": bad,
        "Behind persistence, not counted": found.behind,
        "Missing, with their seeds": found.missing,
    }
    lines = [f"{title}: {', '.join(names)}." for title, names in groups.items() if names]
    return "\n\n".join(lines) or "All rows are there."


def spent(results: Results) -> str:
    """Says what the rows took."""
    return f"Spent so far: {results.spent() / 3600:.2f} core-hours."


def named_lines(found: Gathered, data: str) -> dict[str, Line]:
    """Returns the models as trained and the best line; empty without such a model."""
    plain = {name: found.lines.get((data, name, PLAIN)) for name in MODELS}
    named = {name: line for name, line in plain.items() if line is not None}
    best = aim(found, data)
    if best is not None and best.best not in named.values():
        named[f"{best.best.name}, {best.best.variant}"] = best.best
    return named


def draw(found: Gathered, drawn: Sequence[str], path: Path) -> None:
    """Draws errors against the rollout step, with persistence."""
    size = {"figsize": (4.6 * len(drawn), 3.6), "squeeze": False, "layout": "constrained"}
    figure, (axes,) = plt.subplots(1, len(drawn), **size)
    for axis, data in zip(axes, drawn, strict=True):
        for color, (name, line) in zip(COLORS, named_lines(found, data).items(), strict=False):
            curve = [line.error(step) for step in range(1, STEPS + 1)]
            known = [value for value in curve if value is not None]
            axis.plot(range(1, len(known) + 1), known, color=color, label=name)
        curve = still(of_set(found, data))["rollout"]
        axis.plot(range(1, len(curve) + 1), curve, color="0.6", ls="--", label="persistence")
        axis.set(title=data, xlabel="rollout step", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0].set_ylabel("VRMSE")
    figure.savefig(path, dpi=110)
    plt.close(figure)
