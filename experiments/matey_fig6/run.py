"""Pretrain on two systems, fine-tune on a third: `python experiments/matey_pretrain/run.py [RUNS]`.

RUNS (default outputs/matey_pretrain) keeps every run; those that are finished are not repeated.
Writes results.csv and learning_curves.png beside this file, and prints the table.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from adaptok.cli import main
from adaptok.tables import read_metrics

HERE = Path(__file__).parent
SETS = "[euler_multi_quadrants_periodicBC,active_matter]"
TARGET, TRAJECTORIES, SEEDS = "rayleigh_benard", (1, 4, 16), (0,)
MODEL = ["size=tiny", "history=2", "history_mode=frames", "processor=spacetime", "score_on=raw"]
MODEL += [
    "processor.positions=fourier",
    "tokenizer=matey",
    "tokenizer.sizes=[4,16]",
    "tokenizer.gamma=0.5",
]
OPTIM = ["optim=cosine", "optim.warmup_steps=50", "trainer.accelerator=cpu"]
MODES = {  # name in the table -> settings
    "scratch, all": ["from_scratch=true", "mode=all"],
    "pretrained, all": ["mode=all"],
    "scratch, prepost": ["from_scratch=true", "mode=prepost"],
    "pretrained, prepost": ["mode=prepost"],
}


def steps(number: int, every: int) -> list[str]:
    return [f"trainer.max_steps={number}", f"trainer.val_check_interval={every}", "test.steps=4"]


def run(command: str, folder: Path, *overrides: str) -> None:
    """Runs a command unless its folder has the results."""
    if list(folder.glob("**/metrics.json")):
        return
    print(f"\n{folder.name}", flush=True)
    status = main([command, *OPTIM, *overrides, f"hydra.run.dir={folder}"])
    if status:
        sys.exit(status)


def train(runs: Path) -> None:
    where = [f"data.base={runs / 'sets'}", "data.generate.resolution=32", "data.batch_size=8"]
    made = ["data.generate.train=24", "data.generate.valid=4", "data.generate.test=4"]
    args = [f"data={SETS}", *where, *made, *MODEL, *steps(1200, 300), "optim.lr=1e-3"]
    run("train", runs / "pretrain", "task=pretrain", *args)
    made = ["data.generate.train=16", "data.generate.valid=4", "data.generate.test=8"]
    where = [f"data={TARGET}", where[0], "data.generate.resolution=16", where[2]]
    args = [f"ckpt={runs / 'pretrain'}", *where, *made, *steps(250, 50), "optim.lr=2e-3"]
    for seed in SEEDS:
        for count in TRAJECTORIES:
            for name, mode in MODES.items():
                folder = runs / f"{name.replace(', ', '_')}_{count}_{seed}"
                share = f"data_fraction={count / max(TRAJECTORIES)}"
                run("finetune", folder, *args, *mode, share, f"seed={seed}")


def collect(runs: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name in MODES:
        for count in TRAJECTORIES:
            for seed in SEEDS:
                folder = runs / f"{name.replace(', ', '_')}_{count}_{seed}"
                found = json.loads((folder / "metrics.json").read_text())
                row = found["settings"][0]
                rows.append(
                    {
                        "model": name,
                        "trajectories": count,
                        "seed": seed,
                        "vrmse": row["vrmse"]["mean"],
                        "nrmse": row["nrmse"],
                        "rollout_4": row["rollout"]["mean"][-1],
                        "persistence": found["persistence"]["vrmse"]["mean"],
                        "persistence_rollout_4": found["persistence"]["rollout"]["mean"][-1],
                        "tokens": row["tokens"]["mean"],
                    }
                )
    return rows


def table(rows: list[dict[str, object]]) -> str:
    lines = ["| model | " + " | ".join(f"{n} trajectories" for n in TRAJECTORIES) + " |"]
    lines.append("|---|" + "---:|" * len(TRAJECTORIES))
    for name in MODES:
        cells = []
        for count in TRAJECTORIES:
            own = [r for r in rows if (r["model"], r["trajectories"]) == (name, count)]
            values = [float(str(r["vrmse"])) for r in own]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(f"| persistence | {rows[0]['persistence']:.4f} |" + " |" * (len(TRAJECTORIES) - 1))
    return "\n".join(lines)


def curves(runs: Path) -> None:
    figure, axes = plt.subplots(1, len(TRAJECTORIES), figsize=(11, 3.2), sharey=True)
    for axis, count in zip(axes, TRAJECTORIES, strict=True):
        for color, name in zip(("C0", "C1", "C2", "C3"), MODES, strict=True):
            for seed in SEEDS:
                folder = runs / f"{name.replace(', ', '_')}_{count}_{seed}"
                rows = [row for row in read_metrics(folder) if "val/vrmse" in row]
                points = [(row["step"] + 1, row["val/vrmse"]) for row in rows]
                axis.plot(*zip(*points, strict=True), color=color, label=None if seed else name)
        axis.set(title=f"{count} of {max(TRAJECTORIES)} trajectories", xlabel="step", yscale="log")
    axes[0].set_ylabel("validation VRMSE")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "learning_curves.png", dpi=110)


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/matey_pretrain").resolve()
    train(place)
    found = collect(place)
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    curves(place)
    print(table(found))
