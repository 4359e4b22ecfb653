"""What the subcommands do once Hydra has composed their configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from adaptok import create_tokenizer
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import check_keys, compose, plain
from adaptok.data import WellData
from adaptok.data.files import SPLITS
from adaptok.data.info import set_statistics
from adaptok.evaluation.budgets import resolve_settings
from adaptok.evaluation.evaluate import evaluate, label_of, persistence
from adaptok.evaluation.results import markdown, tokens_cell, write_results
from adaptok.models.multiphysics import FieldSystem
from adaptok.models.surrogate import Surrogate, mode_of_history
from adaptok.plots import pictures
from adaptok.tasks.fit import GROUPS, config_of_eval, write_config
from adaptok.tasks.pretrain import data_of_each, finetune_and_test, pretrain_and_test
from adaptok.tasks.surrogate import Run, fit_and_test
from adaptok.tasks.tracking import tracked
from adaptok.training.checkpoints import find_checkpoint, load_weights, read_checkpoint
from adaptok.utils.tables import table

Config = Mapping[str, Any]


def train(config: DictConfig) -> float | None:
    """Task of ``adaptok train``; returns the test VRMSE (of a classifier the share of wrong
    answers), for sweepers that minimise it.
    """
    wanted = _checked(config, "train")
    with tracked(wanted, _run_folder()):
        return TASKS[wanted["task"]](wanted)


def _surrogate(wanted: Config) -> float | None:
    return _report_run(fit_and_test(wanted, _run_folder()))


def _pretrain(wanted: Config) -> float | None:
    results = pretrain_and_test({**wanted, "data": data_of_each(wanted)}, _run_folder())
    if results is None:
        return None
    print("\n".join(markdown(one) for one in results.values()))
    print(f"run folder: {_run_folder()}")
    return _mean([one["settings"][0]["vrmse"]["mean"] for one in results.values()])


def _classify(wanted: Config) -> float | None:
    from adaptok.tasks.classify.run import fit_and_test_classifier  # needs timm

    results = fit_and_test_classifier(wanted, _run_folder())
    return None if results is None else _show_classifier(results)


TASKS: dict[str, Callable[[Config], float | None]] = {
    "surrogate": _surrogate,
    "pretrain": _pretrain,
    "classify": _classify,
}


def finetune(config: DictConfig) -> float | None:
    """Task of ``adaptok finetune``."""
    wanted, folder = _checked(config, "finetune"), _run_folder()
    with tracked(wanted, folder):
        return _report_run(finetune_and_test(wanted, folder))


def _report_run(run: Run | None) -> float | None:
    if run is None:
        return None
    print(markdown(run.results))
    print(f"run folder: {run.folder}")
    return run.results["settings"][0]["vrmse"]["mean"]


def _show_classifier(results: Config) -> float:
    from adaptok.tasks.classify.evaluation import classifier_markdown

    print(classifier_markdown(results))
    print(f"run folder: {_run_folder()}")
    return 1 - results["settings"][0]["accuracy"]


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one has diverged."""
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if len(known) == len(values) else None


def eval(config: DictConfig) -> float | None:
    """Task of ``adaptok eval``."""
    wanted, folder = _checked(config, "eval"), _run_folder()
    if wanted["video"] not in (None, "gif", "mp4"):
        raise ValueError(f"video must be null, gif or mp4, got {wanted['video']!r}")
    path = find_checkpoint(wanted["ckpt"])
    checkpoint = read_checkpoint(path)
    trained = _of_checkpoint(checkpoint, config, path)
    if trained.get("task") == "classify":
        from adaptok.tasks.classify.run import test_classifier

        _refuse_for_classifiers(config)
        return _show_classifier(test_classifier(trained, wanted, path, folder))
    data = build_data(trained, stage="test")
    surrogate = build_surrogate(trained, data.info)
    target: nn.Module = surrogate
    if isinstance(surrogate, FieldSystem) and trained["task"] == "pretrain":
        target = surrogate.core
    load_weights(target, checkpoint, path=path, config=trained)
    keys = ("split", "settings", "steps", "device", "patch_size")
    options = {key: wanted[key] for key in keys}
    if wanted["save_predictions"]:
        options["predictions"] = folder / "predictions"
    results = {"checkpoint": str(path), **evaluate(surrogate, data, **options)}
    write_config(config_of_eval(trained, wanted), folder)
    write_results(results, folder)
    more = {"split": wanted["split"], "video": wanted["video"]}
    pictures.of_run(surrogate, data, results, folder, **more)
    print(markdown(results))
    print(f"written to {folder}")
    return results["settings"][0]["vrmse"]["mean"]


def _refuse_for_classifiers(config: DictConfig) -> None:
    """Raises ``ValueError`` for what only surrogates have, rather than leaving it unread."""
    parts = [k for k in ("model", "tokenizer", "processor", "decoder") if config.get(k) is not None]
    if parts or config["save_predictions"] or config["video"] is not None:
        what = parts[0] if parts else "save_predictions" if config["save_predictions"] else "video"
        raise ValueError(
            f"{what} cannot be given for the checkpoint of a classifier: it is tested as it was "
            "trained; thresholds and budget go into settings=[{thresholds: [5.5, 4]}]"
        )


