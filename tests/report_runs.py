"""Run folders as training leaves them, without training: for the tests of reports."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path
from typing import Any

import yaml

FIELDS = ["pressure", "velocity_x", "velocity_y"]
ERRORS = {
    "uniform": 0.09,
    "iap": 0.07,
    "apt": 0.08,
    "matey": 0.085,
    "ckm": 0.10,
    "csm": 0.095,
    "fno": 0.11,
    "unet": 0.12,
    "persistence": 0.345,
}
BASELINES = ("fno", "unet", "persistence")
ENVIRONMENT = {
    "adaptok": "0.1.0",
    "torch": "2.15.0",
    "device": "cpu",
    "hardware": "x86_64, 2 cores, 1 thread",
    "when": "2026-01-02T03:04:05+00:00",
}


def config_of(kind: str, seed: int, budget: int | None = 256, **changed: Any) -> dict[str, Any]:
    """A plain configuration; `changed` are further top-level keys."""
    baseline = kind in BASELINES
    config: dict[str, Any] = {
        "seed": seed,
        "name": f"maze_{kind}_{seed}",
        "history": 1,
        "task": "surrogate",
        "model": {"name": kind if baseline else "surrogate"},
        "tokenizer": {"name": "iap" if baseline else kind, "budget": budget, "ignore": []},
        "processor": {"name": "vit", "depth": 3},
        "decoder": {"name": "modulated" if kind in ("ckm", "csm") else "linear"},
        "size": {"dim": 96},
        "data": {"name": "maze", "base": f"/data/{seed}", "stride": 1, "batch_size": 8},
        "optim": {"lr": 0.002, "betas": [0.9, 0.999]},
        "trainer": {"max_steps": 1000, "devices": 1},
        "schedule": {"name": "fixed", "settings": [{}], "seed": seed},
        "test": {"settings": [{}], "steps": 8},
    }
    return config | changed


def row_of(
    error: float | None, tokens: float | None, budget: int | None = None, steps: int = 8
) -> dict[str, Any]:
    """A row of metrics.json with everything in it."""
    known = 1.0 if error is None else error
    rollout = [min(known * (i + 1) ** 1.1, 2.0) for i in range(steps)]
    waves = [i / 32 for i in range(24)]
    return {
        "label": "as built" if budget is None else f"budget={budget}",
        "setting": {} if budget is None else {"budget": budget},
        "tokens": tokens and {"mean": tokens, "min": 0.8 * tokens, "max": 1.3 * tokens},
        "seconds_per_step": 1e-3 + 2e-4 * (tokens or 100),
        "flops": {"tokenizer": 1e6, "processor": 2e9, "decoder": 1e6, "other": 0.0}
        | {"total": 1e7 * (tokens or 150)},
        "peak_memory": 3e8 + 1e5 * (tokens or 100),
        "vrmse": {
            "mean": error,
            "median": error and 0.98 * error,
            "fields": {f: {"mean": error and error * (1 + 0.1 * i)} for i, f in enumerate(FIELDS)},
        },
        "nrmse": error,
        "spectral_nmse": [known**3, known**2, known],
        "rollout": {
            "mean": rollout if error is not None else [1.0, None, *rollout[2:]],
            "median": rollout,
            "windows": {"6:12": sum(rollout[6:12]) / 6} if steps >= 12 else {},
            "spectral_nmse": [[v**3, v**2, v] for v in rollout],
            "residual_spectrum": {
                "wavenumber": waves,
                "power": [[v**2 / (1 + 500 * w * w) for w in waves] for v in rollout],
            },
            "patch_harmonics": [1 + 0.02 * i for i in range(steps)] if tokens else None,
            "flicker": [None, *[0.1] * (steps - 1)] if tokens else None,
        },
    }


def results_of(rows: list[dict[str, Any]], data: str = "maze", steps: int = 8) -> dict[str, Any]:
    """A metrics.json of task=surrogate."""
    rollout = [min(0.345 * (i + 1), 1.3) for i in range(steps)]
    windows = {"6:12": sum(rollout[6:12]) / 6} if steps >= 12 else {}
    return {
        "environment": ENVIRONMENT,
        "data": data,
        "split": "test",
        "fields": FIELDS,
        "patch_size": [16, 16],
        "persistence": {
            "vrmse": {"mean": 0.345, "median": 0.34, "fields": {}},
            "rollout": {"mean": rollout, "windows": windows},
        },
        "budget": None,
        "parameters": 487068,
        "training": {"steps": 1000, "seconds": 450.0, "peak_memory": 1.2e9},
        "seconds_per_training_step": 0.45,
        "settings": rows,
    }


def write_run(
    folder: Path,
    config: dict[str, Any],
    results: dict[str, Any] | None,
    *,
    curve: bool = True,
) -> Path:
    """Writes config.yaml, metrics.json and metrics.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if results is not None:
        (folder / "metrics.json").write_text(json.dumps(results, indent=2))
    if curve:
        write_curve(folder)
    return folder


