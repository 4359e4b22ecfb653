"""Paired timing of functions: they run in turn, so that drifts of the machine hit all of them."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from adaptok.evaluation.bench.drawing import Draw

CLOCK = " On one thread of a CPU times are processor time."


def clock_of(device: str | torch.device) -> Callable[[], float]:
    """Processor time where one thread of the CPU does all the work, so that other programs do not
    count; else the time on the wall.
    """
    alone = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def paired(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 7,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each function, run A B C A B C ...; CUDA work is waited for."""
    for _ in range(warmup):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            _wait()
            start = clock()
            function()
            _wait()
            seconds[name].append(clock() - start)
    return seconds


def matmul_peak(device: torch.device, precision: str) -> float:
    """Operations per second of a large matrix product, the roof that a step can reach."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    run = {"matmul": lambda: a @ a}
    times = paired(run, repeats=10, warmup=3, clock=clock_of(device))["matmul"]
    return 2 * size**3 / statistics.median(times)


def median_ratio(over: list[float], under: list[float]) -> float:
    """Median of the pairwise ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
    }


def _commit() -> str:
    """Short name of the commit that was measured, with a plus where files had changed."""
    try:
        call = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_results(
    folder: Path,
    name: str,
    rows: list[dict[str, Any]],
    note: str,
    draw: Draw | None = None,
    command: str = "",
) -> Path:
    """Writes `<name>.json` and `<name>.md` into a folder; returns the path of the latter.

    Args:
        draw: makes a picture of the rows, `<name>.png`.
        command: that measured it; default the module of `benchmarks` of this name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    (folder / f"{name}.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1))
    head = list(rows[0])
    lines = [f"# {name.replace('_', ' ').capitalize()}", "", note, ""]
    lines += [f"`{command or f'python -m benchmarks.{name}'}`", ""]
    lines += [", ".join(f"{k} {v}" for k, v in about.items()), ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(row[key]) for key in head) + " |" for row in rows]
    if draw is not None:
        draw(rows, folder / f"{name}.png")
        lines += ["", f"![{name}]({name}.png)"]
    path = folder / f"{name}.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
