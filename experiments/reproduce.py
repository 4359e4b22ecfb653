"""Runs an experiment and compares it with the paper: `python experiments/reproduce.py NAME
[--scale full|small] [--dry-run] [--out DIR] [--only RUN ...] [--record] [key=value ...]`.

See experiments/README.md. Runs are sequential; finished ones are skipped and interrupted ones
resume from their checkpoint, so the command can be repeated at any time. A failed run does not stop
the others.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Container, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from listed import HERE, SCALES, Experiment, Run, expected, names, read
from measured import Row, finished, kept, rows_of, write_rows

from adaptok.utils.keys import quoted
from adaptok.utils.tables import table

Case = tuple[str, str]  # run, setting
SHOWN = ("vrmse", "accuracy", "tokens")


def train(run: Run, seed: int, out: Path, more: Sequence[str]) -> bool:
    """Runs one command of adaptok, unless its results exist; returns whether it succeeded."""
    target = run.folder(out, seed)
    if finished(run, target):
        print(f"{run.name}, seed {seed}: finished")
        return True
    command = command_of(run, seed, out.resolve(), more)
    print(f"{run.name}, seed {seed}: {' '.join(command[2:])}", flush=True)
    return subprocess.run(command, check=False).returncode == 0


def command_of(run: Run, seed: int, out: Path, more: Sequence[str]) -> list[str]:
    """Returns the command of a run; `more` are overrides of all runs."""
    target, given = run.folder(out, seed), run.words(out)
    if run.command == "script":
        script = HERE / run.owner / "run.py"
        return [sys.executable, "-u", str(script), str(target), str(seed), *given]
    command = [sys.executable, "-m", "adaptok", run.command]
    if run.command == "bench":
        name, *rest = given
        if (HERE.parent / "benchmarks" / f"{name}.py").is_file():  # not in the wheel
            command = [sys.executable, "-m", f"benchmarks.{name}"]
        else:
            command = [*command, name]
        return [*command, str(target), *rest]
    command += [*given, f"seed={seed}", quoted("hydra.run.dir", target)]
    if run.command == "eval":  # its model and data are those of the checkpoint
        return [*command, *(f"+{word}" for word in more if word.startswith("data."))]
    last = target / "checkpoints" / "last.ckpt"
    return [*command, *more, *([quoted("resume", last)] if last.is_file() else [])]


def collect(experiment: Experiment, scale: str, out: Path) -> list[Row]:
    """Returns the rows of all finished runs; prints the names of the others."""
    rows: list[Row] = []
    for run in experiment.runs[scale]:
        for seed in run.seeds:
            found = rows_of(run, seed, run.folder(out, seed))
            if not found:
                print(f"no result yet: {run.name}, seed {seed}", file=sys.stderr)
            rows += found
    return kept(experiment, rows)


def report(experiment: Experiment, scale: str, rows: Sequence[Row]) -> str:
    """Sets our numbers beside persistence and the paper's, and adds the verdicts."""
    paper = {(r["run"], r["setting"], r["metric"]): r["value"] for r in expected(experiment)}
    like = {run.name: run.like for run in experiment.runs[scale]}
    shown = {*SHOWN, *experiment.metrics, *(metric for _, _, metric in paper)} - {"parameters"}
    shown |= last_steps(rows) if experiment.metrics != ["*"] else set()
    body = []
    for (run, setting, metric), values in _grouped(rows).items():
        key = (like.get(run, run), setting, metric)
        if metric in shown or key in paper:
            blank = values[0]["persistence"]
            cells = [run, setting, metric, str(len(values)), _spread(values)]
            body.append([*cells, f"{float(blank):.4g}" if blank != "" else "", paper.get(key, "")])
    header = ["run", "setting", "metric", "n", "ours", "persistence", "paper"]
    return table(header, body) + "\n" + "\n".join(verdicts(experiment, scale, rows)) + "\n"


