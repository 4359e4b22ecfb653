"""resume=RUN: the configuration of that run, with what was typed; no run is needed for these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from adaptok.cli.resuming import completed, own_configuration, run_named, typed_values
from adaptok.tasks.surrogate import _is_at_budget

RUN: dict[str, Any] = {
    "task": "surrogate",
    "name": "maze_apt",
    "seed": 7,
    "budget": 64,
    "tokenizer": {"name": "apt", "thresholds": [3.1, 2.1]},
    "size": {"dim": 24, "depth": 1},
    "data": {"name": "maze", "base": "sets", "batch_size": 2, "num_workers": 0},
    "optim": {"lr": 0.1, "optimizer": None},
    "trainer": {"max_steps": 9, "devices": 1},
    "logger": {"theirs": {"_target_": "os.system"}},
}
DEFAULTS: dict[str, Any] = {
    **RUN,
    "seed": 0,
    "budget": None,
    "tokenizer": {"name": "iap", "budget": 5},
    "size": {"dim": 99, "depth": 9},
    "optim": {"lr": 0.5, "optimizer": None},
    "trainer": {"max_steps": 100, "devices": 1},
    "logger": {"wandb": None},
    "init": None,
    "resume_anyway": False,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    return written(tmp_path / "run", {})


def written(folder: Path, changes: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({**RUN, **changes}))
    return folder


def resumed(folder: Path, typed: dict[str, Any]) -> dict[str, Any]:
    """As if these keys had been typed: {"trainer.max_steps": 5}; groups with their nodes."""
    wanted = {**DEFAULTS, "resume": str(folder)}
    for key, value in typed.items():
        group, _, leaf = key.replace("/", ".").rpartition(".")
        wanted |= {group: {**wanted[group], leaf: value}} if group else {leaf: value}
    words = [f"++{k}={v if not isinstance(v, dict) else 'x'}" for k, v in typed.items()]
    return own_configuration(wanted, OverridesParser.create().parse_overrides(words))


def test_nothing_typed_is_the_run_as_it_was_with_the_loggers_of_now(folder):
    config = resumed(folder, {})
    assert {k: v for k, v in config.items() if RUN.get(k) != v} == {
        "logger": DEFAULTS["logger"],
        "resume": str(folder),
        "resume_anyway": False,
    }
    assert _is_at_budget(config)  # its thresholds are not looked for again
    assert not _is_at_budget({**config, "budget": 32})
    assert not _is_at_budget({**config, "resume": "auto"})


@pytest.mark.parametrize(
    ("typed", "changed"),
    [
        ({"trainer.max_steps": 20}, {"trainer": {"max_steps": 20, "devices": 1}}),
        ({"trainer": {"max_epochs": 3}}, {"trainer": {"max_epochs": 3}}),
        ({"trainer.max_epochs": 3}, {"trainer": {**RUN["trainer"], "max_epochs": 3}}),
        ({"data.num_workers": 4}, {"data": {**RUN["data"], "num_workers": 4}}),
        ({"data.base": "/elsewhere"}, {"data": {**RUN["data"], "base": "/elsewhere"}}),
        ({"tokenizer": {"name": "apt", "thresholds": [5, 4]}}, {}),  # typed as it was
        ({"seed": 7, "size.dim": 24}, {}),
        ({"resume_anyway": True, "optim.lr": 1}, {"optim": {"lr": 1, "optimizer": None}}),
    ],
)
def test_what_is_typed_counts(typed, changed, folder):
    config = resumed(folder, typed)
    known = {key: value for key, value in config.items() if key in RUN and key != "logger"}
    assert known == {k: v for k, v in {**RUN, **changed}.items() if k != "logger"}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"seed": 3, "optim.lr": 1}, "seed=3 (was 7); optim.lr=1 (was 0.1)"),
        ({"tokenizer": {"name": "iap", "budget": 5}}, "tokenizer=iap (was apt)"),
        ({"size": {"dim": 24, "depth": 2}}, "size.depth=2 (was 1)"),
        ({"data": {"name": "flow"}}, "data=flow (was maze)"),
        ({"data.batch_size": None}, "data.batch_size=null (was 2)"),
        ({"task": "classify"}, "task=classify (was surrogate)"),
    ],
)
def test_what_must_not_change_is_refused_in_one_short_line(typed, said, folder):
    with pytest.raises(ValueError, match="cannot be resumed") as error:
        resumed(folder, typed)
    assert str(error.value) == (
        f"{folder} cannot be resumed with {said}: leave that out, or type resume_anyway=true"
    )


def test_sets_of_a_pretraining(tmp_path):
    sets = [{"name": name, "batch_size": 2, "num_workers": 0} for name in "ab"]
    folder = written(tmp_path / "run", {"data": [*sets, {"name": "c"}]})
    config = resumed(folder, {"data.num_workers": 3})
    assert [one.get("num_workers") for one in config["data"]] == [3, 3, None]
    with pytest.raises(ValueError, match=r"data.batch_size of a=4 \(was 2\); data.batch_size of b"):
        resumed(folder, {"data.batch_size": 4})
    with pytest.raises(ValueError, match=r"data=\['a', 'b'\] \(was \['a', 'b', 'c'\]\)"):
        resumed(folder, {"data": ["a", "b"]})


@pytest.mark.parametrize(
    "changes",
    [
        {"callbacks": {"x": {"_target_": "os.system", "command": "true"}}},
        {"optim": {**RUN["optim"], "optimizer": {"_target_": "os.system"}}},
        {"callbacks": {"x": {"list": [1, {"_target_": "os.system"}]}}},
    ],
)
def test_a_run_of_a_stranger_makes_no_object(changes, tmp_path):
    folder = written(tmp_path / "run", changes)
    with pytest.raises(ValueError, match=r"makes a os.system: to allow that, type .*=... again"):
        resumed(folder, {})
    (key, value) = next(iter(changes.items()))
    assert resumed(folder, {key: value})[key] == value


def test_harmless_callbacks_are_kept(tmp_path):
    stop = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/vrmse"}
    folder = written(tmp_path / "run", {"callbacks": {"stop": stop}})
    assert resumed(folder, {})["callbacks"] == {"stop": stop}


def test_hydra_is_told_of_the_run(folder, tmp_path):
    typed = [f"resume={folder}", "trainer.max_steps=3", "seed=1", "hydra.run.dir=x", "+a.b=1"]
    assert completed("train", typed) == [
        *(f"resume={folder}", "++trainer.max_steps=3", "seed=1", "hydra.run.dir=x", "+a.b=1"),
        *("task=surrogate", "name='maze_apt'"),
    ]
    again = completed("train", typed)
    assert completed("train", again) == again  # as a process of a parallel run does
    for other in (["resume=auto", "seed=1"], [f"resume={folder / 'config.yaml'}"], ["seed=1"]):
        assert completed("train", other) == other
    tuned = written(tmp_path / "tuned", {"task": "finetune", "ckpt": "it's", "name": "../x"})
    assert completed("finetune", [f"resume={tuned}"])[1:] == ["ckpt='it\\'s'"]
    parsed = OverridesParser.create().parse_overrides(["ckpt='it\\'s'"])
    assert parsed[0].value() == "it's"
    with pytest.raises(ValueError, match="is a run of adaptok finetune, not train"):
        completed("train", [f"resume={tuned}"])
    with pytest.raises(ValueError, match="is a run of adaptok train, not finetune"):
        completed("finetune", typed)


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_a_folder_that_is_no_run_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        completed("train", [f"resume={tmp_path}"])
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config.yaml is damaged"):
        completed("train", [f"resume={tmp_path}"])


def test_which_folder_and_which_keys(folder):
    assert run_named(str(folder)) == folder
    assert [run_named(other) for other in (None, "auto", "nowhere", 7)] == [None] * 4
    words = ["++data.base=x", "data.cache=false", "seed=1"]
    parsed = OverridesParser.create().parse_overrides(words)
    wanted = {"data": {"base": "x", "cache": False, "other": 1}}
    assert typed_values(wanted, parsed, "data") == {"base": "x", "cache": False}
