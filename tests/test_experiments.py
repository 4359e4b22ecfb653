"""Lists of runs compose; they are run once each, go on where they stopped, and are collected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_runs
import yaml

from adaptok.config import compose, plain

ROOT = Path(__file__).parents[1]
LISTS = sorted((ROOT / "experiments").glob("*/runs.yaml"))


def script(name: str, *arguments: Path | str) -> str:
    words = [sys.executable, str(ROOT / "experiments" / name), *map(str, arguments)]
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.parent.name)
def test_every_run_of_a_list_composes(path):
    listed = yaml.safe_load(path.read_text())
    assert listed["runs"]
    for overrides in listed["runs"].values():
        config = plain(compose("train", [*listed["common"], *overrides]))
        assert config["trainer"]["max_steps"] <= 2000


@pytest.mark.slow
def test_a_list_is_run_once_and_collected(tmp_path):
    budgets = "[{budget: 10}, {budget: 22}]"
    elastic = ["schedule=random", f"schedule.settings={budgets}", f"test.settings={budgets}"]
    listed = {"common": small_runs.train(), "runs": {"fixed": [], "elastic": elastic}}
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump(listed))
    out = tmp_path / "out"
    script("run_list.py", tmp_path, out)
    results = out / "elastic" / "metrics.json"
    before = results.read_text()
    results.unlink()  # as if the run had been interrupted during its test
    again = script("run_list.py", tmp_path, out)
    assert "fixed: finished" in again
    assert "going on from" in again
    numbers = [
        yaml.safe_load(text)["settings"][0]["vrmse"] for text in (before, results.read_text())
    ]
    assert numbers[0] == numbers[1]
    table = script("collect_settings.py", out, tmp_path)
    assert "budget=22" in table
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["model", "fixed", "elastic", "elastic"]
    assert len((tmp_path / "rollouts.csv").read_text().splitlines()) == 1 + 3 * 2
    for name in ("learning_curves", "rollouts", "residual_spectra"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
