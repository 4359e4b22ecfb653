# %% [markdown]
# # Compare tokenizers from the command line
#
# A sweep over models, its table, then one of them evaluated in depth. Every `adaptok` line can be
# typed unchanged; with the sizes under `SMALL` all of it takes a minute on one core. Leave them out
# for real runs.

# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas
import yaml

SMALL = [
    *("data.generate.resolution=16", "data.generate.frames=6", "data.generate.nodes=4"),
    *("data.generate.train=2", "data.generate.valid=1", "data.generate.test=2"),
    *("size.dim=24", "size.depth=1", "size.heads=2"),
    *("trainer=debug", "optim.warmup_steps=1", "data.batch_size=2"),
]
FOLDER = Path(tempfile.mkdtemp())
sweep = FOLDER / "sweep"


def adaptok(*words: str) -> None:
    """Prints and runs a command."""
    print("$ adaptok", " ".join(words))
    done = subprocess.run(
        [sys.executable, "-m", "adaptok", *words], text=True, stdout=subprocess.PIPE, check=True
    )
    print(done.stdout[-1500:])


# %% [markdown]
# One run per model, same data, same training. `-m` runs every combination; typed again, it does
# only what is missing.

# %%
adaptok("train", "-m", "model=surrogate,unet,persistence", "tokenizer=iap",
        "tokenizer.max_size=8", "tokenizer.budget=22", "test.steps=3",
        f"data.base={FOLDER / 'data'}", *SMALL, f"hydra.sweep.dir={sweep}")  # fmt: skip

# %% [markdown]
# What came out: every run folder has its configuration and its numbers. `adaptok report` makes
# tables and a page with plots of them.

# %%
rows = []
for run in sorted(path.parent for path in sweep.glob("*/metrics.json")):
    config = yaml.safe_load((run / "config.yaml").read_text())
    tested = json.loads((run / "metrics.json").read_text())["settings"][0]
    rows.append((config["model"]["name"], tested["vrmse"]["mean"], tested["rollout"]["mean"][-1]))
pandas.DataFrame(rows, columns=["model", "VRMSE", "at step 3"])

# %% [markdown]
# More of the adaptive one: two budgets, the rollouts as data, a film.

# %%
(adaptive,) = sweep.glob("*_iap_*")
adaptok("eval", f"ckpt={adaptive}", "settings=[{budget: 10}, {budget: 22}]", "steps=3",
        "save_predictions=true", "video=gif", "device=cpu",
        f"hydra.run.dir={FOLDER / 'eval'}")  # fmt: skip
