"""How an adapted timm model was built, and whether that builds the same model again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

# Arguments of timm.create_model that read files, ask a hub, or return something else.
BARRED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
BARRED = (*BARRED, "features_only", "model_name")
# What no weight depends on: modes of training and kernels.
MODES = ("training", "grad_checkpointing", "distilled_training", "fused_attn")
ADDED = ("tiling", "cell_embed", "reducer")  # modules that timm's model lacks


def check_model_args(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of ``timm.create_model`` that a file may hold.

    Raises:
        ValueError: one that chooses weights or files.
    """
    if barred := [name for name in given if name in BARRED]:
        raise ValueError(
            f"model_args say how timm builds a model, not which files it reads: leave out "
            f"{', '.join(barred)}"
        )
    return dict(given)


def config_of(model: Any, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what `adaptok.vision.apply.build_vision` builds a wrapped model from, or None."""
    from adaptok.vision.embedding import convolution_of

    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if name is None:
        return None
    embed = model.patch_embed
    last = model.blocks[-1].modules() if len(model.blocks) else ()
    made = {"drop_path_rate": max((getattr(m, "drop_prob", 0.0) for m in last), default=0.0)}
    made |= {"dynamic_img_size": model.dynamic_img_size, "dynamic_img_pad": embed.dynamic_img_pad}
    made |= model.model_args
    made |= {"num_classes": model.num_classes, "global_pool": model.global_pool}
    made |= {"in_chans": convolution_of(embed).in_channels, "img_size": list(embed.img_size)}
    return {"kind": "vision", "model": name, "made": made, "options": dict(options)}


def check_rebuilt(model: Any) -> None:
    """Builds a model again from its `config`, without values, and compares the two.

    Raises:
        ValueError: they differ in a module, a shape or a setting.
    """
    import timm

    config = model.config
    if config is None:
        return
    name, made = config["model"], config["made"]
    advice = (
        "give apply_apt or apply_reducer the arguments that create_model was given, "
        "model_args={...}; what was changed afterwards cannot be saved"
    )
    try:
        with torch.device("meta"):
            again = timm.create_model(name, pretrained=False, **made)
    except Exception as error:  # whatever timm makes of the arguments
        raise ValueError(f"timm does not build {name!r} with {made} again: {error}") from error
    if found := list(differences(model, again)):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(
            f"timm builds another model from the name {name!r} and {made}: "
            f"{'; '.join(found[:3])}{more}; {advice}"
        )


def differences(model: nn.Module, again: nn.Module) -> Iterator[str]:
    """Yields in what the modules of timm inside an adapted model are not those of another."""
    ours, theirs = (dict(each.named_modules()) for each in (model, again))
    ours = {name: m for name, m in ours.items() if name.partition(".")[0] not in ADDED}
    for name in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None or not isinstance(one, type(other)):
            kinds = [type(each).__name__ if each is not None else "absent" for each in (one, other)]
            yield f"{name} is {kinds[0]}, built again {kinds[1]}"
            continue
        known = _settings(one)
        for key, value in _settings(other).items():
            if key not in known or not _same(known[key], value):
                label = f"{name}.{key}".lstrip(".")
                yield f"{label} is {known.get(key, 'absent')}, built again {value}"


def _settings(module: nn.Module) -> dict[str, Any]:
    """Plain attributes of a module, and the shapes of its own tensors."""
    out = {k: v for k, v in vars(module).items() if k[0] != "_" and k not in MODES and _plain(v)}
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        out[name] = None if tensor is None else tuple(tensor.shape)
    return out


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other