def _of_checkpoint(checkpoint: Config, config: DictConfig, path: Path) -> dict[str, Any]:
    """Configuration of the training run, with the groups and keys that the user gave instead."""
    saved = checkpoint.get("adaptok_config")
    if not saved:
        raise ValueError(f"{path} was not written by adaptok train: it holds no configuration")
    merged = DictConfig(saved)
    for group in GROUPS:
        given = config.get(group)
        if given is None:
            continue
        # The node itself, so that ${size.depth} means the size of the merged configuration.
        merged[group] = given if "name" in given else OmegaConf.merge(merged[group], given)
    if isinstance(merged["data"], ListConfig):
        names = ", ".join(data["name"] for data in merged["data"])
        raise ValueError(f"{path} is of several data sets; choose one: data=... ({names})")
    return plain(merged)


def tokenize(config: DictConfig) -> None:
    """Task of ``adaptok tokenize``."""
    wanted, folder = _checked(config, "tokenize"), _run_folder()
    data = build_data(wanted, stage="test")
    surrogate = _without_weights(wanted, data)
    controls = resolve_settings(surrogate, data, wanted["settings"])
    labels = [label_of(setting) for setting in wanted["settings"]]
    write_config(wanted, folder)
    for sample in wanted["samples"]:
        batch = pictures.sample_of(data, wanted["split"], sample)
        files, counts = pictures.of_tokens(
            surrogate,
            data.info,
            batch,
            dict(zip(labels, controls, strict=True)),
            folder / f"sample_{sample}",
        )
        for label, count in counts.items():
            print(f"sample {sample}, {label}: {count} tokens")
        print("\n".join(str(file) for file in files))


def _without_weights(config: Config, data: WellData) -> Surrogate:
    """A surrogate whose tokenizer and normalisation work; it has no processor and decoder."""
    info, history = data.info, config["history"]
    mode = mode_of_history(config["history_mode"], "vit")  # no processor says otherwise
    channels = len(info.fields) * (history if mode == "fold" else 1)
    knobs = dict(config["tokenizer"])
    tokenizer = create_tokenizer(
        knobs.pop("name"),
        ndim=info.ndim,
        in_channels=channels + len(info.constants),
        dim=8,
        **knobs,
    )
    surrogate = Surrogate(
        tokenizer,
        torch.nn.Identity(),
        torch.nn.Identity(),
        ndim=info.ndim,
        in_channels=len(info.fields),
        out_channels=len(info.fields),
        constant_channels=len(info.constants),
        history_mode=mode,
        **{k: config[k] for k in ("history", "predict", "normalise", "score_on")},
    )
    set_statistics(surrogate, info)
    return surrogate


def demo(config: DictConfig) -> None:
    """Task of ``adaptok demo``: one run per entry of `compare`, then a table and pictures."""
    base, folder = _checked(config, "demo"), _run_folder()
    given = list(HydraConfig.get().overrides.task)
    runs: dict[str, Run] = {}
    for name, overrides in base["compare"].items():
        print(f"\n{name}: {' '.join(overrides)}")
        chosen = plain(compose("demo", [*overrides, *given]))
        with tracked(chosen, folder / name):
            run = fit_and_test(chosen, folder / name)
        assert run is not None, "the demo runs in one process"
        runs[name] = run
    files = pictures.of_comparison(runs, folder)
    text = demo_table({name: run.results for name, run in runs.items()})
    (folder / "table.md").write_text(text)
    print(f"\n{text}\npictures:")
    print("\n".join(f"  {file}" for file in files))


def demo_table(runs: Mapping[str, Config]) -> str:
    """Persistence and every run: tokens, VRMSE, seconds per step."""
    first = next(iter(runs.values()))
    blank = first["persistence"]["vrmse"]["mean"]
    rows = [["persistence", "", f"{blank:.4f}", "", ""]]
    for name, results in runs.items():
        row = results["settings"][0]
        rows.append(
            [
                name,
                tokens_cell(row["tokens"]),
                f"{row['vrmse']['mean']:.4f}",
                f"{results['seconds_per_training_step']:.3f}",
                f"{row['seconds_per_step']:.3f}",
            ]
        )
    return table(["model", "tokens", "VRMSE", "s/step (training)", "s/step (inference)"], rows)


def data(config: DictConfig) -> None:
    """Task of ``adaptok data``."""
    wanted = _checked(config, "data")
    module = build_data(wanted, overwrite=wanted["overwrite"])
    print(describe_data(module))
    if wanted["picture"] is not None:
        print(f"\npicture: {pictures.of_data(module, wanted['picture'])}")


def describe_data(module: WellData) -> str:
    """Where a set is, what is in it, and the VRMSE of predicting no change."""
    info = module.info
    codes = {0: "wall", 1: "open", 2: "periodic"}
    sides = ["/".join(codes[int(c)] for c in axis) for axis in info.boundary]
    splits: list[Any] = [module.loader(split).dataset for split in SPLITS]
    errors = persistence(module, "test")["vrmse"]
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
            f"{errors['fields'][name]['mean']:.4f}",
        ]
        for i, name in enumerate(info.fields)
    ]
    rows.append(["mean", "", "", "", f"{errors['mean']:.4f}"])
    header = ["field", "mean", "std", "std of change", "persistence VRMSE"]
    return "\n".join(lines) + table(header, rows)


def _checked(config: DictConfig, command: str) -> dict[str, Any]:
    check_keys(config, command)  # type: ignore[arg-type]
    return plain(config)


def _run_folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)
