"""Several processes and kills: the same run, whatever happens to its processes."""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path

import pytest
import small_runs
import torch
from forked import Forked, run_forked
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from adaptok.config.build import build_data
from adaptok.config.menu import compose, plain
from adaptok.training import make_trainer
from adaptok.training.checkpoints import read_checkpoint
from adaptok.training.parallel import FullySharded
from adaptok.utils.tables import read_metrics

SCRIPT = Path(__file__).parent / "parallel_run.py"
ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "LOCAL_RANK"))}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@functools.cache
def generated() -> None:
    build_data(plain(compose("train", small_runs.train())))


def command(folder: Path, batch_size: int, overrides: tuple[str, ...], options: dict) -> list[str]:
    generated()
    data = [o for o in small_runs.data() if not o.startswith("data.batch_size")]
    chosen = [*data, f"data.batch_size={batch_size}", *small_runs.SIZE]
    if not any(o.startswith("tokenizer=") for o in overrides):
        chosen += ["tokenizer=uneven"]
    chosen += ["optim.warmup_steps=1", "optim.lr=0.01", *overrides]
    whole = {"max_steps": 6, "val_check_interval": 2} | options | {"overrides": chosen}
    return [str(SCRIPT), str(folder), json.dumps(whole)]


def run(folder: Path, batch_size: int, *overrides: str, **options) -> Path:
    done = run_forked(command(folder, batch_size, overrides, options), environment(), timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def curve(folder: Path, key: str) -> list[float]:
    return [row[key] for row in read_metrics(folder) if key in row]


def counts(folder: Path, rank: int) -> list[list[int]]:
    return json.loads((folder / f"counts_{rank}.json").read_text())


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("single"), 4, gradient_clip_val=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_the_curve_of_one(single, strategy, tmp_path):
    """Same global batch, tokens per sample differ between the ranks, levels without a token."""
    options = {"strategy": strategy, "devices": 2, "gradient_clip_val": 0.5}
    folder = run(tmp_path / "two", 2, **options)
    ours, theirs = curve(folder, "train/loss"), curve(single, "train/loss")
    assert len(ours) == 6
    assert max(theirs) > 1.05 * min(theirs)  # it moves
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert curve(folder, "val/vrmse") == pytest.approx(curve(single, "val/vrmse"), rel=1e-4)
    ranks = [counts(folder, rank) for rank in (0, 1)]
    assert any(sum(a) != sum(b) for a, b in zip(*ranks, strict=True))
    coarse = [[set(step) == {4} for step in rank] for rank in ranks]  # the finer levels are empty
    assert any(a != b for a, b in zip(*coarse, strict=True))
    whole, parts = read_checkpoint(single), read_checkpoint(folder)
    for key in ("state_dict", "averaged_state_dict"):
        for name, value in whole[key].items():
            torch.testing.assert_close(parts[key][name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("devices", [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(single, strategy, devices, tmp_path):
    """The batches of all processes together stay the same."""
    start, end = (
        {"gradient_clip_val": 0.5} | ({"strategy": strategy, "devices": n} if n > 1 else {})
        for n in devices
    )
    first = run(tmp_path / "first", 4 // devices[0], **start, max_steps=4)
    last = first / "checkpoints" / "last.ckpt"
    second = run(tmp_path / "second", 4 // devices[1], **end, resume=str(last))
    for key, done in (("train/loss", 4), ("val/vrmse", 2)):
        assert curve(second, key) == pytest.approx(curve(single, key)[done:], rel=1e-4)
    a, b = read_checkpoint(second), read_checkpoint(single)
    for key in ("state_dict", "averaged_state_dict"):
        for name, value in a[key].items():
            torch.testing.assert_close(value, b[key][name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["ckm", "csm"])
def test_random_patch_sizes_under_fsdp_give_the_curve_of_one_process(tokenizer, tmp_path):
    """Both processes draw the same patch size; resized kernels are made of gathered weights."""
    model = [f"tokenizer={tokenizer}", "tokenizer.patch_sizes=[1,4]", "decoder=modulated"]
    model += ["processor=spacetime_parallel", "history=2", "history_mode=frames"]
    model += ["schedule=random", "schedule.settings=[{patch_size: 1}, {patch_size: 4}]"]
    single = run(tmp_path / "one", 4, *model)
    two = run(tmp_path / "two", 2, *model, strategy="fsdp", devices=2)
    for key in ("train/loss", "val/vrmse"):
        assert curve(two, key) == pytest.approx(curve(single, key), rel=1e-4)
    tokens = [{n for call in counts(two, rank) for n in call} for rank in (0, 1)]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 2


@pytest.mark.slow
def test_fsdp_goes_on_from_its_checkpoint_in_mid_epoch(tmp_path):
    """Unrolled, and with activation checkpointing or without: bitwise."""
    options = {"strategy": "fsdp", "devices": 2}
    more = "optim.unroll=2"
    whole = run(tmp_path / "whole", 2, more, **options)
    run(tmp_path / "first", 2, more, **options | {"max_steps": 3, "val_check_interval": 3})
    last = str(tmp_path / "first" / "checkpoints" / "last.ckpt")
    second = run(tmp_path / "second", 2, more, **options, resume=last, checkpoint_activations=True)
    assert curve(second, "train/loss") == curve(whole, "train/loss")[3:]
    a, b = read_checkpoint(whole), read_checkpoint(second)
    for key in ("state_dict", "averaged_state_dict"):
        for name, value in a[key].items():
            assert torch.equal(value, b[key][name]), name
    last = str(tmp_path / "second" / "checkpoints" / "last.ckpt")
    read = {"resume": last, "only_validate": True}
    two = run(tmp_path / "two", 2, more, **options, **read)
    one = run(tmp_path / "one", 4, more, **read)
    assert curve(two, "val/vrmse") == pytest.approx(curve(one, "val/vrmse"), rel=1e-4)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_the_whole_one(tmp_path):
    """SIGKILL in mid-epoch, with drop path; bitwise."""
    overrides = ("processor.depth=2", "processor.drop_path=0.3")
    options = {"max_steps": 40, "val_check_interval": 3}
    whole = run(tmp_path / "whole", 2, *overrides, **options)
    killed = tmp_path / "killed"
    process = Forked(command(killed, 2, overrides, options), env=environment())
    last = killed / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 300
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    step = read_checkpoint(killed)["global_step"]
    assert 0 < step < 40
    assert step % 5, "an epoch has 5 steps"
    (killed / "metrics.csv").unlink(missing_ok=True)
    resumed = run(killed, 2, *overrides, **options, resume=str(last))
    assert curve(resumed, "train/loss") == curve(whole, "train/loss")[step:]
    a, b = read_checkpoint(whole), read_checkpoint(resumed)
    for key in ("state_dict", "averaged_state_dict"):
        for name, value in a[key].items():
            assert torch.equal(value, b[key][name]), name


@pytest.mark.slow
def test_the_command_starts_its_processes_also_in_a_sweep(tmp_path):
    """With fsdp; the kills of `tests/test_kills.py` start the command with ddp."""
    generated()
    words = ["-m", "adaptok", "train", "-m", *small_runs.train(), "seed=0,1"]
    words += ["trainer.devices=2", "trainer.strategy=fsdp", f"hydra.sweep.dir={tmp_path}"]
    done = run_forked(words, environment(), timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("run folder:") == 2  # one process of each run reports
    values = []
    for metrics in sorted(tmp_path.rglob("metrics.json")):
        results = json.loads(metrics.read_text())
        values.append(results["settings"][0]["vrmse"]["mean"])
        assert read_checkpoint(metrics.parent)["global_step"] == 3
    assert len(values) == 2
    assert values[0] != values[1]
    # One process evaluates what two have trained.
    trained = min(tmp_path.rglob("metrics.json")).parent
    words = ["-m", "adaptok", "eval", f"ckpt={trained}", f"hydra.run.dir={tmp_path / 'eval'}"]
    done = run_forked([*words, "steps=2", "device=cpu"], environment(), timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert results["settings"][0]["vrmse"]["mean"] == pytest.approx(values[0], rel=1e-5)


def test_names_of_strategies(tmp_path):
    knobs = {"accelerator": "cpu", "devices": 2}
    assert isinstance(make_trainer(tmp_path, strategy="ddp", **knobs).strategy, DDPStrategy)
    assert isinstance(make_trainer(tmp_path, strategy="fsdp", **knobs).strategy, FullySharded)


@pytest.mark.parametrize(("devices", "nodes", "size"), [(2, 3, 6), ("auto", 1, 1), (2, 1, 2)])
def test_fsdp_shards_over_all_processes(tmp_path, monkeypatch, devices, nodes, size):
    monkeypatch.setattr(ModelParallelStrategy, "setup_environment", lambda strategy: None)
    knobs = {"accelerator": "cpu", "devices": devices, "num_nodes": nodes}
    strategy = make_trainer(tmp_path, strategy="fsdp", **knobs).strategy
    strategy.setup_environment()
    assert strategy._data_parallel_size == size
