"""What the subcommands do once Hydra has composed their configuration."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from adaptok import create_tokenizer
from adaptok.cli.resuming import own_configuration, run_named, typed_values
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.channels import with_channels
from adaptok.config.leaves import check_leaves
from adaptok.config.menu import check_keys, compose, plain
from adaptok.config.unread import unread
from adaptok.data import FieldInfo, WellData
from adaptok.data.info import set_statistics
from adaptok.data.well_format import SPLITS
from adaptok.evaluation.budgets import inputs_of, part_with_budget, resolve_settings
from adaptok.evaluation.evaluate import evaluate, labels_of, persistence
from adaptok.evaluation.results import (
    Errors,
    FinishedRun,
    Results,
    markdown,
    tokens_cell,
    write_results,
)
from adaptok.evaluation.tilings import certificate_of
from adaptok.models.multiphysics import FieldSystem
from adaptok.models.one_step import OneStepOptions
from adaptok.models.parts import mode_of_history
from adaptok.models.surrogate import Surrogate
from adaptok.plots import pictures
from adaptok.plots.rollouts import check_video
from adaptok.plots.samples import controls_of, middle_of, sample_of
from adaptok.registry import LOSSES, choice, split_part
from adaptok.tasks.fit import GROUPS, check_trainer, config_of_eval, write_config
from adaptok.tasks.pretrain import finetune_and_test, pretrain_and_test
from adaptok.tasks.surrogate import fit_and_test
from adaptok.tasks.tracking import tracked
from adaptok.training.checkpoints import find_checkpoint, load_weights, read_checkpoint
from adaptok.training.optim import Optim
from adaptok.utils.boundary import BOUNDARIES
from adaptok.utils.keys import flattened
from adaptok.utils.locks import is_first
from adaptok.utils.tables import table

Config = Mapping[str, Any]


def train(config: DictConfig) -> float | None:
    """Task of ``adaptok train``; returns the test VRMSE (of a classifier the share of wrong
    answers), for sweepers that minimise it.
    """
    wanted, folder = _checked(config, "train"), _run_folder()
    with tracked(wanted, folder):
        if wanted["task"] == "pretrain":
            return _pretrain(wanted, folder)
        if wanted["task"] == "classify":
            return _classify(wanted, folder)
        return _report_run(fit_and_test(wanted, folder))


def _pretrain(wanted: Config, folder: Path) -> float | None:
    results = pretrain_and_test({**wanted, "data": _data_of_each(wanted)}, folder)
    if results is None:
        return None
    print("\n".join(markdown(one) for one in results.values()))
    print(f"run folder: {folder}")
    errors = [one.settings[0].vrmse.mean for one in results.values()]
    known = [error for error in errors if error is not None]
    return sum(known) / len(known) if len(known) == len(errors) else None


def _classify(wanted: Config, folder: Path) -> float | None:
    from adaptok.tasks.classify.run import fit_and_test_classifier  # needs timm

    results = fit_and_test_classifier(wanted, folder)
    return None if results is None else _show_classifier(results)


def finetune(config: DictConfig) -> float | None:
    """Task of ``adaptok finetune``."""
    wanted, folder = _checked(config, "finetune"), _run_folder()
    with tracked(wanted, folder):
        return _report_run(finetune_and_test(wanted, folder))


def _report_run(run: FinishedRun | None) -> float | None:
    if run is None:
        return None
    print(markdown(run.results))
    print(f"run folder: {run.folder}")
    return run.results.settings[0].vrmse.mean


def _show_classifier(results: Any) -> float:
    from adaptok.tasks.classify.evaluation import classifier_markdown

    print(classifier_markdown(results))
    print(f"run folder: {_run_folder()}")
    return 1 - results.settings[0].accuracy


def eval(config: DictConfig) -> float | None:
    """Task of ``adaptok eval``."""
    wanted, folder = _checked(config, "eval"), _run_folder()
    if wanted["video"] is not None:
        check_video(wanted["video"])
    path = find_checkpoint(wanted["ckpt"])
    checkpoint = read_checkpoint(path)
    trained = _of_checkpoint(checkpoint, config, path)
    if trained.get("task") == "classify":
        from adaptok.tasks.classify.run import test_classifier

        _refuse_for_classifiers(config)
        return _show_classifier(test_classifier(trained, wanted, path, folder))
    data = build_data(trained, stage="test")
    model = build_surrogate(trained, data.info)
    target: nn.Module = model
    if isinstance(model, FieldSystem) and trained["task"] == "pretrain":
        target = model.core
    load_weights(target, checkpoint, path=path, config=trained)
    if not isinstance(model, FieldSystem):  # it knows fields by name
        _check_fields(checkpoint, data.info, path)
    options = {k: wanted[k] for k in ("split", "settings", "steps", "device", "patch_size")}
    if wanted["save_predictions"]:
        options["predictions"] = folder / "predictions"
    results = dataclasses.replace(evaluate(model, data, **options), checkpoint=str(path))
    write_config(config_of_eval(trained, wanted), folder)
    write_results(results.to_json(), markdown(results), folder)
    pictures.of_run(model, data, results, folder, split=wanted["split"], video=wanted["video"])
    print(markdown(results))
    print(f"written to {folder}")
    return results.settings[0].vrmse.mean


def _check_fields(checkpoint: Config, info: FieldInfo, path: Path) -> None:
    """Raises ``ValueError`` if the channels of a model are other fields of the data, or in another
    order.
    """
    for key, names in (("fields", info.fields), ("constants", info.constants)):
        for trained in checkpoint.get("adaptok_data", {}).values():
            there = trained.get(key) if isinstance(trained, Mapping) else None
            if there not in (None, list(names)):
                raise ValueError(
                    f"{path} was trained on the {key} {there}, and {info.name} has {list(names)}"
                )


def _refuse_for_classifiers(config: DictConfig) -> None:
    """Raises ``ValueError`` for options that only surrogates have, instead of ignoring them."""
    options = ("model", "tokenizer", "processor", "decoder", "save_predictions", "video")
    given = [key for key in options if config.get(key) not in (None, False)]
    typed = [
        override.partition("=")[0].lstrip("+") for override in HydraConfig.get().overrides.task
    ]
    given += [key for key in ("steps", "patch_size") if key in typed]
    if given:
        raise ValueError(
            f"{given[0]} cannot be given for the checkpoint of a classifier: it is tested as it "
            "was trained; thresholds and budget go into settings=[{thresholds: [5.5, 4]}]"
        )


def _of_checkpoint(checkpoint: Config, config: DictConfig, path: Path) -> dict[str, Any]:
    """Configuration of the training run, with the groups and keys that the user changed."""
    saved = checkpoint.get("adaptok_config")
    if not saved:
        raise ValueError(f"{path} was not written by adaptok train: it holds no configuration")
    merged = DictConfig(_literal(saved))
    for group in GROUPS:
        given = config.get(group)
        if given is None:
            continue
        # The node itself, so that ${size.depth} means the size of the merged configuration.
        own = merged.get(group) or {}  # classifiers lack some
        if isinstance(own, ListConfig) and "name" not in given:
            continue  # refused below
        merged[group] = given if "name" in given else OmegaConf.merge(own, given)
    if isinstance(merged["data"], ListConfig):
        names = ", ".join(data["name"] for data in merged["data"])
        raise ValueError(f"{path} was trained on several data sets; choose one: data=... ({names})")
    trained = plain(merged)
    if isinstance(trained.get("data"), dict):
        trained["data"] = _placed(trained["data"], config.get("data"), path)
    return trained


def _literal(value: Any) -> Any:
    """Keeps what somebody else wrote from being resolved, such as ``${oc.env:HOME}``."""
    if isinstance(value, Mapping):
        return {key: _literal(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_literal(one) for one in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def _placed(data: dict[str, Any], given: Any, path: Path) -> dict[str, Any]:
    """Returns the data of a checkpoint, which decides neither where to write nor whom to ask.

    Its folder is read if it has the set; where it does not, one is generated in the user's.

    Raises:
        ValueError: the data is behind a URL that the user did not type.
    """
    typed = given or {}
    for key in ("base", "path"):
        if "://" in str(data.get(key)) and typed.get(key) != data[key]:
            raise ValueError(
                f"{path} reads {data[key]}; to allow that, type data.{key}={data[key]}"
            )
    own = data.get("generate") is None or typed.get("base") == data["base"]
    if own or (Path(data["base"]) / data["name"]).is_dir():
        return data
    return {**data, "base": os.environ.get("ADAPTOK_DATA", "data")}


def tokenize(config: DictConfig) -> None:
    """Task of ``adaptok tokenize``."""
    wanted, folder = _checked(config, "tokenize"), _run_folder()
    data = build_data(wanted, stage="test")
    samples = wanted["samples"]
    if samples is None:
        samples = [middle_of(data, wanted["split"])]
    if wanted["tokenizers"] is not None:
        return _tokenize_side_by_side(wanted, data, samples, folder)
    if wanted["budget"] is not None:
        wanted = {**wanted, "tokenizer": _at_budget(wanted, data)}
    surrogate = _without_weights(wanted, data)
    controls = resolve_settings(surrogate, data, wanted["settings"])
    labels = labels_of(wanted["settings"])
    drawn = {n: sample_of(data, wanted["split"], n) for n in samples}
    write_config(wanted, folder)
    for number, sample in drawn.items():
        files, counts = pictures.of_tokens(
            surrogate,
            data.info,
            sample,
            dict(zip(labels, controls, strict=True)),
            folder / f"sample_{number}",
        )
        errors = {
            label: _certificate(surrogate, sample.batch, controls_of(setting))
            for label, setting in zip(labels, controls, strict=True)
        }
        _say_tokens(number, counts, errors, files)


def _tokenize_side_by_side(
    wanted: Config, data: WellData, samples: Sequence[int], folder: Path
) -> None:
    models: dict[str, Surrogate] = {}
    for given in wanted["tokenizers"]:
        config = {**wanted, "tokenizer": {"name": given} if isinstance(given, str) else given}
        if wanted["budget"] is not None:
            config["tokenizer"] = _at_budget(config, data)
        name = label = config["tokenizer"]["name"]
        copies = 1
        while label in models:
            copies += 1
            label = f"{name} {copies}"
        models[label] = _without_weights(config, data)
    write_config(wanted, folder)
    for number in samples:
        sample = sample_of(data, wanted["split"], number)
        out = folder / f"sample_{number}"
        files, counts = pictures.of_methods(models, data.info, sample, out)
        errors = {label: _certificate(each, sample.batch, {}) for label, each in models.items()}
        _say_tokens(number, counts, errors, files)


def _certificate(
    model: Surrogate, batch: Mapping[str, Tensor], setting: Mapping[str, Any]
) -> float | None:
    given = {**inputs_of(batch, "cpu"), **setting}
    error = certificate_of(model, batch["input"], **given)
    return None if error is None else float(error)


def _say_tokens(
    number: int,
    counts: Mapping[str, int],
    errors: Mapping[str, float | None],
    files: Sequence[Path],
) -> None:
    for label, count in counts.items():
        error = errors[label]
        held = "" if error is None else f", projection error {error:.3g}"
        print(f"sample {number}, {label}: {count} tokens{held}")
    print("\n".join(str(file) for file in files))


def _at_budget(config: Config, data: WellData) -> dict[str, Any]:
    """The tokenizer at ``config["budget"]`` tokens per sample; says what became of it."""
    mode = mode_of_history(config["history_mode"], "vit")
    frames = config["history"] if mode == "frames" else 1
    frames //= config["tokenizer"].get("frame_size", 1)

    def build(part: Any) -> Surrogate:
        return _without_weights({**config, "tokenizer": part}, data)

    part, line = part_with_budget(config["tokenizer"], build, data, config["budget"], frames)
    if line:
        print(f"{line} (tokenizer={part['name']})")
    return part


def _without_weights(config: Config, data: WellData) -> Surrogate:
    """A surrogate with tokenizer and normalisation, but neither processor nor decoder."""
    info = data.info
    options = OneStepOptions(
        ndim=info.ndim,
        in_channels=len(info.fields),
        out_channels=len(info.fields),
        constant_channels=len(info.constants),
        history_mode=mode_of_history(config["history_mode"], "vit"),  # no processor says otherwise
        **{k: config[k] for k in ("history", "predict", "normalise", "score_on")},
    )
    part = with_channels(config, info.fields, info.constants)
    name, knobs = split_part(part, "tokenizer")
    wired = {"ndim": info.ndim, "in_channels": options.token_channels, "dim": 8}
    tokenizer = create_tokenizer(name, **wired, **knobs)
    surrogate = Surrogate(tokenizer, nn.Identity(), nn.Identity(), options)
    set_statistics(surrogate, info)
    return surrogate


def demo(config: DictConfig) -> None:
    """Task of ``adaptok demo``: one run per entry of `compare`, then a table and pictures."""
    base, folder = _checked(config, "demo"), _run_folder()
    given = list(HydraConfig.get().overrides.task)
    runs: dict[str, FinishedRun] = {}
    for name, overrides in base["compare"].items():
        print(f"\n{name}: {' '.join(overrides)}")
        chosen = plain(compose("demo", [*overrides, *given], _typed_folders()))
        with tracked(chosen, folder / name):
            run = fit_and_test(chosen, folder / name)
        assert run is not None, "the demo runs in one process"
        runs[name] = run
    files = pictures.of_comparison(runs, folder)
    text = demo_table({name: run.results for name, run in runs.items()})
    (folder / "table.md").write_text(text)
    print(f"\n{text}\npictures:")
    print("\n".join(f"  {file}" for file in files))


def demo_table(runs: Mapping[str, Results]) -> str:
    """Markdown table of persistence and every run: tokens, VRMSE, seconds per step."""
    blank = next(iter(runs.values())).persistence.vrmse
    rows = [["persistence", "", _error(blank), "", ""]]
    for name, results in runs.items():
        assert results.training is not None, "it was trained"
        row, training = results.settings[0], f"{results.training.seconds_per_step:.3f}"
        inference = f"{row.seconds['total']:.3f}"
        rows.append([name, tokens_cell(row.tokens), _error(row.vrmse), training, inference])
    return table(["model", "tokens", "VRMSE", "s/step (training)", "s/step (inference)"], rows)


def _error(errors: Errors) -> str:
    return "diverged" if errors.mean is None else f"{errors.mean:.4f}"


def data(config: DictConfig) -> None:
    """Task of ``adaptok data``."""
    wanted = _checked(config, "data")
    module = build_data(wanted, overwrite=wanted["overwrite"])
    print(describe_data(module))
    if wanted["picture"] is not None:
        file, note = pictures.of_data(module, wanted["picture"])
        print(f"picture: {file}" + (f"; {note}" if note else ""))


def describe_data(module: WellData) -> str:
    """Describes a set: its grid, samples and fields, and the VRMSE of predicting no change."""
    info = module.info
    sides = ["/".join(BOUNDARIES[int(c)].lower() for c in axis) for axis in info.boundary]
    splits: list[Any] = [module.loader(split).dataset for split in SPLITS]
    errors = persistence(module, "test").vrmse
    lines = [
        f"{info.name}: {info.ndim}D, grid {' x '.join(map(str, info.shape))}",
        f"boundary   {', '.join(f'{a} {s}' for a, s in zip('xyz', sides, strict=False))}",
        f"samples    {', '.join(f'{len(s)} {n}' for s, n in zip(splits, SPLITS, strict=True))}",
        f"constants  {', '.join(info.constants) or 'none'}",
        f"scalars    {', '.join(info.scalars) or 'none'}",
        "",
    ]
    rows = [
        [
            name,
            *(f"{float(v[i]):.4g}" for v in (info.mean, info.std, info.delta_std)),
            _error(errors.fields[name]),
        ]
        for i, name in enumerate(info.fields)
    ]
    rows.append(["mean", "", "", "", _error(errors)])
    header = ["field", "mean", "std", "std of change", "persistence VRMSE"]
    return "\n".join(lines) + table(header, rows)


def _checked(config: DictConfig, command: str) -> dict[str, Any]:
    check_keys(config, command)  # type: ignore[arg-type]
    wanted = plain(config)
    job = HydraConfig.get()
    parsed = OverridesParser.create().parse_overrides(list(job.overrides.task))
    if run := run_named(wanted.get("resume")):
        wanted = own_configuration(wanted, parsed)
        typed, sets = typed_values(wanted, parsed, "data"), wanted["data"]
        if isinstance(sets, list):
            wanted["data"] = [_placed(one, typed, run) for one in sets]
        elif wanted["task"] != "classify":
            wanted["data"] = _placed(sets, typed, run)
    _check_one_set(wanted)
    check_leaves(wanted, _factories(wanted))
    lines = [*unread(wanted, [override.key_or_group for override in parsed])]
    if lines and is_first():
        if job.mode is RunMode.RUN:
            raise ValueError("; ".join(lines))
        print("\n".join(lines))  # another job of the sweep may read the key
    if "trainer" in wanted:
        check_trainer(wanted["trainer"], by_time=wanted.get("task") != "classify")
    if "loss" in wanted.get("optim", {}):
        choice("optim.loss", wanted["optim"]["loss"], LOSSES.names())
    return wanted


def _check_one_set(wanted: Config) -> None:
    """Raises ``ValueError`` for ``data=[a,b]`` where one set is read: Hydra keeps the last one."""
    is_list = "data" in wanted and "data" not in HydraConfig.get().runtime.choices
    if is_list and wanted.get("task") != "pretrain":
        raise ValueError("a list of data sets is for task=pretrain; give one: data=NAME")


def _typed_folders() -> list[str]:
    """Folders of ``--config-dir``."""
    sources = HydraConfig.get().runtime.config_sources
    return [source.path for source in sources if source.provider == "command-line"]


def _factories(config: Config) -> dict[str, Any]:
    """What the leaves of a group become arguments of."""
    if config.get("task") == "classify":
        from adaptok.tasks.classify import ClassifierOptim, ImageData
        from adaptok.tasks.classify.models import build_timm

        others = {"data": ImageData, "optim": ClassifierOptim, "model": build_timm}
        return {**others, "trainer": L.Trainer}
    return {"data": WellData, "optim": Optim, "trainer": L.Trainer}


def _run_folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def _data_of_each(config: Config) -> list[dict[str, Any]]:
    """Configuration of every set of ``data=[a,b]``.

    Hydra merges the sets into one. So each is composed alone, with those overrides of data that it
    has a key for; the merged configuration has already refused those that no set has.

    Raises:
        ValueError: the list is not typed but a preset's.
    """
    job = HydraConfig.get()
    if isinstance(config["data"], list):  # of the run that is resumed
        return config["data"]
    if "data" in job.runtime.choices:
        return [config["data"]]
    parsed = OverridesParser.create().parse_overrides(list(job.overrides.task))
    typed: list[Any] = [o.value() for o in parsed if o.key_or_group == "data"]
    if not typed:  # the list is part of what tells runs apart
        raise ValueError("a preset cannot choose several data sets: type them, data=[a,b]")
    given = [str(o.input_line) for o in parsed if o.key_or_group != "data"]
    return [_data_of(str(name), given, _typed_folders()) for name in typed[-1]]


def _data_of(name: str, given: Sequence[str], folders: Sequence[str]) -> dict[str, Any]:
    alone = compose("train", [f"data={name}"], folders)
    known = {key for key, _ in flattened(OmegaConf.to_container(alone))}
    kept = [o for o in given if not o.startswith("data.") or o.partition("=")[0] in known]
    return plain(compose("train", [f"data={name}", *kept], folders))["data"]
