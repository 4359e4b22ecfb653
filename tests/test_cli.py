"""The command line, in process: what the commands leave, print and refuse."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_runs
import torch
import yaml
from omegaconf import OmegaConf
from sampled import sampled

from adaptok.cli import main
from adaptok.cli.commands import _check_fields, _of_checkpoint
from adaptok.cli.usage import COMMANDS, USAGE
from adaptok.config.build import build_data
from adaptok.config.menu import compose, plain
from adaptok.data import FieldInfo
from adaptok.plots import pictures
from adaptok.registry import TOKENIZERS
from adaptok.training.checkpoints import load_surrogate, read_checkpoint
from adaptok.training.targets import instantiate

THROUGH_TIME = ["train", "optim.through_time=true"]  # read if a setting unrolls


def run(capsys, *args: str) -> str:
    """Output of a command that succeeds."""
    status = main(list(args))
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def fail(capsys, *args: str) -> str:
    """The one line of a command that a user's mistake stops."""
    assert main(list(args)) == 2
    lines = capsys.readouterr().err.splitlines()
    err = [line for line in lines if line.strip() and "━" not in line]  # a bar: data is generated
    assert len(err) == 1, err
    assert err[0].startswith("adaptok: error: ")
    return err[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    rows = "test.settings=[{budget: 10}, {budget: 22}]"
    assert main(["train", *small_runs.train(), rows, f"hydra.run.dir={folder}"]) == 0
    return folder


def test_train_leaves_a_complete_run_folder(trained):
    names = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    expected = {"config.yaml", "metrics.json", "metrics.md", "metrics.csv"}
    expected |= {f"model/{name}" for name in ("config.json", "model.safetensors", "README.md")}
    expected |= {f"checkpoints/{name}.ckpt" for name in ("last", "best")}
    pictures = ("learning_curve", "prediction", "cells", "rollout")
    expected |= {f"pictures/{name}.png" for name in pictures}
    assert expected <= names
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["tokenizer"]["budget"] == 22
    assert config["decoder"]["name"] == "auto"  # as typed
    assert config["resolved"]["decoder"] == "linear"
    assert config["resolved"]["history_mode"] == "fold"
    assert config["resolved"]["cells"] == [[8, 8], [4, 4], [2, 2]]


def test_the_log_holds_banner_progress_and_results(trained):
    log = (trained / "adaptok.log").read_text()
    for text in (
        "data       acoustic_scattering_maze: 2D, 16 x 16 points, 3 fields and 2 constants, 10 tr",
        "model      iap + vit + linear: ",
        "tokens     22 per sample",
        "training   3 steps of 2 samples; validation and checkpoint every 3 steps",
        "device     cpu, 1 thread, precision 32-true",
        f"folder     {trained}",
        "commit     ",
        "step 3/3  train/loss ",
        "| persistence |",
        f"run folder: {trained}",
    ):
        assert text in log, text
    assert "samples/s 0 " not in log
    results = json.loads((trained / "metrics.json").read_text())
    assert [row["label"] for row in results["settings"]] == ["budget=10", "budget=22"]
    assert results["seconds_per_training_step"] > 0


@pytest.mark.slow
def test_eval_repeats_the_test_of_the_training_run(trained, tmp_path, capsys):
    settings = "settings=[{budget: 10}, {budget: 22}]"
    folder = f"hydra.run.dir={tmp_path}"
    out = run(capsys, "eval", f"ckpt={trained}", settings, "steps=2", "device=cpu", folder)
    ours = json.loads((tmp_path / "metrics.json").read_text())
    theirs = json.loads((trained / "metrics.json").read_text())
    for a, b in zip(ours["settings"], theirs["settings"], strict=True):
        assert a["vrmse"] == b["vrmse"]
        assert a["rollout"] | {"seconds": 0} == b["rollout"] | {"seconds": 0}
    assert "budget=22" in out
    assert (tmp_path / "pictures" / "rollout.png").exists()


def test_ctrl_c_in_the_test_says_what_repeats_it(tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    folder = tmp_path / "first"
    command = ["train", *small_runs.train()]
    with monkeypatch.context() as patch:
        patch.setattr("adaptok.tasks.surrogate.evaluate", interrupted)
        assert main([*command, f"hydra.run.dir={folder}"]) == 130
    error = capsys.readouterr().err
    assert f"interrupted in the test; the training is finished, and resume={folder} with" in error
    run(capsys, *command, f"resume={folder}", f"hydra.run.dir={tmp_path / 'again'}")
    assert (tmp_path / "again" / "model" / "config.json").exists()
    assert f"adaptok eval ckpt={folder}, tests" in error
    run(capsys, "eval", f"ckpt={folder}", "steps=0", f"hydra.run.dir={tmp_path / 'eval'}")
    assert (tmp_path / "eval" / "metrics.json").exists()


@pytest.mark.parametrize(
    "words", [["tokenizer", "=", "iap"], ["tokenizer=", "iap"], ["seed", "=3"]]
)
def test_blanks_around_the_sign_are_named(words, capsys):
    assert main(["train", *words, "size=tiny"]) == 2
    assert f"error: no blanks around =: {''.join(words)}\n" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["tokenizer=uniform,iap", "seed=1,2"])
def test_several_values_need_a_sweep(word, capsys):
    key, _, values = word.partition("=")
    assert main(["train", word]) == 2
    error = capsys.readouterr().err
    assert f"for a sweep: adaptok train -m {word}; a list is {key}=[{values}]" in error


@pytest.mark.slow
def test_eval_with_other_data_options_and_another_tokenizer(trained, tmp_path, capsys):
    common = ["eval", f"ckpt={trained}", "steps=0"]
    folder = f"hydra.run.dir={tmp_path}"
    run(capsys, *common, folder, "+data.batch_size=1", "+tokenizer.splits_per_step=2")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["data"]["batch_size"] == 1
    trained_with = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["tokenizer"] == {**trained_with["tokenizer"], "splits_per_step": 2}
    assert config["data"].keys() == trained_with["data"].keys()
    assert config["seed"] == trained_with["seed"]
    common.append(f"hydra.run.dir={tmp_path / 'other'}")
    assert "seed is not read" in fail(capsys, *common, "seed=7")
    error = fail(capsys, *common, "tokenizer=uniform")
    assert "another architecture: tokenizer.name is iap in the checkpoint, uniform here" in error
    error = fail(capsys, *common, "+tokenizer.min_size=4")
    assert "tokenizer.min_size is None in the checkpoint, 4 here" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["test.settings=[{bugdet: 10}]"], "unknown control 'bugdet'"),
        (["test.settings=[{name: cyclic, settings: [{bugdet: 10}]}]"], "unknown control 'bugdet'"),
        (["test.settings=[{budget: 2}]"], "below the 4 cells"),
        (["model=fno"], "tokenizer is not read: the model is a baseline"),
    ],
)
def test_settings_of_the_test_are_checked_before_the_training(
    options, message, trained, tmp_path, capsys
):
    given = [*small_runs.train(), *options, f"hydra.run.dir={tmp_path}"]
    assert message in fail(capsys, "train", *given)
    assert not (tmp_path / "checkpoints").exists()


