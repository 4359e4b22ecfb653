"""LLaVA on adaptive patches: APT's recipe by its configuration, a tiny LLaVA to try it, speeds.

``python experiments/apt_table3/run.py OUT SEED given COUNT`` writes scenes in LLaVA's layout and a
tiny LLaVA; ``... OUT SEED train key=value ...`` runs recipe.yaml with these changes; ``... OUT SEED
speed ROOT SCALE [PREFIX]`` measures the finished runs side by side. Each writes OUT/results.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from listed import read
from tiny_llava import CHANCE, write_llava, write_scenes

import adaptok
from adaptok.evaluation.bench.timing import clock_of, flops_of, median_ratio, paired
from adaptok.evaluation.evaluate import precision
from adaptok.tasks.fit import read_config
from adaptok.tasks.llava import LlavaData, adapt_llava, fit_and_test_llava, load_llava
from adaptok.tasks.llava.models import train_only
from adaptok.tasks.llava.run import as_row
from adaptok.vision.hf import encode_images
from adaptok.vision.tokenizers import cell_module

HERE = Path(__file__).parent
Row = dict[str, Any]
REPEATS = 15
# Language models by a word of the checkpoint's name; all else is the default of transformers.
LANGUAGE: dict[str, dict[str, Any]] = {
    "7b": {"vocab_size": 32064},
    "13b": {
        "vocab_size": 32064,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}


def configured(words: Sequence[str]) -> dict[str, Any]:
    """Reads recipe.yaml and changes it; a tokenizer by another name has no thresholds left over."""
    recipe = OmegaConf.load(HERE / "recipe.yaml")
    given = OmegaConf.from_dotlist(list(words))
    if (OmegaConf.select(given, "tokenizer.name") or "apt") in ("uniform", "reduced"):
        recipe.tokenizer = {}
    merged: Any = OmegaConf.to_container(OmegaConf.merge(recipe, given), resolve=True)
    return merged


def train(folder: Path, seed: int, words: Sequence[str]) -> list[Row]:
    results = fit_and_test_llava({**configured(words), "seed": seed}, folder)
    return [] if results is None else [as_row(results)]


def make(folder: Path, seed: int, count: int) -> list[Row]:
    write_scenes(folder / "data", count, seed)
    write_llava(folder / "model", seed)
    return [{"conversations": count, "chance": CHANCE}]


@torch.inference_mode()
def speed(root: Path, scale: str, prefix: str = "") -> list[Row]:
    """Returns a row per finished run: a forward pass on one batch of the test, side by side."""
    runs = [r for r in read("apt_table3").runs[scale] if r.overrides[0] == "train"]
    folders = {r.name: r.folder(root, 0) for r in runs if r.name.startswith(prefix)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first, *_ = configs = [read_config(folder) for folder in folders.values()]
    given, processor = load_llava(**first["model"])
    # One batch and one set of weights for all: the cells depend on the images alone.
    batch = next(iter(LlavaData(processor, seed=0, **first["data"]).loader()))
    batch = {k: v.to(device) for k, v in batch.items()}
    calls, counts = {}, {}
    for name, config in zip(folders, configs, strict=True):
        model = adapt_llava(given, processor, config["tokenizer"]).to(device).eval()
        calls[name] = partial(answer, model, batch, device)
        features = encode_images(model, batch)["mm_encoder_outputs"]["image"].pooler_output
        counts[name] = sum(map(len, features)) / len(features), len(features)
    seconds = paired(calls, repeats=REPEATS, warmup=2, clock=clock_of(device))
    base = next(iter(seconds))
    return [
        {
            "of": name,
            "tokens": counts[name][0],
            "gflops_per_image": flops_of(calls[name]) / counts[name][1] / 1e9,
            "images_per_second": counts[name][1] / median(seconds[name]),
            "speed_up": median_ratio(seconds[base], seconds[name]),
        }
        for name in calls
    ]


def answer(model: Any, batch: dict[str, Tensor], device: torch.device) -> Tensor:
    """A forward pass through tower, projector and language model."""
    with precision(device):
        encoded = encode_images(model, batch)
        encoded.pop("labels")
        return model(**encoded).logits


def dry_run(words: Sequence[str]) -> tuple[int, float, str] | None:
    """Builds the full-size model of a run without memory.

    Returns:
        None for a run that builds none; else
        parameters: of the model.
        tokens: of an image of noise.
        note: what is trained.
    """
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    if words[0] != "train":
        return None
    config = configured(words[1:])
    name = config["model"]["checkpoint"]
    language = next(knobs for word, knobs in LANGUAGE.items() if f"-{word}-" in name)
    about = LlavaConfig(text_config=LlamaConfig(**language))
    with torch.device("meta"):
        given = LlavaForConditionalGeneration(about)
        model = adaptok.vision.IMAGE_TOKENIZERS.build(
            config["tokenizer"], model=given, mean=(0.5,) * 3, std=(0.5,) * 3
        )
    tower: Any = about.vision_config
    side, patch = tower.image_size, tower.patch_size
    tokens, notes = float((side // patch) ** 2), []
    if model is not given:
        noise = 2 * torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) - 1
        noise[..., : side // 2] = 0  # so that there is something to merge
        tokens = float(len(cell_module(model).tiling.to("cpu")(noise)))
        notes = ["cells of noise"]
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in train_only(model, config["train"]["only"]))
    notes += [f"{trained:,} parameters are trained"] if config["trainer"]["max_epochs"] else []
    return parameters, tokens, ", ".join(notes)


def main(folder: Path, seed: int, command: str, *words: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    commands = {
        "given": lambda: make(folder, seed, int(words[0])),
        "train": lambda: train(folder, seed, words),
        "speed": lambda: speed(Path(words[0]), *words[1:]),
    }
    rows = commands[command]()
    if rows:
        (folder / "results.json").write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
