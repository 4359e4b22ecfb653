"""Runs of ``adaptok train task=classify``: fit and test, with all files in one folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from adaptok import plots
from adaptok.config.build import check_knobs
from adaptok.evaluation.results import write_results
from adaptok.models.compiling import many_graphs
from adaptok.tasks.classify import ClassifierModule, ClassifierOptim, ImageData, evaluate_classifier
from adaptok.tasks.classify.evaluation import (
    ClassifierResults,
    check_settings,
    classifier_markdown,
)
from adaptok.tasks.classify.models import PREFIX, build_classifier, build_timm, load_classifier
from adaptok.tasks.classify.sets import find_images
from adaptok.tasks.fit import (
    after_training,
    check_start,
    check_trainer,
    config_of_eval,
    fit,
    of_lightning,
    quiet,
    write_config,
)
from adaptok.training.checkpoints import load_weights
from adaptok.training.steps import steps_per_epoch

Config = Mapping[str, Any]


def fit_and_test_classifier(config: Config, folder: Path) -> ClassifierResults | None:
    """Trains as configured and tests the averaged weights.

    Returns:
        The results; None in all processes of a parallel run but the first, the only one to test.
    """
    quiet()
    L.seed_everything(config["seed"], workers=True, verbose=False)
    if config["trainer"]["strategy"].startswith("fsdp"):
        raise ValueError("classifiers are not sharded: trainer.strategy=ddp")
    check_knobs(ClassifierOptim, "optim", config["optim"])
    check_trainer(config["trainer"], by_time=False)
    check_start(config)
    node, images = dict(config["model"]), config["data"]
    # The images need the model's size, and the model the number of classes.
    classes = find_images(images["name"], images.get("path")).classes
    timm_model = build_timm(classes=len(classes), **node)
    data = image_data(config, timm_model)
    model = build_classifier(timm_model, config["tokenizer"], node["checkpoint"])
    check_settings(model, config["test"]["settings"])
    if mode := config["trainer"]["compile"]:
        model.compile(mode=mode if isinstance(mode, str) else None, **many_graphs())
    knobs, optim = _rates(config, len(data.train_dataloader()))
    about = {"model": node, "tokenizer": config["tokenizer"], "classes": list(classes)}
    module = ClassifierModule(
        model,
        optim,
        config,
        about=about,
        only=config["train"]["only"],
        mixed=data.mixed,
        seed=config["seed"],
    )

    def fits(saved: Config, path: Path) -> None:
        load_weights(model, saved, path=path, config=config, prefix=PREFIX)

    took = fit(module, data, config, folder, knobs, fits, monitor="val/error")
    if took is None:
        return None
    parameters = sum(p.numel() for p in model.parameters())
    more = {"parameters": parameters, "seconds_per_training_step": took.seconds_per_step}
    with after_training(folder):
        results = evaluate_classifier(model, data, settings=config["test"]["settings"])
        return _keep(dataclasses.replace(results, **more), model, data, folder)


def test_classifier(config: Config, wanted: Config, path: Path, folder: Path) -> ClassifierResults:
    """Runs ``adaptok eval`` for the checkpoint of a classifier.

    Args:
        config: of the training run, with the user's changes to its data.
        wanted: configuration of ``adaptok eval``.
        path: of the checkpoint.
    """
    model = load_classifier(path)
    data = image_data(config, model)
    options = {key: wanted[key] for key in ("split", "settings", "device")}
    results = evaluate_classifier(model, data, **options)
    write_config(config_of_eval(config, wanted), folder)
    return _keep(dataclasses.replace(results, checkpoint=str(path)), model, data, folder)


def image_data(config: Config, model: Any) -> ImageData:
    """Loads the images of a plain configuration, in the size and normalisation of a model."""
    check_knobs(ImageData, "data", config["data"])
    stats = {key: model.pretrained_cfg[key] for key in ("mean", "std")}
    size = model.patch_embed.img_size
    return ImageData(image_size=size, seed=config["seed"], **stats, **config["data"])


def _rates(config: Config, batches: int) -> tuple[dict[str, Any], ClassifierOptim]:
    """Returns the knobs of the trainer in steps, and the learning rates for the batch size."""
    knobs = of_lightning(config)
    accumulate = knobs.get("accumulate_grad_batches", 1)
    processes = _devices(knobs.get("devices", 1)) * knobs.get("num_nodes", 1)
    limit = knobs.get("limit_train_batches")
    own = batches // processes
    per_epoch = int(steps_per_epoch(own, accumulate, limit))
    epochs = knobs.pop("max_epochs", None)
    if knobs["max_steps"] < 0:
        knobs["max_steps"] = math.ceil(epochs * per_epoch)
    optim = ClassifierOptim(**config["optim"])
    batch = config["data"]["batch_size"] * min(accumulate, max(own, 1)) * processes
    return knobs, optim.scaled(batch, per_epoch)


def _devices(devices: Any) -> int:
    """Counts the devices of one machine, given as a number, a list, or "auto" or -1 for all."""
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return max(torch.cuda.device_count(), 1)
    return int(devices)


@torch.no_grad()
def _keep(
    results: ClassifierResults, model: Any, data: ImageData, folder: Path
) -> ClassifierResults:
    """Writes metrics, the learning curve, and the cells of the first image if there are any."""
    write_results(results.to_json(), classifier_markdown(results), folder)
    out = folder / "pictures"
    if (folder / "metrics.csv").exists():
        figure = plots.learning_curve_figure(folder, ("val/error", "validation error"))
        plots.save(figure, out / "learning_curve.png")
    if not hasattr(model, "tiling"):
        return results
    image = next(iter(data.loader("test")))[0][:1]
    place = next(model.parameters()).device
    tilings = {s.label: model.tiling(image.to(place), **s.setting) for s in results.settings}
    gray = model.tiling.restore(image)[0].mean(0).numpy()
    plots.save(
        plots.cells_figure(gray, tilings, title=str(data.name), image=True), out / "cells.png"
    )
    return results
