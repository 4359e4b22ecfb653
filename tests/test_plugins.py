"""A third-party package, built and installed as its author would, adds parts by entry points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_runs
import torch
import yaml

from adaptok import registry
from adaptok.cli import main

SHARED = {"halo": 0, "halo_pooled": False}  # knobs that every tokenizer has
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "adaptok-mine"
version = "0.1.0"

[project.entry-points."adaptok.tokenizers"]
mine = "adaptok_mine:mine"
broken = "adaptok_mine.absent:tokenizer"

[project.entry-points."adaptok.indicators"]
magnitude = "adaptok_mine:Magnitude"

[project.entry-points."adaptok.losses"]
mine_l1 = "adaptok_mine.training:l1"

[project.entry-points."adaptok.metrics"]
mine_worst = "adaptok_mine.training:worst"
"""

MODULE = '''
import adaptok
from adaptok.tree import sum_pyramid


def mine(ndim, in_channels, dim, *, knob=4):
    """Uniform cells of `knob` grid points."""
    return adaptok.create_tokenizer(
        "uniform", ndim=ndim, in_channels=in_channels, dim=dim, size=knob
    )


class Magnitude:
    """Sum of |x| over the cell."""

    monotone = True

    def __init__(self, *, channel=0):
        self.channel = channel

    def __call__(self, field, tree, *, boundary=None):
        return sum_pyramid(field[:, :, self.channel].abs().mean(1, keepdim=True), tree)[:, 0]
'''

TRAINING = '''
import torch


def l1(error, target):
    """Mean absolute error."""
    return error.abs().mean()


l1.error_only = True


def worst(prediction, target, ndim):
    """Largest absolute error in space."""
    return (prediction - target).abs().flatten(-ndim).amax(-1)


class Signs(torch.optim.SGD):
    """Steps along the signs of the gradient."""

    def step(self, closure=None):
        loss = closure() if closure else None
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        weight.sub_(group["lr"] * weight.grad.sign())
        return loss
'''

IN_PYTHON = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import adaptok
    loaded_by_import = "adaptok_mine" in sys.modules
    names = adaptok.TOKENIZERS.names()
import torch

mine = adaptok.create_tokenizer("mine", ndim=2, in_channels=1, dim=8, knob=3)
peak = torch.zeros(1, 1, 1, 16, 16)
peak[..., 13, 2] = 1.0  # of 8 x 8 cells, the one at (8, 0) is refined
part = {"name": "magnitude", "channel": 0}
composed = adaptok.create_tokenizer(
    "composed", ndim=2, in_channels=1, dim=8, indicator=part, min_size=4, max_size=8,
    marking={"name": "budget", "budget": 7},
)
cells = composed.cells(peak)
surrogate = adaptok.create_surrogate(
    ndim=2, in_channels=1, tokenizer={"name": "mine", "knob": 8}, dim=8, depth=1, heads=2
)
print(json.dumps({
    "loaded_by_import": loaded_by_import,
    "names": names,
    "warnings": [str(w.message) for w in caught],
    "described": adaptok.TOKENIZERS.describe("mine"),
    "tokens": mine(torch.zeros(1, 1, 12, 12)).features.shape[0],
    "refined": cells.origin[cells.level == 1].tolist(),
    "output": list(surrogate(torch.randn(1, 1, 1, 16, 16)).shape),
}))
"""

IN_HYDRA = """
import json, warnings
warnings.simplefilter("ignore")
from adaptok.config.menu import choices, compose, plain

config = plain(compose("train", ["tokenizer=mine", "tokenizer.knob=3"]))
composed = ["tokenizer=composed", "+tokenizer/indicator=magnitude", "tokenizer.indicator.channel=2"]
try:
    compose("train", ["tokenizer=mine", "tokenizer.knop=3"])
    error = ""
except ValueError as raised:
    error = str(raised)
