"""Reads checkpoints without running code, loads them into models that fit, resumes from them."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from adaptok.models.pretrained import build, wrong_tensors
from adaptok.utils.checksums import damaged_member
from adaptok.utils.keys import FIXED, WEIGHTS, differences, is_small

# What a checkpoint may hold -> its type, and the type in words.
KEYS: dict[str, tuple[type, str]] = {
    "state_dict": (dict, "tensors by name"),
    "averaged_state_dict": (dict, "tensors by name"),
    "adaptok_model": (dict, "a mapping"),
    "adaptok_config": (dict, "a mapping"),
    "adaptok_data": (dict, "a mapping"),
    "global_step": (int, "a whole number"),
    "epoch": (int, "a whole number"),
    "callbacks": (dict, "a mapping"),
    "loops": (dict, "a mapping"),
    "optimizer_states": (list, "a list"),
    "lr_schedulers": (list, "a list"),
    "pytorch-lightning_version": (str, "text"),
}
# Without these a training cannot resume.
NEEDED = ("optimizer_states", "loops", "pytorch-lightning_version", "global_step", "adaptok_config")


def find_checkpoint(path: str | Path) -> Path:
    """Finds a checkpoint: the file itself, or ``checkpoints/last.ckpt`` of a run folder.

    Raises:
        ValueError: no such file.
    """
    path = Path(path)
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no checkpoint at {file}")
    return file


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads tensors and plain values of a checkpoint (a file or a run folder), on the CPU.

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
    except Exception as error:  # a damaged pickle raises what it likes
        raise ValueError(f"{file} is damaged or not a checkpoint: {error}") from error
    try:
        damaged = damaged_member(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{file} is damaged or of an old format: {error}") from error
    if damaged:
        raise ValueError(f"{file} is damaged: the checksum of {damaged} in it is wrong")
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{file} is not a checkpoint of adaptok: it has no state_dict")
    for key, (kind, what) in KEYS.items():
        if key in checkpoint and not (isinstance(checkpoint[key], kind) and _fits(checkpoint, key)):
            raise ValueError(f"{file} is not a checkpoint of adaptok: {key} must be {what}")
    return checkpoint


def _fits(checkpoint: Mapping[str, Any], key: str) -> bool:
    """Checks the entries of a state and the keys of a mapping."""
    value = checkpoint[key]
    if key in ("state_dict", "averaged_state_dict"):
        return all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    if key.startswith("adaptok_") and not is_small(value):
        return False
    return not isinstance(value, dict) or all(isinstance(name, str) for name in value)


def load_surrogate(
    path: str | Path, parts: Mapping[str, str | Callable[..., Any]] | None = None
) -> Any:
    """Loads the model of a checkpoint (a file or a run folder), averaged weights; needs no data.

    Args:
        parts: classes of the parts that have no registered name, see `adaptok.from_pretrained`.

    Raises:
        ValueError: no such file, or one that `adaptok train` did not write.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint.get("adaptok_model")
    if not config:
        raise ValueError(f"{path} does not say how its model was built")
    model = build(config, path, parts)
    load_weights(model, checkpoint, path=path)
    return model.eval()


def load_weights(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    *,
    path: str | Path = "the checkpoint",
    config: Mapping[str, Any] | None = None,
    prefix: str = "surrogate.",
) -> None:
    """Loads the (averaged) weights and statistics of a checkpoint of `adaptok train`.

    Args:
        config: plain configuration of the model, for the message if it does not fit.
        prefix: of the names of the model's tensors in the checkpoint.

    Raises:
        ValueError: the checkpoint has another architecture; says what differs.
    """
    state = checkpoint.get("averaged_state_dict", checkpoint["state_dict"])
    there = {k.removeprefix(prefix): v for k, v in state.items()}
    if wrong := wrong_tensors(there, model.state_dict(), "in the checkpoint", "here"):
        reasons = [*differences(checkpoint.get("adaptok_config", {}), config or {}, WEIGHTS)]
        reasons.append(f"tensors: {wrong}")
        raise ValueError(f"{path} is of another architecture: {'; '.join(reasons)}")
    model.load_state_dict(there)


