"""Sweeps on clusters that were really started: Ray, submitit and SLURM, on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import small_runs
import torch
from small_slurm import slurm, why_not

from adaptok.config.build import build_data
from adaptok.config.menu import compose, plain

pytestmark = pytest.mark.slow

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
}
LONG = 400  # steps of the job that is killed; the others have a few
JOBS = f"trainer.max_steps=3,4,{LONG}"
ON_CPU = ["trainer.accelerator=cpu", "trainer.devices=1", "hydra.launcher.timeout_min=30"]
IN_SLURM = ["launcher=slurm", *ON_CPU, "hydra.launcher.gpus_per_node=0"]
IN_SLURM += ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]


@pytest.fixture(scope="module", autouse=True)
def generated() -> None:
    build_data(plain(compose("train", small_runs.train())))


def command(sweep: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "adaptok", "train", "-m", *small_runs.train()]
    return [*words, "trainer.val_check_interval=20", f"hydra.sweep.dir={sweep}", *more]


def run_of(sweep: Path, steps: int) -> Path | None:
    """The run folder of the job with so many steps, once it has a checkpoint."""
    for path in sweep.glob("*/checkpoints/last.ckpt"):
        overrides = (path.parents[1] / ".hydra" / "overrides.yaml").read_text()
        if f"trainer.max_steps={steps}\n" in overrides:
            return path.parents[1]
    return None


def kill_long_job(process: subprocess.Popen[str], sweep: Path, named: str) -> Path:
    """Kills the process of the long job when the others have ended; returns its folder.

    Args:
        named: what stands in the command line of the processes of jobs.
    """
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        folder = run_of(sweep, LONG)
        if folder is not None and len([*sweep.glob("*/metrics.json")]) == 2:
            owner = json.loads((folder / ".owner.json").read_text())
            words = Path("/proc", owner["process"], "cmdline").read_bytes().decode()
            assert named in words.replace("\0", " ")
            os.kill(int(owner["process"]), signal.SIGKILL)
            return folder
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"the long job was not met: {process.communicate()[0][-3000:]}")


def check_kill_and_again(sweep: Path, words: list[str], named: str, env: dict[str, str]) -> None:
    """Kills one of three jobs; the same command skips the two others, and resumes that one."""
    options = {"env": env, "cwd": sweep.parent, "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([*words, JOBS], **options)
    killed = kill_long_job(process, sweep, named)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output[-3000:]
    assert "ended before its job" in output
    assert "2 finished, 1 stopped" in output
    assert "Traceback" not in output
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/metrics.json")}
    last = killed / "checkpoints" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert len(before) == 2
    assert 0 < step < LONG

    again = subprocess.run([*words, JOBS], timeout=500, check=False, **options)
    assert again.returncode == 0, again.stdout[-3000:]
    assert "1 finished, 2 skipped" in again.stdout
    assert f"resuming from {last}" in (killed / "adaptok.log").read_text()
    assert torch.load(last, weights_only=True)["global_step"] == LONG
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.fixture
def ray_cluster() -> Iterator[str]:
    """The address of a cluster of two nodes with a core each."""
    if find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip("hydra-ray-launcher is not installed: pip install 'adaptok[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def test_a_worker_of_ray_is_killed(tmp_path, ray_cluster):
    launcher = ["launcher=ray", f"hydra.launcher.ray.init.address={ray_cluster}"]
    launcher.append("+hydra.launcher.ray.remote.max_retries=0")
    sweep = tmp_path / "sweep"
    check_kill_and_again(sweep, command(sweep, *launcher), "ray::", ENVIRONMENT)


def test_ray_itself_starts_a_killed_job_again(tmp_path, ray_cluster):
    launcher = ["launcher=ray", f"hydra.launcher.ray.init.address={ray_cluster}"]
    sweep = tmp_path / "sweep"
    process = subprocess.Popen(
        command(sweep, *launcher, JOBS),
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    killed = kill_long_job(process, sweep, "ray::")
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output[-3000:]
    assert "3 finished" in output
    assert "resuming from" in (killed / "adaptok.log").read_text()


def test_a_process_of_submitit_is_killed(tmp_path):
    if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("hydra-submitit-launcher is not installed: pip install 'adaptok[sweeps]'")
    sweep = tmp_path / "sweep"
    check_kill_and_again(sweep, command(sweep, "launcher=submitit"), "submitit", ENVIRONMENT)


@pytest.fixture(scope="module")
def environment_of_slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    reason = why_not()
    if reason is not None:
        pytest.skip(f"no SLURM: {reason}")
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield ENVIRONMENT | {name: environment[name] for name in ("SLURM_CONF", "PATH")}


def test_a_job_of_slurm_is_killed(tmp_path, environment_of_slurm):
    sweep = tmp_path / "sweep"
    check_kill_and_again(sweep, command(sweep, *IN_SLURM), "submitit", environment_of_slurm)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_srun_starts_the_processes_of_a_job(tmp_path, environment_of_slurm, strategy):
    sweep, words = tmp_path / "sweep", [*IN_SLURM, "trainer.devices=2", "seed=0,1"]
    done = subprocess.run(
        command(sweep, *words, f"trainer.strategy={strategy}"),
        env=environment_of_slurm,
        text=True,
        capture_output=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "2 finished" in done.stdout
    logs = [path.read_text() for path in sweep.glob(".submitit/*/*_log.out")]
    assert sum("global_rank=1(2)" in log for log in logs) == 2
    assert sum("run folder:" in log for log in logs) == 2  # one process of each job reports
