"""Fields by name in ``tokenizer.ignore``, ``decoder.ignore`` and the roles of channels that a
tokenizer knows (``tokenizer.velocity``), as the channels that these get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptok.data.synthetic import SOLVERS
from adaptok.models.conserving import channel_numbers
from adaptok.models.parts import mode_of_history
from adaptok.registry import choice
from adaptok.tokenizers.ignoring import seen_channels

ROLES = ("velocity", "density")  # knobs that are channels, and what these are


def with_channels(
    config: Mapping[str, Any],
    fields: Sequence[str],
    constants: Sequence[str],
    part: str = "tokenizer",
) -> Any:
    """Returns the tokenizer of a configuration with numbers in place of names of fields.

    With a folded history, a name stands for the channels of all frames, and the names of a role
    for those of each frame in turn.

    Args:
        config: plain, with `tokenizer`, `history` and `history_mode`.
        fields: names of the channels that change with time.
        constants: names of those that do not.
        part: "tokenizer" or "decoder".

    Raises:
        ValueError: an unknown name, a number out of range, or nothing left to score.
    """
    node = config[part]
    if part == "decoder" and isinstance(node, Mapping) and node.get("channels"):
        node = {**node, "channels": channel_numbers(node["channels"], fields, "decoder.channels")}
    if not isinstance(node, Mapping) or not any(node.get(knob) for knob in (*ROLES, "ignore")):
        return node
    mode = mode_of_history(config["history_mode"], config.get("processor", "vit"))
    frames = config["history"] if mode == "fold" else 1
    channels = [*fields] * frames + [*constants]
    for role in ROLES:
        if names := _names_of(node.get(role)):
            for name in names:
                choice(f"{part}.{role}", name, dict.fromkeys(channels))
            numbers = [_number(name, fields, channels, t) for t in range(frames) for name in names]
            static = all(name in constants for name in names)
            node = {**node, role: numbers[: len(names)] if static else numbers}
    given = node.get("ignore")
    if not isinstance(given, (list, tuple)) or not given:
        return node
    numbers: list[int] = []
    for one in given:
        if isinstance(one, str):
            choice(f"each field of {part}.ignore", one, dict.fromkeys(channels))
            numbers += [i for i, name in enumerate(channels) if name == one]
        else:
            numbers.append(one)
    try:
        seen_channels(numbers, len(channels))
    except ValueError as error:
        raise ValueError(f"{part}.ignore={list(given)}: {error}") from None
    return {**node, "ignore": numbers}


def conserved(config: Mapping[str, Any], fields: Sequence[str]) -> Any:
    """Returns ``conserve`` of a configuration with numbers in place of names of fields; runs of
    before have none.
    """
    return channel_numbers(config.get("conserve"), fields, "conserve")


def _names_of(given: Any) -> list[str]:
    """The names of fields in a role; none if it has numbers, which are those of channels."""
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, (list, tuple)) or not any(isinstance(one, str) for one in listed):
        return []
    return [*listed]


def _number(name: str, fields: Sequence[str], channels: Sequence[str], frame: int) -> int:
    if name in fields:
        return frame * len(fields) + list(fields).index(name)
    return list(channels).index(name)


def check_ignored(config: Mapping[str, Any]) -> None:
    """Checks what tokenizer and decoder ignore for a set that is generated, before it is.

    Raises:
        ValueError: see `with_channels`.
    """
    data = config.get("data")
    model = config.get("model") or {}
    if not isinstance(data, Mapping) or data.get("generate") is None or "tokenizer" not in config:
        return
    if model.get("name", "surrogate") != "surrogate":
        return  # a baseline has no tokenizer
    solver = SOLVERS.get(data["name"])
    if fields := getattr(solver, "field_names", ()):  # a solver of others may not say
        conserved(config, fields)
        for part in ("tokenizer", "decoder"):
            if part in config:
                with_channels(config, fields, getattr(solver, "constant_names", ()), part)
