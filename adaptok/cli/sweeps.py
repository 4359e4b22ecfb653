"""Runs sweeps that survive: jobs are skipped, resumed and recorded, whatever launches them."""

from __future__ import annotations

import gc
import json
import math
import shutil
import sys
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, open_dict, read_write
from omegaconf.errors import InterpolationResolutionError

from adaptok.cli import as_typed, overrides_in, restored, typed_folders
from adaptok.cli.folders import OtherRunError, check_free
from adaptok.config.menu import register_parts, task_of
from adaptok.config.run_ids import id_of_job, register_run_id
from adaptok.utils.atomic import replacing
from adaptok.utils.locks import InUseError, is_first, only_writer
from adaptok.utils.log import kept, span

RECORD, FAILURE = "job.json", "failed.json"
LISTED = (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP, ValueType.RANGE_SWEEP)
COMMANDS = 20  # that a record remembers
RESTARTED = ("train", "finetune")  # commands whose finished jobs are skipped and others resumed


class Watch(Callback):
    """Hydra's callback: keeps others out of the folder of a single run, and records that of a sweep
    in the launching process.
    """

    folder: ClassVar[Path | None] = None
    refused: ClassVar[ValueError | None] = None
    held: ClassVar[ExitStack] = ExitStack()

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Locks the run folder before Hydra writes its files there, if it holds no other run.

        Hydra ignores what a callback raises, so that the task must raise `refused`.
        """
        Watch.refused = None
        if params := config.hydra.sweeper.get("params"):
            Watch.refused = ValueError(
                f"{', '.join(map(str, params))} take several values, which is for sweeps: type -m"
            )
        try:
            folder = Path(config.hydra.run.dir)
        except InterpolationResolutionError:  # a value that names the folder is wrong: the run says
            return
        try:
            Watch.held.enter_context(only_writer(folder))
            check_free(folder, config)
        except (InUseError, OtherRunError) as error:
            Watch.refused = error
            with read_write(config), open_dict(config):
                config.hydra.output_subdir = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Records the folder before the first job."""
        Watch.folder = Path(config.hydra.sweep.dir).absolute()


