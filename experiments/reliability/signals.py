"""SIGTERM, SIGINT and SIGHUP in the training and in the test, then resumed."""

from __future__ import annotations

import os
import time
from pathlib import Path

from reliability import kills
from reliability.rows import Row, Wrong, tried

HOOKS = ("torch.save:after:4", "adaptok.tasks.surrogate.evaluate:before:1")
SIGNALS = {"SIGTERM": (-15, 130, 143), "SIGINT": (130,), "SIGHUP": (-1, 129, 130)}  # exit statuses


def ended(hook: str, name: str, mode: str, folder: Path, reference: kills.Reference) -> Wrong:
    """Sends a signal at a call, resumes; returns what is wrong."""
    arguments = kills.command(folder, mode, reference.data)
    process = kills.start(arguments, f"{hook}:{name}")
    _, errors = process.communicate(timeout=300)
    if process.returncode not in SIGNALS[name]:
        return f"exit {process.returncode}: {errors[-200:]}"
    if "Traceback" in errors:
        return f"a traceback: {errors[-200:]}"
    if not gone(process.pid):
        return "left processes behind"
    code, errors = kills.finish(arguments)
    return kills.judged(code, errors, folder, reference)


def gone(group: int, seconds: float = 20) -> bool:
    """Waits until no process of a group is left; ends those that are."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    os.killpg(group, 9)
    return False


def run(folder: Path, quick: bool = False) -> list[Row]:
    """Each signal at each hook in one process, and in the training of two."""
    rows = []
    for mode, hooks in (("single", HOOKS), ("ddp", HOOKS[:1])):
        reference = kills.whole(mode, folder / mode)
        tries = [
            (
                f"{name} at {hook}, {mode}",
                lambda n=name, h=hook, m=mode, r=reference: ended(
                    h, n, m, folder / m / f"{n}{len(h)}" / "run", r
                ),
            )
            for name in SIGNALS
            for hook in (hooks[:1] if quick else hooks)
        ]
        rows.append(tried(f"SIGTERM, SIGINT, SIGHUP, then resumed, {mode}", tries, "bits equal"))
        if quick:
            break
    return rows
