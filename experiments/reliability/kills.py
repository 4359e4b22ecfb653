"""Kill and resume: a run that was killed at any moment ends bit for bit like one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from forked import Forked
from reliability.rows import Row, row

HERE = Path(__file__).parent
STEPS = 30
MODES: dict[str, Sequence[str]] = {
    "single": (),
    "ddp": ("trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=1"),
    "sweep": ("-m", "seed=0,1"),
}
HOOKS = (  # of the run, or of a job of the sweep
    "torch.save:after:4",  # written, not yet renamed
    "os.replace:before:6",
    "os.replace:after:5",
    "adaptok.tasks.surrogate.evaluate:before:1",  # trained, not yet tested
)


def command(folder: Path, mode: str, data: Path) -> list[str]:
    """Arguments of a short training with random layers, accumulated batches and an average.

    Args:
        folder: of the run; without neighbours, because ``resume=auto`` looks at them too.
    """
    knobs = {"resolution": 16, "frames": 6, "nodes": 4, "train": 2, "valid": 1, "test": 2}
    words = [f"data.generate.{name}={value}" for name, value in knobs.items()]
    words += [f"data.base={data}", "data.batch_size=2", "size.dim=24", "size.depth=2"]
    words += ["size.heads=2", "size.mlp_ratio=1", "tokenizer=iap", "tokenizer.budget=22"]
    words += ["tokenizer.max_size=8", "processor.drop_path=0.3", "optim.warmup_steps=5"]
    words += [
        "optim.lr=0.01",
        "test.steps=2",
        "trainer.accelerator=cpu",
        f"trainer.max_steps={STEPS}",
    ]
    words += ["trainer.val_check_interval=4", "trainer.accumulate_grad_batches=2"]
    words += ["trainer.log_every_n_steps=1", "resume=auto", *MODES[mode]]
    place = "hydra.sweep.dir" if mode == "sweep" else "hydra.run.dir"
    return ["train", *words, f"{place}={folder}"]


def start(arguments: Sequence[str], hook: str = "") -> Forked:
    """Starts the command as a process group of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "LOCAL_RANK"))}
    paths = [str(HERE.parents[1]), kept.get("PYTHONPATH", "")]
    kept |= {"OMP_NUM_THREADS": "1", "HOOK": hook, "PYTHONPATH": os.pathsep.join(paths)}
    return Forked([str(HERE / "hooked.py"), *arguments], env=kept)


def finish(arguments: Sequence[str], hook: str = "") -> tuple[int, str]:
    """Runs the command to its end; returns its exit status and errors."""
    process = start(arguments, hook)
    _, errors = process.communicate(timeout=600)
    return process.returncode, errors


def contents(folder: Path) -> dict[str, Any]:
    """What a run, or each job of a sweep, leaves: tensors, counters and results without times."""
    left = {}
    for results in sorted(folder.rglob("metrics.json")):
        run = results.parent
        seed = next(w for w in (run / "config.yaml").read_text().splitlines() if w[:5] == "seed:")
        metrics = json.loads(results.read_text())
        rows = [(row["vrmse"], row["rollout"]) for row in metrics["settings"]]
        own: dict[str, Any] = {"results": [[one, {**many, "seconds": None}] for one, many in rows]}
        for name in ("last", "best"):
            saved = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
            own[name] = {k: saved[k] for k in ("global_step", "epoch", "callbacks")}
            for key in ("state_dict", "averaged_state_dict"):
                own[name] |= {f"{key}.{k}": v for k, v in saved[key].items()}
        left[seed] = own
    return left


def equal(a: Any, b: Any) -> bool:
    """Compares nested values bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return a == b


class Reference(NamedTuple):
    """An uninterrupted run: what it left, and how many seconds it took."""

    data: Path
    left: dict[str, Any]
    seconds: float


def whole(mode: str, folder: Path) -> Reference:
    """Runs once without a kill; the data is made before."""
    data = folder / "data"
    first = [w for w in command(folder / "warm" / "run", "single", data) if "max_steps" not in w]
    code, errors = finish([*first, "trainer.max_steps=1"])
    assert code == 0, errors[-3000:]
    begin = time.monotonic()
    code, errors = finish(command(folder / "whole" / "run", mode, data))
    assert code == 0, errors[-3000:]
    return Reference(data, contents(folder / "whole"), time.monotonic() - begin)


def killed_by_hook(hook: str, mode: str, folder: Path, reference: Reference) -> str:
    """Kills at a call, resumes; returns what is wrong, or nothing."""
    arguments = command(folder, mode, reference.data)
    code, errors = finish(arguments, hook)
    if code != -signal.SIGKILL:
        return f"{hook} did not kill: exit {code}: {errors[-300:]}"
    code, errors = finish(arguments)
    return judged(code, errors, folder, reference)


def killed_at_random(
    kills: int, mode: str, folder: Path, reference: Reference, seed: int = 0
) -> tuple[int, str]:
    """Kills a run after random times, until it is through; returns the kills, and what is wrong."""
    arguments, draw = command(folder, mode, reference.data), random.Random(f"{mode}/{seed}")
    for number in range(kills):
        process = start(arguments)
        try:
            _, errors = process.communicate(timeout=draw.uniform(0.3, 1.0) * reference.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            continue
        return number, judged(process.returncode, errors, folder, reference)
    code, errors = finish(arguments)
    return kills, judged(code, errors, folder, reference)


def judged(code: int, errors: str, folder: Path, reference: Reference) -> str:
    if code:
        return f"exit {code}: {errors[-300:]}"
    return "" if equal(contents(folder), reference.left) else "other bits than without a kill"


def run(folder: Path, quick: bool = False) -> list[Row]:
    """Kills 30 times at random and at 12 hooks, over all modes; a tenth of that if `quick`."""
    rows = []
    for mode in MODES:
        place = folder / mode
        reference, wrong = whole(mode, place), []
        hooks = HOOKS[-1:] if quick else HOOKS
        for number, hook in enumerate(hooks):
            wrong.append(killed_by_hook(hook, mode, place / f"hook{number}" / "run", reference))
        rows.append(row(f"kill -9 at hooked points, {mode}", wrong, "bits equal"))
        goal, done, wrong, number = (1 if quick else 10), 0, [], 0
        while done < goal and number < 10 * goal:
            to = min(goal - done, 3)
            own = place / f"random{number}" / "run"
            kills, reason = killed_at_random(to, mode, own, reference, seed=number)
            done, number = done + kills, number + 1
            wrong.append(reason)
        failed = row("", wrong)
        rows.append(
            Row(f"kill -9 at random, {mode}", done, failed.failed, failed.note or "bits equal")
        )
    return rows
