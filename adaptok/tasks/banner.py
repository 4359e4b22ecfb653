"""What a training is going to do, in a few lines, and what its configuration leaves open."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from adaptok import __version__
from adaptok.decoders.auto import decoder_for
from adaptok.evaluation.budgets import scored_fields
from adaptok.evaluation.cost import parameters_by_stage
from adaptok.models.parts import mode_of_history
from adaptok.models.surrogate import Surrogate

Config = Mapping[str, Any]


def banner(model: torch.nn.Module, data: Any, config: Config, trainer: L.Trainer) -> str:
    """Says which data, model and steps a training has, where it runs and what it leaves where."""
    rows = {
        "data": "; ".join(_about_sets(data)),
        "model": _about_model(model, config),
        "tokens": _about_tokens(model, data),
        "training": _about_steps(data, config, trainer),
        "device": _about_device(trainer),
        "folder": str(trainer.default_root_dir),
        "commit": f"{commit() or 'unknown'}, adaptok {__version__}, torch {torch.__version__}",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in rows.items() if text)


def resolved(model: torch.nn.Module, config: Config, trainer: L.Trainer) -> dict[str, Any]:
    """Returns what the configuration leaves to be found, as plain values by key."""
    found: dict[str, Any] = {
        "trainer.accelerator": trainer.strategy.root_device.type,
        "trainer.devices": trainer.world_size // trainer.num_nodes,
        "trainer.precision": str(trainer.precision),
    }
    if decoder := _decoder_of(model, config):
        found["decoder"] = decoder
        found["history_mode"] = mode_of_history(config["history_mode"], config["processor"])
        tokenizer: Any = getattr(model, "core", model)
        found["cells"] = [list(size[1:]) for size in tokenizer.tokenizer.spec.sizes]
    return {**found, "commit": commit(), "adaptok": __version__, "torch": str(torch.__version__)}


def commit() -> str | None:
    """Returns the commit of the checkout that this package is run from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout
        return None
    return done.stdout.strip() or None


def _about_sets(data: Any) -> list[str]:
    if hasattr(data, "classes"):
        images = len(data.sets.splits["train"])
        return [f"{data.name}: {images:,} training images of {len(data.classes)} classes"]
    sets = getattr(data, "sets", None)
    return [_about_set(one) for one in (sets.values() if sets else [data]) if hasattr(one, "info")]


def _about_set(data: Any) -> str:
    info, samples = data.info, len(data.train_sampler())
    shape = " x ".join(map(str, info.shape))
    constants = f" and {len(info.constants)} constants" if info.constants else ""
    fields = f"{len(info.fields)} fields{constants}"
    return f"{info.name}: {info.ndim}D, {shape} points, {fields}, {samples:,} training samples"


def _about_model(model: torch.nn.Module, config: Config) -> str:
    name = config["model"]["name"]
    if name == "surrogate":
        parts = [config["tokenizer"]["name"], config["processor"]["name"]]
        name = " + ".join([*parts, _decoder_of(model, config) or config["decoder"]["name"]])
    count = sum(p.numel() for p in model.parameters())
    stages = {k: n for k, n in parameters_by_stage(model).items() if n and k != "other"}
    by_stage = ", ".join(f"{stage} {n:,}" for stage, n in stages.items())
    return f"{name}: {count:,} parameters" + (f" ({by_stage})" if len(stages) > 1 else "")


def _decoder_of(model: torch.nn.Module, config: Config) -> str | None:
    """Resolves the name of the decoder; None for a model without tokens."""
    tokenizer = getattr(getattr(model, "core", model), "tokenizer", None)
    if tokenizer is None:
        return None
    decoder = decoder_for(config["decoder"], tokenizer.spec)
    return decoder["name"] if isinstance(decoder, Mapping) else str(decoder)


@torch.no_grad()
def _about_tokens(model: torch.nn.Module, data: Any) -> str:
    """Counts the tokens of one batch of the training split."""
    if not isinstance(model, Surrogate):
        return ""
    cells = model.tokenizer.cells(next(scored_fields(model, data)), boundary=data.info.boundary)
    return f"{len(cells) / cells.batch_size:.4g} per sample"


def _about_steps(data: Any, config: Config, trainer: L.Trainer) -> str:
    steps, accumulate = trainer.max_steps, trainer.accumulate_grad_batches
    length = f"{steps:,} steps" if steps > 0 else f"{trainer.max_epochs} epochs"
    batch = getattr(data, "batch_size", None)
    if batch is None:
        return length
    processes = trainer.world_size
    of = f"{batch * accumulate * processes}"
    if accumulate * processes > 1:
        of += f" ({batch} x {accumulate} batches x {processes} processes)"
    every = config["trainer"]["val_check_interval"]
    then = "each epoch" if every is None else f"every {every:,} steps"
    plural = "" if of == "1" else "s"
    return f"{length} of {of} sample{plural}; validation and checkpoint {then}"


def _about_device(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    name = device.type
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"cpu, {threads} thread{'s' if threads > 1 else ''}"
    many = f" x {trainer.world_size}" if trainer.world_size > 1 else ""
    return f"{name}{many}, precision {trainer.precision}"
