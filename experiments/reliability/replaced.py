"""Data that is replaced while a run uses it: refused by name, or what was opened stays in use."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import test_files as tests
from reliability import kills
from reliability.rows import Row, Wrong, tried

MAZE = "acoustic_scattering_maze"
KNOBS = {"resolution": 16, "frames": 6, "nodes": 4, "train": 2, "valid": 1, "test": 2}


def during_a_run(how: str, cache: bool, folder: Path) -> Wrong:
    """Rebuilds the set, with other values, after the first checkpoint of a training."""
    words = kills.command(folder / "run", "single", folder / "data")
    process = kills.start([*words, f"data.cache={cache}", "trainer.max_steps=400"])
    last = folder / "run" / "checkpoints" / "last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    if process.poll() is not None:
        return f"ended before: {process.communicate()[1][-300:]}"
    made = folder / "data" / MAZE
    tests.changed_by(how, made, folder / "data", KNOBS)
    try:
        _, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        return "hangs"
    told = "is in use" in errors and "adaptok: error:" in errors and "Traceback" not in errors
    shutil.rmtree(folder / "data")
    return (
        None if process.returncode == 2 and told else f"exit {process.returncode}: {errors[-300:]}"
    )


def run(folder: Path, quick: bool = False) -> list[Row]:
    """In memory and read from files; `quick`: one."""
    kinds = [("rebuilt", True), ("rebuilt", False), ("in place", False), ("replaced", False)]
    tries = [
        (f"{how}, cache={cache}", lambda n=n, h=how, c=cache: during_a_run(h, c, folder / f"{n}"))
        for n, (how, cache) in enumerate(kinds[1:2] if quick else kinds)
    ]
    note = "one line with the file; what is in memory stays in use until then"
    return [tried("data set replaced during a training", tries, note)]
