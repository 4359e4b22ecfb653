"""Benchmarks of steps, attention and tokenization run end to end on something small."""

from __future__ import annotations

import importlib
import json
import pkgutil
import runpy
import subprocess
import sys

import pytest
from sampled import sampled

import adaptok
import benchmarks
from adaptok.evaluation.bench import indicators, timing
from adaptok.patches import patchify
from benchmarks.step import PlainViT, nearest_patch

SMALL = {
    "step": ["--shapes", "16x32", "--tokens", "32", "--dim", "24", "--depth", "1", "--heads", "2"],
    "attention": ["--means", "8", "--samples", "3", "--heads", "1", "--head-dim", "8"],
    "tokenize": ["--side", "32", "--dim", "24", "--depth", "1", "--heads", "2"],
    "scaling": ["--sweeps", "batch", "--dim", "24", "--depth", "1", "--heads", "2"],
}


@pytest.mark.parametrize("name", sampled(SMALL, 2))
def test_results_are_written(name, tmp_path, monkeypatch, drawn):
    module = importlib.import_module(f"benchmarks.{name}")
    more = {"step": ["--max-size", "8"], "scaling": ["--seconds", "0.05"]}.get(name, [])
    if name == "scaling":
        monkeypatch.setitem(module.FIXED, "tokens", 64)
        monkeypatch.setitem(module.FIXED, "resolution", 32)
    module.main([str(tmp_path), "--device", "cpu", "--repeats", "1", *SMALL[name], *more])
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert {"device", "hardware", "torch", "python", "when", "commit"} <= set(content["machine"])
    assert (tmp_path / f"{name}.md").read_text().count("|\n") == len(content["rows"]) + 2
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    if name == "step":
        rows = {row["model"]: row for row in content["rows"]}
        assert len(rows) == 1 + 2 * 3 + 1
        assert rows["iap, linear, ragged"]["ragged / equal"] > 0
        assert rows["plain ViT"]["time / plain ViT"] == 1
        equal = {row["GFLOP"] for key, row in rows.items() if key.endswith("linear")}
        assert len({row["tokens"] for row in rows.values()}) == 1
        assert min(equal) > 0 or rows["plain ViT"]["GFLOP"] < 0.1


BENCHMARKS = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name != "drawing"]


@pytest.mark.parametrize(
    "module",
    [
        *(f"benchmarks.{name}" for name in BENCHMARKS),
        "adaptok.evaluation.bench.indicators",
        pytest.param("adaptok.evaluation.bench.vision", marks=pytest.mark.slow),  # timm is slow
    ],
)
def test_help_is_help_and_writes_nothing(module, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    # Compiled with the type checks of the tests, which a run without them could not load.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(SystemExit) as done:
        runpy.run_module(module, run_name="__main__")
    assert done.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_ends_at_its_limits(monkeypatch):
    """With times that double exactly, the slope is one and the limit is met, not passed."""
    from benchmarks import scaling

    options = scaling.arguments(["--device", "cpu", "--dim", "24", "--depth", "1", "--heads", "2"])
    options.seconds, options.memory, sizes = 5.0, 1e6, []

    def fake(steps, repeats, clock):
        sizes.append(2 ** len(sizes))
        return {name: [float(sizes[-1])] for name in steps}

    monkeypatch.setattr(scaling, "paired", fake)
    monkeypatch.setitem(scaling.FIXED, "tokens", 64)
    monkeypatch.setitem(scaling.FIXED, "resolution", 32)
    rows = [*scaling.sweep("batch", options)]
    assert {row["value"] for row in rows} == {1, 2, 4}  # 8 s would be over the limit
    for name in scaling.MODELS:
        own = [row for row in rows if row["model"] == name]
        assert scaling.slope(own) == pytest.approx(1)
    options.memory = 1e-6
    assert {row["value"] for row in scaling.sweep("batch", options)} == {1}


def test_the_commit_is_that_of_the_source_tree_and_no_other(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        call = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / ".venv" / "lib"
    package.mkdir(parents=True)
    (tmp_path / "file").write_text("a")
    assert timing.commit_of(tmp_path) is None
    git("init", "--quiet")
    assert timing.commit_of(tmp_path) is None  # no commit yet
    git("add", "file")
    git("commit", "--quiet", "-m", "a")
    whole = git("rev-parse", "HEAD")
    assert len(whole) == 40
    assert timing.commit_of(tmp_path) == whole
    (tmp_path / "new").write_text("a")
    assert timing.commit_of(tmp_path) == whole
    (tmp_path / "file").write_text("b")
    assert timing.commit_of(tmp_path) == f"{whole}+"
    assert timing.commit_of(package) is None  # installed into somebody's repository
    monkeypatch.setattr(timing, "SOURCE", package)
    assert timing.machine()["commit"] == f"version {adaptok.__version__}"


def test_sides_of_cells_that_have_no_half_are_refused():
    with pytest.raises(ValueError, match="side must be a whole number"):
        indicators.measure(["supernova_explosion_64"], side=1)


def test_patches_nearest_to_a_number_of_tokens():
    assert nearest_patch((128, 384), 1024) == 8  # 768 tokens
    assert nearest_patch((64, 64, 64), 1024) == 8  # 512; patches of 4 are 4096
    assert nearest_patch((256, 256), 1024) == 8


@pytest.mark.parametrize("shape", [(8, 12), (4, 8, 4)])
def test_the_plain_transformer_puts_patches_where_they_belong(shape):
    """Without blocks it is a linear map per patch."""
    import torch

    model = PlainViT(2, shape, 4, 16, 0, 2).double()
    field = torch.randn(1, 1, 2, *shape, dtype=torch.float64)
    out = model(field)
    assert out.shape == field.shape
    weight = model.embed.weight.flatten(1)  # (dim, c * patch)
    patches = patchify(field, (1, *[4] * len(shape)))
    expected = model.head(model.norm(patches @ weight.T + model.embed.bias))
    torch.testing.assert_close(patchify(out, (1, *[4] * len(shape))), expected)
