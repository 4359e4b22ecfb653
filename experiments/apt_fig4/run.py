"""Accuracy against throughput of the finished runs, measured side by side.

``python experiments/apt_fig4/run.py OUT SEED ROOT SCALE [PREFIX]`` reads the runs in ROOT whose
names start with PREFIX, and writes OUT/results.json and OUT/trade_off.png. On CUDA models run in
bf16, without it on one thread of the CPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[1]))

from listed import read

from adaptok import plots
from adaptok.evaluation.bench.timing import clock_of, flops_of, median_ratio, paired
from adaptok.evaluation.evaluate import precision
from adaptok.layers.attention import attention_backend
from adaptok.tasks.classify import load_classifier
from adaptok.tasks.classify.run import image_data
from adaptok.tasks.fit import read_config

NAMES = {"base": "fixed patches", "apt": "APT", "evit": "EViT", "tome": "ToMe", "dtem": "DTEM"}
REPEATS = 15
Row = dict[str, Any]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Computes all attention by matrix products and a softmax, as the methods' own code does."""
    with sdpa_kernel(SDPBackend.MATH), attention_backend("math"):
        yield


ATTENTION: dict[str, Callable[[], Any]] = {"fused": nullcontext, "plain": plain_attention}


def ways(name: str) -> list[str]:
    """Returns the kinds of attention that a run is measured with.

    Where merged tokens have weights (ToMe and DTEM as published), attention is plain; their runs
    called "adv" have none, and are fused (App. A).
    """
    if "_adv" in name:
        return ["fused"]
    return ["plain"] if "tome" in name or "dtem" in name else ["fused", "plain"]


def attending(model: Any, images: Tensor) -> float:
    """Counts the tokens that attend in a block, mean over blocks and images, special ones too."""
    counts: list[int] = []

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        counts.append(args[0][..., 0].numel())

    handles = [block.register_forward_pre_hook(note) for block in model.blocks]
    model(images)
    for handle in handles:
        handle.remove()
    return sum(counts) / len(counts) / len(images)


def sample(config: Mapping[str, Any], model: Any) -> Tensor:
    """Returns one batch of test images, from all over the split, which may be sorted by class."""
    loader = image_data(config, model).loader("test")
    images: Any = loader.dataset
    numbers = torch.linspace(0, len(images) - 1, config["data"]["batch_size"]).long()
    return torch.stack([images[int(i)][0] for i in numbers])


@torch.inference_mode()
def measure(folders: Mapping[str, Path], device: torch.device) -> list[Row]:
    """Returns a row per run and kind of attention; folders are of runs by name, the first the base.

    Raises:
        ValueError: plain and fused attention disagree.
    """
    models = {name: load_classifier(folder).to(device) for name, folder in folders.items()}
    first = next(iter(models))
    images = sample(read_config(folders[first]), models[first]).to(device)

    def call(name: str, way: str) -> Tensor:
        with ATTENTION[way](), precision(device):
            return models[name](images).float()

    calls = {(name, way): partial(call, name, way) for name in models for way in ways(name)}
    tolerance = 1e-3 if device.type == "cpu" else 5e-2
    for name in models:
        own = [calls[name, way]() for way in ways(name)]
        if not all(torch.allclose(own[0], one, atol=tolerance, rtol=tolerance) for one in own):
            raise ValueError(f"{name}: plain and fused attention disagree")
    labels = {f"{name}, {way}": case for case in calls for name, way in [case]}
    functions = {label: calls[case] for label, case in labels.items()}
    seconds = paired(functions, repeats=REPEATS, warmup=2, clock=clock_of(device))
    rows = []
    for label, (name, way) in labels.items():
        tested = json.loads((folders[name] / "metrics.json").read_text())["settings"][0]
        rows.append(
            {
                "of": name,
                "attention": way,
                "accuracy": tested["accuracy"],
                "tokens": round(attending(models[name], images), 2),
                "gflops_per_image": flops_of(functions[label]) / len(images) / 1e9,
                "images_per_second": len(images) / median(seconds[label]),
                "speed_up": median_ratio(seconds[f"{first}, fused"], seconds[label]),
            }
        )
    return rows


def trade_off(rows: list[Row], prefix: str) -> Figure:
    """Draws accuracy against speed: solid with fused attention, dashed with plain one."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (method, label) in enumerate(NAMES.items()):
        for way, style in (("fused", "o-"), ("plain", "s--")):
            own = [r for r in rows if r["attention"] == way]
            own = [r for r in own if r["of"].removeprefix(prefix).split("_")[0] == method]
            own.sort(key=lambda row: row["speed_up"])
            points = [[row[key] for row in own] for key in ("speed_up", "accuracy")]
            axes.plot(*points, style, color=f"C{number}", label=f"{label}, {way}")
    axes.set(xlabel="images per second over those of fixed patches, fused", ylabel="test accuracy")
    axes.legend(fontsize="small")
    return figure


def main(folder: Path, seed: int, root: Path, scale: str, prefix: str = "") -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runs = [r for r in read("apt_fig4").runs[scale] if r.command == "train"]
    runs = [r for r in runs if r.name.startswith(prefix)]
    rows = measure({run.name: run.folder(root, seed) for run in runs}, device)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"rows": rows}, indent=1))
    plots.save(trade_off(rows, prefix), folder / "trade_off.png", dpi=120, small=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
