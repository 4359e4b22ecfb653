"""Which pictures a command leaves behind; how they are drawn is in `adaptok.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptok import plots
from adaptok.cells import Cells
from adaptok.data import FieldInfo, WellData
from adaptok.evaluation import inputs_of, label_of
from adaptok.model import Surrogate

Batch = dict[str, Tensor]


def sample_of(data: WellData, split: str, number: int) -> Batch:
    """One sample as a batch of one.

    Raises:
        ValueError: the split has fewer samples.
    """
    dataset: Any = data.loader(split).dataset
    if not 0 <= number < len(dataset):
        raise ValueError(
            f"the {split} split has samples 0 to {len(dataset) - 1}, there is no number {number}"
        )
    return {k: v.unsqueeze(0) for k, v in dataset[number].items()}


@torch.no_grad()
def of_run(
    surrogate: Surrogate,
    data: WellData,
    results: Mapping[str, Any],
    folder: Path,
    *,
    split: str = "test",
) -> list[Path]:
    """Learning curve (where there is one), prediction, cells and rollout curves of a run."""
    out, device = folder / "pictures", surrogate.mean.device
    batch = sample_of(data, split, 0)
    known = inputs_of(batch, device)
    setting = _controls(results["settings"][0]["setting"])
    prediction = surrogate(batch["input"].to(device), **known, **setting).float().cpu()
    files = []
    if (folder / "metrics.csv").exists():
        figure = plots.learning_curve_figure(folder)
        files.append(plots.save(figure, out / "learning_curve.png"))
    figure = plots.prediction_figure(
        batch["target"][0, 0].numpy(), prediction[0, 0].numpy(), data.info.fields
    )
    files.append(plots.save(figure, out / "prediction.png"))
    settings = [row["setting"] for row in results["settings"]]
    tilings = _tilings(surrogate, batch, settings)
    figure = plots.cells_figure(_channel(batch, data.info), tilings, title=data.info.fields[0])
    files.append(plots.save(figure, out / "cells.png"))
    if "rollout" in results["persistence"]:
        curves = {row["label"]: _curve(row) for row in results["settings"]}
        curves["persistence"] = _curve(results["persistence"])
        files.append(plots.save(plots.rollout_figure(curves), out / "rollout.png"))
    return files


def of_comparison(runs: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Learning and rollout curves of several runs in one picture each."""
    figure = plots.learning_curve_figure({name: folder / name for name in runs})
    files = [plots.save(figure, folder / "learning_curves.png")]
    curves = {name: _curve(results["settings"][0]) for name, results in runs.items()}
    curves["persistence"] = _curve(next(iter(runs.values()))["persistence"])
    files.append(plots.save(plots.rollout_figure(curves), folder / "rollouts.png"))
    return files


@torch.no_grad()
def of_tokens(
    surrogate: Surrogate,
    info: FieldInfo,
    batch: Batch,
    settings: Sequence[Mapping[str, Any]],
    folder: Path,
) -> tuple[list[Path], dict[str, int]]:
    """Field, scores and cells of one sample; returns the files and the tokens per setting."""
    now = {name: batch["input"][0, -1, i].numpy() for i, name in enumerate(info.fields)}
    if "constants" in batch:
        now |= {n: batch["constants"][0, i].numpy() for i, n in enumerate(info.constants)}
    files = [plots.save(plots.panels_figure({"": now}, share="column"), folder / "field.png")]
    tilings = _tilings(surrogate, batch, settings)
    for name in info.fields:
        figure = plots.cells_figure(now[name], tilings, title=name)
        files.append(plots.save(figure, folder / f"cells_{name}.png"))
    files += _scores(surrogate, info, batch, folder)
    return files, {label: len(cells) for label, cells in tilings.items()}


def _scores(surrogate: Surrogate, info: FieldInfo, batch: Batch, folder: Path) -> list[Path]:
    """The aggregate score and that of every channel and frame, where the tokenizer scores."""
    tokenizer: Any = surrogate.tokenizer
    if not hasattr(tokenizer, "score_map"):
        return []
    field = surrogate._prepare(batch["input"], batch.get("constants")).scored
    known = batch["boundary"]
    total = tokenizer.score_map(field, boundary=known)[0].numpy()
    rows: dict[str, dict[str, np.ndarray]] = {"now": {"all": total}}
    maps_of = getattr(getattr(tokenizer, "indicator", None), "channel_maps", None)
    if maps_of is not None:
        maps = maps_of(field, boundary=known)[0].flatten(0, 1).numpy()
        history, fields = batch["input"].shape[1], len(info.fields)
        stride = fields + (len(info.constants) if surrogate.history_mode == "frames" else 0)
        for age in range(history):
            row = rows.setdefault(f"{age} before" if age else "now", {})
            first = (history - 1 - age) * stride
            row |= {name: maps[first + i] for i, name in enumerate(info.fields)}
        first = len(maps) - len(info.constants)
        rows["now"] |= {name: maps[first + i] for i, name in enumerate(info.constants)}
    figure = plots.panels_figure(rows, title="score", share="column", positive=[*rows["now"]])
    return [plots.save(figure, folder / "score.png")]


def _tilings(
    surrogate: Surrogate, batch: Batch, settings: Sequence[Mapping[str, Any]]
) -> dict[str, Cells]:
    device = surrogate.mean.device
    known = inputs_of(batch, device)
    return {
        label_of(setting): surrogate.cells(batch["input"].to(device), **known, **_controls(setting))
        for setting in settings
    }


def _controls(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule is drawn as built; a setting as it is."""
    return {} if "name" in setting else dict(setting)


def _channel(batch: Batch, info: FieldInfo) -> np.ndarray:
    return batch["input"][0, -1, 0].numpy()


def _curve(row: Mapping[str, Any]) -> list[float]:
    return [float("nan") if v is None else v for v in row["rollout"]["mean"]]
