"""Several processes at one path: runs, generators, reports and writers; and a bad neighbour."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import report_runs
import test_files
import yaml
from reliability import kills
from reliability.rows import Row, Wrong, row, tried

from adaptok.data.check import check
from adaptok.data.synthetic import generate
from adaptok.training.checkpoints import find_resume, read_checkpoint
from adaptok.utils.atomic import replacing

FORK = multiprocessing.get_context("fork")
MAZE = "acoustic_scattering_maze"
KNOBS = {"resolution": 16, "frames": 4, "nodes": 4, "train": 2, "valid": 1, "test": 1}
NAMES = "abc"  # of the files in a folder that is replaced


def two_runs(folder: Path, other: int, reference: kills.Reference) -> Wrong:
    """Starts two trainings in one folder; one must be told, the other must end whole."""
    words = kills.command(folder, "single", reference.data)
    both = [kills.start([*words, f"seed={seed}"]) for seed in (0, other)]
    ends = [process.communicate(timeout=600)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    if codes != [0, 2]:
        return f"exits {codes}: {ends}"
    refused = ends[0 if both[0].returncode else 1]
    if "is in use by process" not in refused or "Traceback" in refused:
        return refused[-300:]
    seed = yaml.safe_load((folder / "config.yaml").read_text())["seed"]
    if read_checkpoint(folder)["adaptok_config"]["seed"] != seed:
        return "configuration and checkpoint are of different runs"
    if seed == 0 and not kills.equal(kills.contents(folder), reference.left):
        return "other bits than alone"
    return None


def write(path: Path, tag: int, times: int, is_folder: bool) -> None:
    for _ in range(times):
        with replacing(path) as temporary:
            if is_folder:
                temporary.mkdir()
            for file in [temporary / name for name in NAMES] if is_folder else [temporary]:
                file.write_bytes(bytes([tag]) * 200_000)


def writers(path: Path, is_folder: bool, times: int) -> list[Wrong]:
    """Reads a path all the while three processes replace it; returns what each read found."""
    processes = [FORK.Process(target=write, args=(path, n, times, is_folder)) for n in (1, 2, 3)]
    for process in processes:
        process.start()
    found: list[Wrong] = []
    file = path / NAMES[0] if is_folder else path
    while any(process.is_alive() for process in processes):
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        torn = len(content) != 200_000 or len({*content}) != 1
        found.append("torn" if torn else None)
    for process in processes:
        process.join()
        found += ["a writer failed"] if process.exitcode else []
    if is_folder and len({(path / name).read_bytes() for name in NAMES}) != 1:
        found.append("files of two writers in one folder")
    if os.listdir(path.parent) != [path.name]:
        found.append("leftovers")
    return found


def together(words: list[str], count: int = 4) -> Wrong:
    """Runs one command several times at once; returns what is wrong."""
    kept = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    started = [
        subprocess.Popen([sys.executable, "-m", "adaptok", *words], env=kept, text=True, **options)
        for _ in range(count)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    bad = [e for e, process in zip(errors, started, strict=True) if process.returncode]
    return bad[0][-300:] if bad else None


def reports(folder: Path) -> Wrong:
    runs = folder / "runs"
    for seed in range(3):
        report_runs.write_surrogate(runs, "iap", seed)
        report_runs.write_surrogate(runs, "uniform", seed)
    if wrong := together(["report", str(runs), f"out={folder / 'out'}"]):
        return wrong
    left = sorted(file.name for file in (folder / "out").iterdir())
    if left != ["report.html", "report.md", "results.csv"]:
        return f"left {left}"
    page = (folder / "out" / "report.html").read_text()
    return None if page.rstrip().endswith("</html>") else "half a page"


def generators(folder: Path) -> Wrong:
    """Three processes make one set at once."""
    makers = [
        FORK.Process(target=generate, args=(MAZE, folder), kwargs={**KNOBS, "progress": False})
        for _ in range(3)
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    if any(maker.exitcode for maker in makers):
        return "a generator failed"
    problems = check(folder / MAZE).problems
    return str(problems[0]) if problems else None


DAMAGED = {
    "empty": b"",
    "half": b"data: {name: [",
    "text": b"just text",
    "a list": b"- 1",
    "a number": b"3",
    "itself": b"a: &a [*a]",
    "NUL": b"\0" * 100,
    "no UTF-8": b"\xff\xfe\xfa",
    "a tag": b"!!python/object/apply:os.system ['false']",
    "aliases": test_files.ALIASES.encode(),
    "deep": b"[" * 20_000,
    "two documents": b"a: 1\n---\nb: 2\n",
}


def beside(content: bytes, folder: Path) -> Wrong:
    """Looks for a run to resume beside a damaged one; must find the good one."""
    for name, text in (("bad", content), ("good", b"history: 1\n")):
        (folder / name / "checkpoints").mkdir(parents=True)
        (folder / name / "checkpoints" / "last.ckpt").touch()
        (folder / name / "config.yaml").write_bytes(text)
    os.utime(folder / "good" / "checkpoints" / "last.ckpt", (1, 1))  # the bad one comes first

    def late(*_: Any) -> None:
        raise TimeoutError("took over 10 s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    try:
        found = find_resume("auto", folder / "new", folder, {"history": 1})
    finally:
        signal.alarm(0)
    return None if found and found.parents[1].name == "good" else f"found {found}"


def run(folder: Path, quick: bool = False) -> list[Row]:
    """All of it; `quick`: once each."""
    reference, times = kills.whole("single", folder / "runs"), 1 if quick else 2
    pairs = [
        (f"seeds 0 and {seed}", lambda s=seed: two_runs(folder / f"pair{s}" / "run", s, reference))
        for seed in range(times)
    ]
    rows = [tried("two trainings in one run folder", pairs, "one is told who has it")]
    found: list[Wrong] = []
    for is_folder in (False, True):
        place = folder / f"writers{is_folder}"
        place.mkdir()
        found += writers(place / "x", is_folder, 20 if quick else 150)
    rows.append(row("reads while three processes replace a file or folder", found))
    tries = [(str(n), lambda n=n: reports(folder / f"reports{n}")) for n in range(times)]
    rows.append(tried("four reports at once on one folder", tries))
    tries = [(str(n), lambda n=n: generators(folder / f"sets{n}")) for n in range(times)]
    rows.append(tried("three generators of one set at once", tries))
    tries = [(n, lambda n=n, c=c: beside(c, folder / f"beside {n}")) for n, c in DAMAGED.items()]
    rows.append(tried("resume=auto beside a damaged config.yaml", tries))
    return rows