def fingerprint(data: Any) -> dict[str, Any]:
    """Describes the contents of a data module, wherever they are, in plain values by set.

    Fields, grid, boundary and statistics of the training split; for labelled images, the classes
    and the number of images per split. Empty for modules of other kinds.
    """
    if hasattr(data, "classes"):
        counts = {split: len(images) for split, images in data.sets.splits.items()}
        return {str(data.name): {"classes": list(data.classes), "images": counts}}
    if hasattr(data, "info"):
        return {data.info.name: _fingerprint_of_fields(data.info)}
    infos = getattr(data, "infos", {})  # of a mixture
    return {name: _fingerprint_of_fields(info) for name, info in infos.items()}


def _fingerprint_of_fields(info: Any) -> dict[str, Any]:
    means, stds = ([*info.mean, *info.constant_mean], [*info.std, *info.constant_std])
    pairs = [[float(mean), float(std)] for mean, std in zip(means, stds, strict=True)]
    return {
        "fields": list(info.fields),
        "constants": list(info.constants),
        "shape": list(info.shape),
        "boundary": info.boundary.tolist(),
        "statistics": dict(zip([*info.fields, *info.constants], pairs, strict=True)),
    }


def _other_data(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence per difference of two fingerprints, rounding of statistics aside."""
    if list(there) != list(here):
        yield f"the data is {', '.join(there)} in the checkpoint, {', '.join(here)} here"
        return
    for name, was in there.items():
        now = here[name]
        for key in was:
            if key != "statistics" and was[key] != now.get(key):
                yield f"{key} of {name} are {was[key]} in the checkpoint, {now.get(key)} here"
        for field, (mean, std) in was.get("statistics", {}).items():
            other = now.get("statistics", {}).get(field)
            if other and not (
                math.isclose(mean, other[0], rel_tol=1e-4, abs_tol=1e-4 * std)
                and math.isclose(std, other[1], rel_tol=1e-4)
            ):
                yield (
                    f"mean and std of {field} of {name} are {mean:.6g} and {std:.6g} in the "
                    f"checkpoint, {other[0]:.6g} and {other[1]:.6g} here"
                )


def check_resumable(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Refuses a checkpoint that holds weights alone.

    Raises:
        ValueError: says what a training needs and the checkpoint lacks.
    """
    lacking = [key for key in NEEDED if not checkpoint.get(key) and checkpoint.get(key) != 0]
    if "loops" not in lacking and "fit_loop" not in checkpoint["loops"]:
        lacking.append("loops.fit_loop")
    if lacking:
        raise ValueError(f"{path} is no training to resume: it lacks {', '.join(lacking)}")


def check_resume(
    checkpoint: Mapping[str, Any], config: Mapping[str, Any], path: Path, data: Any = None
) -> None:
    """Refuses to resume a run with another configuration or on other data.

    Compares the keys of the roles `FIXED` that both configurations have; another version may have
    others.

    Args:
        data: module whose `fingerprint` is compared with that of the checkpoint, if it has one.

    Raises:
        ValueError: says what differs.
    """
    lines = differences(checkpoint.get("adaptok_config", {}), config, FIXED)
    other = [line for line in lines if "absent" not in line.split()]
    there, here = checkpoint.get("adaptok_data"), fingerprint(data)
    if there and here:
        other += _other_data(there, here)
    if other:
        raise ValueError(
            f"{path} is of a run with another configuration or other data: {'; '.join(other)}. To "
            "resume all the same: resume_anyway=true"
        )


def find_resume(
    resume: str | None, folder: Path, runs: Path, config: Mapping[str, Any]
) -> Path | None:
    """Finds the checkpoint to resume from; None for a fresh start.

    Args:
        resume: None; a checkpoint or run folder; or "auto": this run's own checkpoint, else that of
            the newest run in `runs` with the same keys of the roles `FIXED`.
        folder: of this run.
        runs: parent of the run folders.
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
        if not file.is_file() or not saved.is_file():
            continue
        try:
            there = yaml.safe_load(saved.read_text())
            if not isinstance(there, dict) or not is_small(there):
                raise ValueError("it holds no configuration")
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            reason = " ".join(str(error).split())
            print(f"resume=auto leaves out {file.parents[1]}, {saved.name} is damaged: {reason}")
            continue
        if not list(differences(there, config, FIXED)):
            return file
    return None
