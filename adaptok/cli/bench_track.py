"""``adaptok bench run``: tracks of the reference benchmark."""

from __future__ import annotations

import importlib
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from adaptok.evaluation.standings import TRACKS
from adaptok.registry import choice
from adaptok.tasks.bench.job import Job
from adaptok.tasks.bench.runner import price_list, run

FLAGS = ("--quick", "--plan")
OPTIONS = {
    "T0": ("out", "only", "hours"),
    "T1": ("out", "only", "hours", "scale", "base"),
    "T2": ("out", "only", "hours", "images", "model", "checkpoint"),
}


@dataclass
class Asked:
    """What was typed.

    Attributes:
        track: "T0", "T1" or "T2".
        out: folder of the rows.
        quick: a short version.
        plan: say what would run, and nothing else.
        only: pattern of the names of rows.
        hours: begin no row that is expected to end later.
        options: of the track.
    """

    track: str
    out: Path
    quick: bool
    plan: bool
    only: str
    hours: float
    options: dict[str, str]


def print_track(*args: str) -> int:
    """Runs a track, after its price; returns the exit status, 1 if a row failed.

    Args:
        args: track, ``out=FOLDER``, options of the track, ``--quick`` and ``--plan``.

    Raises:
        ValueError: an unknown track, option or flag, no folder, no row of this name, or sets of the
            Well that are not there.
    """
    asked = parsed(args)
    return measured(asked, chosen(asked))


def measured(asked: Asked, jobs: Sequence[Job]) -> int:
    """Says what jobs will take and runs them, unless only their price was asked for; returns the
    exit status.
    """
    print(price_list(jobs, asked.out), flush=True)
    if asked.plan:
        _dry(asked, jobs)
        return 0
    if asked.options.get("scale") == "full":
        from adaptok.tasks.bench.full import missing_sets

        if missing := missing_sets(jobs):
            raise ValueError(
                f"sets that are not there: {', '.join(missing)}. Choose rows with "
                f"only='T1-<set>-*', or get them: {next(iter(missing.values()))}"
            )
    torch.set_num_threads(1)  # seconds are those of one core; another process takes another core
    failed = run(jobs, asked.out, module_of(asked.track).measure, asked.hours)
    for name, why in failed.items():
        print(f"adaptok: not measured: {name}: {why}", file=sys.stderr)
    page = asked.out / "leaderboard.html"
    print(shlex.join(["adaptok", "leaderboard", str(asked.out), f"out={page}"]))
    return 1 if failed else 0


def parsed(args: Sequence[str]) -> Asked:
    """Reads the words behind ``adaptok bench run``."""
    words = [arg for arg in args if not arg.startswith("-")]
    for flag in [arg for arg in args if arg.startswith("-")]:
        choice("flag", flag, FLAGS)
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        raise ValueError(f"give one track of {', '.join(TRACKS)}, got {', '.join(names) or 'none'}")
    track = choice("track", names[0], TRACKS)
    options = dict(word.split("=", 1) for word in words if "=" in word)
    for name in options:
        choice(f"option of {track}", name, OPTIONS[track])
    if not options.get("out"):
        raise ValueError("give the folder of the rows: out=FOLDER")
    out, only = Path(options.pop("out")), options.pop("only", "*")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file; give a folder, which need not be there")
    quick, plan = ("--quick" in args), ("--plan" in args)
    hours = _hours(options.pop("hours", "inf"))
    return Asked(track, out, quick, plan, only, hours, options)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not hours > 0:
        raise ValueError(f"hours must be a number above 0, got {text!r}")
    return hours


def module_of(track: str) -> ModuleType:
    """Imports the jobs of a track, and with them what only it needs."""
    return importlib.import_module(f"adaptok.tasks.bench.{track.lower()}")


def chosen(asked: Asked, own: Sequence[str] = ()) -> list[Job]:
    """Lists the jobs that were asked for.

    Args:
        asked: track and options.
        own: tokenizers in place of all methods.

    Raises:
        ValueError: there is none.
    """
    more: dict[str, Any] = {**asked.options, **({"own": own} if own else {})}
    made: list[Job] = module_of(asked.track).jobs(asked.quick, **more)
    jobs = [job for job in made if fnmatch(job.stem, asked.only)]
    if not jobs:
        raise ValueError(f"no row matches {asked.only!r}; rows are called {made[0].stem} ...")
    return jobs


def _dry(asked: Asked, jobs: Sequence[Job]) -> None:
    """Builds the models of a full size without data, and says how large they are."""
    if asked.options.get("scale") != "full":
        return
    from adaptok.tasks.bench.full import dry

    for job in [job for job in jobs if job.seed == jobs[0].seed]:
        try:
            said = f"{dry(job):,} parameters"
        except ValueError as error:
            said = f"cannot be built: {' '.join(str(error).split())}"
        print(f"{job.stem}: {said}", flush=True)
