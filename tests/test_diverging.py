"""What a model makes of itself is no input: rollouts that diverge give results all the same.

Other places of the kind "own output checked as if it were input" were searched by following every
call of `as_field`, `rollout` and `predict` back to where its field comes from, and "a result that
JSON or a table cannot hold" by following `write_results` and `markdown` back to every number.
"""

from __future__ import annotations

import json

import pytest
import small_runs
import torch

from adaptok import cli, create_schedule, create_surrogate
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.evaluation.evaluate import evaluate, median
from adaptok.evaluation.results import Results, markdown, write_results
from adaptok.models.diverging import LIMIT, usable
from adaptok.plots import pictures
from adaptok.report.figures import log_ticks, span
from adaptok.tasks.classify.module import is_right
from adaptok.training import SurrogateModule
from adaptok.training.optim import Optim

TOKENIZERS = ("uniform", "iap", "apt", "matey")


def growing(tokenizer="uniform", factor=1e18, **options):
    torch.manual_seed(0)
    model = create_surrogate(
        ndim=2, in_channels=2, tokenizer=tokenizer, dim=16, depth=1, heads=2, **options
    ).eval()
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(factor)
    return model


def field(batch=2):
    return torch.randn(batch, 2, 32, 32)


@pytest.mark.parametrize("normalise", ["sample", "dataset", "none"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_rollout_that_diverges_is_nan_from_there_on(tokenizer, normalise):
    out = growing(tokenizer, normalise=normalise).rollout(field(), 6)
    finite = out.isfinite().flatten(2).all(2)
    assert finite[:, 0].all()
    assert not finite[:, -1].any()
    assert out[:, -1].isnan().all()
    assert (finite.int().diff(dim=1) <= 0).all()  # it never comes back


def test_the_other_samples_are_not_affected():
    model, x = growing(factor=1.0), field(3)
    alone = model.rollout(x[:1], 4)
    made = model.forward

    def forward(window, **given):
        out = made(window, **given)
        out[1] = torch.inf  # this sample blows up in the first step
        return out

    model.forward = forward
    out = model.rollout(x, 4)
    torch.testing.assert_close(out[:1], alone)
    assert out[1, 1:].isnan().all()


def test_a_list_of_fields_diverges_one_by_one():
    model = growing()
    out = model.rollout([torch.randn(2, 32, 32), torch.zeros(2, 16, 32)], 6)
    assert [x.shape for x in out] == [(6, 2, 32, 32), (6, 2, 16, 32)]
    assert out[0][-1].isnan().all()


def test_what_has_diverged():
    """Not finite, or grown beyond what the tokenizers can square; nothing else is touched."""
    start, unit = torch.ones(5, 1, 1, 4), torch.tensor(1.0)
    window = start.clone()
    window[1, 0, 0, 2], window[2, 0, 0, 0], window[3, 0, 0, 0] = torch.nan, -torch.inf, 2 * LIMIT
    window[4] = LIMIT / 2
    out, fine = usable(window, start, unit)
    assert fine.flatten().tolist() == [True, False, False, False, True]
    assert torch.equal(out[1:4], start[1:4])
    assert torch.equal(out[4], window[4])
    zero = torch.zeros(1, 1, 1, 4)
    assert usable(zero + 100.0, zero, unit)[1].all()  # a start of zeros has no size
    tiny = torch.full((1, 1, 1, 4), 1e-30)
    assert usable(tiny * 10, tiny, torch.tensor(1e-30))[1].all()


def test_gradients_of_a_rollout_that_diverges_are_no_error():
    model, x = growing(factor=1.0), field().requires_grad_()
    model.rollout(x, 3, grad=True).square().mean().backward()
    assert x.grad.isfinite().all()


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    config = plain(compose("train", small_runs.train()))
    data = build_data(config)
    torch.manual_seed(0)
    model = build_surrogate(config, data.info)
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(1e18)
    folder = tmp_path_factory.mktemp("diverged")
    results = evaluate(model, data, steps=5, device="cpu", predictions=folder / "predictions")
    return model, data, results, folder


@pytest.mark.slow
def test_an_evaluation_has_none_from_there_on(diverged, capsys):
    """And metrics.json, tables, predictions and pictures are there."""
    model, data, results, folder = diverged
    row = results.settings[0]
    assert row.vrmse.mean is not None
    assert row.rollout.mean[0] is not None
    assert row.rollout.mean[-1] is None
    assert row.rollout.median[-1] is None
    assert row.rollout.spectral_nmse[-1] == [None] * 3
    write_results(results.to_json(), markdown(results), folder)
    there = json.loads((folder / "metrics.json").read_text())
    assert there["settings"][0]["rollout"]["mean"][-1] is None
    assert Results.from_json(there).settings[0].rollout.mean == row.rollout.mean
    assert "diverged" in (folder / "metrics.md").read_text()
    assert list((folder / "predictions").rglob("*.hdf5"))
    pictures.of_run(model, data, results, folder, video="gif")
    said = "no pictures and no film of the rollout: it diverged (as built)"
    assert said in capsys.readouterr().out
    assert list((folder / "pictures").glob("*.png"))


def test_weights_that_are_not_finite_are_tested_too():
    config = plain(compose("train", small_runs.train()))
    data = build_data(config)
    model = build_surrogate(config, data.info)
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.fill_(torch.nan)
    results = evaluate(model, data, steps=3, device="cpu")
    assert results.settings[0].vrmse.mean is None
    assert results.settings[0].rollout.mean == [None] * 3
    assert results.persistence.vrmse.mean is not None
    json.dumps(results.to_json(), allow_nan=False)


def test_an_unrolled_loss_that_diverges_is_not_finite_and_no_error():
    """The training then stops with its reason, not with one about the data."""
    config = plain(compose("train", [*small_runs.train(), "optim.unroll=3"]))
    data = build_data(config)
    torch.manual_seed(0)
    model = build_surrogate(config, data.info)
    module = SurrogateModule(model, Optim(**config["optim"]), create_schedule("fixed"))
    batch = next(iter(data.train_dataloader()))
    assert module.loss(batch, 0).isfinite()
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(1e30)
    assert not module.loss(batch, 0).isfinite()


@pytest.mark.slow
def test_the_command_says_why_a_training_stopped(tmp_path, capsys):
    """And its last checkpoint can be tested, whatever becomes of its rollouts."""
    run = tmp_path / "run"
    words = [*small_runs.data(), "model=fno", *small_runs.RUN, f"hydra.run.dir={run}"]
    words += ["optim.lr=1e6", "trainer.max_steps=12", "trainer.val_check_interval=2"]
    assert cli.main(["train", *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    place = run / "checkpoints" / "last.ckpt"
    assert last.startswith("adaptok: error: the training loss is not finite in step 3; the last")
    assert f"good checkpoint is {place}, of step 2" in last
    assert not (run / "metrics.json").exists()
    out = tmp_path / "eval"
    assert cli.main(["eval", f"ckpt={run}", "steps=4", f"hydra.run.dir={out}"]) == 0
    (row,) = json.loads((out / "metrics.json").read_text())["settings"]
    assert row["rollout"]["mean"] == [None] * 4
    assert "diverged" in capsys.readouterr().out


def test_ticks_of_values_with_infinity():
    """A validation of a run that diverges may be that."""
    assert log_ticks([1.0, 10.0, float("inf"), None]) == log_ticks([1.0, 10.0])
    assert span([1.0, 10.0, float("inf")]) == 10.0


def test_logits_that_are_not_finite_are_wrong_answers():
    logits = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan], [torch.inf, 0.0], [0.0, 1.0]])
    assert is_right(logits, torch.tensor([0, 0, 0, 0])).tolist() == [True, False, False, False]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_medians_of_even_counts_are_the_mean_of_the_middle_two(n):
    """Searched: `median`, `quantile`, `kthvalue`, `sort` and ``[len(x) // 2]`` in adaptok/,
    benchmarks/ and experiments/; the other medians are those of `statistics`, which are right."""
    import statistics

    values = torch.rand(n, 3)
    for column, got in zip(values.unbind(1), median(values), strict=True):
        assert got.item() == pytest.approx(statistics.median(column.tolist()))
    assert median(torch.tensor([1.0, torch.nan])).isnan()
