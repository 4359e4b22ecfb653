"""Everything that needs a GPU, in under nine minutes: correctness first, then the benchmarks.

python experiments/gpu/run.py OUT

Each part is a process with a time limit, so that a part that fails or hangs stops no other one.
Results appear in OUT as they come: a log and a folder per part, summary.json and summary.md. After
each part OUT.tar.gz holds all of them, so that one file is to be sent.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
sys.path[:0] = [str(HERE / "experiments"), str(HERE)]

from listed import read  # noqa: E402

from adaptok.evaluation.bench.timing import write_results  # noqa: E402
from adaptok.utils.atomic import replacing  # noqa: E402

MODELS = {  # APT, Table 6: model, image size, batch, share of tokens
    "vision_l": ("vit_large_patch14_clip_336", "336", "32", "0.44"),
    "vision_b": ("vit_base_patch16_384", "384", "64", "0.5"),
    "vision_h": ("vit_huge_patch14_clip_336", "336", "16", "0.5"),
}
TESTS = ["-m", "gpu", "--noconftest", "-p", "no:cacheprovider", "-p", "gpu.failures", "tests/gpu"]
SMALL = ["--device", "cuda", "--precision", "bf16"]
SECONDS, SLACK, LEAST = 540, 20, 10  # of all, for starting and ending, and of a part at least
NOTE = "Parts in the order in which they ran; `rows` counts what a benchmark has written."


def parts(out: Path) -> dict[str, tuple[list[str], int]]:
    """Returns command and limit in seconds of each part, the important ones first. The compiler's
    is the last: it takes what the others leave.
    """
    found: dict[str, tuple[list[str], int]] = {
        "tests": (["pytest", *TESTS, "-k", "not flex"], 75),
        "attention": (["benchmarks.attention", str(out / "attention")], 35),
    }
    for run in read("iap_table6").runs["full"]:
        if run.name != "asm":  # the grid of am
            name, *rest = run.overrides
            for tokens, words in cases(rest).items():  # a case is written when all of it is timed
                part = f"step_{run.name}_{tokens}"
                limit = 15 if tokens < 2048 else 25
                found[part] = ([f"benchmarks.{name}", str(out / part), *words], limit)
    more = [str(out / "tokenize"), *SMALL, "--batch", "16"]
    found["tokenize"] = (["benchmarks.tokenize", *more], 25)
    for name, (model, size, batch, share) in MODELS.items():
        shape = ["--models", model, "--sizes", size, "--batches", batch, "--shares", share]
        found[name] = (["adaptok.evaluation.bench.vision", str(out / name), *shape], 45)
    for name, limit in {"reducers": 23, "refine": 20, "memory": 20}.items():
        found[name] = ([f"benchmarks.{name}", str(out / name)], limit)
    more = [str(out / "scaling"), *SMALL, "--seconds", "0.25"]
    found["scaling"] = (["benchmarks.scaling", *more], 32)
    found["flex"] = (["pytest", *TESTS, "-k", "flex"], 120)
    return {name: ([sys.executable, "-m", *words], limit) for name, (words, limit) in found.items()}


def cases(words: Sequence[str]) -> dict[int, list[str]]:
    """Splits arguments of benchmarks.step into those of one number of tokens each."""
    start = words.index("--tokens") + 1
    ends = (i for i, word in enumerate(words) if i >= start and word.startswith("--"))
    end = next(ends, len(words))
    return {int(n): [*words[:start], n, *words[end:]] for n in words[start:end]}


def run_part(command: list[str], limit: float, log: Path) -> str:
    """Runs a command and all that it starts for so many seconds; returns how it ended."""
    own = [str(HERE), str(HERE / "experiments"), os.environ.get("PYTHONPATH")]
    paths = os.pathsep.join(filter(None, own))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=HERE,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        status = process.wait(limit)
        return "ok" if status == 0 else f"exit status {status}"
    except subprocess.TimeoutExpired:
        result = f"stopped after {limit:.0f} s"
    finally:  # the compiler's processes, too
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:  # the driver holds it
        result += ", still there"
    return result


def rows_in(folder: Path) -> int:
    """Counts the rows that a part has written; other files count as none."""
    count = 0
    for file in folder.glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            count += len(json.loads(file.read_text())["rows"])
    return count


def pack(out: Path) -> None:
    """Packs all results into one file beside their folder."""
    target = archive_of(out)
    with replacing(target) as temporary, tarfile.open(temporary, "w:gz") as archive:
        archive.add(out, out.name)


def archive_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.tar.gz")


def main(out: Path, seconds: float = SECONDS) -> None:
    """Runs the parts one after the other, within so many seconds in all.

    Raises:
        ValueError: there are results of another run.
    """
    end = time.perf_counter() + seconds - SLACK
    if (out.is_dir() and any(out.iterdir())) or archive_of(out).exists():
        raise ValueError(f"{out} has results of another run: give another folder")
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name, (command, limit) in parts(out).items():
        start = time.perf_counter()
        left, log = end - start, out / f"{name}.log"
        result = "no time left" if left < LEAST else run_part(command, min(limit, left), log)
        took = round(time.perf_counter() - start, 1)
        rows.append({"part": name, "seconds": took, "result": result, "rows": rows_in(out / name)})
        write_results(out, "summary", rows, NOTE, command="python experiments/gpu/run.py")
        pack(out)
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/gpu").resolve())