def last_steps(rows: Sequence[Row]) -> set[str]:
    """Finds the rollout metrics, which have one name per step, of the last step."""
    found: dict[str, int] = {}
    for row in rows:
        name, _, step = row["metric"].rpartition("_step_")
        if name:
            found[name] = max(int(step), found.get(name, 0))
    return {f"{name}_step_{step}" for name, step in found.items()}


def verdicts(experiment: Experiment, scale: str, rows: Sequence[Row]) -> list[str]:
    """Compares ratios of errors; gives none for a run that does not beat persistence."""
    found = _grouped(rows)
    lost = {
        (run, setting): None
        for (run, setting, metric), values in found.items()
        if metric == "vrmse"
        and any(r["value"] is None or r["value"] >= r["persistence"] for r in values)
    }
    text = ", ".join(" ".join(case).strip() for case in lost)
    lines = [f"does not beat persistence: {text}"] if lost else []
    for a, b in experiment.compare:
        mine = [
            [(r.name, setting) for r in experiment.runs[scale] if r.like == run]
            for run, setting in (a, b)
        ]
        lines += [_compared(*pair, (a, b), experiment, found, lost) for pair in product(*mine)]
    return lines or ["no pair of runs to compare: see the table"]


def _compared(
    one: Case,
    other: Case,
    published: tuple[Case, Case],
    experiment: Experiment,
    found: dict[tuple[str, str, str], list[Row]],
    lost: Container[Case],
) -> str:
    """Says the ratio of two errors, ours and the paper's."""
    what = " / ".join(" ".join(case).strip() for case in (one, other))
    pairs = [found.get((*case, "vrmse")) for case in (one, other)]
    errors = [_mean(values) for values in pairs if values]
    if len(errors) < 2 or None in errors:
        return f"{what}: no result"
    paper = {(r["run"], r["setting"]): r["value"] for r in expected(experiment) if _is_error(r)}
    printed = [paper.get(case) for case in published]
    ratio = f"{float(printed[0]) / float(printed[1]):.2f}" if all(printed) else "not printed"
    text = f"{what}: {errors[0] / errors[1]:.2f}, in the paper {ratio}"
    losing = one in lost or other in lost
    return f"{text}; no verdict, see persistence" if losing else text


def _is_error(row: dict[str, str]) -> bool:
    return row["metric"] == "vrmse" and row["value"] != ""


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Groups rows by run, setting and metric, with all seeds together."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["run"], row["setting"], row["metric"]), []).append(row)
    return found


def _mean(rows: Sequence[Row]) -> Any:
    values = [row["value"] for row in rows]
    return None if None in values else statistics.mean(values)


def _spread(rows: Sequence[Row]) -> str:
    mean = _mean(rows)
    if mean is None:
        return "diverged"
    if len(rows) == 1:
        return f"{mean:.4g}"
    return f"{mean:.4g} ± {statistics.stdev(row['value'] for row in rows):.2g}"


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments"))
    parser.add_argument("--only", nargs="+", default=[], metavar="RUN")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(given)
    experiment = read(options.name)
    print(f"{experiment.name}: {experiment.claim} ({experiment.source})")
    if options.dry_run:
        from dry_run import dry_run

        lines, wrong = dry_run(experiment, options.only)
        print("\n".join([*lines, *(f"WRONG {line}" for line in wrong)]))
        return 1 if wrong else 0
    if options.scale not in experiment.runs:
        has = ", ".join(experiment.runs) or "none"
        raise SystemExit(f"{experiment.name} has no runs at scale {options.scale}; it has: {has}")
    failed = [
        f"{run.name}, seed {seed}"
        for run in experiment.runs[options.scale]
        if not options.only or run.name in options.only
        for seed in run.seeds
        if not train(run, seed, options.out, options.overrides)
    ]
    rows = collect(experiment, options.scale, options.out)
    if rows:
        own = options.out / experiment.name / options.scale
        target = experiment.folder if options.record else own
        write_rows(rows, target / "results.csv")
        from pictures import draw

        draw(experiment, options.scale, options.out, target)
        print(report(experiment, options.scale, rows))
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
