"""How a model was built, in plain values, and how to build it again from those.

Classes are noted by their name, as ``{"class": "package.module.Class", **knobs}``. That name is for
people: nothing here imports it, so a file cannot choose what runs. Who loads gives the class.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from adaptok.registry import Part, is_factory, name_of

CLIPPING = ("composed", "iap", "matey")  # tokenizers whose default border has become "clip"
CLASS, REFUSED = "class", "not recorded"  # the keys; no parameter can have these names


def recorded(part: Part) -> dict[str, Any]:
    """Describes a part: its name or class, and its knobs, in which parts may be nested.

    What cannot be described has the reason under `REFUSED`. A part that is ready says how it was
    made by an attribute ``config``, a mapping of the arguments of its class in plain values; what a
    model fills in (``spec``, ``dim`` ...) may be left out.
    """
    described = recorded_values(part)
    return {"name": described} if isinstance(described, str) else described


def recorded_values(value: Any) -> Any:
    """Replaces the classes and modules among the arguments of a model by what describes them."""
    if isinstance(value, Mapping):
        own = {k: recorded_values(v) for k, v in value.items() if k != "name"}
        name = value.get("name")
        if callable(name):
            return _factory(name) | own
        return own if "name" not in value else {"name": name, **own}
    if is_factory(value):
        return _factory(value)
    return _ready(value) if callable(value) else value


def with_border(config: Mapping[str, Any], border: str) -> dict[str, Any]:
    """Notes what cells do at the border if the configuration of a model does not say it.

    Models of before this knob have none, and were made with "split".
    """
    name, tokenizer = config.get("name"), config.get("tokenizer")
    if config.get("kind") == "tokenizer" and name in CLIPPING:
        return {"border": border, **config}
    if isinstance(config.get("model"), Mapping):
        return {**config, "model": with_border(config["model"], border)}
    knobs = {"name": tokenizer} if isinstance(tokenizer, str) else tokenizer
    if isinstance(knobs, Mapping) and knobs.get("name") in CLIPPING:
        return {**config, "tokenizer": {"border": border, **knobs}}
    return dict(config)


def _factory(factory: Callable[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while isinstance(factory, functools.partial):
        if factory.args:
            return _refused(factory, "it has arguments without a name: give them by keyword")
        found = recorded_values(factory.keywords) | found
        factory = factory.func
    if "<" in factory.__qualname__:
        return _refused(factory, "nobody else can name it: define it at the top of a module")
    return {CLASS: _path(factory), **found}


def _ready(part: Any) -> dict[str, Any]:
    config, cls = getattr(part, "config", None), type(part)
    if "<" in cls.__qualname__:
        return _refused(cls, "nobody else can name it: define it at the top of a module")
    if isinstance(config, Mapping):
        known = {k: recorded_values(v) for k, v in config.items() if k != "kind"}
        return known if "name" in known or CLASS in known else {CLASS: _path(cls), **known}
    plain = cls.__init__ in (object.__init__, nn.Module.__init__)
    if plain or not inspect.signature(cls).parameters:
        return {CLASS: _path(cls)}
    return _refused(
        cls,
        "nothing says with which arguments it was made: give the class and its knobs, as in "
        f'{{"name": {cls.__name__}, ...}}, or set `config`, a mapping of the arguments, on it',
    )


def _refused(part: Any, reason: str) -> dict[str, Any]:
    return {CLASS: _path(part), REFUSED: f"{name_of(part)}: {reason}"}


def _path(part: Any) -> str:
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}.{named.__qualname__}"


def refusals(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields why parts of a model cannot be saved."""
    for key, value in config.items():
        if isinstance(value, Mapping) and not _foreign(config, key):
            if REFUSED in value:
                yield value[REFUSED]
            yield from refusals(value)


def places(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the place of each part whose class has to be given, and the name of that class."""

    def find(value: Any, place: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            if CLASS in value:
                yield place, str(value[CLASS])
            for key, inner in value.items():
                yield from find(inner, f"{place}.{key}".lstrip("."))

    for key, value in _whole(config).items():
        if not _foreign(config, key):
            yield from find(value, _place(key))


def _foreign(config: Mapping[str, Any], key: str) -> bool:
    """Whether this is how timm or transformers build a model: no parts, and names of any kind."""
    return key == "made" and config.get("kind") in ("vision", "hf")


def _place(key: str) -> str:
    """A system has its parts in a model, a wrapped model of timm among the options of APT."""
    return "" if key in ("model", "options") else key


def _whole(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration whose values are parts, also if it is that of a tokenizer alone."""
    return {config["kind"]: config} if CLASS in config else config


def with_parts(config: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Puts classes, factories or registered names into a configuration that describes some.

    Args:
        parts: what takes the place of each class, see `places`: "tokenizer", or
            "tokenizer.indicator" if it is a part of that.

    Raises:
        ValueError: a class that is not given, or one that is given without need.
    """
    needed = dict(places(config))
    for place, name in needed.items():
        if place not in parts:
            raise ValueError(
                f"its {place} is {name}, which is never imported for you: give it, as in "
                f'parts={{"{place}": {name.rpartition(".")[2]}}}, or a registered name'
            )
    if unused := [place for place in parts if place not in needed]:
        raise ValueError(
            f"no class to be given for {', '.join(unused)}: the model names its part, or has none"
        )

    def fill(value: Any, place: str) -> Any:
        if not isinstance(value, Mapping):
            return value
        knobs = {k: v for k, v in value.items() if k not in (CLASS, REFUSED)}
        filled = {k: fill(v, f"{place}.{k}".lstrip(".")) for k, v in knobs.items()}
        if CLASS not in value:
            return filled
        return {"name": parts[place], **filled} if filled else parts[place]

    whole = _whole(config).items()
    filled = {k: v if _foreign(config, k) else fill(v, _place(k)) for k, v in whole}
    return filled[config["kind"]] if CLASS in config else filled
