"""Training: what is optimised, with which settings, and that a resumed run is the same run."""

from __future__ import annotations

import copy
import math
import pickle
import re

import pytest
import small_runs
import torch

from adaptok import create_schedule
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.evaluation.evaluate import persistence
from adaptok.registry import LOSSES
from adaptok.training import SurrogateModule, make_trainer
from adaptok.training.checkpoints import find_resume, load_weights, read_checkpoint
from adaptok.training.optim import Optim
from adaptok.utils.tables import read_metrics


@pytest.fixture(scope="module")
def setting():
    config = plain(compose("train", small_runs.train()))
    return config, build_data(config)


def module_of(config, data, schedule="fixed"):
    torch.manual_seed(0)
    surrogate = build_surrogate(config, data.info)
    return SurrogateModule(surrogate, Optim(**config["optim"]), create_schedule(schedule), config)


def fit(module, data, folder, max_steps, resume=None, **knobs):
    knobs = {"val_check_interval": 2, "log_every_n_steps": 1, "accelerator": "cpu"} | knobs
    trainer = make_trainer(folder, max_steps=max_steps, enable_progress_bar=False, **knobs)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer


def test_learning_rate_of_the_paper():
    optim = Optim()
    assert optim.learning_rate(0, 10**6) == 1e-6
    assert optim.learning_rate(1250, 10**6) == pytest.approx((1e-6 + 5e-4) / 2)
    assert optim.learning_rate(2500, 10**6) == 5e-4
    assert optim.learning_rate(7500, 10**6) == pytest.approx(5e-4 * 0.95)
    assert optim.learning_rate(10**6, 10**6) == 1e-5


def test_the_schedule_fits_the_training():
    optim, paper = Optim(), Optim(warmup_steps=2500, gamma_steps=5000)
    assert [optim.warmup_of(n) for n in (1, 450, 10**6, math.inf)] == [1, 22, 2500, 2500]
    for step in (0, 1250, 2500, 7500, 200000):
        assert optim.learning_rate(step, 10**6) == paper.learning_rate(step, 10**6)
    for steps in (100, 450, 20000):  # the rate is reached at the same share of any length
        assert optim.learning_rate(round(0.025 * steps), steps) < 3e-4
        assert optim.learning_rate(round(0.05 * steps), steps) == pytest.approx(5e-4, rel=1e-2)
    assert Optim(warmup=0).learning_rate(0, 50) == 5e-4
    assert Optim(warmup_steps=7).warmup_of(450) == 7
    with pytest.raises(ValueError, match=r"optim.warmup must be .* got 2"):
        Optim(warmup=2)


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({}, None),
        ({"decay": "cosine"}, None),
        ({"warmup_steps": 99, "decay": "cosine"}, None),
        ({"warmup_steps": 100}, r"warm-up \(100 steps\) is not shorter than the training \(100\)"),
        ({"gamma_steps": 96}, "first decay .* in 96 steps.* has 95 steps after the warm-up"),
        ({"gamma_steps": 95}, None),
        ({"gamma_steps": 1000, "gamma": 1.0}, None),
    ],
)
def test_a_schedule_that_cannot_finish(knobs, line):
    found = Optim(**knobs).unfinished(100)
    assert found is None if line is None else re.search(line, found)


def test_cosine_ends_at_the_floor():
    optim = Optim(decay="cosine", warmup_steps=10, lr_min=1e-5)
    assert optim.learning_rate(55, 100) == pytest.approx((5e-4 + 1e-5) / 2)
    assert optim.learning_rate(100, 100) == pytest.approx(1e-5)
    assert optim.learning_rate(200, 100) == pytest.approx(1e-5)


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match=r"optim.loss must be one of .*, got 'l1'"):
        Optim(loss="l1")
    with pytest.raises(ValueError, match=r"optim.decay must be one of .*, got 'linear'"):
        Optim(decay="linear")


def test_losses():
    error, target = torch.full((2, 1, 3, 4, 4), 2.0), torch.full((2, 1, 3, 4, 4), 4.0)
    assert LOSSES.get("mse")(error, target) == 4.0
    torch.testing.assert_close(LOSSES.get("nmse")(error, target), torch.tensor(4 / 16.001))


def test_norms_and_biases_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    decayed, free = Optim(weight_decay=0.1).make_optimizer(model).param_groups
    assert [p is model[0].weight for p in decayed["params"]] == [True]
    assert decayed["weight_decay"] == 0.1
    assert len(free["params"]) == 3
    assert free["weight_decay"] == 0.0


def test_loss_is_in_units_of_the_data_sets_std(setting, tmp_path):
    config, data = setting
    module = module_of(config, data)
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        error = (module.predict(batch, 0) - batch["target"]) / data.info.std.view(-1, 1, 1)
    fit(module, data, tmp_path, max_steps=1)
    assert read_metrics(tmp_path)[0]["train/loss"] == pytest.approx(error.square().mean().item())


