"""Ways to cut images for a timm model, by name: what `tokenizer=` chooses in classification."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from adaptok.registry import Registry
from adaptok.vision.apply import apply_apt
from adaptok.vision.dropped import RandomCells
from adaptok.vision.tiling import Part

IMAGE_TOKENIZERS = Registry("image_tokenizer")


@IMAGE_TOKENIZERS.register("uniform")
def uniform(model: nn.Module) -> nn.Module:
    """timm's model as it is: every patch is a token."""
    return model


@IMAGE_TOKENIZERS.register("apt")
def apt(
    model: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    thresholds: Sequence[float] = (5.5, 4.0),
    budget: int | None = None,
    indicator: Part = "entropy",
    pooling: str = "area",
    resize: str = "central",
    branch: str = "zero",
) -> nn.Module:
    """APT: cells by the entropy of their pixels, with the zero-initialised branch (Eq. 2).

    Args:
        thresholds: bits, the smallest merged cells first: (2p, 4p) for patches of p pixels.
        budget: at most this many tokens per image, or None.
        indicator: score in place of the entropy.
        pooling: "area" or "plain" mean over tokens.
        resize: "central" or "area" (antialiased).
        branch: where the last layer of the branch starts: "zero" (the paper's choice), "random" or
            "identity" (its ablation, Table 7).
    """
    fast = apply_apt(
        model,
        thresholds,
        indicator=indicator,
        marking=_capped(thresholds, budget),
        mean=mean,
        std=std,
        pooling=pooling,
        resize=resize,
    )
    _start(fast.cell_embed.zero, branch)
    return fast


@IMAGE_TOKENIZERS.register("resize")
def resize(
    model: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    thresholds: Sequence[float] = (5.5, 4.0),
    budget: int | None = None,
    indicator: Part = "entropy",
    pooling: str = "area",
    resize: str = "central",
) -> nn.Module:
    """APT's cells without its branch: a large cell is only its shrunk pixels (a baseline).

    Args:
        thresholds: bits, the smallest merged cells first: (2p, 4p) for patches of p pixels.
        budget: at most this many tokens per image, or None.
        indicator: score in place of the entropy.
        pooling: "area" or "plain" mean over tokens.
        resize: "central" or "area" (antialiased).
    """
    return apply_apt(
        model,
        thresholds,
        indicator=indicator,
        marking=_capped(thresholds, budget),
        mean=mean,
        std=std,
        pooling=pooling,
        resize=resize,
        branch=False,
    )


@IMAGE_TOKENIZERS.register("random")
def random(
    model: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    thresholds: Sequence[float] = (5.5, 4.0),
    indicator: Part = "entropy",
) -> nn.Module:
    """As many patches as APT has cells, kept at random; the rest is dropped (a baseline).

    Args:
        thresholds: those of the APT that it is compared with.
        indicator: the score of that APT.
    """
    fast = apply_apt(model, thresholds, indicator=indicator, mean=mean, std=std, branch=False)
    fast.tiling = RandomCells(fast.tiling.spec, tuple(thresholds), indicator, None, mean, std)
    return fast.train(model.training)


def _start(last: nn.Linear | None, branch: str) -> None:
    assert last is not None, "the model has merged levels, so the branch is there"
    if branch == "random":
        last.reset_parameters()
    elif branch == "identity":
        nn.init.eye_(last.weight)
    elif branch != "zero":
        raise ValueError(f"branch is zero, random or identity, got {branch!r}")


def _capped(thresholds: Sequence[float], budget: int | None) -> Part | None:
    if budget is None:
        return None
    return {"name": "threshold", "thresholds": tuple(thresholds), "budget": budget}
