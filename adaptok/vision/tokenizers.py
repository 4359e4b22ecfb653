"""Ways to cut images for a timm model, by name: what `tokenizer=` chooses in classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Len
from torch import nn

from adaptok.registry import Part, Registry, choice
from adaptok.utils.arguments import Finite, Positive, Weighted
from adaptok.vision.apply import apply_apt, apply_reducer
from adaptok.vision.random_cells import RandomCells
from adaptok.vision.thresholds import default_thresholds
from adaptok.vision.tiling import ImageCells

Thresholds = Annotated[Sequence[Finite], Len(1)]
IMAGE_TOKENIZERS = Registry("image_tokenizer")


@IMAGE_TOKENIZERS.register("uniform")
def uniform(model: nn.Module) -> nn.Module:
    """timm's model unchanged: every patch is a token."""
    return model


@IMAGE_TOKENIZERS.register("apt")
def apt(
    model: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    thresholds: Thresholds | None = None,
    budget: Positive | None = None,
    indicator: Part = "entropy",
    pooling: str = "area",
    resize: str = "central",
    branch: str = "zero",
    weighted: Weighted = False,
) -> nn.Module:
    """APT: cells by the entropy of their pixels, with the zero-initialised branch (Eq. 2).

    Args:
        thresholds: the smallest merged cells first: (2p, 4p) for patches of p pixels. None: (5.5,
            4.0) bits of entropy; other indicators need their own.
        budget: at most this many tokens per image, or None.
        indicator: score in place of the entropy.
        pooling: "area" or "plain" mean over tokens.
        resize: "central" or "area" (antialiased).
        branch: initial last layer of the branch: "zero" (the paper's choice), "random" or
            "identity" (its ablation, Table 7).
        weighted: let a cell count for its area in attention, see `apply_apt`.
    """
    choice("branch", branch, ("zero", "random", "identity"))
    parts = {"indicator": indicator, "pooling": pooling, "resize": resize, "weighted": weighted}
    fast = _capped(model, thresholds, budget, mean=mean, std=std, **parts)
    if branch == "random":
        cell_module(fast).cell_embed.zero.reset_parameters()
    elif branch == "identity":
        nn.init.eye_(cell_module(fast).cell_embed.zero.weight)
    return fast


@IMAGE_TOKENIZERS.register("resize")
def resize(
    model: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    thresholds: Thresholds | None = None,
    budget: Positive | None = None,
    indicator: Part = "entropy",
    pooling: str = "area",
    resize: str = "central",
    weighted: Weighted = False,
) -> nn.Module:
    """APT's cells without its branch: a large cell is only its shrunk pixels (a baseline).

    Args:
        thresholds: the smallest merged cells first: (2p, 4p) for patches of p pixels. None: (5.5,
            4.0) bits of entropy; other indicators need their own.
        budget: at most this many tokens per image, or None.
        indicator: score in place of the entropy.
        pooling: "area" or "plain" mean over tokens.
        resize: "central" or "area" (antialiased).
        weighted: let a cell count for its area in attention, see `apply_apt`.
    """
    parts = {"indicator": indicator, "pooling": pooling, "resize": resize, "weighted": weighted}
    return _capped(model, thresholds, budget, mean=mean, std=std, branch=False, **parts)


@IMAGE_TOKENIZERS.register("random")
def random(
    model: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    thresholds: Thresholds | None = None,
    indicator: Part = "entropy",
) -> nn.Module:
    """As many patches as APT has cells, kept at random; the rest is dropped (a baseline).

    Args:
        thresholds: those of the APT to compare with, None as there.
        indicator: the score of that APT.
    """
    bars = tuple(default_thresholds(thresholds, indicator))
    fast = apply_apt(model, bars, indicator=indicator, mean=mean, std=std, branch=False)
    owner = cell_module(fast)
    like = owner.tiling
    owner.tiling = RandomCells(like.spec, bars, indicator, None, mean, std, pad=like.pad)
    return fast.train(model.training)


@IMAGE_TOKENIZERS.register("reduced")
def reduced(model: nn.Module, *, reducer: Part = "tome") -> nn.Module:
    """timm's patches, merged or dropped inside the blocks (what APT is compared with).

    Args:
        reducer: a name of `adaptok.reducers`, or a mapping of name and knobs.
    """
    return apply_reducer(model, reducer)


def cell_module(model: nn.Module) -> Any:
    """Returns what cuts and embeds the images of an adapted model: itself, or a part of its tower.

    Raises:
        ValueError: the model is not on cells.
    """
    for module in model.modules():
        if isinstance(getattr(module, "tiling", None), ImageCells):
            return module
    raise ValueError(f"{type(model).__name__} is not on cells: apply_apt puts it there")


def _capped(
    model: nn.Module, thresholds: Sequence[float] | None, budget: int | None, **options: Any
) -> Any:
    """`apply_apt` with at most `budget` tokens per image."""
    bars = tuple(default_thresholds(thresholds, options["indicator"]))
    marking = {"name": "threshold", "thresholds": bars, "budget": budget}
    return apply_apt(model, bars, marking=None if budget is None else marking, **options)
