"""What a release consists of: a version, and models that are loaded again."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import checkpoints
import pytest
import small_runs
import yaml
from forked import fork_in_place_of_run

import adaptok

ROOT = Path(__file__).parents[1]


def test_the_version_is_one():
    assert re.match(r"\d+(\.\d+)+", adaptok.__version__)


def test_workflows_run_targets_that_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = []
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            commands += [step["run"] for step in job["steps"] if "run" in step]
    made = [words[1] for words in map(str.split, commands) if words[0] == "make"]
    assert made
    assert set(made) <= set(targets)


@pytest.mark.slow
def test_a_model_of_a_release_is_loaded(tmp_path, monkeypatch):
    fork_in_place_of_run(monkeypatch)
    name = "coarse_fine_maze"
    options = [*small_runs.data(), *small_runs.SIZE, *small_runs.RUN, "tokenizer.size=8"]
    monkeypatch.setattr(sys, "argv", ["checkpoints.py", str(tmp_path), "--only", name, *options])
    checkpoints.main()
    with zipfile.ZipFile(tmp_path / f"{name}.zip") as packed:
        packed.extractall(tmp_path / "elsewhere")
    model = adaptok.from_pretrained(tmp_path / "elsewhere")
    assert model.config["tokenizer"]["name"] == "coarse_fine"
    assert (tmp_path / "elsewhere" / "README.md").is_file()
