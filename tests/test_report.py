"""Reports: reading whatever lies in run folders, grouping, ranks, fronts, tables."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import report_runs as make
import small_runs
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adaptok.cli import main
from adaptok.cli.reporting import parsed
from adaptok.report import (
    group_runs,
    pareto_front,
    read_runs,
    reading,
    spread,
    summaries,
    tidy_rows,
    verdicts,
    write_report,
)
from adaptok.report.colors import Look
from adaptok.report.configs import significant
from adaptok.report.contents import contents_of, not_finished
from adaptok.report.curve_figures import learning_panels, spectrum_panels
from adaptok.report.figures import cost_ticks, traces
from adaptok.report.grouping import label_keys
from adaptok.report.summaries import ranks, transfers
from adaptok.report.tables import results_sheet, rollout_sheet, seeds_cell, transfer_sheet
from adaptok.report.writing import markdown_report
from adaptok.utils.keys import NEW_RUN, ROLES, counts


def rows_of(root: Path, by: tuple[str, ...] = ()):
    return summaries(group_runs(read_runs(root).runs, by))


def ranked(rows):
    return zip(rows, ranks(rows, "vrmse"), strict=True)


def column(sheet, title: str) -> list:
    """Cells of a column, by the beginning of its title."""
    return next(cells for name, cells in sheet.columns.items() if name.startswith(title))


@pytest.fixture
def sweep(tmp_path) -> Path:
    """uniform and iap with three seeds each."""
    for kind in ("uniform", "iap"):
        for seed in range(3):
            make.write_surrogate(tmp_path, kind, seed)
    return tmp_path


# Reading


def test_a_run_is_read_whole(tmp_path):
    folder = make.write_surrogate(tmp_path, "iap", 3, tests=(None, 128))
    (run,), problems = read_runs(tmp_path)
    assert not problems
    assert (run.folder, run.status, run.seed, run.kind) == (folder, "finished", 3, "iap")
    assert (run.data, run.split, run.budget, run.reference) == ("maze", "test", 256, 0.345)
    assert run.environment["hardware"] == "x86_64, 2 cores, 1 thread"
    stored = json.loads((folder / "metrics.json").read_text())["settings"]
    first, second = run.results
    assert first.get("vrmse") == stored[0]["vrmse"]["mean"]
    assert first.get("flops") == stored[0]["flops"]["total"]
    assert first.get("flops_processor") == 2e9
    assert first.get("nmse_high") == stored[0]["spectral_nmse"][2]
    assert first.get("rollout_last") == stored[0]["rollout"]["mean"][-1]
    assert first.curves["power"] == stored[0]["rollout"]["residual_spectrum"]["power"]
    assert (first.budget, second.budget, run.home) == (None, 128, first)
    assert len(run.curve) == 54
    assert [row["step"] for row in run.curve] == sorted(row["step"] for row in run.curve)


def test_every_number_of_the_file_is_in_the_table(tmp_path):
    folder = make.write_surrogate(tmp_path, "iap", 0)
    (row,) = tidy_rows(read_runs(tmp_path).runs)
    stored = json.loads((folder / "metrics.json").read_text())
    for name in ("seconds_per_step", "peak_memory", "nrmse"):
        assert row[name] == stored["settings"][0][name]
    assert row["training_seconds"] == 450.0
    assert (row["parameters"], row["torch"], row["persistence"]) == (487068, "2.15.0", 0.345)
    assert row["vrmse.velocity_x"] == stored["settings"][0]["vrmse"]["fields"]["velocity_x"]["mean"]
    assert row["beats_persistence"] is True


def test_runs_of_older_versions_lack_entries(tmp_path):
    """What metrics.json held before there were environments, FLOPs and spectra."""
    folder = make.write_surrogate(tmp_path, "iap", 0)
    results = json.loads((folder / "metrics.json").read_text())
    row = results["settings"][0]
    kept = ("label", "setting", "tokens", "seconds_per_step", "vrmse")
    old = {k: results[k] for k in ("data", "split", "fields", "persistence", "parameters")}
    del old["persistence"]["rollout"]
    old["settings"] = [{k: row[k] for k in kept}]
    (folder / "metrics.json").write_text(json.dumps(old))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["model"], config["task"], config["schedule"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    make.write_surrogate(tmp_path, "iap", 1)
    groups = group_runs(read_runs(tmp_path).runs)
    assert [(g.label, g.seeds) for g in groups] == [("iap", [0, 1])]
    assert "not recorded (1 runs)" in markdown_report(contents_of(read_runs(tmp_path), groups))


def test_baselines_have_no_tokens_and_no_tokenizer(tmp_path):
    for kind in ("fno", "unet", "persistence"):
        make.write_surrogate(tmp_path, kind, 0)
    make.write_surrogate(tmp_path, "iap", 0)
    sheet = results_sheet(rows_of(tmp_path))
    labels = [cell.text for cell in column(sheet, "model")]
    assert labels == ["persistence", "fno", "iap", "persistence", "unet"]
    assert [cell.text for cell in column(sheet, "tokens")] == [
        "", "–", "256 (205 to 333)", "–", "–",
    ]  # fmt: skip
    assert {run.kind for run in read_runs(tmp_path).runs} == {"fno", "unet", "persistence", "iap"}


def test_a_pretraining_run_is_a_run_per_set(tmp_path):
    sets = {"maze": "maze", "big_blast": "blast"}  # names in the configuration and in the files
    config = make.config_of("matey", 0, task="pretrain", data=[{"name": name} for name in sets])
    make.write_run(tmp_path / "pre", config, None)
    for name, inside in sets.items():
        folder = tmp_path / "pre" / name
        folder.mkdir()
        results = make.results_of([make.row_of(0.1, 256.0)], inside)
        (folder / "metrics.json").write_text(json.dumps(results))
    runs, problems = read_runs(tmp_path)
    assert not problems
    assert [(run.data, run.config["data.name"], run.status) for run in runs] == [
        ("blast", "big_blast", "finished"),
        ("maze", "maze", "finished"),
    ]
    assert all(len(run.curve) == 54 for run in runs)


def test_classifiers_have_accuracy_and_chance(tmp_path):
    for kind, accuracy in (("apt", 0.84), ("uniform", 0.76), ("random", 0.05)):
        for seed in range(2):
            make.write_classifier(tmp_path, kind, seed, accuracy + 0.01 * seed)
    rows = rows_of(tmp_path)
    assert [row.group.label for row in rows] == ["apt", "random", "uniform"]
    assert ranks(rows, "accuracy", lower=False) == [1, None, 2]  # random is worse than chance
    sheet = results_sheet(rows)
    assert column(sheet, "accuracy")[1].text == "0.8450 ± 0.0071"
    assert column(sheet, "accuracy")[0].text == "0.1000"
    (verdict,) = verdicts(rows)
    assert (verdict.counts, verdict.without) == (True, ["random"])
    assert verdict.reasons == ["not better than chance: random"]


def evaluation_of(folder: Path, target: Path, rows: list[dict]) -> Path:
    """What `adaptok eval` writes for a run."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    wanted = {"name": "eval", "ckpt": str(folder), "split": "test", "device": "cpu", "steps": 8}
    results = make.results_of(rows) | {"checkpoint": str(folder / "checkpoints" / "last.ckpt")}
    return make.write_run(target, config | wanted, results, curve=False)


