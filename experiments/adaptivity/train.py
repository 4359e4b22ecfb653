"""Trains and tests one row in this process: `python -m adaptivity.train LABEL RESULTS WORK`.

An interrupted training resumes from its last checkpoint. The result appears in RESULTS at once, or
not at all.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from adaptivity.costs import SETS, Model, flops
from adaptivity.results import Results
from adaptivity.rows import Row, all_rows, candidates, coarse_fine, decided, winner
from studies import as_process, commit
from trainings import configured, fit, still

from adaptok.data import WellData
from adaptok.evaluation.cost import environment
from adaptok.models.schedules import create_schedule
from adaptok.tasks.bench.measuring import step_seconds, tested
from adaptok.tasks.surrogate import objectives
from adaptok.training import SurrogateModule
from adaptok.utils.atomic import replacing

STEPS = 16  # of a rollout
WIDEST = 96  # solver that equal seconds may ask for


def measured(row: Row, work: Path) -> float:
    """Returns the seconds of a training step of a row."""
    torch.manual_seed(0)
    config, data, model = configured(row, work, STEPS)
    return step_seconds(module_of(config, model), data, 1)["training"]


def width_of_equal_seconds(data: str, model: Model, work: Path) -> int:
    """Finds the width of a dense help whose training step takes the seconds of `coarse_fine`."""
    about = SETS[data]
    target = measured(Row(data, "coarse_fine", coarse_fine(about), 0, 0), work)

    def too_slow(width: int) -> bool:
        return measured(Row(data, "width", replace(model, width=width), 0, 0), work) > target

    low, high = 1, WIDEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if too_slow(middle) else (middle, high)
    return low


def module_of(config: Mapping[str, Any], model: Any) -> SurrogateModule:
    return SurrogateModule(model, *objectives(config), config, seed=config["seed"])


def found_by(module: SurrogateModule, data: WellData, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Tests the averaged weights: one step, rollouts, operations, tokens."""
    module.schedule = create_schedule({"name": "fixed", "settings": [dict(setting)]})
    found = tested(module, data, module.schedule, STEPS, 1)
    assert found.rollout is not None
    return {
        "vrmse": found.one_step.mean().item(),
        "worst": found.one_step.max().item(),
        "rollout": finite(found.rollout.mean(0)),
        "rollout_worst": finite(found.rollout.max(0).values),
        "tokens": found.tokens.mean().item(),
        "tokens_most": found.tokens.max().item(),
        "flops": found.flops,
    }


def finite(values: torch.Tensor) -> list[float | None]:
    """Plain numbers; None for those that are not finite."""
    return [float(value) if value.isfinite() else None for value in values]


def train(row: Row, work: Path) -> dict[str, Any]:
    """Trains and tests a row; returns what its file holds."""
    assert row.model is not None
    start = time.process_time()
    config, data, model = made = configured(row, work, STEPS)
    steps, curve = fit(row, made, work)
    module = module_of(config, model)
    found = found_by(module, data, config["test"]["settings"][0])
    return {
        "label": row.label,
        "key": row.key,
        "data": row.data,
        "name": row.name,
        "seed": row.seed,
        "steps": steps,
        "model": asdict(row.model),
        "overrides": row.overrides(),
        "tokenizer": config["tokenizer"],
        **found,
        "flops_expected": flops(row.model, SETS[row.data]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": curve,
        "persistence": still(data, STEPS),
        "seconds": step_seconds(module_of(config, model), data, 1),
        "seconds_total": time.process_time() - start,
        "environment": environment(torch.device("cpu")),
        "commit": commit(),
    }


def main(label: str, results: Path, work: Path) -> None:
    """Trains the row of a label, and first what it waits for and only measurements can decide."""
    torch.set_num_threads(1)
    store = Results(results)
    (row,) = [row for row in all_rows() if row.label == label]
    if row.name == "tuned_seconds" and row.data not in store.widths():
        best = winner(row.data, store.read().done)
        if best is None:
            raise ValueError(f"{label} waits for the tuning")
        width = width_of_equal_seconds(row.data, candidates(row.data)[best], work)
        store.keep_width(row.data, width)
    known, why = decided(row, store.read().done, store.widths())
    if known is None:
        raise ValueError(f"{label} {why}")
    found = train(known, work)
    with replacing(store.file(row)) as temporary:
        temporary.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    shutil.rmtree(work / row.label)
    print(f"{label}: VRMSE {found['vrmse']:.4f}, {found['seconds_total']:.0f} s", flush=True)


if __name__ == "__main__":
    as_process(main)
