"""Training for rollouts: curricula of steps and noise, as settings of a schedule."""

from __future__ import annotations

import dataclasses

import pytest
import small_runs
import torch

import adaptok
from adaptok.config.build import build_data
from adaptok.config.channels import conserved, with_channels
from adaptok.config.menu import compose, plain
from adaptok.evaluation.results import Results
from adaptok.models.schedules import longest_unroll
from adaptok.tasks.surrogate import fit_and_test
from adaptok.training.optim import Optim
from adaptok.training.surrogate_module import SurrogateModule


def module_of(settings, *, name="fixed", unroll=1, **more) -> SurrogateModule:
    torch.manual_seed(0)
    tokenizer = {"name": "iap", "max_size": 4, "budget": 10}
    model = adaptok.create_surrogate(
        ndim=2, in_channels=2, tokenizer=tokenizer, dim=8, depth=1, heads=1, normalise="dataset"
    )
    model.set_statistics(torch.zeros(2), torch.tensor([1.0, 100.0]), torch.ones(2))
    schedule = adaptok.create_schedule({"name": name, "settings": settings, **more})
    return SurrogateModule(model, Optim(unroll=unroll), schedule)


def batch_of(frames: int = 3):
    torch.manual_seed(1)
    field = torch.randn(2, frames + 1, 2, 8, 8) * torch.tensor([1.0, 100.0]).view(2, 1, 1)
    boundary = torch.full((2, 2, 2), 2)
    return {"input": field[:, :1], "target": field[:, 1:], "boundary": boundary}


def test_stages_follow_one_another():
    chosen = [{"unroll": 1}, {"unroll": 2}, {"budget": 3}]
    part = {"name": "stages", "settings": chosen}
    found = [adaptok.create_schedule(part | {"steps": [2, 1]})(step) for step in range(5)]
    assert found == [chosen[0], chosen[0], chosen[1], chosen[2], chosen[2]]
    even = adaptok.create_schedule(part | {"steps": 2})
    assert [even(step) for step in (1, 2, 3, 4, 99)] == [chosen[i] for i in (0, 1, 1, 2, 2)]
    only = adaptok.create_schedule({"name": "stages", "settings": [{}]})
    assert only(0) == only(10**6) == {}
    for steps in ([2], [1, 1, 1]):
        with pytest.raises(ValueError, match="2 numbers of steps"):
            adaptok.create_schedule(part | {"steps": steps})
    with pytest.raises(ValueError, match="steps"):
        adaptok.create_schedule(part | {"steps": 0})


def test_a_curriculum_is_unroll_step_by_step():
    batch = batch_of()
    made = module_of([{"unroll": 1}, {"unroll": 3}], name="stages", steps=2)
    for step, unroll in ((0, 1), (1, 1), (2, 3)):
        plain_module = module_of([{}], unroll=unroll)
        torch.testing.assert_close(made.loss(batch, step), plain_module.loss(batch, step))
    with pytest.raises(ValueError, match="unroll=3 needs"):
        made.loss(batch_of(2), 2)
    assert longest_unroll([{"unroll": 2}, {"noise": 0.1}], 1) == 2
    assert longest_unroll([{}], 4) == 4
    for wrong in ({"unroll": 0}, {"noise": -1.0}, {"noise": "much"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            longest_unroll([wrong], 1)


def test_noise_is_on_what_is_read_and_targets_stay():
    batch, noise = batch_of(), 0.1
    module = module_of([{"noise": noise}])
    torch.manual_seed(5)
    made = module.loss(batch, 0)
    torch.manual_seed(5)
    std = torch.tensor([1.0, 100.0]).view(2, 1, 1)
    seen = batch["input"] + noise * std * torch.randn_like(batch["input"])
    error = (module.surrogate(seen, boundary=batch["boundary"]) - batch["target"][:, :1]) / std
    torch.testing.assert_close(made, error.square().mean())
    torch.manual_seed(6)
    assert module.loss(batch, 0) != made
    clean = module_of([{}]).loss(batch, 0)
    torch.testing.assert_close(module_of([{"noise": 0}]).loss(batch, 0), clean)
    assert torch.equal(module.predict(batch, 0), module_of([{}]).predict(batch, 0))  # validation


def test_conserved_fields_by_name():
    fields = ("density", "pressure")
    config = {"decoder": {"name": "conservative", "channels": ["pressure", 0]}}
    assert with_channels(config, fields, (), "decoder")["channels"] == [1, 0]
    assert conserved({"conserve": ["pressure"]}, fields) == [1]
    assert conserved({"conserve": "all"}, fields) == "all"
    assert conserved({}, fields) is None
    with pytest.raises(ValueError, match="each of conserve"):
        conserved({"conserve": ["presure"]}, fields)


@pytest.mark.slow
def test_a_run_with_all_of_it(tmp_path):
    """From the command line's configuration to the results of rollouts."""
    chosen = [
        *("schedule=stages", "schedule.steps=1", "trainer.max_steps=3", "conserve=all"),
        "schedule.settings=[{jitter: 0, noise: 0.01}, {budget: 22, unroll: 2}]",
        "test.settings=[{budget: 22}, {budget: 22, jitter: 0}, {budget: 22, hysteresis: 0.5}, "
        "{budget: 22, goal: {region: [[0, 4], 8], channels: [pressure]}}, "
        "{budget: 22, reuse: 0.3}]",
        "test.steps=3",
    ]
    config = plain(compose("train", [*small_runs.train(), *chosen]))
    assert build_data(config).target_steps == 2
    run = fit_and_test(config, tmp_path)
    free, jittered, kept, sensed, reused = (row.rollout for row in run.results.settings)
    assert jittered.flicker is None
    assert free.flicker[0] is kept.flicker[0] is None
    assert sum(kept.flicker[1:]) <= sum(free.flicker[1:])
    assert (free.tokens, jittered.tokens) == ([22] * 3, [21] * 3)  # of the padded domain
    assert sensed.seconds > free.seconds
    assert sensed.mean != free.mean
    assert sensed.tokens == free.tokens
    assert reused.reused[0] == 0 < reused.reused[1] <= 1
    assert free.reused is None
    assert [*free.sums] == run.results.fields
    assert all(len(off) == 3 and min(off) > 0 for off in free.sums.values())  # it has open ends
    text = (tmp_path / "metrics.md").read_text()
    assert "share of cells that are new" in text
    assert "seconds per step of a batch, and tokens" in text
    assert "that they kept from the steps before" in text
    assert "how far sums are off" in text
    again = Results.from_json(run.results.to_json())
    assert again.settings[2].rollout.flicker == kept.flicker
    assert dataclasses.asdict(run.model.options)["conserve"] == "all"
