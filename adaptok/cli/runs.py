"""A training run: fit as configured, test the averaged weights, keep everything in one folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import yaml
from lightning import LightningDataModule
from torch import nn

from adaptok import create_schedule
from adaptok.accounting import peak_memory
from adaptok.atomic import replacing
from adaptok.budgets import settings_at_budget, tokenizer_at_budget
from adaptok.cli import pictures
from adaptok.cli.tracking import settings_of
from adaptok.compiling import compile_model
from adaptok.config import build_data, build_surrogate, check_knobs
from adaptok.data import WellData
from adaptok.evaluation import check_settings, evaluate
from adaptok.forecast import OneStepModel
from adaptok.model import Surrogate
from adaptok.pretrained import save_pretrained
from adaptok.results import write_report
from adaptok.schedules import Schedule
from adaptok.training import SurrogateModule, make_trainer
from adaptok.training.checkpoints import check_resume, find_resume, load_weights, read_checkpoint
from adaptok.training.fitting import FitModule
from adaptok.training.optim import Optim
from adaptok.training.parallel import checkpoint_activations, process_group

Config = Mapping[str, Any]
GROUPS = ("model", "tokenizer", "processor", "decoder", "data")  # that adaptok eval may exchange


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
    part = tokenizer_at_budget(config["tokenizer"], surrogate, data, config["budget"])
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


def prepare(model: nn.Module, config: Config) -> None:
    """Activation checkpointing and compilation, where they are wanted."""
    if config["activation_checkpointing"]:
        checkpoint_activations(model)
    if mode := config["trainer"].get("compile"):
        compile_model(model, mode if isinstance(mode, str) else None)


def fit_on(data: WellData, surrogate: OneStepModel, config: Config, folder: Path) -> Run | None:
    """As `fit_and_test`, for a model and data that are there."""
    given = config["schedule"]
    resolved = settings_at_budget(surrogate, data, given["settings"])
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
    write_report(results, folder)
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


def fit(
    module: FitModule,
    data: LightningDataModule,
    config: Config,
    folder: Path,
    trainer_knobs: Config,
    fits: Callable[[Config, Path], None] = lambda saved, path: None,
    *,
    monitor: str = "val/vrmse",
) -> float | None:
    """Fits a module, from the start or from where ``config["resume"]`` says.

    Args:
        trainer_knobs: of `make_trainer`.
        fits: raises ``ValueError`` where the weights of a checkpoint do not fit the model.
        monitor: metric whose lowest value makes best.ckpt.

    Returns:
        Seconds per training step; None in all processes but the first.
    """
    ema, logger = config["optim"]["ema"], settings_of(config)
    trainer = make_trainer(folder, ema=ema, monitor=monitor, **logger, **trainer_knobs)
    checkpoint = find_resume(config["resume"], folder, folder.parent, config)
    if checkpoint is not None:
        saved = read_checkpoint(checkpoint)
        fits(saved, checkpoint)
        if not config["resume_anyway"]:
            check_resume(saved, config, checkpoint)
    if trainer.is_global_zero:
        if checkpoint is not None:
            print(f"going on from {checkpoint}")
            _keep_metrics(folder)
        write_config(config, folder)
    try:
        with process_group():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    return module.seconds_per_step if trainer.is_global_zero else None


def of_lightning(config: Config) -> dict[str, Any]:
    """The group "trainer" without what is ours."""
    return {key: value for key, value in config["trainer"].items() if key != "compile"}


def _save_untrained(module: SurrogateModule, folder: Path) -> None:
    """A checkpoint that `adaptok eval` takes like any other."""
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 0}
    module.on_save_checkpoint(checkpoint)
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)


def config_of_eval(trained: Config, wanted: Config) -> dict[str, Any]:
    """What ``adaptok eval`` did: the training run, as the user changed it, and how it was tested.

    Args:
        trained: with the groups and keys that the user gave instead.
        wanted: of the command; its groups hold only what was given.
    """
    return {**trained, **{k: v for k, v in wanted.items() if k not in (*GROUPS, "seed")}}


def write_config(config: Config, folder: Path) -> None:
    """Keeps the plain configuration of a run in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))


def quiet() -> None:
    """Keeps Lightning's advertisements and advice that does not apply out of the output."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*is deprecated, use `isinstance",
        ".*exists and is not empty",
        ".*num_workers",
    ):
        warnings.filterwarnings("ignore", message)


def _keep_metrics(folder: Path) -> None:
    """The logger starts a new metrics.csv; what a resumed run wrote before stays beside it."""
    file = folder / "metrics.csv"
    if file.exists():
        number = len(list(folder.glob("metrics*.csv")))
        file.rename(folder / f"metrics_before_{number}.csv")
