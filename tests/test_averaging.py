"""Averaged weights are where they should be, in every phase.

Other places of the kind "state that outlives its phase" were searched by listing the attributes
that callbacks and modules of adaptok/training and adaptok/tasks assign outside of ``__init__``, and
asking of each what `validate`, `save_checkpoint` and a second fit after the first do with it.
"""

from __future__ import annotations

import pytest
import torch
from tiny_fits import Kill, Tiny, fit, loaders

from adaptok.training import make_trainer
from adaptok.training.checkpoints import read_checkpoint

KNOBS = {"ema": 0.9, "max_steps": 6, "val_check_interval": 6}


def value(trainer, module):
    return trainer.validate(module, loaders(5)[1], verbose=False)[0]["val/vrmse"]


@pytest.mark.parametrize("norm", [False, True])
def test_after_the_fit_the_average_is_validated_and_saved(tmp_path, norm):
    module = Tiny(norm=norm)
    trainer = fit(module, tmp_path, **KNOBS)
    last = read_checkpoint(tmp_path)
    inside = float(trainer.callback_metrics["val/vrmse"])
    fresh = make_trainer(tmp_path / "b", accelerator="cpu", enable_progress_bar=False)
    for _ in range(2):  # it changes nothing
        assert value(trainer, module) == pytest.approx(inside, rel=1e-6)
        assert value(fresh, module) == pytest.approx(inside, rel=1e-6)
        for number, one in enumerate((trainer, fresh)):
            path = tmp_path / f"{number}.ckpt"
            one.strategy.connect(module)
            one.save_checkpoint(path)
            again = read_checkpoint(path)
            averaged = again.get("averaged_state_dict", again["state_dict"])
            for name, tensor in last["averaged_state_dict"].items():
                assert torch.equal(averaged[name], tensor), name
    again = read_checkpoint(tmp_path / "0.ckpt")
    for name, tensor in last["state_dict"].items():
        assert torch.equal(again["state_dict"][name], tensor), name
    weight = "model.1.weight"
    assert not torch.equal(last["state_dict"][weight], last["averaged_state_dict"][weight])


def test_statistics_of_batch_norms_are_averaged_like_weights(tmp_path):
    seen = []

    class Watched(Tiny):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            seen.append({k: v.clone() for k, v in self.model[0].state_dict().items()})

    module = Watched(norm=True)
    fit(module, tmp_path, **KNOBS)
    expected = seen[0]
    for state in seen[1:]:
        for name, tensor in state.items():
            own = 0.9 * expected[name] + 0.1 * tensor
            expected[name] = own if tensor.is_floating_point() else tensor
    assert "running_var" in expected
    for name, tensor in module.model[0].state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_an_interrupted_validation_mixes_nothing_up(tmp_path):
    """The average is in the model then; what is saved and validated next is right all the same."""

    class Interrupted(Tiny):
        broken = False

        def validation_step(self, batch, batch_idx):
            if self.broken:
                raise InterruptedError
            super().validation_step(batch, batch_idx)

    fit(Tiny(), tmp_path / "whole", **KNOBS)
    whole = read_checkpoint(tmp_path / "whole")
    module = Interrupted()
    module.broken = True
    trainer = make_trainer(tmp_path, accelerator="cpu", enable_progress_bar=False, **KNOBS)
    with pytest.raises(InterruptedError):
        trainer.fit(module, *loaders(5))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = read_checkpoint(tmp_path / "after.ckpt")
    for key in ("state_dict", "averaged_state_dict"):
        for name, tensor in whole[key].items():
            assert torch.equal(saved[key][name], tensor), (key, name)


def test_a_second_fit_starts_afresh(tmp_path):
    """Its time, its average and its checkpoints are not those of the first."""
    module = Tiny()
    trainer = fit(module, tmp_path, **KNOBS)
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(module, *loaders(5))
    assert module._total_batches == 2
    assert value(trainer, module) == pytest.approx(value(trainer, module))
    other = Tiny()
    with pytest.raises(InterruptedError):
        fit(other, tmp_path / "other", callbacks={"k": Kill(3)}, **KNOBS)
    assert other._first_step == 0
