"""Fits any Lightning module of a task: resumes, keeps metrics and the configuration."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import yaml
from lightning import LightningDataModule
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.strategies import StrategyRegistry
from torch import nn

from adaptok.models.compiling import compile_model
from adaptok.registry import close_matches
from adaptok.tasks.banner import banner, resolved
from adaptok.tasks.tracking import logger_arguments
from adaptok.training import make_trainer
from adaptok.training.checkpoints import check_resumable, check_resume, find_resume, read_checkpoint
from adaptok.training.fit_module import FitModule
from adaptok.training.parallel import checkpoint_activations, process_group
from adaptok.training.saving import Checkpoints
from adaptok.training.transfer import find_source, start_from
from adaptok.utils.atomic import replacing

Config = Mapping[str, Any]


GROUPS = ("model", "tokenizer", "processor", "decoder", "data")  # that adaptok eval may exchange


class Fitted(NamedTuple):
    """What a fit took: optimizer steps, those before it was resumed included, and their time."""

    steps: int
    seconds_per_step: float


def check_trainer(knobs: Config, *, by_time: bool = True) -> None:
    """Checks what Lightning would find out late or never.

    Args:
        knobs: the group "trainer".
        by_time: ``max_time`` alone may end the training; False where rates need its length.

    Raises:
        ValueError: an unknown strategy, nothing ends the training, or a CPU is asked for more
            processes than it has cores.
    """
    accepted = {*StrategyRegistry.available_strategies(), "auto", "fsdp", "fsdp2"}
    if (strategy := knobs.get("strategy", "auto")) not in accepted:
        raise ValueError(
            "trainer.strategy must be auto, ddp, fsdp, fsdp2 or another name of Lightning's, got "
            f"{strategy!r}{close_matches(str(strategy), sorted(accepted))}"
        )
    ends = knobs.get("max_epochs") not in (None, -1)
    timed = by_time and knobs.get("max_time") is not None
    if knobs.get("max_steps", -1) == -1 and not (ends or timed):
        raise ValueError(
            "nothing ends the training: trainer.max_steps=-1 leaves that to trainer.max_epochs"
            + (" or trainer.max_time" if by_time else "")
        )
    devices, cores = knobs.get("devices"), os.cpu_count() or 1
    on_cpu = knobs.get("accelerator") == "cpu" or not torch.accelerator.is_available()
    if on_cpu and isinstance(devices, int) and devices > cores:
        raise ValueError(
            f"trainer.devices={devices} on the CPU starts as many processes, and this machine has "
            f"{cores} cores"
        )


def prepare(model: nn.Module, config: Config) -> None:
    """Turns on activation checkpointing and compilation, if configured."""
    if config["activation_checkpointing"]:
        checkpoint_activations(model)
    if mode := config["trainer"].get("compile"):
        compile_model(model, mode if isinstance(mode, str) else None)


def fit(
    module: FitModule,
    data: LightningDataModule,
    config: Config,
    folder: Path,
    trainer_knobs: Config,
    fits: Callable[[Config, Path], None] = lambda saved, path: None,
    *,
    monitor: str = "val/vrmse",
) -> Fitted | None:
    """Fits a module, from the start, from the weights of ``config["init"]``, or from where
    ``config["resume"]`` says.

    Args:
        trainer_knobs: of `make_trainer`.
        fits: raises ``ValueError`` where the weights of a checkpoint do not fit the model.
        monitor: metric whose lowest value makes best.ckpt.

    Returns:
        What it took; None in all processes but the first.

    Raises:
        ValueError: the loss, or a weight, is not finite; names the step and the last checkpoint.
    """
    ema, logger = config["optim"]["ema"], logger_arguments(config)
    knobs = {**logger, **trainer_knobs, "callbacks": config.get("callbacks")}
    trainer = make_trainer(folder, ema=ema, monitor=monitor, **knobs)
    checkpoint = find_resume(config["resume"], folder, folder.parent, config)
    if checkpoint is not None:
        saved = read_checkpoint(checkpoint)
        check_resumable(saved, checkpoint)
        fits(saved, checkpoint)
        if not config["resume_anyway"]:
            check_resume(saved, config, checkpoint, data)
        made, most = saved["global_step"], trainer.max_steps
        if 0 <= most < made:
            raise ValueError(
                f"{checkpoint} has made {made} steps, more than trainer.max_steps={most}"
            )
    if trainer.is_global_zero:
        if checkpoint is not None:
            print(f"resuming from {checkpoint}")
            _keep_metrics(folder)
        model: Any = module.surrogate if hasattr(module, "surrogate") else module.model
        write_config({**config, "resolved": resolved(model, config, trainer)}, folder)
        print(banner(model, data, config, trainer), flush=True)
        for one in trainer.loggers:
            if not isinstance(one, (CSVLogger, WandbLogger)):  # those have it
                one.log_hyperparams(dict(config))
    if checkpoint is None and config["init"] is not None:
        told = start_from(module, config["init"])
        if trainer.is_global_zero:
            print(told)
    try:
        with process_group():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt(_hint(trainer)) from None
    took = Fitted(trainer.global_step, module.seconds_per_step)
    return took if trainer.is_global_zero else None


def check_start(config: Config) -> None:
    """Checks before any slow work what a training starts from.

    Raises:
        ValueError: ``config["init"]`` is no run, checkpoint or saved model.
    """
    if config["init"] is not None and config["resume"] is None:
        find_source(config["init"])


@contextmanager
def after_training(folder: Path) -> Iterator[None]:
    """Says of an interrupted test that the training is finished, and what repeats the test.

    Args:
        folder: of the run.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"in the test; the training is finished, and resume={folder} with the same command, or "
            f"adaptok eval ckpt={folder}, tests its weights"
        ) from None