def test_an_evaluation_joins_the_run_that_it_is_of(tmp_path):
    """The newest result counts at each setting, and no seed is counted twice."""
    folders = [make.write_surrogate(tmp_path, "iap", seed, error=0.1) for seed in range(2)]
    again = [make.row_of(0.05, 256.0), make.row_of(0.2, 64.0, 64)]
    evaluation_of(folders[0], tmp_path / "eval", again)
    read = read_runs(tmp_path)
    (group,) = group_runs(read.runs)
    assert group.seeds == [0, 1]
    built, other = summaries([group])
    assert [(run.seed, result.get("vrmse")) for run, result in built.pairs] == [(0, 0.05), (1, 0.1)]
    assert [(run.seed, result.get("vrmse")) for run, result in other.pairs] == [(0, 0.2)]
    assert verdicts([built])[0].reasons == ["there is nothing to compare it with"]  # has a curve
    assert contents_of(read, [group]).warnings == []


# Bad input


@pytest.fixture
def bad(sweep) -> Path:
    """The sweep, and everything that can be wrong beside it."""
    (sweep / "empty").mkdir()
    (sweep / "only_hydra" / ".hydra").mkdir(parents=True)
    (sweep / "only_hydra" / ".hydra" / "config.yaml").write_text("seed: 0")
    half = make.write_surrogate(sweep, "apt", 0)
    text = (half / "metrics.json").read_text()
    (half / "metrics.json").write_text(text[: len(text) // 2])
    (make.write_surrogate(sweep, "apt", 1) / "config.yaml").write_text("seed: [1\n  x: {")
    (make.write_surrogate(sweep, "apt", 2) / "config.yaml").unlink()
    (make.write_surrogate(sweep, "apt", 3) / "metrics.json").write_text("[1, 2]")
    odd = make.write_surrogate(sweep, "matey", 0)
    (odd / "metrics.json").write_text('{"settings": [3, {"vrmse": "high", "tokens": 5}]}')
    going = make.write_surrogate(sweep, "matey", 1)
    (going / "metrics.json").unlink()
    (going / "metrics.csv").write_text("step,train/loss,new/column\n19,0.1,7\n39,0.0")
    failed = make.write_surrogate(sweep, "matey", 2)
    (failed / "metrics.json").unlink()
    (failed / "failed.json").write_text('{"error": "ValueError: no budget | left"}')
    (sweep / "circle").symlink_to(sweep)
    return sweep


def test_bad_folders_are_named_and_nothing_else_is_lost(bad):
    read = read_runs(bad)
    named = {folder.name: what for folder, what in not_finished(read)}
    assert named == {
        "empty": "empty",
        "only_hydra": "no config.yaml: it stopped before it began",
        "maze_apt_256_0": "metrics.json is damaged or only half written; unfinished: step 1000 of "
        "1000",
        "maze_apt_256_1": "config.yaml is damaged",
        "maze_apt_256_2": "no config.yaml: known by its name only",
        "maze_apt_256_3": "metrics.json is damaged or only half written; unfinished: step 1000 of "
        "1000",
        "maze_matey_256_0": "diverged: as built",
        "maze_matey_256_1": "unfinished: step 40 of 1000",
        "maze_matey_256_2": "failed: ValueError: no budget | left",
    }
    good = [run for run in read.runs if run.status == "finished" and run.kind != "unknown"]
    assert sorted(run.kind for run in good) == ["iap"] * 3 + ["uniform"] * 3


def test_results_of_a_run_that_failed_since_are_kept(tmp_path):
    folder = make.write_surrogate(tmp_path, "iap", 0)
    (folder / "failed.json").write_text('{"error": "ValueError: late"}')
    runs, problems = read_runs(tmp_path)
    assert [run.status for run in runs] == ["finished"]
    assert [p.what for p in problems] == [
        "repeated and failed, these are older results: ValueError: late"
    ]


@pytest.mark.slow
def test_the_report_of_bad_folders_is_written(bad, capsys):
    assert main(["report", str(bad), f"out={bad / 'report'}"]) == 0
    shown = capsys.readouterr().out
    assert "metrics.json is damaged" in shown
    assert "ValueError: no budget \\| left" in shown
    again = read_runs(bad)  # the report itself is no run
    assert not [p for p in again.problems if p.folder.name == "report"]


def test_nothing_to_report_says_why(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "there is no run to report" in error
    assert f"{tmp_path / 'empty'}: empty" in error
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        read_runs(tmp_path / "nowhere")


def test_a_diverged_run_is_shown_and_never_best(tmp_path):
    for seed, error in ((0, 0.01), (1, None)):
        make.write_surrogate(tmp_path, "apt", seed, error=error)
    for seed in range(2):
        make.write_surrogate(tmp_path, "csm", seed, error=None)
        make.write_surrogate(tmp_path, "iap", seed, error=0.05 + 0.01 * seed)
        make.write_surrogate(tmp_path, "uniform", seed, error=0.2)
    rows = rows_of(tmp_path)
    sheet = results_sheet(rows)
    assert [c.text for c in column(sheet, "VRMSE")] == [
        "0.3450",
        "0.0100 (1 of 2 diverged)",
        "– diverged",
        "0.0550 ± 0.0071",
        "0.2000 ± 0.0000",
    ]
    assert [c.rank for c in column(sheet, "VRMSE")] == [None, None, None, 1, 2]
    (verdict,) = verdicts(rows)
    assert verdict.reasons == ["diverged: apt (1 of 2 runs); csm"]
    diverged = [r for r in tidy_rows(read_runs(tmp_path).runs) if r["status"] == "diverged"]
    assert [r["vrmse"] for r in diverged] == ["diverged"] * 3


def test_nan_in_the_file_is_a_divergence(tmp_path):
    folder = make.write_surrogate(tmp_path, "iap", 0)
    results = json.loads((folder / "metrics.json").read_text())
    results["settings"][0]["vrmse"]["mean"] = math.nan
    (folder / "metrics.json").write_text(json.dumps(results))
    assert read_runs(tmp_path).runs[0].status == "diverged"


def test_mixed_versions_are_said(sweep):
    folder = sweep / "maze_iap_256_1"
    results = json.loads((folder / "metrics.json").read_text())
    results["environment"] |= {"torch": "2.14.1", "hardware": "a GPU"}
    (folder / "metrics.json").write_text(json.dumps(results))
    read = read_runs(sweep)
    warnings = contents_of(read, group_runs(read.runs)).warnings
    assert warnings == [
        "runs differ in torch: 2.15.0 (5 runs), 2.14.1 (1 runs)",
        "runs differ in hardware: x86_64, 2 cores, 1 thread (5 runs), a GPU (1 runs); times and "
        "memory are not comparable",
    ]


def test_other_test_data_is_said(sweep):
    """Runs on other samples share no table, front or rank; unknown ones go where they fit."""
    make.write_surrogate(sweep, "csm", 0, error=0.01, data={"name": "maze", "stride": 2})
    far = make.write_surrogate(sweep, "matey", 0, error=0.01)
    results = json.loads((far / "metrics.json").read_text())
    results["persistence"]["vrmse"]["mean"] = 1.1  # the files were other ones
    (far / "metrics.json").write_text(json.dumps(results))
    (sweep / "maze_iap_256_0" / "config.yaml").unlink()
    read = read_runs(sweep)
    sections = contents_of(read, group_runs(read.runs)).sections
    kinds = {s.comparison.title: {row.group.kind for row in s.rows} for s in sections}
    assert kinds == {
        "maze, stride=1, persistence 0.345": {"iap", "uniform", "unknown"},
        "maze, stride=1, persistence 1.1": {"matey"},
        "maze, stride=2": {"csm"},
    }
    best = [row.label for s in sections for row, r in ranked(s.rows) if r == 1]
    assert best in (["iap"], ["unknown"])
    assert not any(section.warnings for section in sections)


def test_a_longer_history_is_another_share_of_the_same_samples(sweep):
    folder = make.write_surrogate(sweep, "csm", 0, history=4)
    results = json.loads((folder / "metrics.json").read_text())
    results["persistence"]["vrmse"]["mean"] = 0.35
    (folder / "metrics.json").write_text(json.dumps(results))
    read = read_runs(sweep)
    (section,) = contents_of(read, group_runs(read.runs)).sections
    assert "a longer history" in section.warnings[0]


def test_a_failed_run_is_known_by_what_was_typed(sweep):
    folder = make.write_surrogate(sweep, "iap", 7)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["processor"]["depth"], config["size"]["depth"] = "${size.depth}", 3
    config["name"] = "${data.name}_${tokenizer.name}"
    for name in ("config.yaml", "metrics.json", "metrics.csv"):
        (folder / name).unlink()
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "failed.json").write_text('{"error": "ValueError: late"}')
    run = next(run for run in read_runs(sweep).runs if run.status == "failed")
    assert (run.data, run.kind, run.seed, run.budget) == ("maze", "iap", 7, 256)
    assert run.config["processor.depth"] == 3
    assert "name" not in run.config
    (pending,) = [run.name for group in group_runs([run]) for run in group.pending]
    assert pending == folder.name


def composed(folder: Path, config: dict) -> None:
    """What Hydra keeps of a command."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_failed_run_that_resumes_another_is_known_by_the_other(sweep):
    default = {"seed": 0, "tokenizer": {"name": "coarse_fine"}, "data": {"name": "shear_flow"}}
    for name, run in (("again", sweep / "maze_iap_256_2"), ("lost", Path("outputs/nowhere"))):
        composed(sweep / name, {**default, "resume": str(run)})
        (sweep / name / "failed.json").write_text('{"error": "ValueError: late"}')
    again, lost = (run for run in read_runs(sweep).runs if run.status == "failed")
    assert (again.name, again.data, again.kind, again.seed) == ("again", "maze", "iap", 2)
    assert (lost.name, lost.data, lost.seed, lost.config) == ("lost", "unknown", None, {})


def test_pictures_of_tokens_are_no_runs(sweep):
    folder = sweep / "tokenize_maze_iap"
    folder.mkdir()
    config = {"name": "t", "history": 4, "samples": [0], "tokenizer": {"name": "iap"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"data": {"name": "maze"}}))
    read = read_runs(sweep)
    assert {run.status for run in read.runs} == {"finished"}
    assert not read.problems
    assert {group.label for group in group_runs(read.runs)} == {"iap", "uniform"}


def test_metrics_of_which_more_is_better_rank_the_other_way(tmp_path):
    for kind, skill in (("iap", 0.9), ("apt", 0.7), ("uniform", 0.2)):
        folder = make.write_surrogate(tmp_path, kind, 0, error=0.1)
        results = json.loads((folder / "metrics.json").read_text())
        results["settings"][0]["skill"] = {"mean": skill, "median": skill}
        results["persistence"]["skill"] = {"mean": 0.5}
        results["higher_is_better"] = ["skill"]
        (folder / "metrics.json").write_text(json.dumps(results))
    sheet = results_sheet(rows_of(tmp_path))
    assert "skill ↑" in sheet.columns
    assert [c.rank for c in sheet.columns["skill ↑"]] == [None, 2, 1, None]


@pytest.mark.parametrize("values", [[64], [64, 70], [60, 120], [3.4e7, 3.6e7], [1, 4, 1024]])
@pytest.mark.parametrize("text", [None, "{:g}".format])
def test_an_axis_of_costs_has_more_than_one_tick(values, text):
    axis = cost_ticks(values, text)
    if "tickvals" in axis:
        low, high = axis.get("range", (min(values) / 1.1, max(values) * 1.1))
        assert sum(low <= tick <= high for tick in axis["tickvals"]) > 1
    else:  # plotly's own, on a linear axis
        low, high = axis["range"]
        assert axis["type"] == "linear"
        assert low < min(values) <= max(values) < high


def test_patches_of_different_size_have_panels_of_their_own(tmp_path):
    for kind, size in (("iap", 16), ("ckm", 4), ("csm", 4)):
        folder = make.write_surrogate(tmp_path, kind, 0)
        results = json.loads((folder / "metrics.json").read_text())
        results["settings"][0]["rollout"]["patch_size"] = [size, size]
        (folder / "metrics.json").write_text(json.dumps(results))
    rows = rows_of(tmp_path)
    looks = {row.label: Look("#000000", "#ffffff", "circle", "solid") for row in rows}
    panels = {p.title: p for p in spectrum_panels(rows, looks) if "artifacts" in p.title}
    drawn = {
        title: {trace["name"] for trace in traces(panel.figure)} for title, panel in panels.items()
    }
    assert {title: len(names) for title, names in drawn.items()} == {
        "Patch artifacts, period 16 x 16": 1,
        "Patch artifacts, period 4 x 4": 2,
    }
    assert not any("Not shown" in panel.caption for panel in panels.values())
    make.write_surrogate(tmp_path, "unet", 0)
    rows = rows_of(tmp_path)
    looks = {row.label: Look("#000000", "#ffffff", "circle", "solid") for row in rows}
    captions = [panel.caption for panel in spectrum_panels(rows, looks)]
    assert sum("along an axis: unet." in caption for caption in captions) == 2


def test_tiles_name_seeds_and_count_in_words(tmp_path):
    make.write_surrogate(tmp_path, "iap", 0)
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    for value, name in (("seed 0", "of the tested runs"), ("1", "data set"), ("1", "model")):
        assert f'<div class="card"><b>{value}</b><span>{name}</span></div>' in page
    assert "; seed 0." in (tmp_path / "report" / "report.md").read_text()


def test_validation_curves_stand_beside_persistence_of_their_split_only(tmp_path):
    folder = make.write_surrogate(tmp_path, "iap", 0)
    groups = group_runs(read_runs(tmp_path).runs)
    look = {groups[0].label: Look("#0072B2", "#3D93DB", "circle", "solid")}
    training, validation = (panel.figure for panel in learning_panels(groups, look))
    assert not validation.layout.shapes  # that of the test split is no measure of these
    assert max(traces(validation)[0].x) == 1000  # steps made
    text = (folder / "metrics.csv").read_text().rstrip() + "\n"
    header, *rows = text.splitlines()
    rows = [f"{row},{'0.27' if row.startswith('0,,') else ''}" for row in rows]
    (folder / "metrics.csv").write_text("\n".join([f"{header},val/persistence", *rows]))
    groups = group_runs(read_runs(tmp_path).runs)
    training, validation = (panel.figure for panel in learning_panels(groups, look))
    assert validation.layout.shapes[0].y0 == 0.27
    assert not training.layout.shapes


def test_missing_seeds_are_said(sweep):
    (sweep / "maze_iap_256_1" / "metrics.json").unlink()
    make.write_surrogate(sweep, "apt", 0)
    rows = rows_of(sweep)
    cells = {row.group.label: seeds_cell(row, rows) for row in rows}
    assert cells["uniform"].text == "3"
    assert cells["iap"].text == "2 (seed 1 unfinished)"
    assert cells["apt"].text == "1 (seed 1 missing; seed 2 missing)"
    assert cells["iap"].hint == "seeds 0, 2"


def test_unknown_entries_are_kept(tmp_path):
    folder = make.write_surrogate(tmp_path, "iap", 0)
    results = json.loads((folder / "metrics.json").read_text())
    results["settings"][0] |= {"energy_drift": 0.25, "remark": "text", "parts": {"a": 1, "b": "x"}}
    results["surprise"] = {"nested": [1, 2]}
    (folder / "metrics.json").write_text(json.dumps(results))
    (row,) = tidy_rows(read_runs(tmp_path).runs)
    assert (row["energy_drift"], row["parts_a"]) == (0.25, 1.0)
    assert "remark" not in row


def test_metrics_of_plugins_and_auxiliary_figures_are_columns(tmp_path):
    """Any mapping with a mean is an error metric: ranked, against persistence, diverged if None."""
    for kind, drift in (("iap", 0.02), ("apt", 0.01), ("uniform", 0.9), ("csm", None)):
        folder = make.write_surrogate(tmp_path, kind, 0, error=0.1)
        results = json.loads((folder / "metrics.json").read_text())
        metric = {"mean": drift, "median": drift, "fields": {"pressure": {"mean": drift}}}
        results["settings"][0] |= {"drift": metric, "auxiliary": {"ponder": 0.5}}
        results["settings"][0] |= {"certificate": 0.04}
        results["persistence"]["drift"] = {"mean": 0.8}
        (folder / "metrics.json").write_text(json.dumps(results))
    rows = {row["tokenizer"]: row for row in tidy_rows(read_runs(tmp_path).runs)}
    names = ("drift", "drift_median", "drift.pressure", "auxiliary_ponder")
    assert [rows["iap"][name] for name in names] == [0.02, 0.02, 0.02, 0.5]
    assert [rows["csm"][name] for name in names] == ["diverged"] * 3 + [0.5]
    sheet = results_sheet(rows_of(tmp_path))
    assert [c.text for c in column(sheet, "drift")] == [
        "0.8000", "0.0100", "– diverged", "0.0200", "0.9000",
    ]  # fmt: skip
    assert [c.rank for c in column(sheet, "drift")] == [None, 1, None, 2, None]
    assert [c.text for c in column(sheet, "ponder")] == ["", *["0.5000"] * 4]
    assert [c.text for c in column(sheet, "projection error")] == ["", *["0.0400"] * 4]
    titles = list(sheet.columns)
    assert titles.index("VRMSE ↓") < titles.index("drift ↓") < titles.index("FLOPs")


# Grouping


def test_runs_are_grouped_by_what_varies(tmp_path):
    for seed in range(2):
        for budget in (128, 256):
            make.write_surrogate(tmp_path, "iap", seed, budget=budget)
        make.write_surrogate(tmp_path, "uniform", seed)
    groups = group_runs(read_runs(tmp_path).runs)
    assert [g.label for g in groups] == ["iap, budget=128", "iap, budget=256", "uniform"]
    assert all(g.seeds == [0, 1] for g in groups)


def test_calibrated_knobs_do_not_split_the_seeds(tmp_path):
    """With a budget for every tokenizer the knobs that follow from it vary with the data."""
    for seed in range(3):
        knobs = {"name": "apt", "thresholds": [4.0 + 0.1 * seed], "indicator": "entropy"}
        make.write_surrogate(tmp_path, "apt", seed, tokenizer=knobs)
        folder = tmp_path / f"maze_apt_256_{seed}" / "config.yaml"
        config = yaml.safe_load(folder.read_text()) | {"budget": 256}
        folder.write_text(yaml.safe_dump(config))
    (group,) = group_runs(read_runs(tmp_path).runs)
    assert group.seeds == [0, 1, 2]
    assert {run.budget for run in group.runs} == {256}


def test_budgets_that_became_the_same_model_say_so(tmp_path):
    for budget, size in ((45, 4), (80, 4), (180, 2)):
        for seed in (0, 1):
            part = {"name": "uniform", "size": size}
            config = make.config_of("uniform", seed, tokenizer=part) | {"budget": budget}
            results = make.results_of([make.row_of(0.1, 64.0)])
            make.write_run(tmp_path / f"{budget}_{seed}", config, results)
    assert [group.label for group in group_runs(read_runs(tmp_path).runs)] == [
        "uniform, budget=45",
        "uniform, budget=80 (same model as budget=45)",
        "uniform, budget=180",
    ]


def test_the_schedule_is_named_as_it_was_typed(tmp_path):
    """Thresholds that budgets became are kept in config.yaml; the budgets are what counts."""
    for seed in range(2):
        calibrated = [{"thresholds": [1.0 + seed]}, {"thresholds": [2.0 + seed]}]
        schedule = {"name": "random", "settings": calibrated, "seed": seed}
        folder = make.write_surrogate(tmp_path, "apt", seed, schedule=schedule)
        typed = {"schedule": {"settings": [{"budget": 64}, {"budget": 256}]}}
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(typed))
    (group,) = group_runs(read_runs(tmp_path).runs)
    assert group.seeds == [0, 1]
    assert group.runs[0].budget == "64 to 256, random"


def test_resumed_runs_of_different_settings_are_not_put_together(tmp_path):
    """Hydra composed the default for both."""
    for seed, budget in enumerate((256, 512)):
        schedule = {"name": "fixed", "settings": [{"budget": budget}], "seed": seed}
        folder = make.write_surrogate(tmp_path, "iap", seed, schedule=schedule)
        composed(folder, {"resume": "outputs/first", "schedule": {"settings": [{}]}})
    assert [group.seeds for group in group_runs(read_runs(tmp_path).runs)] == [[0], [1]]


def test_a_resumed_run_has_the_schedule_that_the_first_was_typed_with(tmp_path):
    before = None
    for name in ("first", "second", "third"):
        schedule = {"name": "fixed", "settings": [{"thresholds": [1.5]}], "seed": 0}
        folder = make.write_surrogate(tmp_path / name, "apt", 0, schedule=schedule)
        typed = [{"budget": 64}] if before is None else [{}]
        resume = None if before is None else str(before)
        composed(folder, {"resume": resume, "schedule": {"settings": typed}})
        before = folder
    assert [run.budget for run in read_runs(tmp_path).runs] == [64, 64, 64]
    own = tmp_path / "first" / "maze_apt_256_0"  # a run may even resume itself
    (own / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"resume": str(own)}))
    assert not read_runs(own).problems


def test_the_newest_of_repeated_runs_counts(tmp_path):
    import os

    old = make.write_surrogate(tmp_path / "a", "iap", 0, error=0.3)
    make.write_surrogate(tmp_path / "b", "iap", 0, error=0.1)
    for file in old.iterdir():
        os.utime(file, (1, 1))
    (row,) = rows_of(tmp_path)
    assert row.error == spread([0.1])
    (warning,) = contents_of(read_runs(tmp_path), [row.group]).warnings
    assert warning.endswith("a/maze_iap_256_0 and b/maze_iap_256_0")
    assert [run.name for run in read_runs(tmp_path).runs] == [
        "a/maze_iap_256_0",
        "b/maze_iap_256_0",
    ]


def test_keys_chosen_by_hand_put_runs_together(tmp_path):
    for budget in (128, 256):
        make.write_surrogate(tmp_path, "iap", 0, budget=budget)
    groups = group_runs(read_runs(tmp_path).runs, ["processor.name"])
    assert [(g.label, len(g.runs), g.mixed) for g in groups] == [
        ("iap, vit", 2, ["tokenizer.budget"])
    ]
    warnings = contents_of(read_runs(tmp_path), groups).warnings
    assert "runs that were put together differ in tokenizer.budget" in warnings
    with pytest.raises(ValueError, match="by=nothing: no run has this key"):
        group_runs(read_runs(tmp_path).runs, ["nothing"])


VALUES = st.one_of(st.integers(0, 2), st.sampled_from(["a", "b"]), st.lists(st.integers(0, 1)))
CONFIGS = st.lists(
    st.fixed_dictionaries(dict.fromkeys(("budget", "x.lr", "tokenizer.name", "z"), VALUES)),
    min_size=1,
    max_size=8,
)


@given(CONFIGS)
def test_the_chosen_keys_split_like_all_keys(configs):
    chosen = label_keys(configs)
    for a in configs:
        for b in configs:
            assert (a == b) == all(a[key] == b[key] for key in chosen)


@given(CONFIGS)
def test_no_chosen_key_follows_from_those_before_it(configs):
    chosen = label_keys(configs)
    for i in range(len(chosen)):
        parts = [{str([c[k] for k in chosen[:n]]) for c in configs} for n in (i, i + 1)]
        assert len(parts[1]) > len(parts[0])


def test_a_key_that_older_runs_lack_splits_nothing():
    assert label_keys([{"a": 1}, {"a": 1, "new": 0}, {"a": 1, "new": 0}]) == ()
    assert label_keys([{"a": 1}, {"a": 1, "new": 0}, {"a": 1, "new": 2}]) == ("new",)
    configs = [{"a": 1}, {"a": 1, "new": 0}]
    assert label_keys(configs, ["0.1", "0.2"]) == label_keys(configs, [None, "0.2"]) == ()


def test_what_does_not_make_another_job_makes_no_other_model():
    same = [key for key in ROLES if not counts(key, NEW_RUN)]
    assert "data.base" in same
    assert [key for key in same if significant({key: 1})] == []


def test_a_key_that_one_run_of_a_version_lacks_tells_it_apart(tmp_path):
    assert label_keys([{"a": 1}, {"a": 1, "new": 0}], ["0.2", "0.2"]) == ("new",)
    assert label_keys([{"a": 1}, {"a": 1, "new": None}], ["0.2", "0.2"]) == ()
    for error, part in ((0.1, "gradient"), (0.2, {"name": "variance", "mode": "mean"})):
        node = {"name": "composed", "indicator": part}
        folder = make.write_surrogate(tmp_path, "composed", 0, error=error, tokenizer=node)
        folder.rename(tmp_path / f"run_{error}")
    rows = rows_of(tmp_path)
    assert sorted(row.error.mean for row in rows) == [0.1, 0.2]
    assert [row.group.keys["tokenizer.indicator.name"] for row in rows] == ["gradient", "variance"]


# Statistics


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30))
def test_pareto_front_is_what_nothing_dominates(points):
    points = [(float(x), float(y)) for x, y in points]

    def dominated(a) -> bool:
        return any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points)

    assert sorted(pareto_front(points)) == [i for i, p in enumerate(points) if not dominated(p)]
    assert [points[i] for i in pareto_front(points)] == sorted(
        points[i] for i in pareto_front(points)
    )


def test_spread_is_of_the_sample():
    assert spread([1.0, None, 3.0]) == (2.0, pytest.approx(math.sqrt(2)), 2)
    assert spread([1.0]) == (1.0, None, 1)
    assert spread([None]) is None


def test_only_what_beats_persistence_is_ranked(tmp_path):
    for kind, error in (("iap", 0.1), ("apt", 0.4), ("uniform", 0.2)):
        make.write_surrogate(tmp_path, kind, 0, error=error)
    make.write_surrogate(tmp_path, "persistence", 0)
    rows = rows_of(tmp_path)
    placed = dict(zip([r.group.label for r in rows], ranks(rows, "vrmse"), strict=True))
    assert placed == {"apt": None, "iap": 1, "persistence": None, "uniform": 2}
    (verdict,) = verdicts(rows)
    assert verdict.reasons == ["not better than persistence: apt"]
    assert (verdict.counts, verdict.without) == (True, ["apt"])  # two are left to compare
    assert "persistence" not in verdict.models
    make.write_surrogate(tmp_path, "iap", 0, error=0.5)
    (verdict,) = verdicts(rows_of(tmp_path))
    assert (verdict.counts, verdict.reasons[-1]) == (False, "one model is left")


def test_a_comparison_counts_when_all_is_well(sweep):
    (verdict,) = verdicts(rows_of(sweep))
    assert verdict.counts
    (sweep / "maze_iap_256_1" / "metrics.csv").unlink()
    (verdict,) = verdicts(rows_of(sweep))
    assert not verdict.counts
    assert verdict.reasons == ["no learning curve: iap (1 of 3 runs)", "one model is left"]


def test_another_split_is_no_result(sweep):
    for file in sweep.rglob("metrics.json"):
        file.write_text(file.read_text().replace('"split": "test"', '"split": "valid"'))
    (verdict,) = verdicts(rows_of(sweep))
    assert verdict.reasons == ["tested on the valid split"]


def test_a_diverged_rollout_is_shown_and_not_averaged_away(tmp_path):
    for seed in range(3):
        make.write_surrogate(tmp_path, "uniform", seed, error=0.1)
        folder = make.write_surrogate(tmp_path, "iap", seed, error=0.05)
        if seed:
            results = json.loads((folder / "metrics.json").read_text())
            results["settings"][0]["rollout"]["mean"][-1] = None
            (folder / "metrics.json").write_text(json.dumps(results))
    rows = rows_of(tmp_path)
    assert ranks(rows, "vrmse") == [1, 2]
    assert ranks(rows, "rollout_last") == [None, None]  # one model is left
    last = column(results_sheet(rows), "last rollout step")
    assert last[1].text.endswith("(2 of 3 diverged)")
    assert "diverged" not in column(results_sheet(rows), "VRMSE")[1].text
    written = {(row["tokenizer"], row["seed"]): row for row in tidy_rows(read_runs(tmp_path).runs)}
    assert written["iap", 1]["rollout_last"] == "diverged"
    assert isinstance(written["iap", 0]["rollout_last"], float)


# Budget transfer


def test_rollouts_of_other_numbers_of_tokens_say_so(tmp_path):
    for kind, tokens in (("iap", [256.0] * 8), ("matey", [256.0, 600.0] * 4)):
        folder = make.write_surrogate(tmp_path, kind, 0)
        results = json.loads((folder / "metrics.json").read_text())
        results["settings"][0]["rollout"]["tokens"] = tokens
        (folder / "metrics.json").write_text(json.dumps(results))
        rows = rows_of(tmp_path)
        assert ("tokens in rollout" in results_sheet(rows).columns) == (kind == "matey")
        shown = [cell.text for cell in column(rollout_sheet(rows), "tokens")]
        assert shown == ["", "256", "428 (256 to 600)"][: len(rows) + 1]
    titles = list(results_sheet(rows).columns)
    assert titles.index("tokens in rollout") + 1 == titles.index("last rollout step ↓")
    assert {r["rollout_tokens"] for r in tidy_rows(read_runs(tmp_path).runs)} == {256, 428}


def test_transfer_matrix_is_train_by_test(tmp_path):
    tests = (64, 128, 256)
    for seed in range(2):
        for budget in (64, 256):
            make.write_surrogate(tmp_path, "iap", seed, budget=budget, tests=tests)
    schedule = {"name": "random", "settings": [{"budget": 64}, {"budget": 256}], "seed": 0}
    make.write_surrogate(tmp_path / "elastic", "iap", 0, tests=tests, schedule=schedule)
    for budget in (64, 256):  # at its own budget only
        make.write_surrogate(tmp_path, "apt", 0, budget=budget)
    rows = rows_of(tmp_path)
    (matrix,) = transfers(rows)
    assert (matrix.label, matrix.trained) == ("iap", [64, 256, "64 to 256, random"])
    assert matrix.tested == [64, 128, 256]
    runs = read_runs(tmp_path).runs
    for i, trained in enumerate(matrix.trained):
        for j, tested in enumerate(tests):
            expected = [
                result.get("vrmse")
                for run in runs
                if run.kind == "iap" and run.budget == trained
                for result in run.results
                if result.budget == tested
            ]
            assert matrix.cells[i][j] == spread(expected)
    assert matrix.cells[0][0].n == 2
    assert matrix.cells[2][0].n == 1


def test_transfer_counts_no_model_twice(tmp_path):
    """As built and by number, the budget of training is one setting."""
    for seed in range(3):
        error = 0.1 * (seed + 1)
        folder = make.write_surrogate(tmp_path, "iap", seed, budget=128, error=error)
        again = [make.row_of(error, 128.0, 128), make.row_of(0.5, 64.0, 64)]
        evaluation_of(folder, tmp_path / f"eval_{seed}", again)
    rows = rows_of(tmp_path)
    (matrix,) = transfers(rows)
    assert matrix.tested == [64, 128]
    assert matrix.cells[0][1] == pytest.approx(spread([0.1, 0.2, 0.3]))
    assert [row.setting for row in rows if row.home] == ["as built"]


def test_transfer_marks_what_is_worse_than_persistence(tmp_path):
    make.write_surrogate(tmp_path, "iap", 0, budget=64, tests=(64, 4096))
    (matrix,) = transfers(rows_of(tmp_path))
    home, far = transfer_sheet(matrix).rows[0][1:]
    assert "†" not in home.text
    assert far.text.endswith("†")


# Files and the command


def test_files_and_tables(sweep, capsys):
    out = sweep / "own" / "report"
    assert main(["report", str(sweep), f"out={out}"]) == 0
    shown = capsys.readouterr().out
    text = (out / "report.md").read_text()
    assert text.strip() in shown
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["group"] for row in rows} == {"iap", "uniform"}
    errors = [float(row["vrmse"]) for row in rows if row["group"] == "iap"]
    best = spread(errors)
    assert f"**{best.mean:.4f} ± {best.std:.4f}**" in text
    assert "lower is better" in text
    assert "x86_64, 2 cores, 1 thread" in text


@pytest.mark.slow
def test_runs_of_the_command_are_read(tmp_path, capsys):
    """What training writes today: every column of the table is filled, every plot is there."""
    runs = tmp_path / "runs"
    tests = "test.settings=[{budget: 22}, {budget: 40}]"
    for kind in ("iap", "uniform"):
        chosen = [*small_runs.train(), f"tokenizer={kind}", "budget=22", tests]
        chosen = [o for o in chosen if not o.startswith(("tokenizer.budget", "tokenizer.max"))]
        several = ["tokenizer.size=4", "tokenizer.patch_sizes=[2,4]"]  # one for each budget
        size = several if kind == "uniform" else ["tokenizer.max_size=8"]
        assert main(["train", *chosen, *size, f"hydra.run.dir={runs / kind}"]) == 0
    small = [
        *small_runs.data(),
        "test.steps=2",
        "model=persistence",
        f"hydra.run.dir={runs / 'none'}",
    ]
    assert main(["train", *small]) == 0
    assert main(["report", str(runs)]) == 0
    capsys.readouterr()
    with (runs / "report" / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["tokenizer"] != ""]
    by_model = {row["run"]: row for row in rows}
    assert set(by_model) == {"iap", "uniform", "none"}
    always = ("vrmse", "persistence", "rollout_last", "seconds_per_step", "flops", "parameters")
    always += ("nmse_low", "adaptok", "torch", "device", "hardware", "when")
    assert all(row[name] != "" for row in rows for name in always)
    assert by_model["iap"]["training_budget"] == "22"
    assert {row["budget"] for row in rows} == {"", "22", "40"}
    page = (runs / "report" / "report.html").read_text()
    for title in ("Error against FLOPs", "Validation VRMSE", "Spectrum of the residual"):
        assert f"<h4>{title}</h4>" in page
    assert "Budget transfer of iap" in page
    assert "cells over a field" in page


def test_same_from_python(sweep):
    files = write_report([sweep], sweep / "report")
    assert [file.name for file in files][:2] == ["results.csv", "report.md"]
    assert all(file.stat().st_size for file in files)


def test_arguments():
    folders, out, by = parsed(("tokenizer=iap,seed=0", "out=x", "by=budget, size.dim"))
    assert (folders, out, by) == ([Path("tokenizer=iap,seed=0")], Path("x"), ["budget", "size.dim"])
    assert parsed(("outputs",))[1] == Path("outputs/report")
    assert parsed(("multirun/a", "multirun/b"))[1] == Path("multirun/report")
    with pytest.raises(ValueError, match="no flag --fast"):
        parsed(("outputs", "--fast"))
    with pytest.raises(ValueError, match="give folders of runs"):
        parsed(("out=x",))


@pytest.mark.slow
def test_it_starts_without_lightning_and_hydra_and_others_without_pandas(sweep):
    code = (
        "import sys; from adaptok.cli import main; main(['list', 'tokenizers']); "
        "assert not {'pandas', 'jinja2'} & set(sys.modules); "
        "assert main(sys.argv[1:]) == 0; "
        "bad = {'lightning', 'hydra', 'omegaconf', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    command = [sys.executable, "-c", code, "report", str(sweep), f"out={sweep / 'report'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["a: " + "[" * 100_000, "a: " + "{b: " * 100_000])
def test_a_deep_configuration_is_damaged(tmp_path, text):
    """The parser in C has no limit of its own: it overflows the stack of the process."""
    (tmp_path / "config.yaml").write_text(text)
    problems: list = []
    assert reading._mapping(tmp_path / "config.yaml", problems) is None
    assert "config.yaml is damaged" in problems[0].what
