"""The gallery scripts run as they stand, and leave what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
def test_script(script, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "docs" / "gallery" / f"{script}.py"), str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    missing = [name for name in LEFT[script] if not list(tmp_path.glob(name))]
    assert not missing