def test_a_sweep_that_cannot_be_parsed_is_one_line(capsys):
    error = fail(capsys, "train", "-m", "tokenizer=iap,uniform", "test.settings=[{budget: 64}")
    assert "test.settings" in error


@pytest.mark.slow
def test_train_resumes_by_itself(trained, capsys):
    again = trained.parent / "again"
    options = ["resume=auto", "trainer.max_steps=5", "test.settings=[{budget: 10}, {budget: 22}]"]
    out = run(capsys, "train", *small_runs.train(), *options, f"hydra.run.dir={again}")
    assert f"resuming from {trained}/checkpoints/last.ckpt" in out
    assert torch.load(again / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 5
    out = run(capsys, "train", *small_runs.train(), *options, f"hydra.run.dir={again}")
    assert "resuming from" in out
    assert (again / "metrics_before_1.csv").exists()


def test_resuming_with_fewer_steps_is_refused(trained, tmp_path, capsys):
    options = [f"resume={trained}", "trainer.max_steps=1", f"hydra.run.dir={tmp_path}"]
    assert "has made 3 steps, more than trainer.max_steps=1" in fail(capsys, "train", *options)


@pytest.mark.slow
def test_resuming_another_architecture_is_refused(trained, tmp_path, capsys):
    last = trained / "checkpoints" / "last.ckpt"
    options = [f"resume={last}", "size.dim=48", f"hydra.run.dir={tmp_path}"]
    error = fail(capsys, "train", *small_runs.train(), *options)
    assert "size.dim is 24 in the checkpoint, 48 here" in error


def test_resuming_another_configuration_is_refused_with_the_differences(trained, tmp_path, capsys):
    last = trained / "checkpoints" / "last.ckpt"
    options = [f"resume={last}", "seed=3", "optim.lr=0.1", f"hydra.run.dir={tmp_path}"]
    error = fail(capsys, "train", *small_runs.train(), *options)
    assert "seed is 0 in the checkpoint, 3 here" in error
    assert "optim.lr is 0.0005 in the checkpoint, 0.1 here" in error
    assert not (tmp_path / "config.yaml").exists()


def test_resuming_a_run_names_what_must_not_change(trained, tmp_path, capsys):
    typed = ["train", f"resume={trained}", "seed=3", "optim.lr=0.1", f"hydra.run.dir={tmp_path}"]
    changes = "seed=3 (was 0); optim.lr=0.1 (was 0.0005)"
    said = f"error: {trained} cannot be resumed with {changes}: leave that out, or type"
    assert said in fail(capsys, *typed)


@pytest.mark.slow
def test_a_run_resumes_with_its_own_configuration(trained, tmp_path, capsys):
    typed = [f"resume={trained}", "trainer.max_steps=4", "test.steps=0"]
    run(capsys, "train", *typed, f"hydra.run.dir={tmp_path}")
    config, before = (yaml.safe_load((p / "config.yaml").read_text()) for p in (tmp_path, trained))
    changed = {"trainer": before["trainer"] | {"max_steps": 4}, "resume": str(trained)}
    assert config == before | changed | {"test": before["test"] | {"steps": 0}}
    assert read_checkpoint(tmp_path)["global_step"] == 4


@pytest.mark.slow
def test_the_configuration_of_a_checkpoint_never_makes_an_object(trained, tmp_path, capsys):
    """A ``_target_`` is for the command's own configuration: a checkpoint may be a stranger's."""
    made, folder = tmp_path / "made", f"hydra.run.dir={tmp_path / 'run'}"
    hostile = {"_target_": "logging.FileHandler", "filename": str(made)}
    instantiate("callbacks.evil", hostile).close()
    assert made.exists(), "whoever instantiates it leaves a file"
    made.unlink()
    checkpoint = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    config = checkpoint["adaptok_config"]
    config |= {key: {"evil": hostile} for key in ("callbacks", "logger", "loggers", "evil")}
    config["optim"]["optimizer"] = hostile
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint, path)
    options = [f"resume={path}", "resume_anyway=true", "trainer.max_steps=4", "test.steps=0"]
    out = run(capsys, "train", *small_runs.train(), *options, folder)
    assert f"resuming from {path}" in out
    assert read_checkpoint(tmp_path / "run")["global_step"] == 4
    run(capsys, "eval", f"ckpt={path}", "steps=0", "device=cpu", f"{folder}_eval")
    load_surrogate(path)
    assert not made.exists()


