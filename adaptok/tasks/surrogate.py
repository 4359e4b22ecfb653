"""A training run: fit as configured, test the averaged weights, keep everything in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning import LightningDataModule

from adaptok import create_schedule
from adaptok.config.build import build_data, build_surrogate, check_knobs
from adaptok.data import WellData
from adaptok.evaluation.budgets import resolve_settings, resolve_tokenizer
from adaptok.evaluation.cost import peak_memory
from adaptok.evaluation.evaluate import check_settings, evaluate
from adaptok.evaluation.results import write_results
from adaptok.models.one_step import OneStepModel
from adaptok.models.pretrained import save_pretrained
from adaptok.models.schedules import Schedule
from adaptok.models.surrogate import Surrogate
from adaptok.plots import pictures
from adaptok.tasks.fit import Config, fit, of_lightning, prepare, quiet, write_config
from adaptok.training import SurrogateModule
from adaptok.training.checkpoints import load_weights, read_checkpoint
from adaptok.training.optim import Optim
from adaptok.utils.atomic import replacing


class Run(NamedTuple):
    """A finished training run."""

    results: dict[str, Any]
    surrogate: OneStepModel
    data: WellData
    folder: Path


def fit_and_test(config: Config, folder: Path) -> Run | None:
    """Trains as configured and tests the averaged weights; everything is kept in `folder`.

    Returns:
        The run; None in all processes of a parallel run but the first, which tests alone.
    """
    begin(config)
    data = build_data(config)
    if config["budget"] is not None:
        config = at_budget(config, data)
    return fit_on(data, build_surrogate(config, data.info), config, folder)


def at_budget(config: Config, data: WellData) -> Config:
    """The configuration with a tokenizer that has the wanted number of tokens per sample.

    Raises:
        ValueError: a baseline, which has no tokens, or a budget out of the tokenizer's reach.
    """
    with torch.random.fork_rng():  # the weights of the run are those of a run without a budget
        surrogate = build_surrogate(config, data.info)
    if not isinstance(surrogate, Surrogate):
        raise ValueError(f"model={config['model']['name']} has no tokens: budget=null")
    part = resolve_tokenizer(config["tokenizer"], surrogate, data, config["budget"])
    return {**config, "tokenizer": part}


def begin(config: Config) -> None:
    """Seeds, and refuses what no run can be made of before anything slow happens."""
    quiet()
    L.seed_everything(config["seed"], workers=True, verbose=False)
    check_knobs(Optim, "optim", config["optim"])
    check_knobs(L.Trainer, "trainer", of_lightning(config))
    objectives(config)


def objectives(config: Config) -> tuple[Optim, Schedule]:
    """Optimisation, and settings per step."""
    return Optim(**config["optim"]), create_schedule(config["schedule"])


def fit_on(data: WellData, surrogate: OneStepModel, config: Config, folder: Path) -> Run | None:
    """As `fit_and_test`, for a model and data that are there."""
    given = config["schedule"]
    resolved = resolve_settings(surrogate, data, given["settings"])
    config = {**config, "schedule": {**given, "settings": resolved}}
    check_settings(surrogate, data, config["test"]["settings"])  # now, not after the training
    prepare(surrogate, config)
    module = SurrogateModule(surrogate, *objectives(config), config, seed=config["seed"])
    seconds = fit_surrogate(module, data, config, folder)
    if seconds is None:
        return None
    if module.device_mesh is not None:  # this process has a shard of it only
        surrogate = build_surrogate(config, data.info)
        load_weights(surrogate, read_checkpoint(folder), path=folder, config=config)
    results = test_and_draw(surrogate, data, config, folder, seconds)
    save_pretrained(surrogate, folder / "model", results=results)
    return Run(results, surrogate, data, folder)


def test_and_draw(
    surrogate: OneStepModel, data: WellData, config: Config, folder: Path, seconds: float
) -> dict[str, Any]:
    """Tables and pictures of a trained model on the test split."""
    test = config["test"]
    results = evaluate(surrogate, data, **test)
    results["budget"] = config.get("budget")
    results["training"] = {
        "steps": config["trainer"]["max_steps"],
        "seconds_per_step": seconds,
        "peak_memory": peak_memory(surrogate.mean.device),
    }
    results["seconds_per_training_step"] = seconds
    write_results(results, folder)
    pictures.of_run(surrogate, data, results, folder)
    return results


def fit_surrogate(
    module: SurrogateModule, data: LightningDataModule, config: Config, folder: Path
) -> float | None:
    """Seconds per training step; None where another process is the first one."""
    if not any(p.requires_grad for p in module.parameters()):  # nothing to train: persistence
        write_config(config, folder)
        _save_untrained(module, folder)
        return 0.0

    def fits(saved: Config, path: Path) -> None:
        load_weights(module.surrogate, saved, path=path, config=config)

    return fit(module, data, config, folder, of_lightning(config), fits)


def _save_untrained(module: SurrogateModule, folder: Path) -> None:
    """A checkpoint that `adaptok eval` takes like any other."""
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 0}
    module.on_save_checkpoint(checkpoint)
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)
