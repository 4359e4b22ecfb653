"""Measures rows of track T1 on the Well itself, the most telling first, for so many hours.

    python experiments/bench/well.py OUT --base /data/datasets --hours 24 [--sets NAME ...] [--plan]

For people with a GPU and the data. Says which sets are there and how to get others, what the rows
will take, and goes on where it stopped. Send OUT/rows.zip: the rows, and the page made of them.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

from adaptok.cli.leaderboard import print_leaderboard
from adaptok.tasks.bench import t1
from adaptok.tasks.bench.full import missing_sets
from adaptok.tasks.bench.job import Job
from adaptok.tasks.bench.runner import price_list, run
from adaptok.tasks.bench.sets import EIGHT

FIRST = ("persistence", "uniform", "uniform_help", "coarse_fine", "iap", "oracle", "cnextunet")


def ordered(jobs: Sequence[Job], sets: Sequence[str]) -> list[Job]:
    """Orders the jobs of some sets: first one seed of all, as they are and at the middle budget;
    of these, first what others are compared with.
    """
    middle = {job.set: job.value for job in jobs if job.kind == "flops"}

    def place(job: Job) -> tuple[int, ...]:
        telling = job.kind == "none" or (job.kind == "tokens" and job.value == middle[job.set])
        first = FIRST.index(job.method) if job.method in FIRST else len(FIRST)
        return (job.seed, not telling, first, sets.index(job.set))

    return sorted((job for job in jobs if job.set in sets), key=place)


def pack(out: Path) -> Path:
    """Puts the rows and their page into one file."""
    page = out / "leaderboard.html"
    print_leaderboard(str(out), f"out={page}")
    packed = out / "rows.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for path in [*sorted(out.glob("*.json")), page]:
            file.write(path, path.name)
    return packed


def main() -> int:
    """Measures, and packs what there is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", required=True, help="folder of the Well's sets, or its URL")
    parser.add_argument("--hours", type=float, required=True)
    parser.add_argument("--sets", nargs="+", choices=EIGHT, default=EIGHT)
    parser.add_argument("--plan", action="store_true", help="say what it will take, and stop")
    given = parser.parse_args()
    if not given.hours > 0:
        parser.error(f"--hours must be a number above 0, got {given.hours}")
    jobs = [job for job in t1.jobs(scale="full", base=given.base) if job.set in given.sets]
    missing = {} if given.plan else missing_sets(jobs)
    for name, why in missing.items():
        print(f"left out {name}: {why}", file=sys.stderr)
    jobs = ordered(jobs, [name for name in given.sets if name not in missing])
    if not jobs:
        return 1
    print(price_list(jobs, given.out), flush=True)
    for job in jobs[:12]:
        print(f"first: {job.stem}, about {job.price.seconds / 3600:.1f} hours")
    if given.plan:
        return 0
    torch.set_num_threads(1)
    failed = run(jobs, given.out, t1.measure, given.hours)
    if any(given.out.glob("*.json")):
        print(f"send {pack(given.out)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
