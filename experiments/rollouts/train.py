"""Trains a row and tests its rollouts in this process: `python -m rollouts.train LABEL RESULTS
WORK`.

An interrupted training resumes from its last checkpoint. Weights stay in WORK, so that variants
that are added later need no training.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rollouts.results import Results
from rollouts.rows import PLAIN, SETS, Row, all_rows
from studies import Found, as_process, commit
from torch import Tensor
from trainings import Configured, configured, fit, still

from adaptok.config.build import build_surrogate
from adaptok.data import WellData
from adaptok.evaluation.cost import environment
from adaptok.evaluation.evaluate import check_settings, evaluate, rollouts
from adaptok.evaluation.results import Rollout, SettingResult
from adaptok.models.one_step import OneStepModel
from adaptok.models.schedules import create_schedule
from adaptok.utils.atomic import replacing

TIMED, REPEATS = 8, 3  # steps whose seconds are measured, and how often
SHOWN = (1, 24, -1)  # steps whose spectra are kept, from 1


def trained(row: Row, made: Configured, work: Path) -> tuple[dict[str, Tensor], Found]:
    """Returns averaged weights and the line of a training, which is not repeated."""
    weights, start = work / "weights" / f"{row.label}-{row.key}.pt", time.process_time()
    if weights.is_file():
        saved = torch.load(weights, weights_only=True)
        return saved["weights"], json.loads(saved["training"])
    config, data, model = made
    steps, curve = fit(row, made, work)
    took = time.process_time() - start
    found = {
        **{"label": row.label, "key": row.key, "data": row.data, "name": row.name},
        **{"seed": row.seed, "steps": steps, "overrides": row.overrides()},
        "tokenizer": config["tokenizer"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": [[step, rounded(error)] for step, error in curve],
        "persistence": rounded(still(data, row.steps)),
        "seconds_total": round(took, 1),
        "environment": environment(torch.device("cpu")),
        "commit": commit(),
    }
    weights.parent.mkdir(parents=True, exist_ok=True)
    with replacing(weights) as temporary:
        torch.save({"weights": model.state_dict(), "training": json.dumps(found)}, temporary)
    shutil.rmtree(work / row.label)
    return model.state_dict(), found


class Tried(NamedTuple):
    """A model, and the setting of its rollouts."""

    model: OneStepModel
    setting: Mapping[str, Any]


def tried(made: Configured, weights: Mapping[str, Tensor], variant: str, row: Row) -> Tried:
    """Builds the model of a variant."""
    config, data, _ = made
    one = row.variants()[variant]
    if one.conserve:
        config = {**config, "conserve": list(SETS[row.data].conserved)}
    model = build_surrogate(config, data.info)
    model.load_state_dict(weights)
    return Tried(model.eval(), one.setting)


def tested(one: Tried, plain: Tried, data: WellData, row: Row) -> Found:
    """Tests a variant: one step, rollouts, what tilings did, sums, and seconds of one core per step
    of a batch, beside those of the same training as it is.
    """
    asked = {"steps": row.steps, "patch_size": row.period, "device": "cpu"}
    results = evaluate(one.model, data, settings=[one.setting], **asked)
    (found,) = results.settings
    assert found.rollout is not None
    own, beside = step_seconds([one, plain], data)
    return {**numbers(found, found.rollout), "seconds": own, "seconds_beside": beside}


def numbers(found: SettingResult, rollout: Rollout) -> Found:
    """Picks what a line holds; lists by step begin with the first prediction."""
    spectrum = rollout.residual_spectrum or {}
    assert rollout.spectral_nmse is not None
    assert rollout.sums is not None
    changed = [share for share in (rollout.flicker or [])[1:] if share is not None]
    content = {
        "vrmse": found.vrmse.mean,
        "rollout": rollout.mean,
        "windows": rollout.windows,
        "bands": shown(rollout.spectral_nmse),
        "spectrum": shown(spectrum["power"]),
        "harmonics": rollout.patch_harmonics,
        "sums": {name: shown(off) for name, off in rollout.sums.items()},
        "flicker": statistics.mean(changed) if changed else None,
        "tokens": rollout.tokens,
        "reused": statistics.mean(rollout.reused) if rollout.reused else None,
    }
    return rounded(content)


def shown(by_step: Any) -> list[Any]:
    """Picks the steps that are kept."""
    return [by_step[step - 1 if step > 0 else step] for step in SHOWN]


def rounded(value: Any) -> Any:
    """Five digits of every number are enough."""
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


@torch.no_grad()
def step_seconds(models: Sequence[Tried], data: WellData) -> list[float]:
    """Measures models by turns; the least of some, so that other processes count little."""
    schedules = []
    for model, setting in models:
        (controls,) = check_settings(model, data, [setting])
        fixed = {"name": "fixed", "settings": [controls]}
        schedules.append(create_schedule(controls if "name" in controls else fixed))
    took: list[list[float]] = [[] for _ in models]
    for _ in range(REPEATS):
        for number, (one, schedule) in enumerate(zip(models, schedules, strict=True)):
            start = time.process_time()
            next(rollouts(one.model, data, "test", schedule, TIMED))
            took[number].append((time.process_time() - start) / TIMED)
    return [rounded(min(values)) for values in took]


def main(label: str, folder: Path, work: Path) -> None:
    """Trains the row of a label if need be, and tests what is open."""
    torch.set_num_threads(1)
    results = Results(folder)
    (row,) = [row for row in all_rows() if row.label == label]
    made = configured(row, work, row.steps)
    weights, training = trained(row, made, work)
    results.keep(row, training)
    for variant, about in row.variants().items():
        if variant in results.content(row).tests:
            continue
        one, plain = (tried(made, weights, name, row) for name in (variant, PLAIN))
        found = tested(one, plain, made[1], row)
        head = {"variant": variant, "key": row.key_of(variant), "setting": dict(about.setting)}
        results.keep(row, {**head, "conserve": about.conserve, **found})
        print(f"{label}, {variant}: step 24 {found['rollout'][23]}", flush=True)


if __name__ == "__main__":
    as_process(main)
