"""Makes the trainer: what it prints, and what it keeps in the run folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)

from adaptok.registry import choice
from adaptok.training.averaging import Averaging
from adaptok.training.finite import Finite
from adaptok.training.parallel import FullySharded
from adaptok.training.progress import Progress
from adaptok.training.saving import AtomicIO, Checkpoints
from adaptok.training.steps import NEVER, Steps
from adaptok.training.targets import instantiate_each
from adaptok.training.termination import Termination

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


class StepsMade(CSVLogger):
    """Adds the number of steps made, as log and pictures have it; "step" is that of Lightning, from
    0.
    """

    def log_metrics(  # type: ignore[override]
        self, metrics: dict[str, Any], step: int | None = None
    ) -> None:
        """Writes a row."""
        made = {} if step is None else {"steps_made": step + 1}
        super().log_metrics({**metrics, **made}, step)


def make_trainer(
    folder: str | Path,
    *,
    ema: float = 0.99,
    wandb: Mapping[str, Any] | None = None,
    loggers: Mapping[str, Any] | None = None,
    callbacks: Mapping[str, Any] | None = None,
    precision: str = "auto",
    strategy: str = "auto",
    monitor: str = "val/vrmse",
    profiler: Profiler | str | None = None,
    **knobs: Any,
) -> L.Trainer:
    """Makes a trainer that keeps metrics.csv and checkpoints/{best,last}.ckpt in `folder`.

    Args:
        ema: decay of the averaged weights, which validation uses and the fit ends with.
        wandb: arguments of Lightning's WandbLogger, or None.
        loggers: further ones by any name, each an object or ``{"_target_": ..., **arguments}``.
        callbacks: further ones, given in the same way.
        strategy: "fsdp" shards weights over the processes (FSDP2); else one of Lightning's, such as
            "ddp".
        monitor: metric whose lowest value makes best.ckpt.
        profiler: "simple", "advanced" or "pytorch", which write to `folder`, or one of Lightning's.
        precision: "auto" (bf16-mixed on CUDA, else 32-true) or one of Lightning's.
        knobs: of lightning.Trainer; `val_check_interval` counts optimizer steps, and None means
            once per epoch. A training that is shorter is validated at its end.
    """
    folder = Path(folder)
    if precision == "auto":
        cuda = knobs.get("accelerator", "auto") != "cpu" and torch.cuda.is_available()
        precision = "bf16-mixed" if cuda else "32-true"
    if isinstance(profiler, str):
        choice("profiler", profiler, PROFILERS)
        profiler = PROFILERS[profiler](dirpath=folder, filename="profile")
    steps = Steps(knobs.pop("val_check_interval", 1000))
    checkpoints = Checkpoints(folder / "checkpoints", steps, monitor)
    used: list[Callback] = [Averaging(ema), steps, *instantiate_each("callbacks", callbacks)]
    if knobs.pop("enable_progress_bar", True):
        used.append(Progress(bar=sys.stderr.isatty()))
    used += [Finite(checkpoints), checkpoints, Termination()]
    logging: list[Any] = [StepsMade(folder, name="", version="")]
    if wandb is not None:
        logging.append(wandb_logger(folder, **wandb))
    logging += instantiate_each("logger", loggers)
    return L.Trainer(
        default_root_dir=folder,
        strategy=FullySharded() if strategy in ("fsdp", "fsdp2") else strategy,
        plugins=[AtomicIO()],
        callbacks=used,
        logger=logging,
        profiler=profiler,
        precision=precision,  # type: ignore[arg-type]
        check_val_every_n_epoch=None,
        val_check_interval=NEVER,  # `Steps` says after which batch
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,  # Lightning's is of an epoch
        **knobs,
    )


def wandb_logger(folder: str | Path, **arguments: Any) -> WandbLogger:
    """Makes Lightning's logger, which always passes `anonymous`, a setting that wandb warns of."""
    logger = WandbLogger(save_dir=folder, **arguments)
    if "anonymous" not in arguments:
        logger._wandb_init.pop("anonymous", None)
    return logger
