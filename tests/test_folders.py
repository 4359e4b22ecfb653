"""Nothing is lost: folders of other runs, full disks, and what would end a run late."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import pytest
import small_runs
import torch
from omegaconf import OmegaConf

from adaptok.cli import main, short_warnings
from adaptok.cli.folders import OtherRunError, check_free
from adaptok.cli.sweeps import check_cluster
from adaptok.config.build import build_data
from adaptok.config.menu import compose, plain
from adaptok.data import WellData
from adaptok.data.synthetic import generate
from adaptok.evaluation.evaluate import evaluate
from adaptok.tasks.fit import _keep_metrics, check_trainer
from adaptok.training.saving import AtomicIO
from adaptok.utils.disk import why_full

CONFIG = {
    "name": "${tokenizer.name}",
    "tokenizer": {"name": "iap"},
    "optim": {"lr": 5e-4},
    "trainer": {"max_steps": 20000},
    "data": {"num_workers": 0},
    "logger": {"wandb": "${adaptok.nothing:}"},  # what only a running job resolves
    "resume": None,
    "resume_anyway": False,
}


def composed(*overrides: str, command: str = "train"):
    config = {"hydra": {"job": {"config_name": command}}, **CONFIG}
    return OmegaConf.merge(config, OmegaConf.from_dotlist([*overrides]))


@pytest.fixture
def first(tmp_path) -> Path:
    """The folder of a run, as Hydra and the run leave it."""
    (tmp_path / ".hydra").mkdir()
    config = composed()
    for name in ("hydra", "config"):  # the second one need not be without Hydra's part
        OmegaConf.save(config, tmp_path / ".hydra" / f"{name}.yaml")
    (tmp_path / "config.yaml").write_text("resolved: true")
    return tmp_path


def test_a_folder_of_another_run_is_refused(first):
    check_free(first, composed())
    check_free(first, composed("name=other", "data.num_workers=1"))  # nothing that counts
    with pytest.raises(OtherRunError, match=r"tokenizer.name is iap there, uniform here"):
        check_free(first, composed("tokenizer.name=uniform"))
    with pytest.raises(OtherRunError, match=r"trainer.max_steps is 20000 there, 9 here"):
        check_free(first, composed("trainer.max_steps=9"))
    with pytest.raises(OtherRunError, match="it is of adaptok train"):
        check_free(first, composed(command="tokenize"))
    (first / ".hydra" / "hydra.yaml").unlink()
    with pytest.raises(OtherRunError, match="it does not say which command made it"):
        check_free(first, composed())


def test_a_run_that_resumes_may_be_longer(first):
    check_free(first, composed("resume=auto", "trainer.max_steps=9"))
    with pytest.raises(OtherRunError, match=r"optim.lr is 0.0005 there, 1.* here"):
        check_free(first, composed("resume=auto", "optim.lr=1"))
    check_free(first, composed(f"resume={first}/checkpoints/last.ckpt", "optim.lr=1"))
    check_free(first, composed("resume=auto", "resume_anyway=true", "optim.lr=1"))


def test_a_folder_without_a_run_is_free(first):
    (first / "config.yaml").unlink()  # it failed before it began
    check_free(first, composed("tokenizer.name=uniform"))


def test_the_command_line_leaves_another_run_alone(tmp_path, capsys, monkeypatch):
    def train(config):
        (tmp_path / "config.yaml").write_text(str(config.history))

    monkeypatch.setattr("adaptok.cli.commands.train", train)
    command = ["train", f"hydra.run.dir={tmp_path}"]
    assert [main([*command, f"history={n}"]) for n in (1, 2)] == [0, 2]
    assert "history is 1 there, 2 here" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == "1"
    assert "history: 1" in (tmp_path / ".hydra" / "config.yaml").read_text()


def test_a_full_disk_is_called_so():
    assert why_full(OSError(errno.ENOSPC, "x")) == "the disk is full"
    wrapped = RuntimeError("x")
    wrapped.__context__ = OSError(errno.EDQUOT, "x")
    assert why_full(wrapped) == "the disk quota is used up"
    assert why_full(RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"))
    assert why_full(OSError(errno.EACCES, "x")) is None


class Full:
    """A file on a full disk."""

    def write(self, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self):
        """Nothing is left to write."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_a_checkpoint_that_does_not_fit_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *_: Full())
    path = tmp_path / "last.ckpt"
    with pytest.raises(OSError, match=r"cannot write .*last.ckpt, of step 5: the disk is full$"):
        AtomicIO().save_checkpoint({"global_step": 5, "x": torch.zeros(100_000)}, path)
    assert not path.exists()


