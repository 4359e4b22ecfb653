"""``adaptok bench run`` and ``adaptok bench submit``: tracks of the reference benchmark."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from adaptok.evaluation.standings import TRACKS
from adaptok.registry import TOKENIZERS, choice
from adaptok.tasks.bench.job import Job
from adaptok.tasks.bench.runner import price_list, run

FLAGS = ("--quick", "--plan")
OPTIONS = {
    "T0": ("out", "only"),
    "T1": ("out", "only", "scale", "base"),
    "T2": ("out", "only", "images", "model", "checkpoint"),
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
        options: of the track.
    """

    track: str
    out: Path
    quick: bool
    plan: bool
    only: str
    options: dict[str, str]


def print_track(*args: str) -> int:
    """Runs a track, after its price; returns the exit status, 1 if a row failed.

    Args:
        args: track, ``out=FOLDER``, options of the track, ``--quick`` and ``--plan``.

    Raises:
        ValueError: an unknown track, option or flag, no folder, or no row of this name.
    """
    asked = parsed(args)
    return _run(asked, chosen(asked))


def _run(asked: Asked, jobs: Sequence[Job]) -> int:
    print(price_list(jobs, asked.out), flush=True)
    if asked.plan:
        _dry(asked, jobs)
        return 0
    torch.set_num_threads(1)  # seconds are those of one core; another process takes another core
    failed = run(jobs, asked.out, module_of(asked.track).measure)
    for name, why in failed.items():
        print(f"adaptok: not measured: {name}: {why}", file=sys.stderr)
    print(f"adaptok leaderboard {asked.out} out={asked.out / 'leaderboard.html'}")
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
    quick, plan = ("--quick" in args), ("--plan" in args)
    return Asked(track, out, quick, plan, only, options)


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
    dry = module_of(asked.track).dry
    for job in [job for job in jobs if job.seed == jobs[0].seed]:
        try:
            said = f"{dry(job):,} parameters"
        except ValueError as error:
            said = f"cannot be built: {' '.join(str(error).split())}"
        print(f"{job.stem}: {said}", flush=True)


def print_submission(*args: str) -> int:
    """Checks a tokenizer of one's own, measures it in a track, and writes rows and page to attach.

    Args:
        args: ``package:name`` or the name of a registered tokenizer, ``--track TRACK``, then as for
            `print_track`.

    Raises:
        ValueError: no such tokenizer, or one that breaks a promise; says which.
    """
    words = list(args)
    if "--track" not in words or words.index("--track") + 1 == len(words):
        raise ValueError("say which track: --track T0")
    at = words.index("--track")
    track = words[at + 1]
    del words[at : at + 2]
    if not words or words[0].startswith("-") or "=" in words[0]:
        raise ValueError("give the tokenizer: my_package:my_tokenizer, or a registered name")
    target = words.pop(0)
    if not any(word.startswith("out=") for word in words):
        words.append(f"out=submission/{track}")
    asked = parsed([track, *words])
    if track == "T2":
        raise ValueError("ways to cut images are rows of T2 by a change of adaptok: T0 or T1")
    name = found_tokenizer(target)
    print(f"{name}: {check(name)}", flush=True)
    source = _source(name)
    jobs = [replace(job, config={**job.config, **source}) for job in chosen(asked, [name])]
    status = _run(asked, jobs)
    if asked.plan:
        return status
    from adaptok.cli.leaderboard import print_leaderboard

    page = asked.out / "leaderboard.html"
    print_leaderboard(str(asked.out), f"out={page}")
    print(f"attach {asked.out}/*.json and {page}")
    return status


def found_tokenizer(target: str) -> str:
    """Returns the name under which a tokenizer is registered, and registers it if need be.

    Args:
        target: ``package.module:attribute``, or a registered name.

    Raises:
        ValueError: there is no such module, attribute or name.
    """
    if ":" not in target:
        TOKENIZERS.get(target)
        return target
    module, _, attribute = target.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # a package beside where the command is typed
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {target}: {error}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    known = [name for name in TOKENIZERS.names() if TOKENIZERS.get(name) is factory]
    if known:
        return known[0]
    if not callable(factory):
        raise ValueError(f"{target} is {type(factory).__name__}, not a class or a function")
    TOKENIZERS.register(attribute)(factory)
    return attribute


def _source(name: str) -> dict[str, str]:
    """Tells the code of a tokenizer from that of another of its name, and from earlier code; that
    of this project is told by the commit.
    """
    factory = TOKENIZERS.get(name)
    module = inspect.getmodule(factory)
    if module is None or module.__name__.split(".")[0] == "adaptok":
        return {}
    code = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    return {"code": f"{module.__name__}:{name}", "sha256": code}


def check(name: str) -> str:
    """Runs the conformance checks of `adaptok.testing` on a registered tokenizer in 2D and 3D.

    Returns:
        What was checked.

    Raises:
        ValueError: a promise that it breaks.
    """
    from adaptok.testing import check_tokenizer

    for ndim in (2, 3):
        knobs = TOKENIZERS.knobs(name)
        small = {"min_size": 2, "max_size": 8, "budget": 64} if ndim == 2 else {}
        small = {knob: value for knob, value in small.items() if knob in knobs}
        try:
            tokenizer = TOKENIZERS.create(name, ndim=ndim, in_channels=3, dim=24, **small)
            check_tokenizer(tokenizer)
        except AssertionError as error:
            raise ValueError(f"{name} breaks a promise in {ndim}D: {error}") from error
    return "keeps the promises of a tokenizer in 2D and 3D"