@pytest.mark.slow
def test_multirun(tmp_path, capsys):
    options = ["tokenizer=uniform,iap", "test.steps=0", f"hydra.sweep.dir={tmp_path}"]
    overrides = [o for o in small_runs.train() if not o.startswith("tokenizer")]
    run(capsys, "train", "-m", *overrides, *options)
    for name in ("uniform", "iap"):
        (folder,) = tmp_path.glob(f"*_{name}_*")
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["tokenizer"]["name"] == name
        assert (folder / "metrics.json").exists()


@pytest.mark.slow
def test_a_compiled_run_learns_what_the_eager_one_does(trained, tmp_path, capsys, monkeypatch):
    """Without code generation, which is tested for one step and takes minutes for a run."""
    calls, compile_module = [], torch.nn.Module.compile

    def without_inductor(module, mode=None, **options):
        calls.append(module)
        compile_module(module, backend="aot_eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", without_inductor)
    options = ["trainer.compile=true", "test.steps=0", f"hydra.run.dir={tmp_path}"]
    run(capsys, "train", *small_runs.train(), *options)
    assert len(calls) == 1
    weights = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (trained, tmp_path)
    ]
    assert list(weights[0]) == list(weights[1])
    for name, eager in weights[0].items():
        torch.testing.assert_close(weights[1][name], eager, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("mode", ["fold", pytest.param("frames", marks=pytest.mark.slow)])
def test_tokenize_draws_fields_scores_and_cells(tmp_path, capsys, mode):
    options = ["settings=[{budget: 16}, {budget: 22}]", "samples=[1]", "history=2"]
    options += [f"history_mode={mode}", "tokenizer.max_size=8", f"hydra.run.dir={tmp_path}"]
    out = run(capsys, "tokenize", *small_runs.data(), *options)
    names = {p.name for p in (tmp_path / "sample_1").iterdir()}
    fields = ("pressure", "velocity_x", "velocity_y")
    assert names == {"field.png", "score.png", *(f"cells_{f}.png" for f in fields)}
    # Over two frames that share a tiling, 22 tokens are two times 10: a split adds three.
    assert f"sample 1, budget=22: {22 if mode == 'fold' else 20} tokens" in out


def test_tokenize_draws_a_schedule_as_it_begins(tmp_path, capsys, drawn):
    options = ["settings=[{name: cyclic, settings: [{budget: 16}, {budget: 22}]}]", "samples=[1]"]
    options += ["tokenizer.max_size=8", f"hydra.run.dir={tmp_path}"]
    out = run(capsys, "tokenize", *small_runs.data(), *options)
    assert "cyclic budget=16 / budget=22: 16 tokens" in out


@pytest.mark.slow
def test_tokenize_in_3d(tmp_path, capsys, drawn):
    knobs = {"resolution": 8, "frames": 3, "train": 1, "valid": 1, "test": 1}
    options = [f"data.generate.{name}={value}" for name, value in knobs.items()]
    options += ["data=supernova_explosion_64", f"data.base={tmp_path}", "tokenizer.max_size=4"]
    options += ["samples=[0]"]
    out = run(capsys, "tokenize", *options, f"hydra.run.dir={tmp_path / 'run'}")
    assert "as built: 64 tokens" in out
    assert (tmp_path / "run" / "sample_0" / "cells_density.png").stat().st_size > 10000


def test_tokenizers_are_drawn_side_by_side(tmp_path, capsys):
    options = ["tokenizers=[iap,{name: iap, power: 2}]", "budget=40", f"hydra.run.dir={tmp_path}"]
    out = run(capsys, "tokenize", *small_runs.data(), *options)
    assert [p.name for p in (tmp_path / "sample_2").iterdir()] == ["methods.png"]  # the middle
    lines = [f"sample 2, {name}: 40 tokens, projection error 0" for name in ("iap", "iap 2")]
    assert all(line in out for line in lines)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "tokenize_acoustic_scattering_maze_iap"),
        (["tokenizers=[uniform,{name: apt}]"], "tokenize_acoustic_scattering_maze_uniform-apt"),
    ],
)
def test_folders_of_tokenize_name_all_tokenizers(options, name):
    assert compose("tokenize", options).name == name


