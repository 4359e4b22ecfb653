"""A training run: fit as configured, test the averaged weights, keep everything in one folder."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning import LightningDataModule

from adaptok import create_schedule
from adaptok.config.build import build_data, build_surrogate, check_knobs
from adaptok.data import WellData
from adaptok.evaluation.budgets import part_with_budget, resolve_settings
from adaptok.evaluation.cost import peak_memory
from adaptok.evaluation.evaluate import (
    check_metrics,
    check_patch_size,
    check_settings,
    evaluate,
)
from adaptok.evaluation.results import FinishedRun, Results, Training, markdown, write_results
from adaptok.models.one_step import OneStepModel
from adaptok.models.parts import mode_of_history
from adaptok.models.pretrained import save_pretrained
from adaptok.models.schedules import OF_TRAINING, Schedule, longest_unroll
from adaptok.models.surrogate import Surrogate
from adaptok.plots import pictures
from adaptok.registry import TOKENIZERS
from adaptok.tasks.fit import (
    Config,
    Fitted,
    after_training,
    check_start,
    check_trainer,
    fit,
    of_lightning,
    prepare,
    quiet,
    read_config,
    write_config,
)
from adaptok.training import SurrogateModule
from adaptok.training.checkpoints import load_weights, read_checkpoint
from adaptok.training.optim import Optim
from adaptok.utils.atomic import replacing
from adaptok.utils.locks import is_first


def fit_and_test(config: Config, folder: Path) -> FinishedRun | None:
    """Trains as configured and tests the averaged weights; everything is kept in `folder`.

    Returns:
        The run; None in all processes of a parallel run but the first, which tests alone.
    """
    begin(config)
    data = build_data(config)
    if config["budget"] is not None and not _is_at_budget(config):
        config = config_at_budget(config, data)
    return fit_on(data, build_surrogate(config, data.info), config, folder)


def _is_at_budget(config: Config) -> bool:
    """Tells whether the tokenizer is that of the run that is resumed, which found it."""
    folder = Path(config["resume"] or "")
    if config["resume"] is None or not (folder / "config.yaml").is_file():
        return False
    saved = read_config(folder)
    return all(saved.get(key) == config[key] for key in ("budget", "tokenizer"))


def config_at_budget(config: Config, data: WellData) -> Config:
    """Returns the configuration with a tokenizer of ``config["budget"]`` tokens per sample.

    Cell sizes that are not set are those of `adaptok.tokenizers.ladder`. A baseline, which has no
    tokens, ignores the budget and says so; other lines say what became of it, see `reached`.

    Raises:
        ValueError: a budget out of the tokenizer's reach.
    """
    budget, name = config["budget"], config["model"]["name"]
    if name != "surrogate":
        _say(f"model={name} has no tokens: budget={budget} is ignored")
        return {**config, "budget": None}
    mode = mode_of_history(config["history_mode"], config["processor"])
    frames = config["history"] if mode == "frames" else 1
    frames //= config["tokenizer"].get("frame_size", 1)
    build = functools.partial(_surrogate_with, config=config, data=data)
    part, line = part_with_budget(config["tokenizer"], build, data, budget, frames)
    defaults = TOKENIZERS.knobs(part["name"])
    for knob, value in config["tokenizer"].items():
        if value not in (part[knob], defaults.get(knob)):
            _say(f"tokenizer.{knob}={value} is not read: budget={budget} makes it {part[knob]}")
    if line:
        _say(f"{line} (tokenizer={part['name']})")
    return {**config, "tokenizer": part}


def _surrogate_with(tokenizer: Any, config: Config, data: WellData) -> Surrogate:
    # Without a first pass: its share is one of a budget that is yet to be found.
    model = build_surrogate({**config, "tokenizer": tokenizer, "lookahead": None}, data.info)
    assert isinstance(model, Surrogate), "its kind was asked for"
    return model


def _say(line: str) -> None:
    if is_first():
        print(line, flush=True)


def begin(config: Config) -> None:
    """Sets the seeds and validates the configuration before any slow work."""
    quiet()
    L.seed_everything(config["seed"], workers=True, verbose=False)
    check_knobs(Optim, "optim", config["optim"])
    check_knobs(L.Trainer, "trainer", of_lightning(config))
    check_trainer(config["trainer"])
    objectives(config)
    check_start(config)


def objectives(config: Config) -> tuple[Optim, Schedule]:
    """Builds the optimisation and the schedule of settings, and checks those of training."""
    optim, schedule = Optim(**config["optim"]), create_schedule(config["schedule"])
    longest_unroll(config["schedule"]["settings"], optim.unroll)
    return optim, schedule


def fit_on(data: WellData, model: OneStepModel, config: Config, folder: Path) -> FinishedRun | None:
    """Like `fit_and_test`, for an existing model and data module."""
    given = config["schedule"]
    resolved = resolve_settings(model, data, given["settings"], tuple(OF_TRAINING))
    config = {**config, "schedule": {**given, "settings": resolved}}
    check_test(model, data, config["test"])
    prepare(model, config)
    module = SurrogateModule(model, *objectives(config), config, seed=config["seed"])
    took = fit_surrogate(module, data, config, folder)
    if took is None:
        return None
    if module.device_mesh is not None:  # this process has a shard of it only
        model = build_surrogate(config, data.info)
        load_weights(model, read_checkpoint(folder), path=folder, config=config)
    with after_training(folder):
        results = test_and_draw(model, data, config, folder, took)
        save_pretrained(model, folder / "model", results=results)
    return FinishedRun(results, model, data, folder)


def check_test(model: OneStepModel, data: WellData, test: Config) -> None:
    """Checks now what would end the test after the training: settings, rollouts, metrics.

    Raises:
        ValueError: see `check_settings`, `check_patch_size`, `check_metrics` and
            `WellData.check_steps`.
    """
    data.check_steps(("test",), test["steps"], "test.steps")
    check_patch_size(test.get("patch_size"), data.info.ndim, "test.patch_size")
    check_settings(model, data, test["settings"])
    check_metrics(data.info)


def test_and_draw(
    model: OneStepModel, data: WellData, config: Config, folder: Path, took: Fitted
) -> Results:
    """Tests a trained model; writes tables and pictures."""
    test = config["test"]
    results = evaluate(model, data, **test)
    training = Training(*took, peak_memory(model.mean.device))
    results = dataclasses.replace(results, budget=config.get("budget"), training=training)
    write_results(results.to_json(), markdown(results), folder)
    pictures.of_run(model, data, results, folder)
    return results


def fit_surrogate(
    module: SurrogateModule, data: LightningDataModule, config: Config, folder: Path
) -> Fitted | None:
    """Fits the module; returns what it took in the first process, None in others."""
    if not any(p.requires_grad for p in module.parameters()):  # nothing to train: persistence
        write_config(config, folder)
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 0}
        module.on_save_checkpoint(checkpoint)  # now adaptok eval takes it like any other
        path = folder / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)
        return Fitted(0, 0.0)

    def fits(saved: Config, path: Path) -> None:
        load_weights(module.surrogate, saved, path=path, config=config)

    return fit(module, data, config, folder, of_lightning(config), fits)
