"""Base, APT and its two baselines on digits: trains what is missing, then collects.

``python experiments/apt_images/run.py RUNS [FOLDER]`` keeps its runs in RUNS; killed and started
again, it goes on. FOLDER (default: that of this file) gets results.csv and the learning curves.
"""

from __future__ import annotations

import csv
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import yaml

from adaptok.bench.timing import paired
from adaptok.classify import ImageData, load_classifier
from adaptok.cli import main as adaptok
from adaptok.tables import read_metrics

VARIANTS, SEEDS = ("uniform", "uniform_patch8", "apt", "random", "resize"), (0, 1, 2)
MODEL = "{{patch_size: {patch}, embed_dim: 64, depth: 4, num_heads: 4}}"
RECIPE = (
    "recipe=full trainer.max_epochs=8 optim.warmup_epochs=1 optim.lr=2e-3 optim.lr_batch=null "
    "optim.layer_decay=1 data.augment=false trainer.accelerator=cpu"
)
THRESHOLDS = "tokenizer.thresholds=[2.2,2.2]"


def command(variant: str, seed: int) -> list[str]:
    """Arguments of ``adaptok``."""
    tokenizer, _, larger = variant.partition("_")
    options = MODEL.format(patch=8 if larger else 4)
    model = ["model=vit_tiny_patch16_224", "model.img_size=32", f"model.options={options}"]
    knobs = [] if tokenizer == "uniform" else [THRESHOLDS]
    words = ["train", "task=classify", "data=mnist_5k", *model, f"tokenizer={tokenizer}", *knobs]
    return [*words, f"seed={seed}", *RECIPE.split()]


def train(runs: Path) -> None:
    for seed, variant in itertools.product(SEEDS, VARIANTS):
        folder = runs / f"{variant}_{seed}"
        if (folder / "metrics.json").exists():
            continue
        resume = [f"resume={folder}"] if (folder / "checkpoints" / "last.ckpt").exists() else []
        words = [*command(variant, seed), *resume, f"hydra.run.dir={folder}"]
        if adaptok(words) != 0:
            raise SystemExit("failed: adaptok " + " ".join(words))


def speeds(runs: Path) -> dict[str, float]:
    """Images per second on the test images in one batch, measured side by side on one thread."""
    torch.set_num_threads(1)
    models = {name: load_classifier(runs / f"{name}_0") for name in VARIANTS}
    data = ImageData("mnist_5k", image_size=(32, 32), batch_size=1000)
    images = next(iter(data.loader("test")))[0]
    with torch.inference_mode():
        calls = {name: (lambda model=model: model(images)) for name, model in models.items()}
        seconds = paired(calls, repeats=9)
    return {name: len(images) / statistics.median(own) for name, own in seconds.items()}


def collect(runs: Path) -> list[dict[str, Any]]:
    rows, fast = [], speeds(runs)
    for variant, seed in itertools.product(VARIANTS, SEEDS):
        folder = runs / f"{variant}_{seed}"
        results = json.loads((folder / "metrics.json").read_text())
        steps = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"]
        test = results["settings"][0]
        row: dict[str, Any] = {"variant": variant, "seed": seed, "epochs": steps}
        row |= {"parameters": results["parameters"], "tokens": round(test["tokens"]["mean"], 2)}
        row |= {"accuracy": round(test["accuracy"], 4), "loss": round(test["loss"], 4)}
        row |= {"images_per_second": round(fast[variant], 1)}
        row |= {"s_per_training_step": round(results["seconds_per_training_step"], 4)}
        rows.append(row)
    return rows


def draw(runs: Path, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for color, variant in enumerate(VARIANTS):
        for seed in SEEDS:
            points = [m for m in read_metrics(runs / f"{variant}_{seed}") if "val/error" in m]
            steps, errors = [m["step"] for m in points], [m["val/error"] for m in points]
            label = variant if seed == SEEDS[0] else None
            axes.plot(steps, errors, color=f"C{color}", marker=".", label=label)
    axes.set(xlabel="training step", ylabel="validation error", title="mnist_5k", yscale="log")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(runs: Path, folder: Path) -> None:
    train(runs)
    rows = collect(runs)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(runs, folder / "learning_curves.png")
    for variant in VARIANTS:
        own = [row for row in rows if row["variant"] == variant]
        accuracy = [row["accuracy"] for row in own]
        tokens = statistics.mean(row["tokens"] for row in own)
        speed = own[0]["images_per_second"]
        print(f"| {variant} | {tokens:.1f} | {statistics.mean(accuracy):.4f} ± "
              f"{statistics.stdev(accuracy):.4f} | {speed:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
