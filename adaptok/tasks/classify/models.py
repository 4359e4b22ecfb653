"""A timm model for a set of classes, cut as a tokenizer says, with weights from timm or a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptok.registry import close_matches
from adaptok.training.checkpoints import read_checkpoint
from adaptok.vision import IMAGE_TOKENIZERS, supported

PREFIX = "model."  # of the weights in a checkpoint of adaptok
NEW = "cell_embed."


def build_timm(
    name: str,
    classes: int,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    img_size: int | None = None,
    drop_path_rate: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """A timm model with a new classifier where the number of classes differs.

    Args:
        name: one of `adaptok.vision.supported`.
        classes: number of classes.
        pretrained: load timm's weights (the Hugging Face hub, or its cache).
        checkpoint: local file of weights in place of timm's: safetensors, a PyTorch state, .npz of
            the original ViTs, or a checkpoint of ``adaptok train task=classify``. Positions and
            patches are resampled to the model's sizes; a classifier of other classes is left out.
        img_size: side of the images, default the model's own.
        drop_path_rate: of the last block.
        options: further arguments of ``timm.create_model``.

    Raises:
        ValueError: an unknown model, both sources of weights, or weights of another model.
    """
    import timm

    known = supported()
    if name not in known:
        raise ValueError(
            f"unknown model {name!r}{close_matches(name, known)}; adaptok.vision.supported() "
            f"lists {len(known)} names"
        )
    if pretrained and checkpoint is not None:
        raise ValueError("weights come from timm or from a file: model.pretrained or checkpoint")
    given = {"drop_path_rate": drop_path_rate, **(options or {})}
    if img_size is not None:
        given["img_size"] = img_size
    model = timm.create_model(name, pretrained=pretrained, num_classes=classes, **given)
    if checkpoint is not None:
        load_timm_weights(model, read_weights(checkpoint), checkpoint)
    return model


def build_classifier(
    model: nn.Module,
    tokenizer: str | Mapping[str, Any],
    checkpoint: str | Path | None = None,
) -> Any:
    """The model on the cells of a tokenizer; what APT adds comes from `checkpoint` if it has it."""
    config: Any = getattr(model, "pretrained_cfg", {})
    stats = {"mean": config["mean"], "std": config["std"]}
    fast = IMAGE_TOKENIZERS.build(tokenizer, model=model, **stats)
    if checkpoint is not None and hasattr(fast, "cell_embed"):
        new = {k: v for k, v in read_weights(checkpoint).items() if k.startswith(NEW)}
        own = {k: v for k, v in fast.state_dict().items() if k.startswith(NEW)}
        if new and new.keys() == own.keys():
            fast.load_state_dict({**fast.state_dict(), **new})
    return fast


def load_classifier(path: str | Path) -> Any:
    """The model of a checkpoint (a file or a run folder) with its averaged weights.

    Its attribute ``classes`` names the classes. Needs no data.

    Raises:
        ValueError: no such file, or one that ``adaptok train task=classify`` did not write.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint.get("adaptok_classifier")
    if not about:
        raise ValueError(f"{path} was not written by adaptok train task=classify")
    node = {**about["model"], "pretrained": False, "checkpoint": None}
    model = build_timm(node.pop("name"), len(about["classes"]), **node)
    fast = build_classifier(model, about["tokenizer"])
    state = checkpoint.get("averaged_state_dict", checkpoint["state_dict"])
    fast.load_state_dict({k.removeprefix(PREFIX): v for k, v in state.items()})
    fast.classes = tuple(about["classes"])
    return fast.eval()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a local file by name; .npz files are read by the model itself.

    Raises:
        ValueError: no such file, or none that holds weights alone.
    """
    file = Path(path).expanduser()
    if file.is_dir() or file.suffix == ".ckpt":
        saved = read_checkpoint(file)
        state = saved.get("averaged_state_dict", saved["state_dict"])
        return {k.removeprefix(PREFIX): v for k, v in state.items()}
    if not file.is_file():
        raise ValueError(f"no weights at {file}")
    if file.suffix == ".npz":
        return {}
    from timm.models import load_state_dict

    try:
        state: Any = load_state_dict(str(file))
    except Exception as error:  # damaged files fail in many ways; pickled code is refused
        raise ValueError(f"{file} holds no weights that can be read: {error}") from error
    return state


def load_timm_weights(model: Any, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads weights into a timm model, resampled to its sizes, without a classifier that differs.

    Raises:
        ValueError: tensors that are missing or that the model does not know.
    """
    if Path(path).suffix == ".npz":
        model.load_pretrained(str(path))
        return
    from timm.models import model_entrypoint

    module = sys.modules[model_entrypoint(model.default_cfg["architecture"]).__module__]
    given: dict[str, Tensor] = {k: v for k, v in state.items() if not k.startswith(NEW)}
    given = module.checkpoint_filter_fn(given, model)
    own, head = model.state_dict(), ("head.", "head_dist.")
    wrong = [k for k, v in given.items() if k not in own or v.shape != own[k].shape]
    wrong += [k for k in own if k not in given]
    wrong = [k for k in dict.fromkeys(wrong) if not k.startswith(head)]
    if wrong:
        shown = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise ValueError(
            f"{path} holds the weights of another model; missing or different: {shown}"
        )
    fits = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
    with torch.no_grad():
        model.load_state_dict(fits, strict=False)