def test_tokenize_a_sample_that_is_not_there(tmp_path, capsys):
    options = ["samples=[99]", "tokenizer.max_size=8", f"hydra.run.dir={tmp_path}"]
    error = fail(capsys, "tokenize", *small_runs.data(), *options)
    assert "the test split has samples 0 to 9, there is no number 99" in error


def test_data_describes_the_set(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = run(capsys, "data", *small_runs.data())
    for part in ("16 x 16", "x wall/wall, y open/open", "10 train, 5 valid, 10 test"):
        assert part in out
    assert "velocity_x" in out
    assert "persistence VRMSE" in out
    assert not list(tmp_path.iterdir())  # a question leaves nothing behind


def test_data_draws_a_trajectory(tmp_path, capsys, drawn):
    picture = tmp_path / "new folder" / "maze.png"
    out = run(capsys, "data", *small_runs.data(), f"picture={picture}")
    assert f"|\n\npicture: {picture}\n" in out
    assert picture.stat().st_size > 1000


def test_fields_that_equal_others_are_named(tmp_path, monkeypatch):
    data = build_data(plain(compose("train", small_runs.data())), stage="test")
    dataset: Any = data.rollout_loader("test").dataset
    sample = {**dataset[0]}
    for key in ("input", "target"):
        sample[key] = torch.stack([sample[key][:, 0], -sample[key][:, 0], sample[key][:, 2]], 1)
    monkeypatch.setattr(data, "rollout_loader", lambda _: SimpleNamespace(dataset=[sample]))
    shown: list[str] = []
    keep = pictures.plots.trajectory_figure
    monkeypatch.setattr(
        pictures.plots,
        "trajectory_figure",
        lambda *args, **options: shown.append(options["note"]) or keep(*args, **options),
    )
    _, note = pictures.of_data(data, tmp_path / "set.png")
    assert shown == [note] == ["not drawn, equal up to the sign: velocity_x (as pressure)"]


def test_data_generates_again_only_when_told(capsys):
    other = [*small_runs.data(), "data.generate.seed=1"]
    assert "seed is 0 there, 1 wanted" in fail(capsys, "data", *other)
    run(capsys, "data", *other, "overwrite=true")
    run(capsys, "data", *small_runs.data(), "overwrite=true")


@pytest.mark.slow
def test_demo_ends_with_table_and_pictures(tmp_path, capsys, drawn):
    options = ["trainer=debug", *small_runs.data(), *small_runs.SIZE, f"hydra.run.dir={tmp_path}"]
    knobs = "['tokenizer=iap','tokenizer.budget=22','tokenizer.max_size=8']"
    options += ["test.steps=2", "~compare.iap", f"+compare.adaptive={knobs}"]
    out = run(capsys, "demo", *options)
    table = out[out.index("| model") :]
    assert [row.split("|")[1].strip() for row in table.splitlines()[2:5]] == [
        "persistence",
        "uniform",
        "adaptive",
    ]
    pictures = [Path(line.strip()) for line in out.splitlines() if line.endswith(".png")]
    assert len(pictures) >= 3
    assert all(picture.exists() for picture in pictures)
    assert all(picture.stat().st_size > 10000 for picture in tmp_path.rglob("*.png"))
    for name in ("learning_curve", "prediction", "cells", "rollout"):  # of a run
        assert [*tmp_path.rglob(f"{name}.png")], name


def test_list(capsys):
    out = run(capsys, "list")
    assert {f"{kind}s" for kind in ("tokenizer", "decoder", "solver")} <= set(out.split())
    assert all(name in out for name in TOKENIZERS.names())
    out = run(capsys, "list", "tokenizers", "u*")
    assert "uniform" in out
    assert "size=8 (" in out
    assert "iap" not in out
    assert "size=8: " not in run(capsys, "list")  # a line or two per part
    out = run(capsys, "list", "backends")
    assert re.search(r"loop +usable\n", out)
    assert "varlen" in out
    assert "no back end matches 'x*'" in fail(capsys, "list", "backends", "x*")
    assert "did you mean 'tokenizer'" in fail(capsys, "list", "tokenizr")
    assert "losses" in run(capsys, "list", "loss")
    assert "got 'nonsens'" in fail(capsys, "list", "nonsens")
    assert "without a pattern" in fail(capsys, "list", "markdown", "i*")
    assert "no decoder matches 'x*'" in fail(capsys, "list", "decoder", "x*")


@pytest.mark.parametrize("command", sampled(COMMANDS, 3))
def test_help(capsys, command):
    assert command in run(capsys, "--help")
    out = run(capsys, *command.split(), "--help")
    assert COMMANDS[command] in out
    assert all(example in out for example in USAGE[command]["examples"].splitlines())
    if command in ("train", "tokenize", "demo"):
        assert re.search(r"\biap\]?.* uniform", out)
        assert ("[iap]" if command == "tokenize" else "[coarse_fine]") in out


def test_version(capsys):
    assert run(capsys, "--version").startswith("adaptok 0.")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "got 'trian' (did you mean 'train'?)"),
        (["train", "tokenizer=aip"], "unknown tokenizer 'aip' (did you mean 'iap'"),
        (["train", "tokenizer.bugdet=3"], "'tokenizer.bugdet' (did you mean 'tokenizer.budget'?)"),
        (["train", "lr=3"], "unknown key 'lr' (did you mean 'optim.lr'?)"),
        (["train", "data=unknown"], "choices: acoustic_scattering_maze, "),
        (["train", "data=own/room"], "for a set in a folder: data=well data.path=own/room"),
        (["train", "data.path=own/room"], "for a set that is there: data=well data.path="),
        (["train", "--max_steps", "3"], "keys have no dashes, but their group"),
        (["train", "+sede=3"], "unknown key 'sede'"),
        (["train", "tokenizer=iap", "+tokenizer.knob=3"], "'iap' has no knob 'knob'"),
        (["train", "+optim.momentum=3"], "unknown key 'optim.momentum'"),
        (["train", "+trainer.max_step=3"], "'trainer.max_step' (did you mean 'max_steps'"),
        (["train", "tokenizer.budget=3"], "budget 3 is below"),
        (["train", "predict=dleta"], "predict must be one of delta, state"),
        (["train", "schedule.settings=[]"], "schedule.settings must be"),
        ([*THROUGH_TIME, "schedule.settings=[3]"], "schedule.settings must be"),
        ([*THROUGH_TIME, "schedule.settings=[{unroll: a}]"], "unroll"),
        (["train", "--config-dir", "nowhere"], "no folder nowhere"),
        (["eval"], "ckpt must be given"),
        (["eval", "ckpt=nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
        (["data", "data=well", "data.name=nothing"], "unknown data set 'nothing'"),
        (["train", "~optim"], "~optim: a run needs optim"),
        (["train", "~budget"], "~budget: a run needs budget"),
        (["train", "processor=null"], "processor must be given a name, got 'processor=null'"),
        (["train", "=3"], "a key must be given a name, got '=3'"),
        (["train", "test.settings={budget: 64}"], "cannot set test.settings={budget: 64}"),
        (["train", "name=a/b"], "name must be text that names a folder, got 'a/b'"),
        (["train", "resume="], "resume must be text of length 1 or more"),
        (["train", "data.base=~/x"], "need quotes of their own: \"data.base='~/x'\""),
        (["tokenize", "samples=[]"], "samples must be a list of length 1 or more, each a whole"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, args, message):
    command, *rest = args
    runs = {"train": small_runs.train(), "data": [f"data.base={tmp_path}"]}
    folder = [f"hydra.run.dir={tmp_path}"] if command in runs or command == "eval" else []
    assert message in fail(capsys, command, *runs.get(command, []), *folder, *rest)


def test_the_fields_of_a_checkpoint_are_those_of_the_data():
    two, none = torch.ones(2), torch.ones(0)
    stats, boundary = (two, two, two, two, none, none), torch.zeros(1, 2, dtype=torch.long)
    info = FieldInfo("own", 1, (8,), ("u", "v"), (), *stats, boundary=boundary)
    trained = {"adaptok_data": {"other": {"fields": ["u", "v"], "constants": []}}}
    _check_fields(trained, info, Path("x"))
    _check_fields({}, info, Path("x"))  # nothing was trained
    with pytest.raises(ValueError, match=r"x was trained on the fields \['u', 'v'\], and own has"):
        _check_fields(trained, dataclasses.replace(info, fields=("v", "u")), Path("x"))


def test_a_checkpoint_of_several_sets_needs_the_choice_of_one():
    saved = {"adaptok_config": {"data": [{"name": "a"}, {"name": "b"}]}}
    one_value = OmegaConf.create({"data": {"batch_size": 2}})
    with pytest.raises(ValueError, match=r"x was trained on several .*: data=\.\.\. \(a, b\)"):
        _of_checkpoint(saved, one_value, Path("x"))


def test_a_mistake_in_the_name_of_the_folder_is_one_line(capsys, caplog):
    error = fail(capsys, "train", "data=well")
    assert "data.name must be given" in error
    assert len(error.strip().splitlines()) == 1
    assert not caplog.records


def test_debug_shows_where_it_happened():
    with pytest.raises(ValueError, match="command must be one of"):
        main(["trian", "--debug"])


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("adaptok.cli.usage.USAGE", {})
    with pytest.raises(KeyError):
        main(["train", "--help"])


def test_own_configuration_folder(tmp_path, capsys):
    (tmp_path / "tokenizer").mkdir()
    text = "defaults: [iap]\nbudget: 13\nmax_size: 8\n"
    (tmp_path / "tokenizer" / "own.yaml").write_text(text)
    options = ["--config-dir", str(tmp_path), "tokenizer=own", "--cfg", "job"]
    assert "budget: 13" in run(capsys, "tokenize", *options)


@pytest.mark.slow
def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "adaptok", "train", "tokenizer=aip"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("adaptok: error: unknown tokenizer 'aip'")
    assert not done.stdout


def test_benchmarks_run_by_name(capsys):
    assert run(capsys, "bench").split() == ["features", "indicators", "vision"]
    with pytest.raises(SystemExit) as stopped:  # argparse's --help
        main(["bench", "vision", "--help"])
    assert stopped.value.code == 0
    assert "--models" in capsys.readouterr().out
    assert "'visoin' (did you mean 'vision'?)" in fail(capsys, "bench", "visoin")
    assert "adaptok bench [name]" in run(capsys, "bench", "--help")


def test_help_of_the_classification_task(capsys):
    text = run(capsys, "train", "task=classify", "--help")
    assert "[apt] random reduced resize uniform" in text
    assert "more of timm's names" in text
    assert "train.only=all" in text
    assert "task" in run(capsys, "train", "--help")
