"""Evaluation: the numbers are those that one would compute by hand, and the tables show them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import small_runs
import torch

from adaptok import create_schedule
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.evaluation.evaluate import evaluate, label_of, labels_of
from adaptok.evaluation.metrics import vrmse
from adaptok.evaluation.predictions import folder_name
from adaptok.evaluation.results import Results, markdown, write_results
from adaptok.registry import METRICS
from adaptok.tasks.surrogate import check_test
from adaptok.utils.auxiliary import report_figure
from adaptok.utils.tables import table


@pytest.fixture(scope="module")
def parts():
    config = plain(compose("train", small_runs.train()))
    data = build_data(config)
    torch.manual_seed(0)
    return build_surrogate(config, data.info), data


def test_one_step_errors_by_hand(parts):
    surrogate, data = parts
    errors = []
    for batch in data.loader("test"):
        with torch.no_grad():
            out = surrogate(
                batch["input"], constants=batch["constants"], boundary=batch["boundary"], budget=10
            )
        errors.append(vrmse(out, batch["target"], 2)[:, 0])
    errors = torch.cat(errors)  # (n, c)
    row = evaluate(surrogate, data, settings=[{"budget": 10}], device="cpu").settings[0]
    assert row.vrmse.mean == pytest.approx(errors.mean().item())
    assert row.vrmse.median == pytest.approx(errors.mean(1).quantile(0.5).item())
    for i, field in enumerate(data.info.fields):
        assert row.vrmse.fields[field].mean == pytest.approx(errors[:, i].mean().item())
    assert row.tokens == (10, 10, 10)
    assert row.seconds["total"] > 0


def test_rollout_errors_by_hand(parts):
    surrogate, data = parts
    batch = next(iter(data.rollout_loader("test", 3)))
    schedule = create_schedule({"name": "cyclic", "settings": [{"budget": 10}, {"budget": 22}]})
    known = {"constants": batch["constants"], "boundary": batch["boundary"]}
    out = surrogate.rollout(batch["input"], 3, settings=schedule, **known)
    expected = vrmse(out, batch["target"], 2).mean((0, 2))
    setting = {"name": "cyclic", "settings": [{"budget": 10}, {"budget": 22}]}
    results = evaluate(surrogate, data, settings=[setting], steps=3, device="cpu")
    assert results.settings[0].rollout.mean == pytest.approx(expected.tolist())
    assert results.settings[0].tokens.min == 10
    assert results.settings[0].tokens.max == 22


def test_a_perfect_model_has_no_error(parts):
    surrogate, data = parts
    truth = {
        tuple(field.flatten().tolist()): target
        for batch in data.loader("valid")
        for field, target in zip(batch["input"], batch["target"], strict=True)
    }

    class Oracle(type(surrogate)):
        def forward(self, field, **known):
            super().forward(field, **known)  # for the tokens
            return torch.stack([truth[tuple(f.flatten().tolist())] for f in field])

    surrogate.__class__, before = Oracle, surrogate.__class__
    try:
        results = evaluate(surrogate, data, split="valid", device="cpu")
    finally:
        surrogate.__class__ = before
    assert results.settings[0].vrmse.mean == 0
    assert results.settings[0].spectral_nmse == [0, 0, 0]
    assert results.persistence.vrmse.mean > 0.01


def test_a_diverged_rollout_is_null_and_says_so(parts, tmp_path):
    surrogate, data = parts
    with torch.no_grad():
        weight = surrogate.decoder.levels[0].weight
        before = weight.clone()
        weight.fill_(float("inf"))
    try:
        results = evaluate(surrogate, data, settings=[{"budget": 4}], device="cpu")
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert results.settings[0].vrmse.mean is None
    write_results(results.to_json(), markdown(results), tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == results.to_json()
    assert "diverged" in (tmp_path / "metrics.md").read_text()


def test_report_shows_every_setting_field_and_step(parts, tmp_path):
    surrogate, data = parts
    settings = [{"budget": 10}, {"budget": 22}]
    results = evaluate(surrogate, data, settings=settings, steps=2, device="cpu")
    files = write_results(results.to_json(), markdown(results), tmp_path)
    assert [file.name for file in files] == ["metrics.json", "metrics.md"]
    assert json.loads(files[0].read_text()) == results.to_json()
    text = files[1].read_text()
    assert text == markdown(results)
    for part in ("persistence", "budget=10", "budget=22", "velocity_x", "step 2"):
        assert part in text
    assert f"{results.settings[1].vrmse.mean:.4f}" in text


def test_a_rollout_of_more_tokens_than_one_step_is_said(parts):
    surrogate, data = parts
    results = evaluate(surrogate, data, settings=[{"budget": 10}], steps=2, device="cpu")
    assert "Careful" not in markdown(results)
    row = results.settings[0]
    assert row.rollout is not None
    drifted = dataclasses.replace(row, rollout=dataclasses.replace(row.rollout, tokens=[12, 31]))
    text = markdown(dataclasses.replace(results, settings=[drifted]))
    said = "the rollout (budget=10) used 22 tokens per sample and step, one step from true frames "
    assert f"{said}10" in text


def test_results_survive_json(parts):
    surrogate, data = parts
    results = evaluate(surrogate, data, settings=[{"budget": 10}], steps=1, device="cpu")
    assert Results.from_json(results.to_json()) == results
    old = results.to_json()  # before costs were counted
    row, blank = old["settings"][0], old["persistence"]
    old["settings"] = [{k: row[k] for k in ("label", "tokens", "seconds_per_step", "vrmse")}]
    old["persistence"] = {"vrmse": blank["vrmse"]}
    again = Results.from_json(old | {"parameters_of_old": 3})
    assert again.settings[0].vrmse == results.settings[0].vrmse
    assert again.settings[0].seconds == {"total": row["seconds_per_step"]}
    assert again.settings[0].flops is again.persistence.rollout is None


def test_a_registered_metric_is_tested_and_shown(parts, monkeypatch):
    surrogate, data = parts
    monkeypatch.setitem(METRICS._factories, "bias", lambda p, t, ndim: (p - t).mean((-2, -1)).abs())
    results = evaluate(surrogate, data, settings=[{"budget": 10}], device="cpu")
    values = results.to_json()
    row = values["settings"][0]
    assert row["bias"].keys() == row["vrmse"].keys() == {"mean", "median", "fields"}
    assert row["bias"]["fields"].keys() == row["vrmse"]["fields"].keys()
    assert isinstance(row["nrmse"], float)
    assert values["persistence"].keys() == {"vrmse", "bias"}
    assert "bias mean" in markdown(results)
    assert f"{row['bias']['mean']:.4f}" in markdown(results)
    assert Results.from_json(values) == results


@pytest.mark.parametrize(
    ("name", "metric", "match"),
    [
        ("tokens", vrmse, "'tokens'"),
        ("total", lambda p, t, ndim: (p - t).mean(), r"'total' .*got \(\)"),
    ],
)
def test_metrics_that_break_the_contract(parts, monkeypatch, name, metric, match):
    monkeypatch.setitem(METRICS._factories, name, metric)
    with pytest.raises(ValueError, match=match):
        evaluate(*parts, device="cpu")
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=match):  # before the training, too
        check_test(*parts, {"steps": 1, "settings": [{}]})
    assert torch.equal(state, torch.get_rng_state())  # what is trained does not depend on it


def test_figures_that_a_part_reports_are_averaged(parts):
    surrogate, data = parts
    seen = []

    def report(_, args):
        seen.append((float(len(seen) + 1), args[0].cells.batch_size))
        report_figure("gate/rate", torch.tensor(seen[-1][0]))

    handle = surrogate.processor.register_forward_pre_hook(report)
    try:
        results = evaluate(surrogate, data, device="cpu").to_json()
    finally:
        handle.remove()
    rate = results["settings"][0]["auxiliary"]["gate/rate"]
    assert 1 <= rate <= len(seen)
    row = evaluate(surrogate, data, device="cpu").to_json()["settings"][0]
    assert "auxiliary" not in row
    batch = next(iter(data.loader("test", 1)))  # one batch is counted in tests
    scored = surrogate.scored(batch["input"], batch["constants"])
    found = surrogate.tokenizer.certificate(scored, boundary=batch["boundary"])
    assert row["certificate"] == pytest.approx(float(found.mean()))


def test_mistakes(parts):
    surrogate, data = parts
    with pytest.raises(ValueError, match=r"unknown control 'bugdet' .*controls: budget"):
        evaluate(surrogate, data, settings=[{"bugdet": 3}])
    with pytest.raises(ValueError, match="at least"):
        evaluate(surrogate, data, settings=[])
    with pytest.raises(ValueError, match="tset"):
        evaluate(surrogate, data, split="tset")
    for wrong in ([4], [4, 4, 4]):
        with pytest.raises(ValueError, match=r"patch_size must be one number or 2, one per space"):
            evaluate(surrogate, data, patch_size=wrong)
        with pytest.raises(ValueError, match=r"test\.patch_size must be one number or 2"):
            check_test(surrogate, data, {"steps": 1, "settings": [{}], "patch_size": wrong})


def test_a_period_of_one_point_is_left_out(parts):
    (row,) = evaluate(*parts, steps=1, device="cpu", patch_size=[4, 1]).settings
    assert len(row.rollout.patch_harmonics) == 1


def test_labels_and_tables():
    assert label_of({}) == "as built"
    assert label_of({"budget": 3, "patch_size": 4}) == "budget=3, patch_size=4"
    cycle = {"name": "cyclic", "settings": [{"budget": 3}, {"budget": 4}]}
    assert label_of(cycle) == "cyclic budget=3 / budget=4"  # no bar: it stands in tables
    drawn = [{"name": "random", "seed": seed, "settings": [{"budget": 3}]} for seed in (0, 1)]
    assert label_of(drawn[1]) == "random seed=1 budget=3"
    assert labels_of([*drawn, {}, drawn[0], {}, {}]) == [
        *("random seed=0 budget=3", "random seed=1 budget=3", "as built"),
        *("random seed=0 budget=3 (2)", "as built (2)", "as built (3)"),
    ]


def test_folders_of_long_labels_differ():
    labels = [" / ".join(f"budget={n}" for n in range(40)) + end for end in ("", "!")]
    names = {folder_name(label) for label in labels}
    assert len(names) == 2
    assert max(map(len, names)) < 120
    lines = table(["a", "value"], [["long name", "1"]]).splitlines()
    assert lines == ["| a         | value |", "| --------- | ----: |", "| long name |     1 |"]
