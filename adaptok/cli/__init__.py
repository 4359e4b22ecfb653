"""The ``adaptok`` command: ``adaptok <command> [key=value ...]``."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adaptok.cli.usage import COMMANDS, command_help, main_help
from adaptok.utils.disk import why_full

TRACEBACK = "ADAPTOK_DEBUG"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    A mistake of the user's is one line on stderr and status 2 (on a terminal, a second line names
    the function that found it); ``--debug`` (or ``ADAPTOK_DEBUG=1``) shows the traceback.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args or os.environ.get(TRACEBACK) == "1"
    args = [arg for arg in args if arg != "--debug"]
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures go to files, also without a display
    logging.getLogger("matplotlib.animation").setLevel(logging.WARNING)  # it announces every film
    try:
        with short_warnings():
            return _dispatch(args)
    except BrokenPipeError:  # the reader of our output is gone, as in `adaptok list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as error:
        hint = f" {error}" if str(error) else ""
        if _is_sweep(args) and args[0] in ("train", "finetune"):
            hint = "; the same command resumes it"
        print(f"adaptok: interrupted{hint}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug or not _is_users(error):
            raise
        print(f"adaptok: error: {_one_line(error)}", file=sys.stderr)
        if sys.stderr.isatty():
            print(f"(found in {_found_in(error)}; --debug shows the traceback)", file=sys.stderr)
        return 2
    return 0


def _dispatch(args: list[str]) -> int:
    """Runs a command; returns the exit status."""
    _check_blanks(args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(main_help())
        return 0
    if args[0] in ("-V", "--version"):
        from adaptok import __version__

        print(f"adaptok {__version__}")
        return 0
    command, *rest = args
    if rest and f"{command} {rest[0]}" in COMMANDS:
        command, rest = f"{command} {rest[0]}", rest[1:]
    is_word = bool(rest) and "=" not in rest[0] and not rest[0].startswith("-")
    if command == "data" and is_word:
        command = f"data {rest[0]}"  # the message names it
    from adaptok.registry import choice

    choice("command", command, COMMANDS)
    asked = rest[:1] if command == "bench" else rest  # a benchmark has its own --help
    if {"-h", "--help"} & set(asked):
        print(command_help(command, overrides_in(rest)))
    elif command == "list":
        from adaptok.cli.listing import print_parts

        print_parts(*rest)
    elif command == "report":
        from adaptok.cli.reporting import print_report

        print_report(*rest)
    elif command == "bench":
        from adaptok.cli.benchmarks import run_benchmark

        run_benchmark(*rest)
    elif command == "bench run":
        from adaptok.cli.bench_track import print_track

        return print_track(*rest)
    elif command == "bench submit":
        from adaptok.cli.bench_submit import print_submission

        return print_submission(*rest)
    elif command == "leaderboard":
        from adaptok.cli.leaderboard import print_leaderboard

        return print_leaderboard(*rest)
    elif command == "data check":
        from adaptok.cli.checking import print_check

        return print_check(*rest)
    elif command == "data from-arrays":
        from adaptok.cli.own_data import print_from_arrays

        print_from_arrays(*rest)
    elif command == "data stats":
        from adaptok.cli.own_data import print_stats

        print_stats(*rest)
    elif _is_sweep(rest):
        return _sweep(command, rest)
    else:
        from adaptok.cli import commands
        from adaptok.cli.resuming import completed

        _check_alone(command, rest)
        rest = completed(command, rest)
        failures: list[Exception] = []
        _launch(_alone(getattr(commands, command), command, rest, failures), command, rest)
        if failures:
            raise failures[0]
    return 0


def _check_blanks(args: list[str]) -> None:
    """Raises ``ValueError`` for a key and a value that blanks part from their "="."""
    for before, word in itertools.pairwise(args):
        joined = before + word
        after = before.endswith("=") and re.fullmatch(r"[\w.]+", word)
        parted = after or (word.startswith("=") and "=" not in before)
        if parted and re.match(r"[\w.]+=", joined):
            value = args[args.index(word) + 1 :][:1] if word == "=" else []
            raise ValueError(f"no blanks around =: {joined}{''.join(value)}")


def _is_sweep(args: list[str]) -> bool:
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(args))


def _check_alone(command: str, args: list[str]) -> None:
    """Raises ``ValueError`` for options of sweeps, which a single run would ignore, and for keys
    that are typed like flags.
    """
    for arg in args:
        if re.match(r"--[a-z]+[._]", arg):
            raise ValueError(
                f"unknown flag {arg}: keys have no dashes, but their group: trainer.max_steps=3"
            )
    shown = any(arg.startswith(("-c", "--cfg")) for arg in args)  # nothing runs
    for arg in args:
        of_sweeps = arg.startswith(("launcher=", "search=", "sweep=")) and not arg.endswith("=null")
        if of_sweeps and not shown and "LOCAL_RANK" not in os.environ:
            raise ValueError(f"{arg} is for sweeps: adaptok {command} -m {arg} ...")


def _sweep(command: str, args: list[str]) -> int:
    """Runs the jobs of a sweep and summarises them; returns the exit status."""
    from adaptok.cli.sweeps import Job, Watch, check_cluster, lost_job, summarise
    from adaptok.config.menu import readable_errors

    with readable_errors(command, overrides_in(args)):
        check_cluster(args)
        job, failed = Job(command, args), 0
    Watch.folder = None
    try:
        _launch(job, command, args)
    except Exception as error:
        lost = lost_job(error)
        if lost is None:
            raise
        print(f"adaptok: error: {lost}", file=sys.stderr)
        failed = 1
    finally:
        if Watch.folder is not None:
            text, without = summarise(Watch.folder, job.start)
            failed = failed or without
            print(text, flush=True)
    return 1 if failed else 0


def _launch(task: Callable[..., Any], command: str, args: list[str]) -> None:
    """Lets Hydra compose the configuration and run the task, once or per job of a sweep."""
    import hydra

    from adaptok.config.menu import (
        check_choices,
        config_dir,
        readable_errors,
        register_parts,
        task_of,
    )

    check_folders(args)
    with readable_errors(command, overrides_in(args)):
        check_choices(overrides_in(args))
    register_parts(task_of(args))
    run = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(task)
    with restored(), readable_errors(command, overrides_in(args), folders_in(args)):
        sys.argv = [f"adaptok {command}", *flags_first(args)]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # it re-raises
        run()


@contextmanager
def short_warnings() -> Iterator[None]:
    """Prints each warning once, in one line without its place in the code."""
    said: set[str] = set()

    def show(message: Warning | str, *_: Any) -> None:
        text = " ".join(str(message).split())
        if text not in said:
            print(f"adaptok: warning: {text}", file=sys.stderr, flush=True)
        said.add(text)

    shown, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = shown


@contextmanager
def restored() -> Iterator[None]:
    """Restores environment and arguments, which a run inside may change."""
    variables, arguments = dict(os.environ), sys.argv
    try:
        yield
    finally:
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(variables)


def overrides_in(args: Sequence[str]) -> list[str]:
    """Finds the overrides among what was typed."""
    return [arg for arg in args if arg.startswith("~") or ("=" in arg and arg[0] != "-")]


def as_typed(path: Path) -> Path:
    """Shortens a path below the working folder to how it would be typed."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _alone(
    task: Callable[..., Any], command: str, args: list[str], failures: list[Exception]
) -> Callable[..., Any]:
    """Wraps the task of a single run: sets ``sys.argv`` as if this job had been typed (Lightning
    starts the other processes of a parallel run with it), and keeps its error from Hydra, which
    would print another line for it."""
    program = sys.argv[0]

    @functools.wraps(task)
    def run(config: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        from adaptok.cli.sweeps import Watch

        sys.argv = [program, command, *typed_folders(args), *HydraConfig.get().overrides.task]
        try:
            with Watch.held:
                refused, Watch.refused = Watch.refused, None
                if refused is not None:
                    raise refused
                with _kept():
                    return task(config)
        except Exception as error:
            failures.append(error)

    return run


@contextmanager
def _kept() -> Iterator[None]:
    """Keeps what a run prints, its error too; ``adaptok data`` has no folder of its own."""
    from hydra.core.hydra_config import HydraConfig

    from adaptok.utils.log import kept, note

    if HydraConfig.get().output_subdir is None:
        yield
        return
    with kept(Path(HydraConfig.get().runtime.output_dir)):
        try:
            yield
        except Exception as error:
            note(f"error: {_one_line(error)}")
            raise


def typed_folders(args: Sequence[str]) -> list[str]:
    """Finds the words about ``--config-dir``, as typed."""
    flag = "--config-dir"
    at = [i for i, arg in enumerate(args) if arg == flag]
    folders = [word for i in at for word in args[i : i + 2]]
    return folders + [arg for arg in args if arg.startswith(f"{flag}=")]


def folders_in(args: Sequence[str]) -> list[Path]:
    """Finds the folders that ``--config-dir`` names."""
    words = [word.removeprefix("--config-dir").removeprefix("=") for word in typed_folders(args)]
    return [Path(word) for word in words if word]


def flags_first(args: Sequence[str]) -> list[str]:
    """Moves overrides behind the flags: Hydra's parser reads them only if none is in between."""
    folders = typed_folders(args)
    rest = [arg for arg in args if arg not in folders]
    overrides = [arg for arg in rest if arg[:1] != "-" and ("=" in arg or arg[:1] == "~")]
    return [*folders, *(arg for arg in rest if arg not in overrides), *overrides]


def check_folders(args: Sequence[str]) -> None:
    """Names the YAML files of ``--config-dir`` that cannot be read, a line each.

    Raises:
        ValueError: there is no such folder.
    """
    import yaml

    for folder in folders_in(args):
        if not folder.is_dir():
            raise ValueError(f"--config-dir: no folder {folder}")
        for file in sorted(folder.rglob("*.yaml")):
            if any(part.startswith(".") for part in file.relative_to(folder).parts):
                continue
            try:
                content = yaml.safe_load(file.read_text(encoding="utf-8"))
                if not isinstance(content, (dict, type(None))):
                    raise ValueError(f"it holds no keys but {type(content).__name__}")
            except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
                reason = " ".join(str(error).split())
                print(f"adaptok: left out {file}: {reason}", file=sys.stderr)


def _is_users(error: Exception) -> bool:
    """Tells whether the message suffices; every other error deserves its traceback."""
    kind = type(error)
    if kind.__name__ == "MisconfigurationException":  # Lightning's, such as no such device
        return True
    if kind.__module__.startswith("submitit.") or why_full(error):
        return True
    return isinstance(error, (ValueError, OSError, ModuleNotFoundError))


def _found_in(error: Exception) -> str:
    """Names the last function of ours in a traceback."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [f for f in frames if f.f_globals.get("__name__", "").startswith("adaptok.")]
    return f"{ours[-1].f_globals['__name__']}.{ours[-1].f_code.co_qualname}"


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error):
        return (
            f"{error}; this command needs more than the core: pip install 'adaptok[train,vision]'"
        )
    text = " ".join(str(error).split())
    if (reason := why_full(error)) and reason not in text:
        text = f"{reason}: {getattr(error, 'filename', None) or text}"
    return text
