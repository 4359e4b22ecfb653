"""Pretraining on several sets, fine-tuning on another, and testing both, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_runs
import torch
import yaml

from adaptok import Multiphysics, create_schedule, from_pretrained
from adaptok.cli import main
from adaptok.config.build import build_mixture, build_multiphysics
from adaptok.training import make_trainer
from adaptok.training.checkpoints import load_surrogate, read_checkpoint
from adaptok.training.optim import Optim
from adaptok.training.pretraining import PretrainModule
from adaptok.utils.tables import read_metrics

SETS = ("acoustic_scattering_maze", "gray_scott_reaction_diffusion")
KNOBS = {"resolution": 16, "frames": 6, "train": 4, "valid": 1, "test": 2, "nodes": 4}
MODEL = ["tokenizer=matey", "tokenizer.sizes=[2,8]", "processor=axial", "history=2"]
MODEL += ["history_mode=frames", "field_width=4", "data.max_lead=2"]


def data(nodes: bool) -> list[str]:
    chosen = [f"data.generate.{k}={v}" for k, v in KNOBS.items() if nodes or k != "nodes"]
    return [*chosen, f"data.base={small_runs.root() / 'many'}", "data.batch_size=2"]


def fail(capsys, *args: str) -> str:
    assert main(list(args)) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "pretrained"
    chosen = ["task=pretrain", f"data=[{','.join(SETS)}]", *data(nodes=True), *MODEL]
    assert (
        main(["train", *chosen, *small_runs.SIZE, *small_runs.RUN, f"hydra.run.dir={folder}"]) == 0
    )
    return folder


def finetune(pretrained: Path, name: str, *more: str) -> tuple[Path, list[str]]:
    folder = pretrained.parent / name
    chosen = [f"ckpt={pretrained}", "data=active_matter", *data(nodes=False), *small_runs.RUN]
    return folder, ["finetune", *chosen, *more, f"hydra.run.dir={folder}"]


@pytest.fixture(scope="module")
def finetuned(pretrained) -> Path:
    folder, command = finetune(pretrained, "finetuned", "mode=prepost", "data_fraction=0.5")
    assert main(command) == 0
    return folder


@pytest.mark.slow
def test_pretraining_leaves_results_of_every_set(pretrained):
    config = yaml.safe_load((pretrained / "config.yaml").read_text())
    assert [one["name"] for one in config["data"]] == list(SETS)
    assert config["data"][0]["generate"]["nodes"] == 4  # a knob of this set alone
    assert "nodes" not in config["data"][1]["generate"]
    assert config["vocabulary"] == {
        "ndim": 2,
        "fields": ["pressure", "velocity_x", "velocity_y", "A", "B"],
        "constants": ["density", "speed_of_sound"],
        "max_lead": 2,
    }
    for name in SETS:
        results = json.loads((pretrained / name / "metrics.json").read_text())
        assert results["data"] == name
        assert (pretrained / name / "pictures" / "cells.png").is_file()
    row = next(row for row in read_metrics(pretrained) if "val/vrmse" in row)
    each = [row[f"val/vrmse/{name}"] for name in SETS]
    assert row["val/vrmse"] == pytest.approx(sum(each) / 2, rel=1e-5)
    model = from_pretrained(pretrained / "model")
    assert isinstance(model, Multiphysics)
    again = load_surrogate(pretrained)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.slow
def test_prepost_keeps_everything_but_the_maps_of_the_fields(pretrained, finetuned):
    before = load_surrogate(pretrained).state_dict()
    after = load_surrogate(finetuned).core.state_dict()
    moved = {k for k, v in before.items() if not torch.equal(v, after[k])}
    shared = {f"{part}.weight.velocity_{a}" for part in ("embedding", "heads") for a in "xy"}
    assert moved == {*shared, "embedding.bias"}
    new = {k.rpartition(".")[2] for k in after if k not in before}
    assert new == {"concentration", *(f"{t}_{a}{b}" for t in "DE" for a in "xy" for b in "xy")}
    config = yaml.safe_load((finetuned / "config.yaml").read_text())
    assert config["data"]["train_fraction"] == 0.5
    assert config["tokenizer"]["name"] == "matey"


@pytest.mark.slow
def test_finetuning_says_which_fields_are_new_and_which_are_missing(pretrained, capsys):
    folder, command = finetune(pretrained, "all", "data=gray_scott_reaction_diffusion")
    assert main([c for c in command if c != "data=active_matter"]) == 0
    out = capsys.readouterr().out
    assert "new fields: none" in out
    assert "lacks: pressure, velocity_x, velocity_y, density, speed_of_sound" in out
    before, after = (load_surrogate(f).state_dict() for f in (pretrained, folder))
    moved = {k for k, v in before.items() if not torch.equal(v, after[f"core.{k}"])}
    assert any(k.startswith("processor") for k in moved)
    assert not any(k.endswith((".pressure", ".velocity_x", ".density")) for k in moved)


@pytest.mark.slow
def test_a_run_from_scratch_has_other_weights(pretrained):
    folder, command = finetune(pretrained, "scratch", "from_scratch=true", "mode=prepost")
    assert main(command) == 0
    before = load_surrogate(pretrained).state_dict()
    after = load_surrogate(folder).core.state_dict()
    assert not any(torch.equal(before[k], after[k]) for k in before if k.endswith("q.weight"))


@pytest.mark.slow
def test_eval_of_both(pretrained, finetuned, tmp_path, capsys):
    def wrote(folder):
        return json.loads((folder / "metrics.json").read_text())["settings"][0]["vrmse"]["mean"]

    def evaluate(name, *args):
        assert main(["eval", *args, "steps=0", f"hydra.run.dir={tmp_path / name}"]) == 0
        return wrote(tmp_path / name)

    assert evaluate("finetuned", f"ckpt={finetuned}") == pytest.approx(wrote(finetuned))
    knobs = ["data=gray_scott_reaction_diffusion", *data(nodes=False)]
    found = evaluate("pretrained", f"ckpt={pretrained}", *knobs)
    assert found == pytest.approx(wrote(pretrained / "gray_scott_reaction_diffusion"))
    error = fail(capsys, "eval", f"ckpt={pretrained}", f"hydra.run.dir={tmp_path}")
    assert "several data sets; choose one: data=... (acoustic_scattering_maze, gray_scott" in error
    knobs[0] = "data=active_matter"
    error = fail(capsys, "eval", f"ckpt={pretrained}", *knobs, f"hydra.run.dir={tmp_path}")
    assert "not predict or read: concentration, D_xx" in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "task=pretrian"], "did you mean 'pretrain'"),
        (["train", "task=pretrain", "model=fno"], "trains model=surrogate, not fno"),
        (["train", "data.max_lead=3"], "data.max_lead is for models that know a lead time"),
        (["train", "data.format=zarr"], "data.format must be well or pdebench, got 'zarr'"),
        (["train", "task=pretrain", "data=[shear_flow,shear_flow]"], "different names"),
        (["train", "data=[active_matter,shear_flow]"], "a list of data sets is for task=pretrain"),
    ],
)
def test_mistakes_in_training(args, message, tmp_path, capsys):
    small = [*small_runs.data(), *small_runs.RUN, f"hydra.run.dir={tmp_path}"]
    known = [a for a in small if "nodes" not in a or "shear" not in " ".join(args)]
    assert message in fail(capsys, *args, *known)


@pytest.mark.slow
def test_mistakes_in_finetuning(pretrained, tmp_path, capsys):
    _, command = finetune(pretrained, "wrong")
    assert "mode must be all or prepost" in fail(capsys, *command, "mode=post")
    error = fail(capsys, *command, "data.max_lead=3")
    assert "data.max_lead=3, but the model knows lead times up to 2" in error
    assert "data_fraction must be a number above 0" in fail(capsys, *command, "data_fraction=0")
    checkpoint = read_checkpoint(pretrained)
    del checkpoint["adaptok_config"]["processor"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    error = fail(capsys, *command, f"ckpt={tmp_path / 'other.ckpt'}")
    assert "is not of a surrogate" in error


@pytest.mark.slow
def test_a_resumed_pretraining_is_the_same_run(pretrained, tmp_path):
    config = yaml.safe_load((pretrained / "config.yaml").read_text())

    def fit(folder, steps, resume=None):
        torch.manual_seed(0)
        mixture = build_mixture(config)
        model, optim = build_multiphysics(config), Optim(**config["optim"])
        about = (optim, create_schedule("fixed"), config)
        module = PretrainModule(model, mixture.infos, *about)
        knobs = {"val_check_interval": 3, "accelerator": "cpu", "enable_progress_bar": False}
        trainer = make_trainer(folder, max_steps=steps, **knobs)
        trainer.fit(module, datamodule=mixture, ckpt_path=resume, weights_only=True)
        return model.state_dict()

    straight = fit(tmp_path / "straight", 5)
    fit(tmp_path / "cut", 3)
    resumed = fit(tmp_path / "cut", 5, resume=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(resumed[k], v) for k, v in straight.items())
