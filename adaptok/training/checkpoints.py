"""Checkpoints: reading without running code, loading into a model that fits, resuming."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from adaptok.models.pretrained import build
from adaptok.utils.keys import differences, flattened  # noqa: F401

# What weights depend on; the rest of a configuration may differ between training and evaluation.
ARCHITECTURE = (
    "model",
    "tokenizer",
    "processor",
    "decoder",
    "size",
    "history",
    "history_mode",
    "field_width",
    "data",
)
# What may change when a run goes on.
FREE_ON_RESUME = ("name", "sweep", "resume", "resume_anyway", "trainer", "logger", "test", "hydra")
# Where the data is and how it is read do not change what is trained.
PLACES = ("data.base", "data.path", "data.num_workers", "data.cache", "data.cache_limit")


def find_checkpoint(path: str | Path) -> Path:
    """The file itself, or ``checkpoints/last.ckpt`` of a run folder.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no checkpoint at {file}")
    return file


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint (a file or a run folder), on the CPU.

    Raises:
        ValueError: no such file, a damaged one, or a pickle that would have to run code.
    """
    file = find_checkpoint(path)
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is refused: it holds more than tensors and plain values, and loading such a "
            "pickle could run any code"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, IndexError) as error:
        raise ValueError(f"{file} is damaged or not a checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{file} is not a checkpoint of adaptok: it has no state_dict")
    return checkpoint


def load_surrogate(path: str | Path) -> Any:
    """The model of a checkpoint (a file or a run folder) with its averaged weights; needs no data.

    Raises:
        ValueError: no such file, or one that `adaptok train` did not write.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint.get("adaptok_model")
    if not config:
        raise ValueError(f"{path} does not say how its model was built")
    model = build(config)
    load_weights(model, checkpoint, path=path)
    return model.eval()


def load_weights(
    surrogate: nn.Module,
    checkpoint: Mapping[str, Any],
    *,
    path: str | Path = "the checkpoint",
    config: Mapping[str, Any] | None = None,
) -> None:
    """Loads the (averaged) weights and statistics of a checkpoint of `adaptok train`.

    Args:
        config: plain configuration of the surrogate, for the message where it does not fit.

    Raises:
        ValueError: the checkpoint is of another architecture; says what differs.
    """
    prefix = "surrogate."
    state = checkpoint.get("averaged_state_dict", checkpoint["state_dict"])
    there = {k.removeprefix(prefix): v for k, v in state.items()}
    here = surrogate.state_dict()
    wrong = list(_wrong_tensors(there, here))
    if wrong:
        reasons = [*differences(checkpoint.get("adaptok_config", {}), config or {}, ARCHITECTURE)]
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        reasons.append(f"tensors: {'; '.join(wrong[:3])}{more}")
        raise ValueError(f"{path} is of another architecture: {'; '.join(reasons)}")
    surrogate.load_state_dict(there)


def _wrong_tensors(
    there: Mapping[str, torch.Tensor], here: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    for name in [*here, *(n for n in there if n not in here)]:
        shapes = [tuple(s[name].shape) if name in s else "absent" for s in (there, here)]
        if shapes[0] != shapes[1]:
            yield f"{name} is {shapes[0]} in the checkpoint, {shapes[1]} here"


def check_resume(checkpoint: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Raises ``ValueError`` with what differs where a run would go on with another configuration.

    What only one of the two knows (of another version) is left out, and so are `FREE_ON_RESUME` and
    `PLACES`.
    """
    there = checkpoint.get("adaptok_config", {})
    keys = tuple(k for k in there if k in config and k not in FREE_ON_RESUME)
    other = [
        line
        for line in differences(there, config, keys)
        if "absent" not in line.split() and not line.startswith(PLACES)
    ]
    if other:
        raise ValueError(
            f"{path} is of a run with another configuration: {'; '.join(other)}. To go on all the "
            "same: resume_anyway=true"
        )


def find_resume(
    resume: str | None, folder: Path, runs: Path, config: Mapping[str, Any]
) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start.

    Args:
        resume: None; a checkpoint or run folder; or "auto": this run's own checkpoint, else that of
            the newest run in `runs` whose configuration is the same but for `FREE_ON_RESUME`.
        folder: of this run.
        runs: where the run folders are.
        config: plain configuration of this run.
    """
    if resume is None:
        return None
    if resume != "auto":
        return find_checkpoint(resume)
    files = list(runs.glob("*/checkpoints/last.ckpt"))
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    for file in [folder / "checkpoints" / "last.ckpt", *files]:
        saved = file.parents[1] / "config.yaml"
        if file.is_file() and saved.is_file():
            there = yaml.safe_load(saved.read_text())
            keys = tuple(k for k in {**there, **config} if k not in FREE_ON_RESUME)
            if not list(differences(there, config, keys)):
                return file
    return None