def test_three_steps_leave_everything(setting, tmp_path):
    config, data = setting
    module = module_of(config, data)
    before = copy.deepcopy(module.surrogate.state_dict())
    fit(module, data, tmp_path, max_steps=3)
    rows = read_metrics(tmp_path)
    assert [r["step"] for r in rows if "train/loss" in r] == [1, 2, 3]
    (validated,) = [r for r in rows if "val/vrmse" in r]
    assert validated["step"] == validated["steps_made"] == 2
    blank = persistence(data, "valid").vrmse.mean
    assert validated["val/persistence"] == pytest.approx(blank)
    assert {r["tokens/sample"] for r in rows if "tokens/sample" in r} == {22}
    assert rows[-1].get("samples/s", 1.0) > 0
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    after = module.surrogate.state_dict()
    changed = [k for k in after if not torch.equal(before[k], after[k])]
    assert any("decoder" in k for k in changed)
    assert any("tokenizer" in k for k in changed)
    assert module.seconds_per_step > 0


def test_the_averaged_weights_are_evaluated_and_saved(setting, tmp_path):
    config, data = setting
    module = module_of(config, data)
    trainer = fit(module, data, tmp_path, max_steps=3, ema=0.5)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(k for k in saved["state_dict"] if k.endswith("weight"))
    current, averaged = saved["state_dict"][name], saved["averaged_state_dict"][name]
    assert not torch.equal(current, averaged)
    assert torch.equal(module.state_dict()[name], averaged)
    assert trainer.global_step == 3


def test_settings_follow_the_schedule(setting, tmp_path):
    config, data = setting
    schedule = {"name": "cyclic", "settings": [{"budget": 10}, {"budget": 22}, {"budget": 13}]}
    fit(module_of(config, data, schedule), data, tmp_path, max_steps=3)
    tokens = [r["tokens/sample"] for r in read_metrics(tmp_path) if "tokens/sample" in r]
    assert tokens == [10, 22, 13]


def test_the_same_seed_gives_the_same_run(setting, tmp_path):
    config, data = setting
    losses = []
    for run in ("a", "b"):
        fit(module_of(config, data), data, tmp_path / run, max_steps=3)
        losses.append([r["train/loss"] for r in read_metrics(tmp_path / run) if "train/loss" in r])
    assert losses[0] == losses[1]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(setting, tmp_path):
    config, data = setting
    whole, resumed = module_of(config, data), module_of(config, data)
    fit(whole, data, tmp_path / "whole", max_steps=8)
    epoch = len(data.train_dataloader())
    fit(module_of(config, data), data, tmp_path / "first", max_steps=epoch)
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    fit(resumed, data, tmp_path / "second", max_steps=8, resume=last)
    steps = [r["step"] for r in read_metrics(tmp_path / "second") if "train/loss" in r]
    assert steps == list(range(epoch + 1, 9))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def test_resuming_a_finished_run_ends_with_the_averaged_weights_again(setting, tmp_path):
    config, data = setting
    whole, again = module_of(config, data), module_of(config, data)
    fit(whole, data, tmp_path, max_steps=4)
    last = tmp_path / "checkpoints" / "last.ckpt"
    state = read_checkpoint(tmp_path)["state_dict"]
    assert any(not torch.equal(v, state[k]) for k, v in whole.state_dict().items())
    fit(again, data, tmp_path, max_steps=4, resume=last)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_another_architecture_is_explained(setting, tmp_path):
    config, data = setting
    fit(module_of(config, data), data, tmp_path, max_steps=1)
    checkpoint = read_checkpoint(tmp_path)
    other = plain(compose("train", [*small_runs.train(), "tokenizer.min_size=4", "size.dim=48"]))
    surrogate = build_surrogate(other, data.info)
    before = copy.deepcopy(surrogate.state_dict())
    with pytest.raises(ValueError, match="another architecture") as error:
        load_weights(surrogate, checkpoint, path="last.ckpt", config=other)
    assert "tokenizer.min_size is None in the checkpoint, 4 here" in str(error.value)
    assert "size.dim is 24 in the checkpoint, 48 here" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in surrogate.state_dict().items())


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_is_refused_and_not_run(tmp_path, writer):
    path = tmp_path / "evil.ckpt"
    if writer == "torch":
        torch.save({"state_dict": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(ValueError, match=r"evil.ckpt is refused: .* run any code"):
        read_checkpoint(path)


def test_damaged_and_foreign_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint at .*absent.ckpt"):
        read_checkpoint(tmp_path / "absent.ckpt")
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, whole)
    (tmp_path / "cut.ckpt").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut.ckpt is damaged"):
        read_checkpoint(tmp_path / "cut.ckpt")
    torch.save({"weights": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt is not a checkpoint of adaptok"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_resume_auto_takes_the_newest_run_with_the_same_configuration(tmp_path):
    here = {"seed": 0, "size": {"dim": 8}, "trainer": {"max_steps": 5}}
    for name, seed in (("old", 0), ("other", 1)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
        (tmp_path / name / "config.yaml").write_text(f"seed: {seed}\nsize: {{dim: 8}}\n")
    found = find_resume("auto", tmp_path / "new", tmp_path, here)
    assert found == tmp_path / "old" / "checkpoints" / "last.ckpt"
    assert find_resume("auto", tmp_path / "new", tmp_path, here | {"seed": 2}) is None
    assert find_resume(None, tmp_path / "old", tmp_path, here) is None
    with pytest.raises(ValueError, match="no checkpoint at"):
        find_resume(str(tmp_path / "nowhere"), tmp_path / "new", tmp_path, here)
