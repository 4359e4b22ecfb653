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
    """Makes the set another one after the first checkpoint of a training.

    A run that holds it in memory ends like one on the set as it was.
    """
    steps = 100 if cache else 400
    words = kills.command(folder / "run", "single", folder / "data")
    words += [f"data.cache={cache}", f"trainer.max_steps={steps}"]
    process = kills.start(words)
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
    if (process.returncode, told) != ((0, False) if cache else (2, True)):
        return f"exit {process.returncode}: {errors[-300:]}"
    if not cache:
        return None
    place = folder / "again" / "run"  # no neighbour, from which it would resume
    code, errors = kills.finish([*words, f"hydra.run.dir={place}"])
    left = kills.contents(folder / "run")
    return kills.judged(code, errors, place, kills.Reference(folder / "data", left, 0.0)) or None


def run(folder: Path, quick: bool = False) -> list[Row]:
    """In memory and read from files; `quick`: one."""
    kinds = [("rebuilt", True), ("rebuilt", False), ("in place", False), ("replaced", False)]
    tries = [
        (f"{how}, cache={cache}", lambda n=n, h=how, c=cache: during_a_run(h, c, folder / f"{n}"))
        for n, (how, cache) in enumerate(kinds[1:2] if quick else kinds)
    ]
    note = "one line with the file; a run that holds the set in memory ends as if nothing had been"
    return [tried("data set replaced during a training", tries, note)]
