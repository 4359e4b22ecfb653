"""``adaptok list``: what the registries hold."""

from __future__ import annotations

import textwrap

import adaptok
from adaptok.baselines import BASELINES
from adaptok.registry import Registry, close_matches

KINDS: dict[str, Registry] = {
    "tokenizer": adaptok.TOKENIZERS,
    "processor": adaptok.PROCESSORS,
    "decoder": adaptok.DECODERS,
    "indicator": adaptok.INDICATORS,
    "marking": adaptok.MARKINGS,
    "embedding": adaptok.EMBEDDINGS,
    "schedule": adaptok.SCHEDULES,
    "baseline": BASELINES,
}


def print_parts(kind: str = "", pattern: str = "*", *rest: str) -> None:
    """Prints the registered parts of one kind, or of all, with their knobs and defaults.

    Raises:
        ValueError: an unknown kind, a pattern that nothing matches, or too many arguments.
    """
    kind = kind.removesuffix("s")
    kinds = _kinds()
    if rest:
        raise ValueError(f"list takes a kind and a pattern, got also {' '.join(rest)}")
    if kind and kind not in kinds:
        raise ValueError(f"unknown kind {kind!r}{close_matches(kind, kinds)}; {', '.join(kinds)}")
    for name in [kind] if kind else list(kinds):
        registry = kinds[name]
        found = registry.names(pattern)
        if kind and not found:
            raise ValueError(f"no {kind} matches {pattern!r}; there are {registry.names()}")
        print(f"{name}s")
        for part in found:
            head, _, knobs = registry.describe(part).partition("\n  ")
            print(textwrap.indent(textwrap.fill(head, 96, subsequent_indent="  "), "  "))
            if knobs:
                lines = textwrap.fill(knobs, 92, break_on_hyphens=False)
                print(textwrap.indent(lines, "      "))
        print()


def _kinds() -> dict[str, Registry]:
    try:
        from adaptok.data.synthetic import SOLVERS
    except ModuleNotFoundError:  # the core alone has no data
        return KINDS
    return KINDS | {"solver": SOLVERS}