def test_a_set_that_does_not_fit_says_so_without_a_word_of_hdf5(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Path, "write_bytes", Full.write)
    tiny = {"resolution": 16, "nodes": 4, "frames": 2, "train": 1, "valid": 1, "test": 1}
    with pytest.raises(OSError, match=r"cannot write the set .*maze: the disk is full$"):
        generate("acoustic_scattering_maze", tmp_path, progress=False, **tiny)
    assert [path.name for path in tmp_path.iterdir()] == [".adaptok.lock"]
    assert capfd.readouterr().err == ""


@pytest.fixture(scope="module")
def data() -> WellData:
    config = compose("train", small_runs.data())
    knobs = OmegaConf.to_container(config.data.generate)
    folder = generate(config.data.name, config.data.base, progress=False, **knobs)
    return WellData(path=folder)


def test_rollouts_that_are_too_long_are_refused_with_what_fits(data):
    data.check_steps(("train", "test"), 5, "test.steps")
    message = r"test.steps=8 is too long: .*data/test has 6 frames .*; at most test.steps=5$"
    with pytest.raises(ValueError, match=message):
        data.check_steps(("test",), 8, "test.steps")
    with pytest.raises(ValueError, match=r"at most steps=5$"):
        evaluate(None, data, steps=8)  # before the model is asked for anything


def test_rollouts_are_checked_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adaptok.tasks.surrogate.fit_surrogate", lambda *_: pytest.fail("fitted"))
    command = ["train", *small_runs.train(), f"hydra.run.dir={tmp_path}", "test.steps=8"]
    assert main(command) == 2
    assert "test.steps=8 is too long" in capsys.readouterr().err


def test_steps_of_the_training_are_named_as_typed():
    config = plain(compose("train", [*small_runs.data(), "optim.unroll=8"]))
    with pytest.raises(ValueError, match=r"^optim.unroll=8 is too long: .*data/train has 6 frames"):
        build_data(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("processor.norm=no", "norm must be one of"),
        ("size.heads=5", "heads"),
        ("size.dim=25", "dim"),
    ],
)
def test_parts_are_built_before_data_is_generated(override, message, tmp_path):
    changed = [override, f"data.base={tmp_path}"]
    config = plain(compose("train", [*small_runs.train(), *changed]))
    with pytest.raises(ValueError, match=message):
        build_data(config)
    assert not [*tmp_path.iterdir()]


def test_a_training_without_an_end_or_with_too_many_processes_is_refused():
    check_trainer({"max_steps": -1, "max_time": "00:01:00"})
    check_trainer({"max_steps": -1, "max_epochs": 2})
    with pytest.raises(ValueError, match="nothing ends the training"):
        check_trainer({"max_steps": -1, "max_epochs": -1})
    with pytest.raises(ValueError, match=r"leaves that to trainer\.max_epochs$"):
        check_trainer({"max_steps": -1, "max_epochs": -1, "max_time": "00:01:00"}, by_time=False)
    with pytest.raises(ValueError, match=r"trainer.strategy must be auto, .*'dpd'"):
        check_trainer({"max_steps": 1, "strategy": "dpd"})
    with pytest.raises(ValueError, match=r"trainer.devices=999 on the CPU"):
        check_trainer({"max_steps": 1, "accelerator": "cpu", "devices": 999})


def test_metrics_of_no_earlier_part_are_overwritten(tmp_path):
    for name in ("metrics", "metrics_before_2"):  # the first was removed
        (tmp_path / f"{name}.csv").write_text(name)
    _keep_metrics(tmp_path)
    kept = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert kept == {
        "metrics_before_2.csv": "metrics_before_2",
        "metrics_before_3.csv": "metrics",
    }


def test_a_launcher_without_its_cluster_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    for launcher in ("launcher=slurm", "launcher=slurm_fsdp", "hydra/launcher=submitit_slurm"):
        with pytest.raises(ValueError, match="this machine has no srun"):
            check_cluster(["-m", launcher])
    check_cluster(["-m", "launcher=submitit"])


def test_warnings_are_one_line_each(capsys):
    with warnings.catch_warnings(), short_warnings():
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn("two\nlines", stacklevel=1)
    assert capsys.readouterr().err == "adaptok: warning: two lines\n"
