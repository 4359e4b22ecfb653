"""One model for several data sets: pretraining, and fine-tuning on another set."""

from __future__ import annotations

from pathlib import Path

from adaptok.config.build import (
    MODEL_KEYS,
    build_data,
    build_mixture,
    build_multiphysics,
    build_surrogate,
    vocabulary_of,
)
from adaptok.data.info import system_of
from adaptok.evaluation.results import FinishedRun, Results
from adaptok.models.multiphysics import TRAINED
from adaptok.models.pretrained import save_pretrained
from adaptok.registry import choice
from adaptok.tasks.fit import Config, after_training, prepare
from adaptok.tasks.surrogate import (
    begin,
    check_test,
    fit_on,
    fit_surrogate,
    objectives,
    test_and_draw,
)
from adaptok.training.checkpoints import load_weights, read_checkpoint
from adaptok.training.pretraining import PretrainModule

OF_MODEL = (
    *("model", "tokenizer", "processor", "decoder", "size", "field_width"),
    *("conserve", "lookahead"),
    *MODEL_KEYS,
)


def pretrain_and_test(config: Config, folder: Path) -> dict[str, Results] | None:
    """Trains one model on all sets of ``config["data"]``, a list, and tests it on each.

    Returns:
        Results by set; None in all processes of a parallel run but the first.

    Raises:
        ValueError: a baseline, which cannot be trained on several sets.
    """
    if config["model"]["name"] != "surrogate":
        raise ValueError(f"task=pretrain trains model=surrogate, not {config['model']['name']}")
    if config["budget"] is not None:
        raise ValueError(
            "task=pretrain has no one training split to find a budget on: budget=null, and the "
            "tokenizer's own knobs"
        )
    begin(config)
    mixture = build_mixture(config)
    lead = max(data.max_lead for data in mixture.sets.values())
    config = {**config, "vocabulary": vocabulary_of(mixture.infos.values(), lead)}
    model = build_multiphysics(config)
    if config["trainer"].get("compile"):
        raise ValueError(
            "task=pretrain has batches of several sets and grids, a graph for each: "
            "trainer.compile=false"
        )
    for one in mixture.sets.values():
        check_test(system_of(model, one.info), one, config["test"])
    prepare(model, config)
    about = (*objectives(config), config)
    module = PretrainModule(model, mixture.infos, *about, seed=config["seed"])
    took = fit_surrogate(module, mixture, config, folder)
    if took is None:
        return None
    if module.device_mesh is not None:  # this process has a shard of it only
        model = build_multiphysics(config)
        load_weights(model, read_checkpoint(folder), path=folder, config=config)
    save_pretrained(model, folder / "model")
    with after_training(folder):
        return {
            name: test_and_draw(system_of(model, data.info), data, config, folder / name, took)
            for name, data in mixture.sets.items()
        }


def finetune_and_test(wanted: Config, folder: Path) -> FinishedRun | None:
    """Trains the model of another run on one set.

    A model of ``task=pretrain`` gets weights for the fields that are new to it; of the model of one
    set, the weights that fit are taken.

    Raises:
        ValueError: a checkpoint of another task, or a mode that does not exist or fit.
    """
    path = wanted["ckpt"]
    checkpoint = read_checkpoint(path)
    trained = checkpoint.get("adaptok_config", {})
    if "processor" not in trained:
        raise ValueError(f"{path} is not of a surrogate: adaptok train task=pretrain or surrogate")
    config = {**{key: trained[key] for key in OF_MODEL if key in trained}, **wanted}
    if "vocabulary" not in trained:
        choice("mode", wanted["mode"], TRAINED)
        if wanted["mode"] != "all":
            raise ValueError(f"mode={wanted['mode']} is for models of task=pretrain, {path} is not")
        config["init"] = wanted["init"] or (None if wanted["from_scratch"] else path)
        begin(config)
        data = build_data(config)
        return fit_on(data, build_surrogate(config, data.info), config, folder)
    begin(config)
    data = build_data(config)
    info = data.info
    model = build_multiphysics(trained)
    if data.max_lead > model.max_lead:
        raise ValueError(
            f"data.max_lead={data.max_lead}, but the model knows lead times up to {model.max_lead}"
        )
    if not wanted["from_scratch"]:
        load_weights(model, checkpoint, path=path)
    new, missing = model.compare_fields(info.fields, info.constants)
    model.add_fields(info.fields, info.constants)
    model.train_only(wanted["mode"], info.fields, info.constants)
    print(f"new fields: {', '.join(new) or 'none'}")
    print(f"fields of the model that this set lacks: {', '.join(missing) or 'none'}")
    names = {"fields": list(model.fields), "constants": list(model.constants)}
    config["vocabulary"] = {**trained["vocabulary"], **names}
    return fit_on(data, system_of(model, info), config, folder)
