"""From the shell: a sweep over models, its table, then one of them evaluated in depth.

    python docs/gallery/sweep_user.py [FOLDER]

Every `adaptok` line below can be typed unchanged. With the sizes under SMALL it takes a minute on
one core; leave them out for real runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

SMALL = [
    *("data.generate.resolution=16", "data.generate.frames=6", "data.generate.nodes=4"),
    *("data.generate.train=2", "data.generate.valid=1", "data.generate.test=2"),
    *("size.dim=24", "size.depth=1", "size.heads=2"),
    *("trainer=debug", "optim.warmup_steps=1", "data.batch_size=2"),
]


def adaptok(*words: str) -> None:
    """Prints and runs a command."""
    print("\n$ adaptok", " ".join(words))
    subprocess.run([sys.executable, "-m", "adaptok", *words], check=True)


def main(folder: Path) -> None:
    """Runs a sweep and an evaluation; writes below `folder`."""
    data = f"data.base={folder / 'data'}"

    # 1. One run per model, same data, same training. `-m` runs every combination; typed again, it
    #    does only what is missing.
    sweep = folder / "sweep"
    adaptok("train", "-m", "model=surrogate,unet,persistence", "tokenizer=iap",
            "tokenizer.max_size=8", "tokenizer.budget=22", "test.steps=3", data, *SMALL,
            f"hydra.sweep.dir={sweep}")  # fmt: skip

    # 2. What came out: every run folder has its configuration and its numbers.
    print(f"\n{'model':<14}{'VRMSE':>8}{'step 3':>8}")
    for run in sorted(path.parent for path in sweep.glob("*/metrics.json")):
        config = yaml.safe_load((run / "config.yaml").read_text())
        row = json.loads((run / "metrics.json").read_text())["settings"][0]
        values = row["vrmse"]["mean"], row["rollout"]["mean"][-1]
        print(f"{config['model']['name']:<14}{values[0]:8.4f}{values[1]:8.4f}")

    # 3. More of the adaptive one: two budgets, the rollouts as data, a film.
    (adaptive,) = sweep.glob("*_iap_*")
    adaptok("eval", f"ckpt={adaptive}", "settings=[{budget: 10}, {budget: 22}]", "steps=3",
            "save_predictions=true", "video=gif", "device=cpu",
            f"hydra.run.dir={folder / 'eval'}")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "gallery_runs").resolve())