print(json.dumps({
    "tokenizer": config["tokenizer"],
    "default": plain(compose("train", ["tokenizer=mine"]))["tokenizer"],
    "indicator": plain(compose("train", composed))["tokenizer"]["indicator"],
    "choices": choices("tokenizer"),
    "error": error,
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder into which pip has installed the package, without network."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "adaptok_mine").mkdir()
    (source / "adaptok_mine" / "__init__.py").write_text(MODULE)
    (source / "adaptok_mine" / "training.py").write_text(TRAINING)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target"]
    command = [sys.executable, "-m", "pip", "install", *options, str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def run(code: str, site: Path, cwd: Path) -> dict:
    """What a fresh interpreter that finds the package prints as its last line, from JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_parts_of_an_installed_package_work_in_python(site, tmp_path):
    seen = run(IN_PYTHON, site, tmp_path)
    assert not seen["loaded_by_import"]
    assert {"mine", "iap", "uniform"} <= set(seen["names"])
    assert "broken" not in seen["names"]
    assert any("plug-in 'broken' (" in text and "was left out" in text for text in seen["warnings"])
    described = seen["described"].splitlines()
    assert described[:2] == ["mine: Uniform cells of `knob` grid points.", "  knob=4"]
    assert described[2].startswith("  halo=0 ")  # which every tokenizer has
    assert seen["tokens"] == 16
    assert seen["refined"] == [[0, 8, 0], [0, 8, 4], [0, 12, 0], [0, 12, 4]]
    assert seen["output"] == [1, 1, 1, 16, 16]


@pytest.mark.slow
def test_parts_of_an_installed_package_are_choices_in_hydra(site, tmp_path):
    seen = run(IN_HYDRA, site, tmp_path)
    assert seen["tokenizer"] == {"name": "mine", "knob": 3, **SHARED}
    assert seen["default"] == {"name": "mine", "knob": 4, **SHARED}
    assert seen["indicator"] == {"name": "magnitude", "channel": 2}
    assert "mine" in seen["choices"]
    assert "knob" in seen["error"]


@pytest.fixture
def installed(site, monkeypatch):
    """The package is found by this process, and loaded for its entry points."""
    monkeypatch.syspath_prepend(str(site))
    for kind in (registry.LOSSES, registry.METRICS):
        monkeypatch.setattr(kind, "_plugins_loaded", False)


def trained(folder: Path, *overrides: str) -> dict:
    """Configuration of a finished run of ``adaptok train``."""
    given = [*small_runs.train(), "trainer.max_steps=1", "test.steps=0", *overrides]
    assert main(["train", *given, f"hydra.run.dir={folder}"]) == 0
    assert (folder / "metrics.json").exists()
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_loss_and_optimizer_of_an_installed_package_train_on_the_command_line(tmp_path):
    loss = ["optim.loss=mine_l1", "optim.loss_unit=prediction"]
    target = "optim.optimizer={_target_: adaptok_mine.training.Signs, momentum: 0.5}"
    more = ["optim.lr_start=0.25", "optim.ema=0.0", "optim.gamma=1.0"]
    assert trained(tmp_path, *loss, target, *more)["optim"]["loss"] == "mine_l1"
    file = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(file, weights_only=True)["optimizer_states"][0]
    assert {group["momentum"] for group in state["param_groups"]} == {0.5}


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_metric_of_an_installed_package_is_measured_and_reported(tmp_path, capsys):
    trained(tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    measured = metrics["settings"][0]["mine_worst"]
    assert measured["mean"] > 0
    assert set(measured["fields"]) == set(metrics["settings"][0]["vrmse"]["fields"])
    assert metrics["persistence"]["mine_worst"]["mean"] > 0
    assert "mine_worst" in capsys.readouterr().out  # the table of the run
    assert main(["report", str(tmp_path / "run"), f"out={tmp_path / 'report'}"]) == 0
    pages = [f for f in (tmp_path / "report").rglob("*") if f.suffix in (".csv", ".md", ".html")]
    assert pages
    assert all("mine_worst" in page.read_text() for page in pages)
