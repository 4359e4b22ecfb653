"""The script for people who have a GPU and the Well: order, price, rows to send."""

from __future__ import annotations

import runpy
import sys
import zipfile
from pathlib import Path

import pytest
from bench_rows import made_up

from adaptok.evaluation.standings import read_rows
from adaptok.tasks.bench import t1

WELL = runpy.run_path(str(Path(__file__).parents[1] / "experiments" / "bench" / "well.py"))


def as_row(job, work):
    return made_up(
        **{"set": job.set, "method": job.method, "seed": job.seed, "budget": job.budget},
        **{"config": dict(job.config), "key": job.key},
    )


def typed(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["well.py", *words])
    return WELL["main"]()


@pytest.mark.filterwarnings("ignore:tfno is left out")
def test_one_seed_of_what_tells_most_comes_first():
    jobs = t1.jobs(scale="full", base="/data")
    ordered = WELL["ordered"](jobs, ["shear_flow", "active_matter"])
    assert {job.set for job in ordered} == {"shear_flow", "active_matter"}
    first = [(job.method, job.set) for job in ordered[:4]]
    assert first == [
        *(("persistence", "shear_flow"), ("persistence", "active_matter")),
        *(("uniform", "shear_flow"), ("uniform", "active_matter")),
    ]
    seeds = [job.seed for job in ordered]
    assert seeds == sorted(seeds)
    equal = {(job.kind, job.value) for job in ordered if job.kind == "flops"}
    told = [job for job in ordered if job.seed == 0 and job.kind in ("none", "tokens")]
    told = [job for job in told if job.kind == "none" or ("flops", job.value) in equal]
    assert {*ordered[: len(told)]} == {*told}
    assert len(ordered) == len([job for job in jobs if job.set in ("shear_flow", "active_matter")])


@pytest.mark.filterwarnings("ignore:tfno is left out")
def test_rows_of_the_sets_that_are_there_are_measured_and_packed(tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "shear_flow").mkdir(parents=True)
    monkeypatch.setattr(t1, "measure", as_row)
    words = [str(tmp_path / "out"), "--base", str(tmp_path / "data"), "--hours"]
    assert typed(monkeypatch, *words, "1", "--plan") == 0
    assert "rows to measure: about" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert typed(monkeypatch, *words, "0.5") == 0
    said = capsys.readouterr()
    assert "left out active_matter: no data set at" in said.err
    assert "the-well-download --base-path BASE --dataset active_matter" in said.err
    assert "would end after 0.5 hours" in said.out
    rows = read_rows(tmp_path / "out").rows.values()
    assert {row.set for row in rows} == {"shear_flow"}
    assert "persistence" in {row.method for row in rows}
    with zipfile.ZipFile(tmp_path / "out" / "rows.zip") as packed:
        assert {*packed.namelist()} == {*read_rows(tmp_path / "out").rows, "leaderboard.html"}
    assert typed(monkeypatch, str(tmp_path / "x"), "--base", str(tmp_path), "--hours", "1") == 1
    with pytest.raises(SystemExit):
        typed(monkeypatch, *words, "-1")
    assert "--hours must be a number above 0, got -1.0" in capsys.readouterr().err
