"""`apply_apt` and `apply_reducer` for the vision models of transformers."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from torch import nn

from adaptok.models.recording import recorded, recorded_values
from adaptok.registry import REDUCERS, Part, choice
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import Weighted, check_value
from adaptok.vision.apply import per_channel
from adaptok.vision.hf.attention import NAME, draw_per_image
from adaptok.vision.hf.cells import CellRun, cell_embedding
from adaptok.vision.hf.families import FAMILIES, ROOTS, Family
from adaptok.vision.hf.models import HEADS, TOWERS, Adapted
from adaptok.vision.hf.reducing import LAYERS, ReducedRun
from adaptok.vision.hf.vlms import VLMS, Tiled
from adaptok.vision.thresholds import level_thresholds
from adaptok.vision.tiling import ImageCells
from adaptok.vision.windows import check_window


def adapted(
    model: nn.Module,
    thresholds: Sequence[float] | None,
    *,
    indicator: Part = "entropy",
    marking: Part | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    processor: Any = None,
    pooling: str = "area",
    resize: str = "central",
    branch: bool = True,
    weighted: Weighted = False,
    window: int | None = None,
    global_blocks: Iterable[int] = (),
) -> Any:
    """See `adaptok.vision.apply_apt`."""
    tower = _tower(model)
    family, layers = _family(tower)
    bars = level_thresholds(thresholds, indicator, marking)
    choice("pooling", pooling, ("area", "plain"))
    check_value(weighted, Weighted, "weighted")
    convolution = family.piece(tower, family.patch)
    sizes = tuple(
        (1, *(side << level for side in convolution.kernel_size))
        for level in range(len(bars), -1, -1)
    )
    blocks = check_window(window, global_blocks, sizes, len(layers))
    width = tower.config.hidden_size
    if window is not None and not blocks and family.prefix(tower, width):
        raise ValueError(
            "with windows in every layer the class token sees no patch: give global_blocks"
        )
    mean, std = _normalisation(mean, std, processor, convolution.in_channels)
    spec = TokenizerSpec(2, convolution.in_channels, width, sizes, on_grid=True)
    fast, own = _copied(model)
    options: dict[str, Any] = {"thresholds": list(bars)}
    options |= recorded_values({"indicator": indicator, "marking": marking})
    options |= {"mean": list(mean), "std": list(std), "pooling": pooling, "resize": resize}
    options |= {"branch": branch, "weighted": weighted, "window": window}
    options |= {"global_blocks": list(blocks)}
    own.adaptive = CellRun(
        family,
        ImageCells(spec, bars, indicator, marking, mean, std),
        cell_embedding(family.piece(own, family.patch), spec, resize, branch),
        options,
        window=window,
        global_blocks=blocks,
        weighted=float(weighted),
        pooling=pooling,
    )
    draw_per_image(family.piece(own, family.layers))
    return fast.train(model.training)


def reduced(model: nn.Module, name: Part, **knobs: Any) -> Any:
    """See `adaptok.vision.apply_reducer`."""
    tower = _tower(model)
    family, layers = _family(tower)
    if any(issubclass(VLMS.get(type(part), nn.Module), Tiled) for part in model.modules()):
        raise ValueError(
            f"{type(model).__name__} lays tokens out on the grid of its patches, where those of a "
            "reducer have no place; apply_apt's cells have one"
        )
    part: Any = {"name": name, **knobs} if isinstance(name, str) else name
    heads, dim = tower.config.num_attention_heads, tower.config.hidden_size
    reducer = REDUCERS.build(part, dim=dim, heads=heads, depth=len(layers))
    fast, own = _copied(model)
    weight = family.piece(own, family.patch).weight
    reducer = reducer.to(weight.device, weight.dtype)
    own.adaptive = ReducedRun(family, reducer, {"reducer": recorded(part)})
    for layer in family.piece(own, family.layers):
        layer.__class__ = LAYERS[type(layer)]
        layer.steps = family.steps
    return fast.train(model.training)


def path_of(model: nn.Module) -> str:
    """Returns the path of the tower in a model, or in what has been made of it; "" for itself."""
    return next((path for kind, path in ROOTS.items() if isinstance(model, kind)), "")


def _tower(model: nn.Module) -> Any:
    """The part of a model that can be adapted.

    Raises:
        ValueError: there is none, with the reason.
    """
    kind = type(model)
    path = ROOTS.get(kind)
    tower = model if path is None else attrgetter(path)(model)
    if type(tower) in FAMILIES:
        return tower
    names = ", ".join(sorted(kind.__name__ for kind in (*FAMILIES, *ROOTS)))
    within = [name for name, part in model.named_modules() if type(part) in FAMILIES and name]
    if any(isinstance(part, Adapted) for part in model.modules()):
        reason = "it is adapted already; start from the model it was made of"
    elif kind.__name__.startswith("TimmWrapper"):
        reason = "it wraps a model of timm; adapt its timm_model"
    elif within:
        reason = (
            f"what it does with the tokens of its {within[0]!r} is not known to be right when they "
            "merge; adapt that part, whose output says which rows are real"
        )
    else:
        reason = f"its tokens come from a {type(tower).__name__}"
    raise ValueError(f"{kind.__name__} cannot run on cells: {reason}. Supported: {names}")


def _family(tower: Any) -> tuple[Family, Any]:
    """Where the tower keeps its pieces, and its layers.

    Raises:
        ValueError: layers of another kind, or attention weights are dropped.
    """
    family = FAMILIES[type(tower)]
    layers = family.piece(tower, family.layers)
    for layer in layers:
        if type(layer) not in LAYERS:
            raise ValueError(f"layers of type {type(layer).__name__} cannot run on cells")
    config = tower.config
    for name in ("attention_dropout", "attention_probs_dropout_prob"):
        if getattr(config, name, 0.0):
            raise ValueError(
                f"it drops attention weights ({name}), which packed kernels cannot; set it to 0"
            )
    return family, layers


def _copied(model: nn.Module) -> tuple[Any, Any]:
    """New modules around the same parameters and buffers: of the model, and of its tower."""
    tensors = [*model.parameters(), *model.buffers()]
    fast: Any = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    path = ROOTS.get(type(model))
    own: Any = fast if path is None else attrgetter(path)(fast)
    own.set_attn_implementation(NAME)
    for module in own.modules():  # these collect what layers return, which is packed now
        for key, hook in [*module._forward_hooks.items()]:
            if getattr(hook, "__module__", "") == "transformers.utils.output_capturing":
                del module._forward_hooks[key]
    own.__class__ = TOWERS[type(own)]
    for module in fast.modules():
        kind = type(module)
        module.__class__ = HEADS.get(kind, VLMS.get(kind, kind))
    return fast, own


def _normalisation(
    mean: Any, std: Any, processor: Any, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    found = (None, None) if processor is None else statistics(processor, channels)
    used = []
    for name, own, given in zip(("mean", "std"), found, (mean, std), strict=True):
        value = own if given is None else per_channel(name, given, channels)
        if value is None or len(value) != channels or not all(map(math.isfinite, value)):
            raise ValueError(
                f"the normalisation of the images is needed: give processor=, the model's image "
                f"processor, or mean and std, one number for each of {channels} channel(s); "
                f"got {name} {value}"
            )
        if own is not None and any(abs(x - y) > 1e-3 for x, y in zip(own, value, strict=True)):
            warnings.warn(
                f"the processor has {name} {own}, and {value} was given and is used: cells of "
                "images of this processor are found in wrong values",
                stacklevel=4,
            )
        used.append(value)
    if min(used[1]) <= 0:
        raise ValueError(f"std must be positive, got {used[1]}")
    return used[0], used[1]


def statistics(processor: Any, channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation, of values 0..1, by which an image processor of
    transformers (or a processor that has one) normalises images.

    Raises:
        ValueError: no image processor.
    """
    own = getattr(processor, "image_processor", processor)
    if not hasattr(own, "do_normalize") or not hasattr(own, "do_rescale"):
        raise ValueError(f"an image processor of transformers is needed, got {type(processor)}")
    mean, std = (0.0,), (1.0,)
    if own.do_normalize:
        mean, std = (
            (value,) if isinstance(value, int | float) else tuple(value)
            for value in (own.image_mean, own.image_std)
        )
    scale = 255 * (own.rescale_factor if own.do_rescale else 1.0)
    mean, std = (tuple(float(v) / scale for v in value) for value in (mean, std))
    return mean * (channels // len(mean)), std * (channels // len(std))
