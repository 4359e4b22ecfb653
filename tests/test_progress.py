"""What a run says: lines and bar of the progress, the log in its folder, what Ctrl-C leaves."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import lightning as L
import pytest
import torch

from adaptok.tasks.banner import commit
from adaptok.tasks.fit import _hint
from adaptok.training import progress
from adaptok.training.progress import Progress, is_due
from adaptok.training.saving import Checkpoints
from adaptok.training.steps import Steps
from adaptok.utils.log import kept, note, size, span


def test_a_long_training_has_early_lines_and_about_twenty():
    due = [step for step in range(1, 20_001) if is_due(step, 20_000, 0.0)]
    assert due == [10, 100, *range(1000, 20_001, 1000)]
    assert [step for step in range(1, 4) if is_due(step, 3, 0.0)] == [1, 2, 3]
    assert is_due(777, 20_000, 601.0)
    assert [step for step in range(1, 200) if is_due(step, math.inf, 0.0)] == [10, 100]


def trainer_of(**facts) -> Mock:
    """A trainer that knows no more than these facts."""
    return Mock(spec=L.Trainer, is_global_zero=True, **facts)


def run(bar: bool, last: float, steps: int, batches: int = 1, first: int = 0) -> None:
    figures = {"train/loss": torch.tensor(0.25), "samples/s": 8.0}
    place = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = trainer_of(
        estimated_stepping_batches=last, progress_bar_metrics=figures, strategy=place
    )
    shown, module = Progress(bar), Mock(spec=L.LightningModule)
    trainer.global_step = first
    shown.on_train_start(trainer, module)
    for step in range(first + 1, steps + 1):
        for batch in range(batches):
            trainer.global_step = step if batch == batches - 1 else step - 1
            shown.on_train_batch_end(trainer)
    shown.on_train_end(trainer, module)


def test_lines_count_steps_and_say_what_is_left(capsys, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    run(bar=False, last=20, steps=20, batches=2)  # two looks at the clock, a second each, per step
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("step 1/20  train/loss 0.25  samples/s 8  left ")
    assert out[-1] == "step 20/20  train/loss 0.25  samples/s 8"
    (estimate,) = [line for line in out if line.startswith("estimate")]
    assert " s per step, " in estimate
    assert " of memory so far" in estimate
    assert len(out) == 21


@pytest.mark.parametrize("bar", [False, True])
def test_a_validation_has_a_line_of_its_own_step(bar, tmp_path, capsys):
    figures = {"train/loss": torch.tensor(0.25), "val/vrmse": torch.tensor(0.5)}
    trainer = trainer_of(estimated_stepping_batches=6, progress_bar_metrics=figures, global_step=6)
    shown, module = Progress(bar), Mock(spec=L.LightningModule)
    with kept(tmp_path):
        shown.on_train_start(trainer, module)
        shown.on_validation_end(trainer, module)
        shown.on_train_end(trainer, module)
    assert (tmp_path / "adaptok.log").read_text().splitlines()[0] == "step 6/6  val/vrmse 0.5"
    assert ("val/vrmse" in capsys.readouterr().out) is not bar


def test_a_resumed_training_measures_its_own_steps(capsys):
    run(bar=False, last=math.inf, steps=112, first=100)
    out = capsys.readouterr().out
    assert "unknown" in out  # no end, so nothing is left of it


def test_on_a_terminal_there_is_a_bar_and_the_lines_are_in_the_log(tmp_path, capsys):
    with kept(tmp_path):
        run(bar=True, last=20, steps=20)
    captured = capsys.readouterr()
    assert "20/20" in captured.err
    assert "step 1/20" not in captured.out
    log = (tmp_path / "adaptok.log").read_text()
    assert "step 1/20" in log
    assert "step 20/20" in log
    assert "\r" not in log


def test_the_log_holds_what_is_seen(tmp_path):
    out, err = io.StringIO(), io.StringIO()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        with kept(tmp_path / "run"):
            print("one\ntwo")
            for part in range(1000):
                print(f"\rbar {part}", end="", file=sys.stderr)
            print("\r\x1b[32mdone\x1b[0m", file=sys.stderr)
            note("only here")
        print("after")
    finally:
        sys.stdout, sys.stderr = before
    assert (tmp_path / "run" / "adaptok.log").read_text() == "one\ntwo\ndone\nonly here\n"
    assert out.getvalue() == "one\ntwo\nafter\n"
    note("nowhere")


def test_other_processes_of_a_run_keep_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with kept(tmp_path):
        print("x")
    assert not [*tmp_path.iterdir()]


def test_ctrl_c_says_whether_there_is_something_to_resume():
    checkpoints = Checkpoints(Path("x"), Steps(5))
    trainer = trainer_of(callbacks=[checkpoints], global_step=3)
    assert _hint(trainer) == "in step 3, before its first checkpoint: it would start afresh"
    checkpoints.file, checkpoints.saved, trainer.global_step = Path("x/last.ckpt"), 5, 7
    assert _hint(trainer) == "in step 7; resume=auto resumes from step 5"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.123, "0.12 s"), (40, "40 s"), (720, "12 min"), (11_100, "3 h 05 min"), (2e5, "2 d 8 h")],
)
def test_times_in_words(seconds, words):
    assert span(seconds) == words


def test_sizes_in_words():
    assert [size(n) for n in (7, 12_345, 1.3e9, 2e12)] == ["7 B", "12.3 kB", "1.3 GB", "2 TB"]


def test_the_commit_is_that_of_the_checkout():
    found = commit()
    assert found is None or int(found.removesuffix("-dirty"), 16) >= 0
