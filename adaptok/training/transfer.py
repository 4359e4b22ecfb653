"""Starts a training from the weights of another run: what fits by name and shape is taken."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptok.models.one_step import STATISTICS
from adaptok.models.pretrained import CONFIG, WEIGHTS, read_config, read_tensors
from adaptok.training.checkpoints import find_checkpoint, read_checkpoint
from adaptok.utils.tables import table

# Where the same weights stand in the modules of tasks, and in the systems of a pretrained model.
PREFIXES = re.compile(r"^(surrogate\.|model\.)?(core\.)?")


class Source(NamedTuple):
    """Weights of another run by name, without the prefixes of its task.

    Attributes:
        state: all tensors but the statistics of its data.
        ndim: space axes of its fields; None for models of images.
    """

    state: dict[str, Tensor]
    ndim: int | None


def find_source(where: str | Path) -> Path:
    """Finds what ``init=`` names: a folder of `save_pretrained`, or the checkpoint of a run.

    Raises:
        ValueError: there is neither.
    """
    path = Path(where)
    if (path / CONFIG).is_file():
        return path
    try:
        return find_checkpoint(path)
    except ValueError as error:
        raise ValueError(
            f"init={where} must be a run folder, a checkpoint or a folder of save_pretrained: "
            f"{error}"
        ) from None


def read_source(where: str | Path) -> Source:
    """Reads the (averaged) weights that ``init=`` names.

    Raises:
        ValueError: no such file or folder, or a damaged one.
    """
    path = find_source(where)
    if path.is_dir():
        config, state = read_config(path), read_tensors(path / WEIGHTS)
    else:
        checkpoint = read_checkpoint(path)
        config = checkpoint.get("adaptok_model", {})
        state = checkpoint.get("averaged_state_dict", checkpoint["state_dict"])
    inner = config.get("model")  # of a system of a pretrained model
    ndim = (inner if isinstance(inner, Mapping) else config).get("ndim")
    return Source(_by_plain_name(state), ndim)


def start_from(module: nn.Module, where: str | Path) -> str:
    """Copies into a module all weights of another run that have the same name and shape.

    Statistics stay those of the module's own data.

    Args:
        module: a Lightning module of a task, or a model.
        where: a run folder, a checkpoint or a folder of `save_pretrained`.

    Returns:
        A table of what was taken, what is new and what was left, by part of the model.

    Raises:
        ValueError: weights of a model for another number of space axes, or none that fits.
    """
    source, here = read_source(where), _by_plain_name(module.state_dict())
    ndim = next((m.ndim for m in (module, *module.children()) if hasattr(m, "ndim")), None)
    if source.ndim is not None and ndim is not None and source.ndim != ndim:
        raise ValueError(
            f"init={where} has the weights of a model for {source.ndim}D fields, but this data is "
            f"{ndim}D"
        )
    there = source.state
    taken = [k for k, v in here.items() if k in there and there[k].shape == v.shape]
    if not taken:
        raise ValueError(
            f"init={where}: none of its weights has the name and shape of one here; there "
            f"{_some(there, there)}; here {_some(here, here)}"
        )
    with torch.no_grad():
        for name in taken:
            here[name].copy_(there[name])
    return _told(where, here, there, taken)


def _by_plain_name(state: Mapping[str, Any]) -> dict[str, Tensor]:
    plain = {PREFIXES.sub("", name): tensor for name, tensor in state.items()}
    return {k: v for k, v in plain.items() if isinstance(v, Tensor) and k not in STATISTICS}


def _told(
    where: str | Path, here: Mapping[str, Tensor], there: Mapping[str, Tensor], taken: list[str]
) -> str:
    groups = {
        "taken": (taken, here),
        "new": ([k for k in here if k not in taken], here),
        "left there": ([k for k in there if k not in taken], there),
    }
    parts = dict.fromkeys(name.partition(".")[0] for name in [*here, *there])
    rows = []
    for part in parts:
        own = [[k for k in names if k.partition(".")[0] == part] for names, _ in groups.values()]
        rows.append([part, *map(str, map(len, own))])
    lines = [f"weights of init={where}:", table(["tensors", *groups], rows).rstrip()]
    for title, (names, state) in groups.items():
        if title != "taken" and names:
            lines.append(f"{title}: {_some(names, state)}")
    return "\n".join(lines)


def _some(names: Collection[str], state: Mapping[str, Tensor]) -> str:
    """Names three tensors at most with their shapes."""
    shown = [f"{name} {tuple(state[name].shape)}" for name in [*names][:3]]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown) + more
