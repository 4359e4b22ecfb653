"""The package to start from is built, installed, passes its own tests, and is measured."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adaptok.evaluation.standings import read_rows

ROOT = Path(__file__).parents[1]
INSTALL = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]


@pytest.mark.slow
def test_the_template_is_installed_tested_and_submitted(tmp_path):
    pytest.importorskip("hatchling")
    source, site = tmp_path / "plugin", tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "plugin", source)
    # As in an environment of its own: the package, and adaptok from the working tree.
    paths = os.pathsep.join([str(site), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def python(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python(*INSTALL, "--target", str(site), str(source))
    assert "my_tokenizer" in python("-m", "adaptok", "list", "tokenizers", "my_*")
    assert "4 passed" in python("-m", "pytest", "-p", "no:cacheprovider", str(source / "tests"))
    track = ["--track", "T0", "--quick", "only=*maze*", "out=sub"]
    said = python("-m", "adaptok", "bench", "submit", "my_package:my_tokenizer", *track)
    assert "my_tokenizer: keeps the promises of a tokenizer" in said
    (row,) = read_rows(tmp_path / "sub").rows.values()
    assert row.method == "my_tokenizer"
    assert (tmp_path / "sub" / "leaderboard.html").is_file()
