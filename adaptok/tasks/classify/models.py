"""timm models for a set of classes, cut by a tokenizer, with weights from timm or a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptok.registry import close_matches
from adaptok.training.checkpoints import read_checkpoint
from adaptok.utils.arguments import Positive, Rate
from adaptok.vision import IMAGE_TOKENIZERS, supported
from adaptok.vision.recording import BARRED

PREFIX = "model."  # of the weights in a checkpoint of adaptok
NEW = ("cell_embed.", "reducer.")  # prefixes of weights that timm's models lack


def build_timm(
    name: str,
    classes: int,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    img_size: Positive | None = None,
    drop_path_rate: Rate = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Builds a timm model, with a new classifier if the number of classes differs.

    Args:
        name: one of `adaptok.vision.supported`.
        classes: number of classes.
        pretrained: load timm's weights, from the Hugging Face hub or its cache.
        checkpoint: local file of weights in place of timm's: safetensors, a PyTorch state, .npz of
            the original ViTs, or a checkpoint of ``adaptok train task=classify``. Positions and
            patches are resampled to the model's sizes; a classifier that does not fit is skipped.
        img_size: side of the images, by default the model's.
        drop_path_rate: chance to skip the last block; grows linearly over the blocks.
        options: further arguments of ``timm.create_model``.

    Raises:
        ValueError: the model is unknown, both sources of weights are given, or the weights are of
            another model.
    """
    import timm

    check_model(name)
    if pretrained and checkpoint is not None:
        raise ValueError("weights come from timm or from a file: model.pretrained or checkpoint")
    given = {"drop_path_rate": drop_path_rate, **(options or {})}
    if img_size is not None:
        given["img_size"] = img_size
    model: Any = timm.create_model(name, pretrained=pretrained, num_classes=classes, **given)
    # For those who save it adapted, whatever weights it had.
    model.model_args = {k: v for k, v in given.items() if k not in BARRED}
    if checkpoint is not None:
        load_timm_weights(model, read_weights(checkpoint), checkpoint)
    return model


def check_model(name: str) -> None:
    """Checks that cells are for a model of timm.

    Raises:
        ValueError: they are not, or timm has no such model.
    """
    known = supported()
    if name not in known:
        raise ValueError(
            f"unknown model {name!r}{close_matches(name, known)}; adaptok.vision.supported() "
            f"lists {len(known)} names"
        )


def build_classifier(
    model: nn.Module,
    tokenizer: str | Mapping[str, Any],
    checkpoint: str | Path | None = None,
) -> Any:
    """Puts a model on the cells of a tokenizer; reads what that adds from `checkpoint` if there."""
    config: Any = getattr(model, "pretrained_cfg", {})
    stats = {"mean": config["mean"], "std": config["std"]}
    fast = IMAGE_TOKENIZERS.build(tokenizer, model=model, **stats)
    if checkpoint is not None:
        new = {k: v for k, v in read_weights(checkpoint).items() if k.startswith(NEW)}
        own = fast.state_dict()
        if new and new.keys() == {k for k in own if k.startswith(NEW)}:
            fast.load_state_dict(own | new)
    return fast


def load_classifier(path: str | Path) -> Any:
    """Builds the model of a checkpoint (a file or a run folder) with its averaged weights.

    Its attribute ``classes`` names the classes. No data is needed.

    Raises:
        ValueError: there is no such file, or ``adaptok train task=classify`` did not write it.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint.get("adaptok_classifier")
    if not about:
        raise ValueError(f"{path} was not written by adaptok train task=classify")
    node = {**about["model"], "pretrained": False, "checkpoint": None}
    model = build_timm(node.pop("name"), len(about["classes"]), **node)
    fast = build_classifier(model, about["tokenizer"])
    fast.load_state_dict(_averaged(checkpoint))
    fast.classes = tuple(about["classes"])
    return fast.eval()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a local file by name; none of .npz, which `load_timm_weights` reads.

    Raises:
        ValueError: there is no such file, or it does not hold just weights.
    """
    file = Path(path).expanduser()
    if file.is_dir() or file.suffix == ".ckpt":
        return _averaged(read_checkpoint(file))
    if not file.is_file():
        raise ValueError(f"no weights at {file}")
    if file.suffix == ".npz":
        return {}
    from timm.models import load_state_dict

    try:
        return dict(load_state_dict(str(file)))
    except Exception as error:  # damaged files fail in many ways; pickled code is refused
        raise ValueError(f"{file} holds no weights that can be read: {error}") from error


def _averaged(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    state = checkpoint.get("averaged_state_dict", checkpoint["state_dict"])
    return {k.removeprefix(PREFIX): v for k, v in state.items()}


def load_timm_weights(model: Any, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads weights into a timm model, resampled to its sizes; skips a classifier that differs.

    Raises:
        ValueError: tensors are missing or unknown to the model.
    """
    if Path(path).suffix == ".npz":
        model.load_pretrained(str(path))
        return
    from timm.models import model_entrypoint

    module = sys.modules[model_entrypoint(model.default_cfg["architecture"]).__module__]
    given: dict[str, Tensor] = {k: v for k, v in state.items() if not k.startswith(NEW)}
    given = module.checkpoint_filter_fn(given, model)
    own = model.state_dict()
    fits = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
    names = dict.fromkeys([*given, *own])
    wrong = [k for k in names if k not in fits and not k.startswith(("head.", "head_dist."))]
    if wrong:
        shown = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise ValueError(
            f"{path} holds the weights of another model; missing or different: {shown}"
        )
    with torch.no_grad():
        model.load_state_dict(fits, strict=False)
