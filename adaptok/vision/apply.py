"""`apply_apt`: a timm vision transformer on adaptive cells."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from adaptok.tokens import TokenizerSpec
from adaptok.vision.embedding import CellPositions, cell_embedding
from adaptok.vision.tiling import ImageCells, Part
from adaptok.vision.windows import check_window

if TYPE_CHECKING:
    from adaptok.vision.models import AptMixin


def apply_apt(
    model: nn.Module,
    thresholds: Sequence[float] = (5.5, 4.0),
    *,
    indicator: Part = "entropy",
    marking: Part | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pooling: str = "area",
    resize: str = "central",
    branch: bool = True,
    window: int | None = None,
    global_blocks: Iterable[int] = (),
) -> AptMixin:
    """The model on adaptive patches (APT: Choudhury et al., "Accelerating Vision Transformers with
    Adaptive Patch Sizes", arXiv 2510.18091).

    The result is a new module of a subclass of the model's class that shares its parameters; the
    given model stays usable. Thresholds below zero give the model's own logits.

    Args:
        model: one of `supported`, or another instance of their classes.
        thresholds: bits of entropy below which a cell stays whole, one per merged level, the
            smallest cells first: (2p, 4p) for patches of p pixels.
        indicator: score of a cell of 0..255 values; a name, or a mapping with its knobs.
        marking: rule in place of the thresholds, whose number still sets the levels:
            ``{"name": "budget", "budget": 128}`` gives every image 128 tokens.
        mean, std: normalisation of the input; default that of the model's configuration.
        pooling: "area" or "plain" mean over tokens, see `adaptok.vision.pooling.pool`.
        resize: "central" or "area", see `ResizeZeroEmbedding`.
        branch: with the zero-initialised convolution, see `ResizeZeroEmbedding`.
        window: side in pixels of the attention windows of all blocks but `global_blocks` (ViTDet),
            a multiple of the coarsest cell. None: every block attends to the whole image.
        global_blocks: numbers of the blocks without windows.

    Raises:
        ValueError: the model is not supported (with the reason), or an argument makes no sense.
    """
    from adaptok.vision.models import CLASSES
    from adaptok.vision.support import unsupported_reason

    reason = unsupported_reason(model)
    if reason is not None:
        name = type(model).__name__
        raise ValueError(f"{name} cannot run on cells: {reason}. adaptok.vision.supported() lists "
                         "the models that can")  # fmt: skip
    source: Any = model
    bars = _thresholds(thresholds)
    if pooling not in ("area", "plain"):
        raise ValueError(f"pooling is 'area' or 'plain', got {pooling!r}")
    patch = tuple(source.patch_embed.patch_size)
    sizes = tuple((1, *(p << level for p in patch)) for level in range(len(bars), -1, -1))
    check_window(window, sizes)
    blocks = _block_numbers(global_blocks, len(source.blocks))
    spec = TokenizerSpec(2, source.patch_embed.proj.in_channels, source.embed_dim, sizes)
    mean, std = _normalisation(source, mean, std, spec.in_channels)
    fast: Any = _shared_copy(model)
    fast.__class__ = CLASSES[type(model)]
    fast.tiling = ImageCells(spec, bars, indicator, marking, mean, std)
    weight = source.patch_embed.proj.weight
    embed = cell_embedding(fast.patch_embed, spec, resize, branch)
    fast.cell_embed = embed.to(weight.device, weight.dtype)
    fast.cell_positions = CellPositions()
    fast.pooling, fast.window, fast.global_blocks = pooling, window, blocks
    fast.last_cells = None
    fast.options = {
        "thresholds": list(bars),
        "indicator": indicator,
        "marking": marking,
        "mean": list(mean),
        "std": list(std),
        "pooling": pooling,
        "resize": resize,
        "branch": branch,
        "window": window,
        "global_blocks": list(blocks),
    }
    return fast.train(model.training)


def supported(pattern: str = "*") -> list[str]:
    """Names of timm models that `apply_apt` takes, by a shell-style pattern."""
    from adaptok.vision import support

    return support.supported(pattern)


def freeze_all_but_new(model: AptMixin, also: Iterable[str] = ()) -> list[nn.Parameter]:
    """Leaves only what APT added trainable (the paper's recipe for dense tasks and VQA).

    Args:
        also: prefixes of further parameters to train, such as "head".

    Returns:
        The trainable parameters, for the optimiser.

    Raises:
        ValueError: a prefix that no parameter has.
    """
    named = dict(model.named_parameters())
    prefixes = ["cell_embed.", *(f"{name}." for name in also)]
    for prefix in prefixes[1:]:
        if not any(f"{name}.".startswith(prefix) for name in named):
            raise ValueError(f"no parameter of the model starts with {prefix[:-1]!r}")
    for name, parameter in named.items():
        parameter.requires_grad_(f"{name}.".startswith(tuple(prefixes)))
    return [parameter for parameter in named.values() if parameter.requires_grad]


def _shared_copy(model: nn.Module) -> nn.Module:
    """New modules around the same parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _thresholds(thresholds: Any) -> tuple[float, ...]:
    listed = isinstance(thresholds, Sequence) and not isinstance(thresholds, str)
    numbers = listed and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in thresholds
    )
    if not numbers or not thresholds:
        raise ValueError(
            f"thresholds are one number per merged level, at least one of them, got {thresholds!r}"
        )
    return tuple(float(v) for v in thresholds)


def _block_numbers(blocks: Iterable[int], depth: int) -> tuple[int, ...]:
    numbers = tuple(blocks)
    if any(not -depth <= i < depth for i in numbers):
        raise ValueError(f"the model has {depth} blocks, got global_blocks {numbers}")
    return tuple(i % depth for i in numbers)


def _normalisation(
    model: Any, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[Sequence[float], Sequence[float]]:
    config = getattr(model, "pretrained_cfg", None) or {}
    out = []
    for name, given in (("mean", mean), ("std", std)):
        value = config.get(name) if given is None else given
        if value is None or len(value) != channels:
            raise ValueError(
                f"{name} of the normalisation is needed, one number for each of {channels} "
                f"channel(s); the model says {config.get(name)}, given was {given}"
            )
        out.append(tuple(float(v) for v in value))
    if min(out[1]) <= 0:
        raise ValueError(f"std must be positive, got {out[1]}")
    return out[0], out[1]


def build_vision(model: str, made: dict[str, Any], options: dict[str, Any]) -> AptMixin:
    """The model that a `config` describes, with fresh weights."""
    import timm

    return apply_apt(timm.create_model(model, pretrained=False, **made), **options)
