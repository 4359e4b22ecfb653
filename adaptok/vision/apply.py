"""`apply_apt`: a timm vision transformer on adaptive cells."""

from __future__ import annotations

import copy
import fnmatch
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from adaptok.models.recording import recorded_values
from adaptok.registry import Part, choice
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import Weighted, check_value, checked_names, kind_of
from adaptok.vision.recording import check_model_args
from adaptok.vision.thresholds import level_thresholds
from adaptok.vision.tiling import ImageCells
from adaptok.vision.windows import check_reach, check_window

if TYPE_CHECKING:
    from adaptok.vision.models import AptMixin
    from adaptok.vision.reduce import ReducedMixin


@checked_names
def apply_apt(
    model: nn.Module,
    thresholds: Sequence[float] | None = None,
    *,
    indicator: Part = "entropy",
    marking: Part | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    pooling: str = "area",
    resize: str = "central",
    branch: bool = True,
    weighted: Weighted = False,
    window: int | None = None,
    global_blocks: Iterable[int] = (),
    processor: Any = None,
    model_args: Mapping[str, Any] | None = None,
) -> AptMixin:
    """Puts a model on adaptive patches (APT: Choudhury et al., "Accelerating Vision Transformers
    with Adaptive Patch Sizes", arXiv 2510.18091).

    The result is a new module that shares the model's parameters; its class derives from the
    model's. The given model stays usable. Thresholds below zero give its logits. What moves or
    casts the parameters of one (``to``, ``double``) does so for both: apply it to a deep copy to
    separate them.

    Args:
        model: one of `supported`, or another instance of their classes; or a ViT, DINOv2, DINOv3,
            CLIP or SigLIP vision model of transformers (extra ``hf``), or a model around one.
        thresholds: score below which a cell stays whole, one per merged level, the smallest cells
            first: (2p, 4p) for patches of p pixels. By default (5.5, 4.0) bits of entropy; scores
            of other indicators have other units, and thresholds for them have to be given.
        indicator: score of a cell of 0..255 values; a name, or a mapping with its knobs.
        marking: rule in place of the thresholds, whose number still sets the levels:
            ``{"name": "budget", "budget": 128}`` gives every image 128 tokens.
        mean: mean of the input's normalisation, a number or one per channel; by default the
            model's, from its configuration.
        std: its standard deviation, likewise.
        pooling: "area" or "plain" mean over tokens, see `adaptok.vision.pooling.pool`.
        resize: "central" or "area", see `ResizeZeroEmbedding`.
        branch: add the zero-initialised convolution, see `ResizeZeroEmbedding`.
        weighted: let a cell count as a key for its area, by the logarithm of its patches added to
            its scores in every attention; a number is a factor on it, True is 1.
        window: side in pixels of attention windows in all blocks but `global_blocks` (ViTDet), a
            multiple of the coarsest cell. None: every block attends to the whole image.
        global_blocks: indices of the blocks without windows; a head that reads the class token
            needs one.
        processor: image processor of transformers, for a model of it: gives `mean` and `std`.
        model_args: arguments that ``timm.create_model`` was given beside the name, such as
            ``{"num_heads": 6}``, for `adaptok.save_pretrained`. Number of classes, pooling, image
            sizes and stochastic depth are read from the model.

    Raises:
        ValueError: the model is not supported (with the reason), or an argument is invalid.
    """
    check_module(model)
    if of_transformers(model):
        from adaptok.vision.hf.apply import adapted

        return adapted(
            model,
            thresholds,
            indicator=indicator,
            marking=marking,
            mean=mean,
            std=std,
            processor=processor,
            pooling=pooling,
            resize=resize,
            branch=branch,
            weighted=weighted,
            window=window,
            global_blocks=global_blocks,
        )
    if processor is not None:
        raise ValueError(
            "processor= is for models of transformers; a timm model carries its own mean and std"
        )
    from adaptok.vision.blocks import pack_modules
    from adaptok.vision.embedding import CellPositions, cell_embedding, convolution_of
    from adaptok.vision.models import CLASSES
    from adaptok.vision.pooling import pack_pool
    from adaptok.vision.support import unsupported_reason

    if reason := unsupported_reason(model):
        raise ValueError(
            f"{type(model).__name__} cannot run on cells: {reason}. adaptok.vision.supported() "
            "lists the models that can"
        )
    source: Any = model
    bars = level_thresholds(thresholds, indicator, marking)
    choice("pooling", pooling, ("area", "plain"))
    check_value(weighted, Weighted, "weighted")
    patch = tuple(source.patch_embed.patch_size)
    sizes = tuple((1, *(p << level for p in patch)) for level in range(len(bars), -1, -1))
    blocks = check_window(window, global_blocks, sizes, len(source.blocks))
    proj = convolution_of(source.patch_embed)
    channels = proj.in_channels
    spec = TokenizerSpec(2, channels, source.embed_dim, sizes, on_grid=True)
    mean, std = _normalisation(source, mean, std, spec.in_channels)
    # A deep copy that keeps the tensors: new modules around the same parameters and buffers.
    tensors = [*model.parameters(), *model.buffers()]
    fast: Any = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    # The constructor would need timm's arguments, which a model does not keep; a subclass that only
    # adds methods may take over a finished instance.
    fast.__class__ = CLASSES[type(model)]
    pad = fast.patch_embed.dynamic_img_pad
    fast.tiling = ImageCells(spec, bars, indicator, marking, mean, std, pad=pad)
    weight = proj.weight
    pack_modules(fast.blocks)
    pack_pool(fast.attn_pool)
    embed = cell_embedding(fast.patch_embed, spec, resize, branch)
    fast.cell_embed = embed.to(weight.device, weight.dtype)
    fast.cell_positions = CellPositions()
    fast.pooling, fast.weighted = pooling, float(weighted)
    fast.window, fast.global_blocks = window, blocks
    check_reach(fast, fast.global_pool)
    fast.last_cells = None
    parts = {"indicator": indicator, "marking": marking}
    fast.options = {"thresholds": list(bars), **recorded_values(parts)}
    fast.options |= {"mean": list(mean), "std": list(std), "pooling": pooling, "resize": resize}
    fast.options |= {
        "branch": branch,
        "weighted": weighted,
        "window": window,
        "global_blocks": list(blocks),
    }
    given_args = getattr(model, "model_args", {}) if model_args is None else model_args
    fast.model_args = check_model_args(given_args)
    return fast.train(model.training)


