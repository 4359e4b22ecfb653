"""Weights & Biases without a network: what a run logs is read back from its local files."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_runs
import yaml

from adaptok.cli import main
from adaptok.tasks.tracking import table_rows
from adaptok.training.trainer import wandb_logger

wandb = pytest.importorskip("wandb")
LOGGED = ["logger=wandb", "logger.wandb.offline=true"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")


def records(run: Path) -> Iterator:
    """The records of an offline run: a log in blocks of 32 KiB of checked, possibly split parts."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def logged(run: Path) -> dict:
    """What an offline run holds; its process may still be writing when the run has ended."""
    deadline = time.monotonic() + 60
    while (found := read(run))["exit"] is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def read(run: Path) -> dict:
    """Configuration, group and name, the keys of the history, and the summary of an offline run."""
    found: dict = {"config": {}, "history": set(), "summary": {}, "exit": None}
    for record in records(run):
        if record.WhichOneof("record_type") == "run":
            found |= {"group": record.run.run_group, "name": record.run.display_name}
            found["project"] = record.run.project
            for item in record.run.config.update:
                found["config"][item.key] = json.loads(item.value_json)
        for item in record.history.item:
            found["history"].add(item.key or "/".join(item.nested_key))
        for item in record.summary.update:
            key = item.key or "/".join(item.nested_key)
            found["summary"][key] = json.loads(item.value_json)
        if record.WhichOneof("record_type") == "exit":
            found["exit"] = record.exit.exit_code
    return found


def table(run: Path) -> list[dict]:
    (file,) = run.glob("wandb/offline-run-*/files/media/table/*.json")
    content = json.loads(file.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def check(run: Path, group: str) -> None:
    """Configuration, curves, table and pictures are there and are those of the run folder."""
    found = logged(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert found["project"] == "adaptok"
    assert found["group"] == group
    for key in ("tokenizer", "seed", "optim", "data", "test"):
        assert found["config"][key] == config[key]
    results = json.loads((run / "metrics.json").read_text())
    rows = table(run)
    assert [row["label"] for row in rows] == [row["label"] for row in results["settings"]]
    assert [row["vrmse.mean"] for row in rows] == [r["vrmse"]["mean"] for r in results["settings"]]
    pictures = {p.stem for p in (run / "pictures").glob("*.png")}
    kept = run.glob("wandb/offline-run-*/files/media/images/pictures/*.png")
    assert {p.name.rsplit("_", 2)[0] for p in kept} == pictures
    media = ("test_table", *(f"pictures/{name}" for name in pictures))
    assert {f"{name}/_type" for name in media} <= found["history"]
    assert found["summary"]["test/vrmse.mean"] == results["settings"][0]["vrmse"]["mean"]
    assert found["exit"] == 0


@pytest.mark.slow
def test_a_sweep_is_a_group_of_runs_with_tables_and_pictures(tmp_path):
    command = ["train", "-m", *small_runs.train(), *LOGGED, "seed=0,1", "sweep=two_seeds"]
    command += ["test.settings=[{budget: 10}, {budget: 22}]", f"hydra.sweep.dir={tmp_path}"]
    assert main(command) == 0
    runs = sorted(path.parent for path in tmp_path.glob("*/metrics.json"))
    assert len(runs) == 2
    for run in runs:
        check(run, "two_seeds")
        assert logged(run)["name"] == run.name
        assert {"train/loss", "val/vrmse", "lr"} <= logged(run)["history"]


@pytest.mark.slow
def test_a_baseline_that_is_not_trained_is_logged_too(tmp_path):
    command = ["train", *small_runs.data(), "test.steps=2", *LOGGED, "model=persistence"]
    assert main([*command, f"hydra.run.dir={tmp_path}"]) == 0
    check(tmp_path, "runs")


@pytest.mark.slow
def test_a_failed_run_is_closed_as_failed(tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("no pictures today")

    monkeypatch.setattr("adaptok.plots.pictures.of_run", fails)
    command = ["train", "-m", *small_runs.train(), *LOGGED, f"hydra.sweep.dir={tmp_path}"]
    assert main(command) == 1
    (run,) = (path.parent for path in tmp_path.glob("*/failed.json"))
    assert logged(run)["exit"] == 1
    assert wandb.run is None


def test_a_logger_passes_nothing_that_has_no_effect(tmp_path):
    assert "anonymous" not in wandb_logger(tmp_path, offline=True)._wandb_init


def test_rows_of_the_table():
    setting = {"label": "as built", "setting": {}, "vrmse": {"mean": 0.5, "fields": {"a": 1.0}}}
    results = {"data": "set", "settings": [{**setting, "rollout": {"mean": [1.0]}, "nrmse": None}]}
    expected = {"data": "set", "label": "as built", "vrmse.mean": 0.5, "vrmse.fields.a": 1.0}
    assert table_rows(results) == [expected]