class Job:
    """The task of every job of a sweep.

    It skips a finished job, resumes a killed one from its checkpoint, and records an exception in
    the run folder instead of ending the sweep. The launcher sends an instance to its processes.

    Args:
        command: "train", "finetune" ...
        args: as typed after the command.
    """

    def __init__(self, command: str, args: Sequence[str]):
        self.command, self.args, self.program = command, list(args), sys.argv[0]
        self.swept, self.start = swept_keys(args), uuid.uuid4().hex
        self.seconds: list[float] = []  # of the jobs that ran in this process
        register_run_id(self.swept)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Prepares another process to compose the jobs."""
        self.__dict__.update(state)
        register_parts(task_of(self.args))
        register_run_id(self.swept)

    def __call__(self, config: DictConfig) -> float | None:
        """Returns what sweepers minimise; None for a job that failed."""
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            with restored(), only_writer(folder), kept(folder):
                return self._run(config, folder)
        except InUseError:
            print(f"left alone, another process is running it: {folder}")
            return None

    def _announce(self, number: int, folder: Path) -> None:
        """Says which job begins, and how long the others take if they are like those before."""
        sweeper = HydraConfig.get().sweeper
        count = sweeper.get("n_trials") or job_count(self.args, sweeper.get("params") or {})
        of = "" if count is None else f" of {count}"
        left = ""
        if self.seconds and count is not None and count > number:
            mean = sum(self.seconds) / len(self.seconds)
            left = f", about {span(mean * (count - number))} left"
        print(f"job {number + 1}{of}{left}: {as_typed(folder)}", flush=True)

    def _run(self, config: DictConfig, folder: Path) -> float | None:
        job = HydraConfig.get()
        name = id_of_job(config, job, self.swept)
        record: dict[str, Any] = {"id": name, "number": job.job.num}
        record["measure"] = "wrong" if task_of(overrides_in(self.args)) == "classify" else "VRMSE"
        record["data"] = own_data(config)
        before = _read(folder / RECORD)
        if before.get("id", name) != name and before.get("state") != "failed":
            raise OtherRunError(
                f"{folder} holds another job, {before['id']}: choose another hydra.sweep.dir or "
                "hydra.sweep.subdir, or remove the folder"
            )
        if before.get("id") == record["id"] and self.command in RESTARTED:
            if before["state"] == "finished" and any(folder.rglob("metrics.json")):
                _check_data(before, record, folder)
                print(f"finished before, skipped: {folder}")
                _write(folder, {**before, **_of_commands(before, self.start, "skipped")})
                return before["value"]
            last = folder / "checkpoints" / "last.ckpt"
            if last.is_file():
                config.resume = str(last)
        self._keep(folder, before, record, "running")
        self._announce(job.job.num, folder)
        begun = time.monotonic()
        try:
            value, reason = self._task(config, folder), None
        except Exception as error:
            value, reason = None, " ".join(f"{type(error).__name__}: {error}".split())
            _keep_failure(folder, reason)
        self.seconds.append(time.monotonic() - begun)
        if reason is not None:
            self._keep(folder, before, {**record, "error": reason}, "failed")
            print(f"failed: {folder}: {reason}", flush=True)
            _forget()
            return None
        self._keep(folder, before, {**record, "value": value}, "finished")
        (folder / FAILURE).unlink(missing_ok=True)
        return value

    def _keep(
        self, folder: Path, before: Mapping[str, Any], record: Mapping[str, Any], state: str
    ) -> None:
        commands = _of_commands(before, self.start, state)
        _write(folder, {**record, "state": state, **commands})

    def _task(self, config: DictConfig, folder: Path) -> float | None:
        """Runs the command; the processes that Lightning starts for it run the job alone."""
        from adaptok.cli import commands

        job: Any = HydraConfig.get()
        with read_write(job), open_dict(job):
            job.run.dir = str(folder)
        resume = [f"resume='{config.resume}'"] if config.get("resume") else []
        given = [o for o in job.overrides.task if not (resume and o.startswith("resume="))]
        sys.argv = [self.program, self.command, *typed_folders(self.args), *given, *resume]
        return getattr(commands, self.command)(config)


def own_data(config: DictConfig) -> list[str]:
    """Says where data is that is not generated; its name alone is in the `run_id`."""
    data = config.get("data")
    every = data if isinstance(data, ListConfig) else [data]
    places = []
    for one in every:
        if isinstance(one, DictConfig) and one.get("generate") is None:
            place = one.get("path") or f"{one.get('base')}/{one.get('name')}"
            places.append(place if "://" in str(place) else str(Path(str(place)).absolute()))
    return places


def _check_data(before: Mapping[str, Any], record: Mapping[str, Any], folder: Path) -> None:
    there, here = before.get("data", record["data"]), record["data"]
    if there != here:
        raise OtherRunError(
            f"{folder} has the result of {', '.join(there)}, and {', '.join(here)} is asked for: "
            'another set needs another sweep=NAME; of one that was moved, remove "data" from '
            f"{folder / RECORD}"
        )


def _of_commands(before: Mapping[str, Any], start: str, state: str) -> dict[str, Any]:
    """What the job was to each command that met it, the last few: several may run side by side."""
    commands = {**before.get("commands", {}), start: state}
    return {"commands": dict([*commands.items()][-COMMANDS:])}


def check_cluster(args: Sequence[str]) -> None:
    """Raises ``ValueError`` for a launcher whose cluster this machine does not belong to."""
    slurm = ("launcher=slurm", "hydra/launcher=submitit_slurm")
    if any(arg.startswith(slurm) for arg in args) and shutil.which("srun") is None:
        raise ValueError(
            "launcher=slurm needs SLURM, and this machine has no srun; launcher=submitit runs the "
            "same jobs here"
        )


def lost_job(error: BaseException) -> str | None:
    """Says what to do about the exception by which a launcher reports a process that died; None for
    any other exception.
    """
    kind = type(error)
    if kind.__module__.partition(".")[0] not in ("joblib", "ray", "submitit"):
        return None
    reason = " ".join(str(error).split())
    return (
        f"a process of the launcher ended before its job ({kind.__name__}: {reason[:300]}). Type "
        "the same command again: finished jobs are skipped, and others resume"
    )


def swept_keys(args: Sequence[str]) -> list[str]:
    """Lists the keys that the command line gives several values."""
    parsed = OverridesParser.create().parse_overrides(overrides_in(args))
    return [o.key_or_group for o in parsed if o.is_sweep_override()]


def job_count(args: Sequence[str], params: Mapping[str, Any]) -> int | None:
    """Counts the combinations of the values that the sweeper's parameters and the command line
    give; None if they are not listed one by one.

    Args:
        args: of the command; they go over the parameters.
        params: values by key, of a preset.
    """
    words = [*(f"{key}={value}" for key, value in params.items()), *overrides_in(args)]
    last = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(words)}
    swept = [o for o in last.values() if o.is_sweep_override()]
    if any(o.value_type not in LISTED for o in swept):
        return None
    return math.prod(len([*o.sweep_iterator()]) for o in swept)


def summarise(folder: Path, start: str) -> tuple[str, int]:
    """Summarises the outcome of the jobs of a sweep.

    Args:
        folder: of the sweep.
        start: `Job.start`; a folder may hold the runs of several sweeps.

    Returns:
        Lines to print, and the number of jobs without a result.
    """
    records = [(_read(path), path.parent) for path in folder.rglob(RECORD)]
    records = [pair for pair in records if start in pair[0].get("commands", {})]
    records.sort(key=lambda pair: pair[0]["number"])
    lines, counts = [], dict.fromkeys(("finished", "skipped", "failed", "stopped"), 0)
    for record, path in records:
        state = record["commands"][start]
        state = "stopped" if state == "running" else state
        counts[state] += 1
        value = None if state in ("failed", "stopped") else record.get("value")
        about = record.get("error", "" if value is None else f"{record['measure']} {value:.4g}")
        lines.append(f"  {state:<9} {as_typed(path)}  {about}".rstrip())
    head = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    text = "\n".join([f"sweep {as_typed(folder)}: {head or 'no job was started'}", *lines])
    return text, counts["failed"] + counts["stopped"]


def _keep_failure(folder: Path, reason: str) -> None:
    failure = {
        "error": reason,
        "traceback": traceback.format_exc(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "overrides": list(HydraConfig.get().overrides.task),
    }
    _write(folder, failure, FAILURE)


def _forget() -> None:
    """Clears what a failed job leaves behind, which would disturb the next one."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=1)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write(folder: Path, record: dict[str, Any], name: str = RECORD) -> None:
    if is_first():
        with replacing(folder / name) as temporary:
            temporary.write_text(json.dumps(record, indent=2))