def apply_reducer(
    model: nn.Module, name: Part, *, model_args: Mapping[str, Any] | None = None, **knobs: Any
) -> ReducedMixin:
    """Lets a reducer merge or drop tokens inside the blocks of a model.

    The result is a new module that shares the model's parameters; its class derives from the
    model's, and ``forward_features`` and ``forward_head`` are as timm's. The given model stays
    usable. With nothing to take away the result equals it.

    Args:
        model: a ``VisionTransformer``, ``VisionTransformerDistilled`` or ``Eva`` of timm, with any
            number of class and register tokens, which never merge; or a model of transformers as in
            `apply_apt`.
        name: a name of `adaptok.reducers`, or a mapping of name and knobs.
        model_args: see `apply_apt`.
        knobs: settings of this reducer.

    Raises:
        ValueError: the model is not supported (with the reason), or a knob is invalid.
    """
    check_module(model)
    if of_transformers(model):
        from adaptok.vision.hf.apply import reduced

        return reduced(model, name, **knobs)
    from adaptok.vision.reduce import reduced_model

    return reduced_model(model, name, model_args, **knobs)


def check_module(model: Any) -> None:
    """Raises ``ValueError`` for what is no module, such as the name of a model."""
    if not isinstance(model, nn.Module):
        name = repr(model) if isinstance(model, str) else "..."
        raise ValueError(
            f"give a model, such as timm.create_model({name}, pretrained=True), not "
            f"{kind_of(model)}"
        )


