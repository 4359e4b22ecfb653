"""``adaptok bench submit``: a tokenizer of one's own in a track of the reference benchmark."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from adaptok.cli.bench_track import chosen, measured, parsed
from adaptok.registry import TOKENIZERS
from adaptok.tasks.bench.runner import is_done


def print_submission(*args: str) -> int:
    """Checks a tokenizer of one's own, measures it in a track, and writes rows and page to attach.

    Args:
        args: ``package:name`` or the name of a registered tokenizer, ``--track TRACK``, then as for
            `print_track`.

    Raises:
        ValueError: no such tokenizer, or one that breaks a promise, says which; or no row of it was
            measured.
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
        words.append(f"out=submission/{target.rpartition(':')[2]}/{track}")
    asked = parsed([track, *words])
    if track == "T2":
        raise ValueError("ways to cut images are rows of T2 by a change of adaptok: T0 or T1")
    name = found_tokenizer(target)
    jobs = chosen(asked, [name])
    print(f"{name}: {check(name)}", flush=True)
    status = measured(asked, jobs)
    if asked.plan:
        return status
    from adaptok.cli.leaderboard import print_leaderboard

    if not any(is_done(job, asked.out) for job in jobs):
        raise ValueError(f"no row of {name} was measured, for the reasons above")
    page = asked.out / "leaderboard.html"
    print_leaderboard(str(asked.out), f"out={page}")
    print(f"attach {asked.out}/*.json and {page}")
    print(f"beside other rows: adaptok leaderboard FOLDER {asked.out} out=PAGE.html")
    return status


def found_tokenizer(target: str) -> str:
    """Returns the name under which a tokenizer is registered, and registers it if need be.

    Args:
        target: ``package.module:attribute``, or a registered name.

    Raises:
        ValueError: there is no such module, attribute or name, or the module cannot be imported.
    """
    if ":" not in target:
        TOKENIZERS.get(target)
        return target
    module, _, attribute = target.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # a package beside where the command is typed
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever a module of someone else's raises
        raise ValueError(f"cannot import {target}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    known = [name for name in TOKENIZERS.names() if TOKENIZERS.get(name) is factory]
    if known:
        return known[0]
    if not callable(factory):
        raise ValueError(f"{target} is {type(factory).__name__}, not a class or a function")
    TOKENIZERS.register(attribute)(factory)
    return attribute


def check(name: str) -> str:
    """Runs the conformance checks of `adaptok.testing` on a registered tokenizer in 2D and 3D.

    Returns:
        What was checked.

    Raises:
        ValueError: a promise that it breaks, or why it cannot be built or called.
    """
    from adaptok.testing import check_tokenizer

    for ndim in (2, 3):
        knobs = TOKENIZERS.knobs(name)
        small = {"min_size": 2, "max_size": 8, "budget": 64} if ndim == 2 else {}
        small = {knob: value for knob, value in small.items() if knob in knobs}
        try:
            made = TOKENIZERS.create(name, ndim=ndim, in_channels=3, dim=24, **small)
            check_tokenizer(TOKENIZERS.checked(made))
        except AssertionError as error:
            raise ValueError(f"{name} breaks a promise in {ndim}D: {error}") from error
        except Exception as error:  # whatever someone else's code raises
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{name} does not work in {ndim}D: {why}") from error
    return "keeps the promises of a tokenizer in 2D and 3D"
