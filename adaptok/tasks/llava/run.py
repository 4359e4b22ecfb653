"""Runs of LLaVA: fit what a recipe trains, test it, and keep all files in one folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

import adaptok
from adaptok.config.build import check_knobs
from adaptok.registry import split_part
from adaptok.tasks.fit import quiet, write_config
from adaptok.tasks.llava.batches import LlavaData
from adaptok.tasks.llava.evaluation import LlavaResults, evaluate_llava
from adaptok.tasks.llava.models import adapt_llava, load_llava
from adaptok.tasks.llava.training import LlavaModule
from adaptok.training.checkpoints import read_checkpoint
from adaptok.training.optim import OptimBase
from adaptok.training.steps import steps_per_epoch
from adaptok.training.trainer import make_trainer
from adaptok.utils.keys import FIXED, differences
from adaptok.vision.hf.models import Adapted

GROUPS = {"model", "tokenizer", "data", "optim", "train", "trainer", "seed"}
TRAIN = {"only", "activation_checkpointing"}


def fit_and_test_llava(config: Mapping[str, Any], folder: str | Path) -> LlavaResults | None:
    """Trains as configured, tests, and saves the model; goes on from the last checkpoint there.

    Args:
        config: ``model`` (arguments of `load_llava`), ``tokenizer`` (of `adapt_llava`), ``data``
            (of `LlavaData`), ``optim`` (of `OptimBase`), ``train`` (``only``: "new" or "all"; and
            ``activation_checkpointing`` of the language model), ``trainer`` (of `make_trainer`;
            ``max_epochs`` may be a share: 0.05 is APT's, 0 trains nothing) and ``seed``.
        folder: gets config.yaml, checkpoints, metrics.csv, and ``model``: the model and its
            processor, but of the baseline "random", which nothing builds again.

    Returns:
        The test; None in all processes of a parallel run but the first.

    Raises:
        ValueError: a key that nothing reads, a value that is not accepted, or a folder of another
            run.
    """
    folder, train = Path(folder), config["train"]
    _check(config)
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        _check_same(read_checkpoint(last), config, folder)
    quiet()
    L.seed_everything(config["seed"], workers=True, verbose=False)
    given, processor = load_llava(**config["model"])
    model = adapt_llava(given, processor, config["tokenizer"])
    if train["activation_checkpointing"]:
        model.model.language_model.gradient_checkpointing_enable()
    data = LlavaData(processor, seed=config["seed"], **config["data"])
    optim = OptimBase(**config["optim"])
    module = LlavaModule(model.train(), optim, config, only=train["only"], seed=config["seed"])
    knobs = dict(config["trainer"])
    epochs = knobs.pop("max_epochs")
    batches = len(data.train_dataloader()) // _processes(knobs)
    per_epoch = steps_per_epoch(batches, knobs.get("accumulate_grad_batches", 1))
    steps = math.ceil(epochs * per_epoch)
    write_config(config, folder)
    if steps:
        trainer = make_trainer(
            folder,
            ema=optim.ema,
            monitor="train/loss",
            max_steps=steps,
            limit_val_batches=0,
            **knobs,
        )
        path = last if last.is_file() else None
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        if not trainer.is_global_zero:
            return None
    place = "cpu" if knobs.get("accelerator") == "cpu" else "auto"
    results = evaluate_llava(model, data, device=place)
    if split_part(config["tokenizer"], "tokenizer")[0] != "random":
        _save(model, processor, folder / "model")
    return results


def _save(model: Any, processor: Any, folder: Path) -> None:
    if isinstance(model.model.vision_tower, Adapted):
        adaptok.save_pretrained(model, folder)
    else:
        model.save_pretrained(folder)
    processor.save_pretrained(folder)


def as_row(results: LlavaResults) -> dict[str, float]:
    """Returns the test as one row of a table."""
    values = dataclasses.asdict(results)
    tokens = values.pop("tokens")
    return {**values, "tokens": tokens["mean"], "tokens_max": tokens["max"]}


def _check(config: Mapping[str, Any]) -> None:
    for group, known in (("", GROUPS), ("train", TRAIN)):
        own = config[group] if group else config
        if own.keys() != known:
            raise ValueError(
                f"{group or 'the configuration'} has the keys {', '.join(sorted(known))}, got "
                f"{', '.join(sorted(own))}"
            )
    check_knobs(load_llava, "model", config["model"])
    check_knobs(LlavaData, "data", config["data"])
    check_knobs(OptimBase, "optim", config["optim"])
    epochs = config["trainer"].get("max_epochs")
    if not isinstance(epochs, int | float) or not 0 <= epochs < math.inf:
        raise ValueError(f"trainer.max_epochs must be a number from 0, got {epochs!r}")


def _check_same(checkpoint: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    if other := [*differences(checkpoint.get("adaptok_config", {}), config, FIXED)]:
        raise ValueError(f"{folder} holds another run: {'; '.join(other)}. Take another folder")


def _processes(knobs: Mapping[str, Any]) -> int:
    devices = knobs.get("devices", 1)
    return (len(devices) if isinstance(devices, list) else int(devices)) * knobs.get("num_nodes", 1)
