"""What an adapted model of transformers is built again from."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any

from torch import nn

from adaptok.vision.hf.apply import adapted, path_of, reduced
from adaptok.vision.hf.families import FAMILIES, ROOTS
from adaptok.vision.hf.models import Adapted

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (*FAMILIES, *ROOTS)}


def config_of(model: Any) -> dict[str, Any] | None:
    """Returns what `build` builds a model again from; None if it is not adapted."""
    path = path_of(model)
    tower = attrgetter(path)(model) if path else model
    if not isinstance(tower, Adapted):
        return None
    name = next(name for name, kind in _KINDS.items() if isinstance(model, kind))
    made: dict[str, Any] = {"config": json.loads(model.config.to_json_string(use_diff=False))}
    if getattr(model, "pooler", model) is None:
        made["add_pooling_layer"] = False
    return {"kind": "hf", "model": name, "made": made, "options": dict(tower.adaptive.options)}


def build(model: str, made: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """Builds the model that a `config_of` describes, with fresh weights.

    Raises:
        ValueError: a class that is not one of those that can be adapted.
    """
    if model not in _KINDS:
        raise ValueError(f"{model!r} is none of {', '.join(_KINDS)}")
    arguments = {**made}
    config = _KINDS[model].config_class.from_dict(arguments.pop("config"))
    built = _KINDS[model](config, **arguments)
    if "reducer" in options:
        return reduced(built, options["reducer"])
    return adapted(built, **options)