def _hint(trainer: L.Trainer) -> str:
    """Says what an interrupted training leaves."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    saved = next(one for one in callbacks if isinstance(one, Checkpoints))
    if saved.file is None:
        return f"in step {trainer.global_step}, before its first checkpoint: it would start afresh"
    return f"in step {trainer.global_step}; resume=auto resumes from step {saved.saved}"


def of_lightning(config: Config) -> dict[str, Any]:
    """Arguments for `lightning.Trainer`: the group "trainer" without ``compile``."""
    return {key: value for key, value in config["trainer"].items() if key != "compile"}


def config_of_eval(trained: Config, wanted: Config) -> dict[str, Any]:
    """Merges the configurations of the training run and of ``adaptok eval``.

    Args:
        trained: with the groups and keys that the user gave instead.
        wanted: of the command; its groups hold only what was given.
    """
    return {**trained, **{k: v for k, v in wanted.items() if k not in (*GROUPS, "seed")}}


def write_config(config: Config, folder: Path) -> None:
    """Writes the plain configuration of a run to its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False))


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the configuration that `write_config` wrote.

    Raises:
        ValueError: no such file, or a damaged one.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{folder} is no run folder: it has no {file.name}")
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is damaged: it holds no configuration")
    return config


def quiet() -> None:
    """Keeps Lightning's advertisements and advice that does not apply out of the output."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    advice = ["is deprecated, use `isinstance", "exists and is not empty", "num_workers"]
    advice += ["smaller than the logging interval", "`max_epochs` was not set"]
    advice += ["The `srun` command is available"]  # launcher=slurm calls it
    warnings.filterwarnings("ignore", f".*({'|'.join(advice)})")


def _keep_metrics(folder: Path) -> None:
    """Renames the metrics.csv of a resumed run, because the logger starts a new one."""
    file = folder / "metrics.csv"
    if file.exists():
        kept = [one.stem.rpartition("_")[2] for one in folder.glob("metrics_before_*.csv")]
        last = max([int(number) for number in kept if number.isdecimal()], default=0)
        file.rename(folder / f"metrics_before_{last + 1}.csv")
