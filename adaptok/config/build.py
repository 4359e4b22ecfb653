"""Builds data modules and models from plain configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adaptok import create_surrogate
from adaptok.config.channels import check_ignored, conserved, with_channels
from adaptok.config.unread import check_place
from adaptok.data import FieldInfo
from adaptok.data.info import set_statistics, system_of
from adaptok.data.synthetic import SOLVERS, DifferentSetError, generate
from adaptok.models.baselines import create_baseline
from adaptok.models.multiphysics import Multiphysics, create_multiphysics
from adaptok.models.one_step import OneStepModel
from adaptok.models.schedules import longest_unroll
from adaptok.registry import choice, close_matches

if TYPE_CHECKING:
    from adaptok.data import Mixture, WellData


MODEL_KEYS = ("history", "history_mode", "predict", "normalise", "score_on")


def build_data(
    config: Mapping[str, Any], *, overwrite: bool = False, stage: str | None = None
) -> WellData:
    """Builds the data module of a configuration and sets it up; generates its set first if needed.

    Args:
        config: plain, with `data`, `history` and `seed`; what its tokenizer ignores is checked
            first.
        overwrite: generate again although the set exists.
        stage: what is read now: None for everything, "test" for the test split.
    """
    check_ignored(config)
    # these import lightning and the_well, which takes seconds
    from adaptok.data import PDEBench, WellData

    data = dict(config["data"])
    formats = {"well": WellData, "pdebench": PDEBench}
    layout = choice("data.format", data.pop("format", "well"), formats)
    knobs = data.pop("generate", None)  # knobs of the solver
    if knobs is not None:
        check_place(data)
        if not (Path(data["base"]) / data["name"]).is_dir():
            check_parts(config)
        data["path"] = str(_generated(data["name"], data["base"], overwrite, knobs))
    if data["path"] is not None:
        data |= {"name": None, "base": None}
    settings = config.get("schedule", {}).get("settings", ({},))
    unroll = longest_unroll(settings, config.get("optim", {}).get("unroll", 1))
    data.setdefault("target_steps", unroll)
    check_knobs(WellData, "data", data)
    module = formats[layout](history=config["history"], seed=config["seed"], **data)
    if stage is None:
        module.check_steps(("train", "valid"), module.target_steps, "optim.unroll")
        module.check_steps(("train",), module.max_lead, "data.max_lead")
    module.setup(stage)
    return module


def check_parts(config: Mapping[str, Any]) -> None:
    """Builds the model for a set that is yet to be generated, without memory for its weights.

    With a budget, cell sizes are found on the data, so that nothing is built.

    Raises:
        ValueError: parts that do not fit, or a knob that is not accepted.
    """
    data = config["data"]
    knobs = {k: v for k, v in data["generate"].items() if k != "seed"}
    solver = SOLVERS.create(data["name"], **knobs)
    fields = getattr(solver, "field_names", ())  # a solver of others may not say
    if config.get("task") != "surrogate" or config["budget"] is not None or not fields:
        return
    constants = getattr(solver, "constant_names", ())
    of_fields, of_constants = torch.ones(len(fields)), torch.ones(len(constants))
    info = FieldInfo(
        data["name"],
        len(solver.shape),
        solver.shape,
        *(fields, constants, *[of_fields] * 4, *[of_constants] * 2),
        boundary=torch.zeros(len(solver.shape), 2, dtype=torch.long),
    )
    with torch.random.fork_rng(), torch.device("meta"):
        without_statistics(config, info)


def _generated(name: str, base: str, overwrite: bool, knobs: Mapping[str, Any]) -> Path:
    try:
        return generate(name, base, overwrite=overwrite, **knobs)
    except DifferentSetError as error:
        raise ValueError(
            f"{error.found}; overwrite=true of adaptok data replaces it, another data.base=... "
            "keeps both"
        ) from error


def build_surrogate(config: Mapping[str, Any], info: FieldInfo) -> OneStepModel:
    """Builds the model of a plain configuration for a data set, with its statistics."""
    if "vocabulary" in config:
        return system_of(build_multiphysics(config), info)
    surrogate = without_statistics(config, info)
    set_statistics(surrogate, info)
    return surrogate


def without_statistics(config: Mapping[str, Any], info: FieldInfo) -> OneStepModel:
    """Builds the model of a plain configuration; works on the meta device too."""
    if config["data"].get("max_lead", 1) > 1:
        raise ValueError("data.max_lead is for models that know a lead time: task=pretrain")
    model = config.get("model", {"name": "surrogate"})
    channels = {"in_channels": len(info.fields), "constant_channels": len(info.constants)}
    if model["name"] == "surrogate":
        return create_surrogate(
            **channels,
            ndim=info.ndim,
            dim=config["size"]["dim"],
            **{
                part: with_channels(config, info.fields, info.constants, part)
                for part in ("tokenizer", "decoder")
            },
            **{key: config[key] for key in ("processor", *MODEL_KEYS)},
            conserve=conserved(config, info.fields),
            lookahead=config.get("lookahead"),  # runs of before have none
        )
    if config["history_mode"] not in ("auto", "fold"):
        raise ValueError(
            f"model={model['name']} folds its history into channels: history_mode=fold, not "
            f"{config['history_mode']}"
        )
    return create_baseline(
        model,
        **channels,
        ndim=info.ndim,
        boundary=info.boundary,
        shape=info.shape,
        conserve=conserved(config, info.fields),
        **{key: config[key] for key in ("history", "normalise", "predict")},
    )


def build_multiphysics(config: Mapping[str, Any]) -> Multiphysics:
    """Builds a model with fresh weights for the fields of the configuration's `vocabulary`."""
    keys = ("tokenizer", "processor", "decoder", "history", "history_mode", "predict", "score_on")
    return create_multiphysics(
        **config["vocabulary"],
        dim=config["size"]["dim"],
        width=config["field_width"],
        **{key: config[key] for key in keys},
    )


def vocabulary_of(infos: Iterable[FieldInfo], max_lead: int) -> dict[str, Any]:
    """Collects what a model for several sets must know, as plain values."""
    infos = list(infos)
    fields = dict.fromkeys(name for info in infos for name in info.fields)
    constants = dict.fromkeys(name for info in infos for name in info.constants)
    names = {"fields": list(fields), "constants": list(constants)}
    return {"ndim": infos[0].ndim, **names, "max_lead": max_lead}


def build_mixture(config: Mapping[str, Any]) -> Mixture:
    """Builds the data sets of a configuration whose `data` is a list.

    Raises:
        ValueError: two sets have the same name.
    """
    from adaptok.data import Mixture

    names = [data["name"] for data in config["data"]]
    if len({*names}) < len(names):
        raise ValueError(f"the sets of a mixture have different names, got {', '.join(names)}")
    return Mixture({d["name"]: build_data({**config, "data": d}) for d in config["data"]})


def check_knobs(factory: Callable[..., Any], group: str, knobs: Iterable[str]) -> None:
    """Raises ``ValueError`` for a key of a group that `factory` does not take."""
    known = [k for k in inspect.signature(factory).parameters if k != "self"]
    for key in knobs:
        if key not in known:
            raise ValueError(
                f"unknown key '{group}.{key}'{close_matches(key, known)}; valid: {', '.join(known)}"
            )
