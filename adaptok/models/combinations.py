"""Finds which parts go together by building every combination, small."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from adaptok.models.surrogate import Surrogate, create_surrogate
from adaptok.registry import (
    DECODERS,
    EMBEDDINGS,
    INDICATORS,
    MARKINGS,
    POSITIONS,
    PROCESSORS,
    REDUCERS,
    TOKENIZERS,
)

COMPOSED = "composed"  # the tokenizer that takes an indicator, a marking and an embedding
OF_TOKENIZER = {
    "tokenizer/indicator": INDICATORS,
    "tokenizer/marking": MARKINGS,
    "tokenizer/embedding": EMBEDDINGS,
}
MODES = ("fold", "frames")


class Combination(NamedTuple):
    """One choice of parts.

    Attributes:
        parts: name by key of the command line.
        reason: why they do not go together, or None if they do.
    """

    parts: dict[str, str]
    reason: str | None

    @property
    def overrides(self) -> list[str]:
        """What to type after ``adaptok train``."""
        return overrides_of(self.parts)


def combinations(pattern: str = "*") -> Iterator[Combination]:
    """Yields all tokenizers with all processors, positions, decoders and history modes, the
    composed tokenizer with all indicators, markings, embeddings, positions and decoders, and all
    processors with all reducers.

    Args:
        pattern: for part of the overrides, such as ``processor=axial`` or ``tokenizer=iap*fold``.
    """
    for parts in candidates():
        if fnmatch.fnmatchcase(" ".join(overrides_of(parts)), f"*{pattern}*"):
            yield Combination(parts, reason_against(parts))


def candidates() -> Iterator[dict[str, str]]:
    """Yields the choices, valid or not."""
    processors = [
        {"processor": name, **({"processor.positions": position} if position else {})}
        for name in PROCESSORS.names()
        for position in (POSITIONS.names() if "positions" in PROCESSORS.knobs(name) else [""])
    ]
    names = TOKENIZERS.names(), processors, DECODERS.names(), MODES
    for tokenizer, processor, decoder, mode in itertools.product(*names):
        yield {"tokenizer": tokenizer, **processor, "decoder": decoder, "history_mode": mode}
    names = *(registry.names() for registry in OF_TOKENIZER.values()), POSITIONS.names()
    for *inner, position, decoder in itertools.product(*names, DECODERS.names()):
        chosen = dict(zip(OF_TOKENIZER, inner, strict=True))
        processor = {"processor": "vit", "processor.positions": position}
        yield {"tokenizer": COMPOSED, **chosen, **processor, "decoder": decoder}
    for name, reducer in itertools.product(PROCESSORS.names(), REDUCERS.names()):
        if "reducer" in PROCESSORS.knobs(name):
            processor = {"processor": name, "processor.reducer": reducer}
            yield {"tokenizer": "iap", **processor, "decoder": "linear", "history_mode": "frames"}


def reason_against(parts: Mapping[str, str]) -> str | None:
    """Returns the message of the part that refuses, or None if all go together."""
    try:
        build(parts)
    except ValueError as error:
        return " ".join(str(error).split())
    return None


def build(parts: Mapping[str, str], **changes: Any) -> Surrogate:
    """Builds a small surrogate of these parts, for two frames of two fields in two dimensions.

    Args:
        changes: arguments of `create_surrogate` to use instead.

    Raises:
        ValueError: they do not go together.
    """
    tokenizer = {"name": parts["tokenizer"]}
    tokenizer |= {k.partition("/")[2]: v for k, v in parts.items() if k in OF_TOKENIZER}
    processor = {"name": parts["processor"]}
    for knob in ("positions", "reducer"):
        if f"processor.{knob}" in parts:
            processor[knob] = parts[f"processor.{knob}"]
    small: dict[str, Any] = {"ndim": 2, "in_channels": 2, "history": 2}
    small |= {"dim": 16, "depth": 1, "heads": 1}
    return create_surrogate(
        tokenizer=tokenizer,
        processor=processor,
        decoder=parts["decoder"],
        history_mode=parts.get("history_mode", "fold"),
        **(small | changes),
    )


def overrides_of(parts: Mapping[str, str]) -> list[str]:
    """Returns the choices as typed; a group inside another one is added with a plus."""
    return [f"{'+' if '/' in key else ''}{key}={name}" for key, name in parts.items()]
