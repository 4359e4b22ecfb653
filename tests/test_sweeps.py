"""Sweeps: failures are recorded, finished jobs skipped, killed ones resumed, on every launcher."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import small_runs
import torch
import yaml
from forked import Forked
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from adaptok.cli import main
from adaptok.cli.sweeps import Job, job_count, summarise, swept_keys
from adaptok.config import run_ids
from adaptok.utils.locks import only_writer

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
}
# Nothing is trained: a job takes as long as its test.
QUICK = [*small_runs.data(), "model=persistence", *small_runs.RUN]
BUDGETS = (4, 7, 3, 16, 22, 28)  # 3 is below the cells that must be there


@pytest.fixture
def quick(monkeypatch) -> list[int]:
    """A command that trains in no time; its histories, one per call."""
    calls: list[int] = []

    def train(config) -> float:
        calls.append(config.history)
        if config.history == 99:
            raise ValueError("no such\n history")
        folder = Path(HydraConfig.get().runtime.output_dir)
        (folder / "metrics.json").write_text("{}")
        return config.history / 10

    monkeypatch.setattr("adaptok.cli.commands.train", train)
    return calls


def folders(sweep: Path) -> list[Path]:
    return sorted(path.parent for path in sweep.glob("*/job.json"))


def stamps(sweep: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in sweep.glob("*/metrics.json")}


def record(folder: Path) -> dict:
    return json.loads((folder / "job.json").read_text())


@pytest.mark.slow
def test_a_failing_job_is_recorded_and_the_others_are_not_run_again(tmp_path, capsys, quick):
    command = ["train", "-m", "history=1,99,2", f"hydra.sweep.dir={tmp_path}"]
    assert main(command) == 1
    out = capsys.readouterr().out
    (failed,) = [path.parent for path in tmp_path.glob("*/failed.json")]
    failure = json.loads((failed / "failed.json").read_text())
    assert failure["error"] == "ValueError: no such history"
    assert failure["traceback"].startswith("Traceback")
    assert "history=99" in failure["overrides"]
    assert set(failure) == {"error", "traceback", "when", "overrides"}
    assert f"failed: {failed}: {failure['error']}" in out
    assert f"job 1 of 3: {tmp_path}" in out
    assert "job 3 of 3, about " in out
    summary = out[out.index(f"sweep {tmp_path}: 2 finished, 1 failed") :].splitlines()
    assert [line.split()[0] for line in summary[1:]] == ["finished", "failed", "finished"]
    assert failure["error"] in summary[2]
    assert len(folders(tmp_path)) == 3

    before = stamps(tmp_path)
    assert main(command) == 1
    out = capsys.readouterr().out
    assert f"sweep {tmp_path}: 2 skipped, 1 failed" in out
    assert out.count("finished before, skipped: ") == 2
    assert stamps(tmp_path) == before

    assert main(["train", "-m", "history=1,2,3", command[-1]]) == 0
    assert f"sweep {tmp_path}: 1 finished, 2 skipped" in capsys.readouterr().out
    assert len(folders(tmp_path)) == 4
    assert quick == [1, 99, 2, 99, 3]


@pytest.mark.slow
def test_a_failure_is_forgotten_once_the_job_succeeds(tmp_path, quick, monkeypatch):
    command = ["train", "-m", "history=99", f"hydra.sweep.dir={tmp_path}"]
    assert main(command) == 1
    (folder,) = folders(tmp_path)
    assert (folder / "failed.json").exists()
    assert record(folder)["state"] == "failed"
    monkeypatch.setattr("adaptok.cli.commands.train", lambda config: 0.5)
    assert main(command) == 0
    assert not (folder / "failed.json").exists()
    assert record(folder)["state"] == "finished"
    assert record(folder)["value"] == 0.5


def test_ctrl_c_ends_the_sweep(tmp_path, capsys, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("adaptok.cli.commands.train", interrupted)
    assert main(["train", "-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}"]) == 130
    captured = capsys.readouterr()
    assert f"sweep {tmp_path}: 1 stopped" in captured.out
    assert "adaptok: interrupted; the same command resumes it" in captured.err
    assert len(folders(tmp_path)) == 1


def test_a_typo_stops_a_sweep_before_its_first_job(tmp_path, capsys):
    assert main(["train", "-m", "tokenizer=iap,aip", f"hydra.sweep.dir={tmp_path}"]) == 2
    captured = capsys.readouterr()
    assert "unknown tokenizer 'aip' (did you mean" in captured.err
    assert not folders(tmp_path)


@pytest.mark.slow
def test_other_settings_of_a_machine_find_the_finished_job(tmp_path, quick):
    command = ["train", "-m", f"hydra.sweep.dir={tmp_path}"]
    assert main(command) == 0
    assert main([*command, "data.num_workers=1", "sweep=other", "trainer.devices=2"]) == 0
    assert len(quick) == 1


@pytest.mark.slow
def test_a_job_without_results_is_run_again(tmp_path, quick):
    command = ["train", "-m", f"hydra.sweep.dir={tmp_path}"]
    assert main(command) == 0
    (folder,) = folders(tmp_path)
    (folder / "metrics.json").unlink()
    assert main(command) == 0
    assert len(quick) == 2


@pytest.mark.slow
def test_a_folder_of_another_job_is_left_alone(tmp_path, quick, capsys):
    command = ["train", "-m", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=one"]
    assert [main([*command, f"history={history}"]) for history in (1, 2, 1)] == [0, 2, 0]
    assert quick == [1]
    assert "holds another job, " in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_job_goes_on_from_its_own_checkpoint(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("adaptok.cli.commands.train", lambda config: seen.append(config.resume))
    command = ["train", "-m", f"hydra.sweep.dir={tmp_path}"]
    main(command)
    (folder,) = folders(tmp_path)
    last = folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    main(command)
    main([*command, "resume=auto"])
    main([*command, "history=2"])
    assert seen == [None, str(last), str(last), None]


@pytest.mark.slow
def test_a_job_that_runs_elsewhere_is_left_alone(tmp_path, capsys, quick):
    command = ["train", "-m", f"hydra.sweep.dir={tmp_path}"]
    assert main(command) == 0
    (folder,) = folders(tmp_path)
    (folder / "job.json").unlink()
    with only_writer(folder):
        main(command)
    assert f"left alone, another process is running it: {folder}" in capsys.readouterr().out
    assert len(quick) == 1


@pytest.mark.slow
def test_the_environment_of_a_job_ends_with_it(tmp_path, monkeypatch):
    seen = []

    def train(config):
        seen.append((os.environ.get("LOCAL_RANK"), list(sys.argv)))
        os.environ["LOCAL_RANK"] = "0"
        return 1.0

    monkeypatch.setattr("adaptok.cli.commands.train", train)
    before = list(sys.argv)
    assert main(["train", "-m", "seed=3,4", f"hydra.sweep.dir={tmp_path}"]) == 0
    assert [local for local, _ in seen] == [None, None]
    for (_, argv), seed in zip(seen, (3, 4), strict=True):
        assert argv[1] == "train"
        assert f"seed={seed}" in argv
        assert not [word for word in argv if "hydra" in word or word == "-m"]
    assert sys.argv == before
    assert "LOCAL_RANK" not in os.environ


def test_swept_keys():
    args = [
        "-m",
        "a=1,2",
        "b.c=range(1,4)",
        "d=[1,2]",
        "tokenizer=x,y",
        "e='1,2'",
        "+f=choice(1,2)",
    ]
    assert swept_keys(args) == ["a", "b.c", "tokenizer", "f"]


def test_jobs_are_counted_from_the_line_and_the_preset():
    """What is typed goes over the preset; of intervals nobody knows how many there will be."""
    params = {"tokenizer": "uniform,iap,apt", "seed": "0,1,2"}
    assert job_count(["-m", "history=1,2"], params) == 18
    assert job_count(["-m", "seed=0", "budget=range(1,5)"], params) == 12
    assert job_count(["-m"], {}) == 1
    assert job_count(["-m", "optim.lr=tag(log,interval(1e-4,1e-2))"], {}) is None
    assert job_count(["-m", "tokenizer=glob(ia*)"], {}) is None
    assert job_count(["-m"], {"tokenizer.thresholds": "interval(1.0, 6.0)"}) is None


def test_presets_of_sweeps_are_refused_alone(capsys, tmp_path):
    where = f"hydra.run.dir={tmp_path / 'run'}"
    assert main(["train", "experiment=six_tokenizers", where]) == 2
    assert "tokenizer, seed take several values, which is for sweeps" in capsys.readouterr().err
    assert main(["train", "sweep=mine", where]) == 2
    assert "sweep=mine is for sweeps" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_on_other_data_of_the_same_name_is_not_skipped(tmp_path, quick, capsys):
    """Generated sets follow from the configuration, wherever they are."""
    words = ["train", "-m", "data=well", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    for place, status, made in (("a", 0, 1), ("a", 0, 1), ("b", 2, 1)):
        assert main([*words, f"data.path={tmp_path / place / 'set'}"]) == status
        assert len(quick) == made
    said = capsys.readouterr()
    assert "1 skipped" in said.out
    assert f"{tmp_path / 'b' / 'set'} is asked for: another set needs another sweep=" in said.err
    generated = ["train", "-m", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    for place in ("a", "b"):
        assert main([*generated, f"data.base={tmp_path / place}"]) == 0
    assert len(quick) == 2


def test_each_of_two_commands_has_its_own_summary(tmp_path):
    """The second skips what the first has made, and tries again what has failed there."""
    first, second = "1" * 32, "2" * 32
    for number, commands in enumerate(
        ({first: "finished", second: "skipped"}, {first: "failed", second: "finished"})
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        about = {"number": number, "state": "finished", "value": 0.5, "measure": "VRMSE"}
        (folder / "job.json").write_text(json.dumps({**about, "commands": commands}))
    assert [summarise(tmp_path, start)[1] for start in (first, second)] == [1, 0]
    said = summarise(tmp_path, first)[0]
    assert "1 finished, 1 failed" in said
    assert said.count("VRMSE") == 1  # the failed one's is that of the second command
    assert "1 finished, 1 skipped" in summarise(tmp_path, second)[0]


def test_a_job_that_travels_takes_its_names_along():
    job = pickle.dumps(Job("train", ["-m", "trainer.devices=1,2"]))
    run_ids.register_run_id()
    a = OmegaConf.create({"trainer": {"devices": 1}, "id": "${adaptok.run_id:}"})
    b = OmegaConf.create({"trainer": {"devices": 2}, "id": "${adaptok.run_id:}"})
    assert a.id == b.id
    pickle.loads(job)
    a, b = OmegaConf.create(a), OmegaConf.create(b)
    assert a.id != b.id
    run_ids.register_run_id()


# ---- in processes of their own


def command(sweep: Path, *more: str) -> list[str]:
    """A sweep of six jobs, one of which fails."""
    overrides = [o for o in small_runs.train() if not o.startswith("tokenizer.budget")]
    budgets = f"tokenizer.budget={','.join(map(str, BUDGETS))}"
    steps = ["trainer.max_steps=40", "trainer.val_check_interval=5"]
    words = ["-m", "adaptok", "train", "-m", *overrides, budgets, *steps]
    return [*words, f"hydra.sweep.dir={sweep}", *more]


def start(words: list[str], folder: Path) -> Forked:
    return Forked(words, cwd=folder, env=ENVIRONMENT)


def kill_midway(process: Forked, sweep: Path, budget: int) -> Path:
    """Kills the sweep once the job of a budget has a checkpoint; returns the folder of the job."""
    while process.poll() is None:
        for checkpoint in sweep.glob("*/checkpoints/last.ckpt"):
            folder = checkpoint.parents[1]
            overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
            if f"tokenizer.budget={budget}" in overrides:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return folder
        time.sleep(0.01)
    pytest.fail(f"the sweep ended by itself with {process.returncode}")


@pytest.mark.slow
def test_one_of_six_jobs_fails_and_one_is_killed(tmp_path):
    sweep = tmp_path / "sweep"
    killed = kill_midway(start(command(sweep), tmp_path), sweep, budget=16)
    assert not (killed / "metrics.json").exists()
    step = torch.load(killed / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < 40
    before = stamps(sweep)
    assert len(before) == 2
    assert len(list(sweep.glob("*/failed.json"))) == 1

    process = start(command(sweep), tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert len(folders(sweep)) == 6
    (failure,) = sweep.glob("*/failed.json")
    assert "budget 3 is below" in json.loads(failure.read_text())["error"]
    after = stamps(sweep)
    assert len(after) == 5
    assert {name: after[name] for name in before} == before
    assert output.count("resuming from") == 1
    assert f"resuming from {killed}/checkpoints/last.ckpt" in output
    assert f"sweep {sweep.relative_to(tmp_path)}: 3 finished, 2 skipped, 1 failed" in output

    alone = ["tokenizer.budget=16", f"hydra.run.dir={tmp_path / 'alone'}"]
    words = [w for w in command(sweep) if w != "-m" and not w.startswith(("tokenizer.b", "hydra"))]
    assert main([*words[words.index("train") :], *alone]) == 0
    weights = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (killed, tmp_path / "alone")
    ]
    for name, expected in weights[1].items():
        assert torch.equal(weights[0][name], expected), name


@pytest.mark.slow
def test_processes_of_joblib(tmp_path):
    """Those of the other launchers are tested in `tests/test_clusters.py`."""
    if find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("hydra-joblib-launcher is not installed: pip install 'adaptok[sweeps]'")
    words = [sys.executable, "-m", "adaptok", "train", "-m", *QUICK, "history=1,99"]
    words += [f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra/launcher=joblib"]
    for finished in ("finished", "skipped"):
        done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 1
        output = done.stdout
        assert f"sweep sweep: 1 {finished}, 1 failed" in output
    assert len(folders(tmp_path / "sweep")) == 2