def per_channel(name: str, value: Any, channels: int) -> tuple[float, ...] | None:
    """Returns one number per channel; one that is given stands for all.

    Raises:
        ValueError: neither a number nor a list of them.
    """
    if value is None:
        return None
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    check_value(value, float | Sequence[float], name)
    if isinstance(value, numbers.Real):
        return (float(value),) * channels
    return tuple(map(float, value))


def of_transformers(model: nn.Module) -> bool:
    """Whether a model is one of transformers, without importing it."""
    return any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__)


def supported(pattern: str = "*") -> list[str]:
    """Lists the timm models that `apply_apt` takes and whose names match a shell-style pattern."""
    from timm.models import list_models, model_entrypoint

    families = ("vision_transformer", "deit", "eva")  # modules of timm that define the models
    names = fnmatch.filter(list_models(), pattern)
    return [n for n in names if model_entrypoint(n).__module__.rpartition(".")[2] in families]


def freeze_all_but_new(model: nn.Module, also: Iterable[str] = ()) -> list[nn.Parameter]:
    """Freezes all but what APT added (the paper's recipe for dense tasks and VQA), or a reducer.

    The model from which `model` was made keeps its own flags, and the weights stay shared: what
    changes its flag becomes a parameter of `model` alone, over the same values. Build optimizers
    afterwards.

    Args:
        also: prefixes of further parameters to train, such as "head".

    Returns:
        The trainable parameters, for the optimizer.

    Raises:
        ValueError: no parameter has one of the prefixes.
    """
    named, also = dict(model.named_parameters()), tuple(also)
    for prefix in also:
        if not any(f"{name}.".startswith(f"{prefix}.") for name in named):
            raise ValueError(f"no parameter of the model starts with {prefix!r}")
    trained, new = tuple(f"{prefix}." for prefix in also), {"cell_embed", "reducer"}
    moving = {
        id(p): not new.isdisjoint(name.split(".")) or f"{name}.".startswith(trained)
        for name, p in named.items()
    }
    own: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            wanted = moving[id(parameter)]
            if parameter.requires_grad != wanted:
                fresh = nn.Parameter(parameter.detach(), requires_grad=wanted)
                setattr(module, name, own.setdefault(id(parameter), fresh))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _normalisation(
    model: Any, mean: Any, std: Any, channels: int
) -> tuple[Sequence[float], Sequence[float]]:
    config = getattr(model, "pretrained_cfg", None) or {}
    out = []
    for name, given in (("mean", mean), ("std", std)):
        value = per_channel(name, config.get(name) if given is None else given, channels)
        if value is None or len(value) != channels:
            raise ValueError(
                f"{name} of the normalisation is needed, one number for each of {channels} "
                f"channel(s); got {given}, and {config.get(name)} from the model"
            )
        out.append(value)
    if not all(map(math.isfinite, out[0])) or not all(0 < value < math.inf for value in out[1]):
        raise ValueError(f"mean must be finite and std positive, got {out[0]} and {out[1]}")
    return out[0], out[1]


def build_vision(
    model: str, made: dict[str, Any], options: dict[str, Any]
) -> AptMixin | ReducedMixin:
    """Builds the model that a `config` describes, with fresh weights.

    Raises:
        ValueError: a name or an argument that makes timm read a file or ask a hub.
    """
    import timm

    if ":" in model:
        raise ValueError(
            f"{model!r} is no model of timm itself; a file may not name a hub or folder"
        )
    built = timm.create_model(model, pretrained=False, **check_model_args(made))
    if "reducer" in options:
        return apply_reducer(built, options["reducer"], model_args=made)
    return apply_apt(built, **options, model_args=made)
