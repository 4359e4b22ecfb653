"""Optimizer steps: their gradient, what is counted in them, the rate, and how they end.

Other places of the kind "batches are not steps" were searched by grepping for `batch_idx`,
`global_step`, `accumulate`, `max_steps`, `max_epochs` and `val_check` in adaptok/ and conf/; of
"bounds of the rate" for every use of `lr`; of "not finite" for every reader of `train/loss`.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_fits import Kill, Tiny, fit, loaders

from adaptok.training import make_trainer
from adaptok.training.checkpoints import read_checkpoint
from adaptok.training.optim import OptimBase
from adaptok.training.steps import Steps, steps_per_epoch
from adaptok.utils.tables import read_metrics


def logged(folder, *keys):
    return {(r["step"], k): r[k] for r in read_metrics(folder) for k in keys if k in r}


def checkpoints(folder):
    return [read_checkpoint(folder / "checkpoints" / f"{name}.ckpt") for name in ("last", "best")]


@pytest.mark.parametrize(("batches", "accumulate"), [(5, 1), (5, 2), (9, 4), (3, 100)])
def test_a_gradient_is_the_mean_over_the_batches_of_its_step(tmp_path, batches, accumulate):
    module = Tiny(lr=1e-12, ema=0.0)  # the weights stay
    fit(module, tmp_path, batches, max_epochs=1, accumulate_grad_batches=accumulate)
    train, _ = loaders(batches)
    train.sampler.set_epoch(0)
    each = list(train)
    assert [len(seen) for seen, _ in module.gradients] == [
        min(accumulate, batches - first) for first in range(0, batches, accumulate)
    ]
    for seen, gradient in module.gradients:
        loss = sum(module.loss(each[i]) for i in seen) / len(seen)
        right = torch.cat([g.flatten() for g in torch.autograd.grad(loss, module.parameters())])
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-5)


def test_the_logged_loss_is_the_mean_over_the_batches_of_its_step(tmp_path):
    module = Tiny(lr=1e-12, ema=0.0)
    fit(module, tmp_path, 5, max_steps=2, accumulate_grad_batches=3)
    train, _ = loaders(5)
    losses = torch.stack([module.loss(batch) for batch in train])
    rows = logged(tmp_path, "train/loss")
    assert [step for step, _ in rows] == [1, 2]
    assert list(rows.values()) == pytest.approx(
        [losses[:3].mean().item(), losses[3:].mean().item()]
    )
    assert module.seconds_per_step == pytest.approx(module._total_seconds / 4 * 5 / 2)


@pytest.mark.parametrize(
    ("accumulate", "every", "end", "expected"),
    [
        (1, 4, {"max_steps": 12}, [4, 8, 12]),
        (6, 4, {"max_steps": 12}, [4, 8, 12]),
        (2, 2, {"max_steps": 3}, [2]),
        (20, 6, {"max_steps": 6}, [6]),
        (2, 1000, {"max_steps": 4}, [4]),
        (2, None, {"max_steps": 7}, [3, 6]),
        (2, None, {"max_epochs": 2}, [3, 6]),
        (2, 100, {"max_epochs": 2}, [6]),
    ],
)
def test_validations_are_counted_in_steps(tmp_path, accumulate, every, end, expected):
    """Every training has one and leaves both checkpoints."""
    module = Tiny()
    knobs = {"accumulate_grad_batches": accumulate, "val_check_interval": every}
    trainer = fit(module, tmp_path, **knobs, **end)
    assert module.validated == expected
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert read_checkpoint(tmp_path)["global_step"] == trainer.global_step


@pytest.mark.parametrize("wrong", [0, -1, 0.5, "1", True])
def test_an_interval_is_a_number_of_steps(wrong):
    with pytest.raises(ValueError, match="val_check_interval counts optimizer steps"):
        Steps(wrong)


@pytest.mark.parametrize("limit", [None, 4, 0.5, 100])
def test_steps_of_an_epoch_are_those_that_lightning_makes(tmp_path, limit):
    for batches, accumulate in ((9, 4), (5, 1), (3, 7)):
        knobs = {} if limit is None else {"limit_train_batches": limit}
        knobs |= {"max_epochs": 1, "accumulate_grad_batches": accumulate}
        trainer = fit(Tiny(), tmp_path, batches, limit_val_batches=0, **knobs)
        assert trainer.global_step == steps_per_epoch(batches, accumulate, limit)


@pytest.mark.parametrize(("accumulate", "every"), [(1, 5), (3, 2), (2, 3)])
def test_resumed_after_any_step_the_run_is_the_same(tmp_path, accumulate, every):
    """Bit for bit: weights, average, loops, best value and what is logged; validations too."""
    knobs = {"accumulate_grad_batches": accumulate, "val_check_interval": every}
    knobs |= {"max_steps": 7, "ema": 0.5}
    keys = ("train/loss", "val/vrmse", "lr")
    fit(Tiny(norm=True), tmp_path / "whole", **knobs)
    whole = checkpoints(tmp_path / "whole")
    rows = logged(tmp_path / "whole", *keys)
    for stop in range(every, 7, every):
        killed = tmp_path / str(stop)
        with pytest.raises(InterruptedError):
            fit(Tiny(norm=True), killed, callbacks={"kill": Kill(stop)}, **knobs)
        assert read_checkpoint(killed)["global_step"] == stop
        fit(Tiny(norm=True), killed, resume=killed / "checkpoints" / "last.ckpt", **knobs)
        for a, b in zip(whole, checkpoints(killed), strict=True):
            assert (a["loops"], a["callbacks"]) == (b["loops"], b["callbacks"])
            for key in ("state_dict", "averaged_state_dict"):
                for name, value in a[key].items():
                    assert torch.equal(value, b[key][name]), name
        assert logged(killed, *keys) == {k: v for k, v in rows.items() if k[0] > stop}


def test_a_shorter_run_is_resumed_from_its_end(tmp_path):
    """Its validation at the end was not one of the longer run."""
    knobs = {"accumulate_grad_batches": 3, "val_check_interval": 5, "ema": 0.5}
    fit(Tiny(), tmp_path / "whole", max_steps=9, **knobs)
    whole = read_checkpoint(tmp_path / "whole")
    for stop in (2, 3):
        folder = tmp_path / str(stop)
        fit(Tiny(), folder, max_steps=stop, **knobs)
        resume = folder / "checkpoints" / "last.ckpt"
        fit(Tiny(), folder, max_steps=9, resume=resume, **knobs)
        again = read_checkpoint(folder)
        for name, value in whole["state_dict"].items():
            assert torch.equal(again["state_dict"][name], value), (stop, name)
        rows, theirs = (logged(f, "train/loss") for f in (folder, tmp_path / "whole"))
        assert rows == {k: v for k, v in theirs.items() if k[0] > stop}


def test_no_validation_is_lost_and_none_counts_that_is_not_of_the_training(tmp_path):
    """When last.ckpt appears, its validation is over; other validations leave best.ckpt alone."""
    module = Tiny()
    with pytest.raises(InterruptedError):
        fit(module, tmp_path, max_steps=4, val_check_interval=2, callbacks={"k": Kill(2)})
    place = tmp_path / "checkpoints"
    best = (place / "best.ckpt").read_bytes()
    assert read_checkpoint(tmp_path)["global_step"] == 2
    knobs = {"accelerator": "cpu", "enable_progress_bar": False}
    for _ in range(2):
        module.model[1].weight.data.fill_(1.0)
        trainer = make_trainer(tmp_path, **knobs)
        trainer.validate(module, loaders(5)[1], verbose=False)
    assert (place / "best.ckpt").read_bytes() == best


def test_a_validation_that_is_not_finite_is_the_worst(tmp_path):
    class Diverging(Tiny):
        def validation_step(self, batch, batch_idx):
            value = {2: torch.nan, 4: 3.0, 6: torch.nan}[self.global_step]
            self.log("val/vrmse", torch.tensor(value))

    fit(Diverging(), tmp_path, max_steps=2, val_check_interval=2)
    assert read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == 2
    fit(Diverging(), tmp_path, max_steps=6, val_check_interval=2)
    assert read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == 4


@given(
    lr=st.floats(1e-9, 1.0),
    lr_start=st.floats(0, 1.0),
    lr_min=st.floats(0, 1.0),
    gamma=st.floats(0.01, 1.0),
    warmup_steps=st.integers(0, 20),
    decay=st.sampled_from(["exponential", "cosine"]),
)
def test_the_rate_is_never_above_lr_nor_below_its_bounds(**knobs):
    optim = OptimBase(gamma_steps=5, **knobs)
    rates = [optim.learning_rate(step, 40) for step in range(60)]
    assert max(rates) <= optim.lr * (1 + 1e-9)
    assert max(rates) >= optim.lr * (1 - 1e-9)  # and it is reached
    floor = min(optim.lr, optim.lr_min)
    assert min(rates[optim.warmup_steps :]) >= floor * (1 - 1e-9)


def test_a_rate_that_grows_is_refused():
    with pytest.raises(ValueError, match=r"optim.gamma must be .* got 1.1"):
        OptimBase(gamma=1.1)


def test_the_cosine_ends_with_the_training_given_in_epochs(tmp_path):
    module = Tiny(decay="cosine", lr=0.1, lr_min=0.01)
    fit(module, tmp_path, 5, max_epochs=4, accumulate_grad_batches=2)
    rates = list(logged(tmp_path, "lr").values())
    optim = module.optim
    assert rates == pytest.approx([optim.learning_rate(step, 12) for step in range(12)])
    assert rates[-1] < 0.02


def test_a_loss_that_is_not_finite_ends_the_fit(tmp_path):
    """Also in the middle of a step; nothing of it is saved."""
    module = Tiny()
    module.bad = lambda step, batch: step == 4 and batch == 2
    place = tmp_path / "checkpoints"
    reason = (
        rf"loss is not finite in step 5; the last good checkpoint is {place}/last.ckpt, of step 4"
    )
    knobs = {"max_steps": 9, "val_check_interval": 2, "accumulate_grad_batches": 2}
    with pytest.raises(ValueError, match=reason):
        fit(module, tmp_path, **knobs)
    saved = read_checkpoint(tmp_path)
    assert saved["global_step"] == 4
    assert all(v.isfinite().all() for v in saved["state_dict"].values())
    again = Tiny()
    again.bad = module.bad
    with pytest.raises(ValueError, match=reason):
        fit(again, tmp_path, resume=place / "last.ckpt", **knobs)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    module = Tiny()
    module.register_buffer("unused", torch.zeros(1))
    first = module.model[1].weight
    first.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(
        ValueError, match=r"weights are not finite after step 1; there is no checkpoint before"
    ):
        fit(module, tmp_path, max_steps=1)
    assert not (tmp_path / "checkpoints").exists()


def test_elsewhere_the_first_bad_step_is_read_when_a_value_is_logged(tmp_path, monkeypatch):
    """As on a GPU, on which no step waits for its loss: the right step is named all the same."""
    module = Tiny()
    module.bad = lambda step, batch: step == 3
    monkeypatch.setattr("adaptok.training.finite.reads_are_free", lambda tensor: False)
    with pytest.raises(ValueError, match=r"not finite in step 4; .*last.ckpt, of step 3"):
        fit(module, tmp_path, max_steps=20, log_every_n_steps=6, val_check_interval=3)
