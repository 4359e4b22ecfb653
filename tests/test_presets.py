"""Presets (experiment=), and the choices of callbacks, loggers and profilers."""

from __future__ import annotations

import inspect
import sys
import types
from pathlib import Path
from typing import Any

import lightning as L
import listed
import pytest
import tiny_fits
import yaml
from lightning.pytorch import loggers as loggers_of_lightning

from adaptok.cli import main
from adaptok.config.leaves import check_leaves
from adaptok.config.menu import compose, config_dir, plain, presets, run_folder, task_of
from adaptok.data import WellData
from adaptok.tasks import fit as tasks
from adaptok.tasks.classify import ClassifierOptim, ImageData
from adaptok.tasks.tracking import tracked
from adaptok.training.optim import Optim
from adaptok.training.targets import NEEDED, check_loggers
from adaptok.utils.tables import read_metrics

ROOT = Path(__file__).parents[1]
OF_PAPERS = {  # the run of an experiment that a preset is
    "iap_2d": ("iap_table1", "asm_iap_4096"),
    "iap_3d": ("iap_table1", "sne_iap_4096"),
    "ckm": ("ckm_table1", "25m_ckm"),
    "csm": ("ckm_table1", "25m_csm"),
    "matey": ("matey_fig4", "vit_adaptive"),
    "apt": ("apt_table1", "vit_b_384_apt"),
}
OURS = ("cpu", "six_tokenizers", "digits", "coarse_fine", "coarse_fine_3d")


def of_preset(name: str) -> dict[str, Any]:
    """The plain configuration of a preset, checked as a command does."""
    config = plain(compose("train", [f"experiment={name}"]))
    images = config["task"] == "classify"
    data, optim = (ImageData, ClassifierOptim) if images else (WellData, Optim)
    check_leaves(config, {"data": data, "optim": optim, "trainer": L.Trainer})
    optim(**config["optim"])
    return config


def test_every_preset_says_what_it_is_and_has_a_test():
    known = presets()
    assert set(known) == {*OF_PAPERS, *OURS}
    assert all(len(about) > 20 for about in known.values())
    readme = (ROOT / "README.md").read_text()
    assert "experiment=cpu" in readme


def test_the_preset_for_a_cpu():
    config = of_preset("cpu")
    assert config["trainer"]["max_steps"] == 450
    assert config["trainer"]["accelerator"] == "cpu"
    assert config["budget"] == 128


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OF_PAPERS, *OURS[1:]])
def test_a_preset_passes_all_checks_and_is_the_run_that_it_names(name):
    config = of_preset(name)
    if name in OF_PAPERS:
        experiment, run = OF_PAPERS[name]
        runs = {one.name: one for one in listed.read(experiment).runs["full"]}
        assert config == plain(compose("train", runs[run].words(Path("x"))))


@pytest.mark.parametrize(
    ("overrides", "task"),
    [
        (["experiment=cpu"], "surrogate"),
        (["experiment=digits"], "classify"),
        (["experiment=[cpu,iap_2d]"], "surrogate"),
        (["experiment=mine", "task=pretrain"], "pretrain"),
        (["experiment=mine"], "surrogate"),
        (["experiment=null"], "surrogate"),
    ],
)
def test_a_preset_chooses_its_task(overrides, task):
    assert task_of(overrides) == task


def test_presets_of_two_tasks_make_no_sweep():
    with pytest.raises(ValueError, match="a sweep has one task"):
        task_of(["experiment=cpu,digits"])


def of_group(group: str, name: str) -> dict[str, Any]:
    """What a file of callbacks or loggers holds, with values in place of interpolations."""
    content = yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text())
    content[name] |= {k: "x" for k, v in content[name].items() if "${" in str(v)}
    return content


def test_early_stopping_ends_a_training_that_no_longer_improves(tmp_path):
    stop = of_group("callbacks", "early_stopping")
    stop["early_stopping"] |= {"monitor": "val/vrmse", "patience": 2}
    both = {**stop, **of_group("callbacks", "learning_rate")}
    module = tiny_fits.Tiny(lr=1e-30, lr_min=0.0)
    knobs = {"max_steps": 50, "val_check_interval": 3, "ema": 0.0}
    trainer = tiny_fits.fit(module, tmp_path, callbacks=both, **knobs)
    assert trainer.global_step == 9  # the first validation, and two that are no better
    assert module.validated == [3, 6, 9]
    assert {"lr", "lr-AdamW/pg1"} <= {key for row in read_metrics(tmp_path) for key in row}


