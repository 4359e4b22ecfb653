"""Weights of another run by name and shape: what is taken, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
from torch import nn

import adaptok
from adaptok.cli import main
from adaptok.config.unread import unread
from adaptok.models.baselines import create_baseline
from adaptok.models.one_step import STATISTICS
from adaptok.training.checkpoints import read_checkpoint
from adaptok.training.transfer import start_from

SMALL: dict[str, Any] = {"dim": 12, "depth": 1, "heads": 1, "tokenizer": "uniform"}


def surrogate(seed: int, **given: Any) -> Any:
    torch.manual_seed(seed)
    model = adaptok.create_surrogate(**{"ndim": 2, "in_channels": 2, **SMALL, **given})
    model.set_statistics(*torch.rand(3, model.in_channels).add(seed).unbind())
    return model


def multiphysics(seed: int) -> Any:
    torch.manual_seed(seed)
    given = {**SMALL, "fields": ["u", "v"], "width": 3}
    return adaptok.create_multiphysics(ndim=2, **given)


class Task(nn.Module):
    """As a Lightning module holds its model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.surrogate = model


def checkpoint_of(model: Any, folder: Path, **more: Any) -> Path:
    """A run folder whose averaged weights are those of the model."""
    (folder / "checkpoints").mkdir(parents=True)
    state = Task(model).state_dict()
    content = {"state_dict": {k: v + 1 for k, v in state.items()}, "averaged_state_dict": state}
    content |= {"adaptok_model": model.config, **more}
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.mark.parametrize("kind", ["run", "file", "saved"])
def test_weights_of_the_same_name_and_shape_are_taken(kind, tmp_path):
    there, here = surrogate(0), surrogate(1, in_channels=3, depth=2)
    where = checkpoint_of(there, tmp_path / "run")
    if kind == "file":
        where = where / "checkpoints" / "last.ckpt"
    if kind == "saved":
        where = adaptok.save_pretrained(there, tmp_path / "saved")
    before = {k: v.clone() for k, v in here.state_dict().items()}
    told = start_from(Task(here), where)
    of, after = there.state_dict(), here.state_dict()
    for name, value in after.items():
        fits = name in of and of[name].shape == value.shape and name not in STATISTICS
        assert value.equal(of[name] if fits else before[name]), name
    rows = re.findall(r"(\d+) \| +(\d+) \| +(\d+) \|", told)
    sums = [sum(int(row[column]) for row in rows) for column in range(3)]
    known = {k for k in of if k not in STATISTICS}, {k for k in after if k not in STATISTICS}
    fits = {k for k in known[0] & known[1] if of[k].shape == after[k].shape}
    assert sums == [len(fits), len(known[1] - fits), len(known[0] - fits)]
    assert f"weights of init={where}:" in told
    for title in ("new", "left there"):
        assert re.search(rf"^{title}: .*tokenizer\.embedding", told, re.MULTILINE)


@pytest.mark.parametrize("to", ["system", "multiphysics", "surrogate"])
def test_pretrained_weights_go_to_every_kind_of_model(to, tmp_path):
    there = multiphysics(0)
    where = checkpoint_of(there, tmp_path / "run")
    core = multiphysics(1)
    here = {"system": core.system(["u"]), "multiphysics": core}.get(to, surrogate(1))
    start_from(Task(here), where)
    part = here if to == "surrogate" else core
    for name, value in part.processor.state_dict().items():
        assert value.equal(there.processor.state_dict()[name])
    back = checkpoint_of(core.system(["u"]), tmp_path / "system")
    again = multiphysics(2)
    start_from(Task(again), back)
    assert again.heads.weight["u"].equal(core.heads.weight["u"])


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("there", [{}, {"multiphysics": True}])
def test_another_dimension_is_refused_in_words(there, saved, tmp_path):
    model = multiphysics(0).system(["u"]) if there else surrogate(0)
    where = tmp_path / "x"
    adaptok.save_pretrained(model, where) if saved else checkpoint_of(model, where)
    here = surrogate(1, ndim=1)
    before = {k: v.clone() for k, v in here.state_dict().items()}
    with pytest.raises(ValueError, match="for 2D fields, but this data is 1D"):
        start_from(Task(here), where)
    assert all(v.equal(before[k]) for k, v in here.state_dict().items())


def test_weights_of_which_none_fits_are_refused(tmp_path):
    there = create_baseline({"name": "fno", "modes": 2, "width": 4}, ndim=2, in_channels=2)
    where = checkpoint_of(there, tmp_path / "run")
    with pytest.raises(ValueError, match=r"none of its weights .* there network.* here tokenizer"):
        start_from(Task(surrogate(1)), where)


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "x.ckpt").write_text("text")
    for where, message in (
        (tmp_path / "no", "must be a run folder, a checkpoint or a folder of save_pretrained"),
        (tmp_path, "no checkpoint at"),
        (tmp_path / "x.ckpt", "not a checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            start_from(Task(surrogate(1)), where)


def test_from_scratch_reads_no_weights():
    given = {"from_scratch": True, "init": "x"}
    assert "init is not read" in next(unread(given, ["init"]))


@pytest.mark.slow
def test_init_as_typed(tmp_path, capsys):
    """One step of a rate of zero keeps what was taken; finetune takes the model of any run."""

    def run(command: str, name: str, *more: str) -> tuple[dict, str]:
        folder = f"hydra.run.dir={tmp_path / name}"
        still = ["optim.lr=1e-30", "optim.lr_min=0", "optim.lr_start=0", "trainer.max_steps=1"]
        still += [*small_runs.data(), *small_runs.RUN, "test.steps=0", "optim.warmup_steps=0"]
        assert main([command, *still, *more, folder]) == 0, capsys.readouterr().err
        return read_checkpoint(tmp_path / name)["state_dict"], capsys.readouterr().out

    model = [*small_runs.SIZE, *small_runs.TOKENIZER]
    first, _ = run("train", "first", *model)
    init = f"init={tmp_path / 'first'}"
    second, told = run("train", "second", *model, init, "seed=1", "history=2")
    assert f"weights of {init}:" in told
    same = {k for k, v in second.items() if v.shape == first[k].shape and v.allclose(first[k])}
    assert any(".processor." in k for k in same)
    assert any(".tokenizer." in k for k in set(second) - same)
    # a resumed run has its own weights, wherever those are that it began with
    (tmp_path / "first").rename(tmp_path / "gone")
    _, told = run("train", "second", *model, init, "seed=1", "history=2", "resume=auto")
    assert "resuming from" in told
    assert "weights of init" not in told
    gone = f"ckpt={tmp_path / 'gone'}"
    tuned, told = run("finetune", "tuned", gone, "seed=2")
    assert "weights of init" in told
    assert all(torch.allclose(v, first[k]) for k, v in tuned.items())
    assert main(["finetune", gone, "mode=prepost", f"hydra.run.dir={tmp_path / 'x'}"]) == 2
    assert "mode=prepost is for models of task=pretrain" in capsys.readouterr().err
    gone = f"init={tmp_path / 'nowhere'}"
    assert main(["train", *small_runs.train(), gone, f"hydra.run.dir={tmp_path / 'x'}"]) == 2
    assert "must be a run folder" in capsys.readouterr().err
