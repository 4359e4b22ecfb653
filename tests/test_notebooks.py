"""The notebooks run as they stand, and leave what they say."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path

import pytest
from forked import fork_in_place_of_run

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
LEFT = {
    "sweeps": [
        *(f"*/sweep/*_{model}_*/metrics.json" for model in ("iap", "unet", "persistence")),
        "*/eval/pictures/rollout.gif",
        "*/eval/predictions/budget=10/stats.yaml",
    ],
    "own_loop": ["*/rollout.gif", "*/iap/model.safetensors", "*/unet/README.md"],
    "faster_vit": [],
}


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS.glob("*.py")} == set(LEFT)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", LEFT)
def test_notebook(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fork_in_place_of_run(monkeypatch)
    runpy.run_path(str(NOTEBOOKS / f"{notebook}.py"), run_name="__main__")
    missing = [name for name in LEFT[notebook] if not list(tmp_path.glob(name))]
    assert not missing
