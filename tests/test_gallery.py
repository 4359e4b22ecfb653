"""The gallery scripts run as they stand, and leave what they say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from forked import fork_in_place_of_run

ROOT = Path(__file__).parents[1]
LEFT = {
    "sweep_user": [
        *(f"sweep/*_{model}_*/metrics.json" for model in ("iap", "unet", "persistence")),
        "eval/pictures/rollout.gif",
        "eval/predictions/budget=10/stats.yaml",
    ],
    "library_user": ["rollout.gif", "iap/model.safetensors", "unet/README.md"],
}


def test_every_script_is_run():
    assert {path.stem for path in (ROOT / "docs" / "gallery").glob("*.py")} == set(LEFT)


@pytest.mark.slow
@pytest.mark.parametrize("script", LEFT)
def test_script(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    fork_in_place_of_run(monkeypatch)
    runpy.run_path(str(ROOT / "docs" / "gallery" / f"{script}.py"), run_name="__main__")
    missing = [name for name in LEFT[script] if not list(tmp_path.glob(name))]
    assert not missing
