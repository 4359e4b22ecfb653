"""Trains a list of runs one by one: `python experiments/run_list.py FOLDER OUT [KEY=VALUE ...]`.

FOLDER holds runs.yaml: `common`, overrides of all runs, and `runs`, a name and the overrides of
each. A run writes into OUT/<name>; one that is finished is skipped and one that was interrupted
goes on from its checkpoint, so the command can be repeated at any time. Further overrides, such as
data.base=/large/disk, go to every run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml


def main(folder: Path, out: Path, more: list[str]) -> None:
    listed = yaml.safe_load((folder / "runs.yaml").read_text())
    for name, overrides in listed["runs"].items():
        target = out / name
        if (target / "metrics.json").is_file():
            print(f"{name}: finished")
            continue
        print(f"{name}: {' '.join(overrides)}", flush=True)
        command = [sys.executable, "-m", "adaptok", "train", *listed["common"], *overrides]
        last = target / "checkpoints" / "last.ckpt"
        resume = [f"resume={last}"] if last.is_file() else []
        subprocess.run([*command, *resume, *more, f"hydra.run.dir={target}"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