def write_curve(folder: Path, *, steps: int = 1000, metric: str = "val/vrmse") -> None:
    """A metrics.csv as of Lightning's CSVLogger."""
    lines = [f"epoch,lr,samples/s,step,tokens/sample,train/loss,{metric}"]
    draw = random.Random(folder.name)
    for step in range(19, steps, 20):
        loss = 0.1 / (1 + step / 50) * draw.uniform(0.9, 1.1)
        lines.append(f"0,0.001,12.5,{step},256.0,{loss:.6g},")
    for step in range(249, steps, 250):
        lines.append(f"0,,,{step},,,{0.4 / (1 + step / 200) * draw.uniform(0.95, 1.05):.6g}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def write_surrogate(
    root: Path,
    kind: str,
    seed: int,
    *,
    budget: int | None = 256,
    tests: tuple[int | None, ...] = (None,),
    error: float | None = -1.0,
    curve: bool = True,
    **changed: Any,
) -> Path:
    """A finished run of a tokenizer or baseline.

    Args:
        tests: budgets that it is tested at; None is as built.
        error: VRMSE of the first test, None for one that diverged; by default one of `ERRORS`.
        changed: top-level keys of the configuration.
    """
    config = config_of(kind, seed, budget, **changed)
    draw = random.Random(zlib.crc32(f"{kind}{seed}{budget}".encode()))
    base = ERRORS.get(kind, 0.1) * draw.uniform(0.97, 1.03) if error == -1.0 else error
    rows = []
    for number, test in enumerate(tests):
        size = test or budget or 256
        far = 1.0 if test is None or budget is None else max(size / budget, budget / size) ** 0.6
        own = None if base is None else base * (256 / size) ** 0.25 * far
        tokens = None if kind in BASELINES else float(size)
        rows.append(row_of(own if number or base is None else base * far, tokens, test))
    name = f"{config['data']['name']}_{kind}_{budget}_{seed}"
    return write_run(root / name, config, results_of(rows, config["data"]["name"]), curve=curve)


def write_classifier(root: Path, kind: str, seed: int, accuracy: float) -> Path:
    """A finished run of task=classify."""
    config = config_of(kind, seed, task="classify", model={"name": "vit_tiny_patch16_224"})
    config["data"] = {"name": "mnist_5k"}
    row = {"label": "as built", "setting": {}, "accuracy": accuracy, "loss": 0.5}
    row |= {"tokens": {"mean": 17.0, "min": 4.0, "max": 46.0}, "images_per_second": 536.0}
    results = {
        "data": "mnist_5k",
        "split": "test",
        "classes": list("0123456789"),
        "settings": [row],
    }
    folder = write_run(root / f"{kind}_{seed}", config, results, curve=False)
    write_curve(folder, metric="val/error")
    return folder
