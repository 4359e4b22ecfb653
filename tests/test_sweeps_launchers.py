"""Launchers and sweepers that are chosen by name: SLURM without a cluster, Optuna."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import small_runs
import yaml
from hydra.core.utils import JobReturn, JobStatus
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only

from adaptok.cli import main
from adaptok.config import menu as config
from adaptok.training import make_trainer

needs_submitit = pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_submitit_launcher") is None,
    reason="hydra-submitit-launcher is not installed: pip install 'adaptok[sweeps]'",
)
needs_optuna = pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_optuna_sweeper") is None,
    reason="hydra-optuna-sweeper is not installed: pip install 'adaptok[sweeps]'",
)


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> list[tuple[str, int]]:
    """A machine with SLURM's commands, which submits nothing; the scripts, and jobs of each."""
    import submitit

    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("srun", "sbatch"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    scripts = []

    def map_array(self, function, *arguments):
        jobs = list(zip(*arguments, strict=True))
        executor = self._executor
        executor.parameters["map_count"] = len(jobs)
        scripts.append((executor._make_submission_file_text("python -m job", "uid"), len(jobs)))
        done = JobReturn(status=JobStatus.COMPLETED)
        done.return_value = None
        return [SimpleNamespace(results=lambda: [done]) for _ in jobs]

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", map_array)
    return scripts


def options(script: str) -> dict[str, str]:
    """The #SBATCH lines of a submission script."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if "#SBATCH" in line]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


@pytest.mark.slow
@needs_submitit
def test_slurm_submits_one_array_with_a_job_per_run(tmp_path, cluster):
    command = ["train", "-m", "launcher=slurm", "hydra.launcher.partition=gpu", "seed=0,1,2"]
    command.append("hydra.launcher.array_parallelism=2")
    assert main([*command, "sweep=three", f"hydra.sweep.dir={tmp_path / 'sweep'}"]) == 0
    ((script, jobs),) = cluster
    given = options(script)
    assert jobs == 3
    assert given["array"] == "0-2%2"
    assert given["partition"] == "gpu"
    assert given["job-name"] == "three"
    assert (given["nodes"], given["ntasks-per-node"], given["gpus-per-node"]) == ("1", "1", "1")
    assert given["time"] == "720"
    assert given["signal"] == "USR2@300"


@needs_submitit
def test_slurm_with_fsdp_gives_every_gpu_a_process(tmp_path, cluster, monkeypatch):
    command = ["train", "-m", "launcher=slurm_fsdp", "trainer.num_nodes=4", "trainer.devices=2"]
    command += ["size=base", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert main(command) == 0
    ((script, _),) = cluster
    given = options(script)
    assert (given["nodes"], given["ntasks-per-node"], given["gpus-per-node"]) == ("4", "2", "2")
    assert "exclusive" in given
    assert "srun" in script

    # What SLURM tells the sixth of the eight processes that this script starts.
    nodes, tasks = int(given["nodes"]), int(given["ntasks-per-node"])
    told = {"JOB_ID": 7, "JOB_NAME": "runs", "NTASKS": nodes * tasks, "NTASKS_PER_NODE": tasks}
    told |= {"NNODES": nodes, "NODELIST": "node[1-4]", "PROCID": 5, "LOCALID": 1, "NODEID": 2}
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # the environment sets it for the process
    composed = config.plain(config.compose("train", [o for o in command[2:] if o[:5] != "hydra"]))
    knobs = {**composed["trainer"], "accelerator": "cpu", "precision": "32-true"}
    del knobs["compile"]
    trainer = make_trainer(tmp_path / "run", **knobs)
    where = trainer.strategy.cluster_environment
    assert isinstance(where, SLURMEnvironment)
    assert isinstance(trainer.strategy, ModelParallelStrategy)
    assert trainer.world_size == 8
    assert trainer.num_nodes == 4
    assert (where.global_rank(), where.local_rank(), where.node_rank()) == (5, 1, 2)
    assert where.main_address == "node1"
    # What Lightning itself does there needs the processes.
    monkeypatch.setattr(ModelParallelStrategy, "setup_environment", lambda self: None)
    trainer.strategy.setup_environment()
    assert trainer.strategy._data_parallel_size == 8


def test_a_launcher_is_for_sweeps(capsys):
    assert main(["train", "launcher=slurm"]) == 2
    assert "launcher=slurm is for sweeps: adaptok train -m" in capsys.readouterr().err


def test_a_launcher_that_is_not_installed(capsys):
    if find_spec("hydra_plugins.hydra_ray_launcher") is not None:
        pytest.skip("hydra-ray-launcher is installed")
    assert main(["train", "-m", "launcher=ray"]) == 2
    assert "launcher=ray needs a package: pip install 'adaptok[ray]'" in capsys.readouterr().err


@pytest.mark.slow
@needs_optuna
def test_optuna_minimises_and_survives_a_failing_trial(tmp_path, capsys):
    overrides = [o for o in small_runs.train() if not o.startswith("tokenizer")]
    command = ["train", "-m", "search=apt_thresholds", *overrides, "hydra.sweeper.n_trials=3"]
    command += ["tokenizer.max_size=8", "tokenizer.thresholds=2.0"]
    command.append("hydra.sweeper.sampler.seed=2")  # it proposes 3, 2 and 4
    command += ["tokenizer.min_size=choice(2,4,3)", f"hydra.sweep.dir={tmp_path}"]
    assert main(command) == 1
    out = capsys.readouterr().out
    failed = {path.parent for path in tmp_path.glob("*/failed.json")}
    assert len(failed) == 1
    finished = {path.parent for path in tmp_path.glob("*/metrics.json")}
    assert len(finished) == 2
    values = {
        yaml.safe_load((run / "config.yaml").read_text())["tokenizer"]["min_size"]: json.loads(
            (run / "job.json").read_text()
        )["value"]
        for run in finished
    }
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(values.values())
    assert values[best["best_params"]["tokenizer.min_size"]] == best["best_value"]
    assert "1 failed" in out

    before = {run: (run / "metrics.json").stat().st_mtime_ns for run in finished}
    assert main(command) == 1
    assert {run: (run / "metrics.json").stat().st_mtime_ns for run in finished} == before
    assert yaml.safe_load((tmp_path / "optimization_results.yaml").read_text()) == best