@pytest.mark.parametrize("name", ["simple", pytest.param("advanced", marks=pytest.mark.slow)])
def test_a_profiler_writes_to_the_run_folder(name, tmp_path):
    tiny_fits.fit(tiny_fits.Tiny(), tmp_path, max_steps=2, val_check_interval=1, profiler=name)
    (file,) = tmp_path.glob("fit-profile*.txt")
    assert "optimizer_step" in file.read_text()
    with pytest.raises(ValueError, match="profiler must be one of simple, advanced, pytorch"):
        tiny_fits.fit(tiny_fits.Tiny(), tmp_path, profiler="x")


@pytest.mark.parametrize(("name", "target"), [("tensorboard", "TensorBoard"), ("mlflow", "MLFlow")])
def test_a_logger_that_lacks_its_package_is_one_sentence(name, target, monkeypatch, tmp_path):
    chosen = of_group("logger", name)
    assert chosen[name]["_target_"] == f"lightning.pytorch.loggers.{target}Logger"
    known = inspect.signature(getattr(loggers_of_lightning, f"{target}Logger")).parameters
    assert {*chosen[name]} - {"_target_"} <= {*known}
    monkeypatch.setattr("adaptok.training.targets.find_spec", lambda package: None)
    for missing in (name, "wandb"):
        loggers = chosen if missing == name else {"wandb": {"project": "x"}}
        with pytest.raises(ValueError, match=f"logger={missing} needs {missing}: pip install"):
            check_loggers(loggers)
        with (
            pytest.raises(ValueError, match="pip install"),
            tracked({"logger": loggers}, tmp_path),
        ):
            pass
    check_loggers({"wandb": None, "mine": {"_target_": "my.Logger"}})
    monkeypatch.setattr("adaptok.training.targets.find_spec", lambda package: True)
    check_loggers(chosen)


def test_a_logger_gets_curves_and_configuration(monkeypatch, tmp_path):
    """TensorBoardLogger with a writer of our own, because its package is not installed."""
    seen: dict[str, Any] = {}

    class Writer:
        def __init__(self, log_dir: str, **_: Any):
            seen["folder"] = log_dir

        def add_scalar(self, key: str, value: float, step: int) -> None:
            seen.setdefault(key, []).append(step)

        def __getattr__(self, _: str) -> Any:
            return lambda *args, **kwargs: None

    import lightning.fabric.loggers.tensorboard as theirs

    monkeypatch.setattr(theirs, "_TENSORBOARD_AVAILABLE", True)
    monkeypatch.setattr(theirs, "_TENSORBOARDX_AVAILABLE", False)
    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    chosen = of_group("logger", "tensorboard")
    chosen["tensorboard"] |= {"save_dir": str(tmp_path)}
    module, (train, valid) = tiny_fits.Tiny(), tiny_fits.loaders(5)
    for name in ("write_config", "banner", "resolved"):  # this module is no surrogate
        monkeypatch.setattr(tasks, name, lambda *_: {})
    config = {
        "optim": {"ema": 0.0}, "logger": chosen, "callbacks": None, "resume": None, "init": None,
        "size": {"dim": 7},
    }  # fmt: skip
    knobs = {"max_steps": 2, "val_check_interval": 1, "accelerator": "cpu", "log_every_n_steps": 1}
    data = L.LightningDataModule.from_datasets(train.dataset)
    data.train_dataloader, data.val_dataloader = lambda: train, lambda: valid  # type: ignore
    tasks.fit(module, data, config, tmp_path, {**knobs, "enable_progress_bar": False})
    assert Path(seen["folder"]) == tmp_path / "tensorboard"
    assert seen["train/loss"] == [0, 1]
    assert "dim: 7" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()


def test_the_folder_of_a_logger_outside_of_a_job(monkeypatch):
    monkeypatch.setattr("adaptok.config.menu.HydraConfig.initialized", lambda: False)
    assert run_folder() == "."


def test_presets_are_listed(capsys):
    assert main(["list", "experiments"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}: " in out for name in presets())
    assert main(["list", "experiments", "x*"]) == 2
    assert "no experiment matches 'x*'; there are apt, ckm" in capsys.readouterr().err
    assert {"wandb", *(target for target in NEEDED if "." in target)} == set(NEEDED)
