"""``adaptok list``: what the registries hold, and which attention back ends run here."""

from __future__ import annotations

import contextlib
import fnmatch
import inspect
import textwrap

import adaptok
from adaptok.layers.attention import BACKENDS, usable
from adaptok.models.baselines import BASELINES
from adaptok.models.combinations import combinations
from adaptok.registry import LOSSES, METRICS, Registry, choice
from adaptok.vision import IMAGE_TOKENIZERS

REGISTRIES = (
    *(adaptok.TOKENIZERS, adaptok.PROCESSORS, adaptok.DECODERS),
    *(adaptok.INDICATORS, adaptok.MARKINGS, adaptok.EMBEDDINGS),
    *(
        adaptok.REDUCERS,
        adaptok.POSITIONS,
        adaptok.SCHEDULES,
        LOSSES,
        METRICS,
        BASELINES,
        IMAGE_TOKENIZERS,
    ),
)
KNOB = textwrap.TextWrapper(98, " " * 6, " " * 10, break_on_hyphens=False)  # its paragraph


def print_parts(kind: str = "", pattern: str = "*", *rest: str) -> None:
    """Prints the registered parts: of one kind with the meaning of each knob, of all in short.

    Raises:
        ValueError: an unknown kind, a pattern that nothing matches, or too many arguments.
    """
    kinds = _kinds()
    singular = {_plural(registry): name for name, registry in kinds.items()}
    others = ("backend", "combination", "experiment")
    kind = {**singular, **{f"{name}s": name for name in others}}.get(kind, kind)
    if rest:
        raise ValueError(f"list takes a kind and a pattern, got also {' '.join(rest)}")
    if kind:
        choice("kind", kind, [*kinds, *others, "markdown"])
    if kind == "markdown" and pattern != "*":
        raise ValueError(f"list markdown prints all parts, without a pattern, got {pattern}")
    if kind == "backend":
        return _print_backends(pattern)
    if kind == "combination":
        return _print_combinations(pattern)
    if kind == "experiment":
        return _print_experiments(pattern)
    if kind == "markdown":
        return print(parts_markdown(), end="")
    for name in [kind] if kind else list(kinds):
        registry = kinds[name]
        found = registry.names(pattern)
        if kind and not found:
            raise ValueError(
                f"no {kind} matches {pattern!r}; there are {', '.join(registry.names())}"
            )
        print(_plural(registry))
        for part in found:
            head, *knobs = registry.describe(part).splitlines()
            print(textwrap.fill(head, 98, initial_indent="  ", subsequent_indent="    "))
            if not kind:  # a line or two per part, or the list of everything fills ten screens
                knobs = [", ".join(f"{k}={v!r}" for k, v in registry.knobs(part).items())]
            for knob in filter(None, knobs):
                print(KNOB.fill(knob.strip()))
        print()
    if not kind:
        with contextlib.suppress(ModuleNotFoundError):  # the core alone has no command line
            _print_experiments("*")
        print("adaptok list KIND says what the knobs mean: adaptok list tokenizer 'i*'")


def parts_markdown() -> str:
    """Returns the page docs/parts.md."""
    lines = [
        "# Parts",
        "",
        "Everything that is registered, with its knobs, their defaults and what they mean.",
        "`adaptok list markdown` prints this page; `adaptok list tokenizer 'i*'` shows some of it.",
    ]
    for registry in _kinds().values():
        lines += ["", f"## {_plural(registry).replace('_', ' ').capitalize()}", ""]
        for name in registry.names():
            about = (inspect.getdoc(registry.get(name)) or "").partition("\n\n")[0]
            lines.append(f"- **{name}**: {' '.join(about.split())}")
            meanings, ranges = registry.meanings(name), registry.ranges(name)
            for knob, default in registry.knobs(name).items():
                accepted = f" ({ranges[knob]})" if knob in ranges else ""
                lines.append(f"    - `{knob}={default!r}`{accepted}: {meanings[knob]}")
    return "\n".join([*lines, ""])


def _print_backends(pattern: str) -> None:
    """Prints what each attention back end needs, and why it cannot run on this machine."""
    found = fnmatch.filter(BACKENDS, pattern)
    if not found:
        raise ValueError(f"no back end matches {pattern!r}; there are {', '.join(BACKENDS)}")
    print("attention back ends")
    for name in found:
        reason = usable()[name]
        state = "usable" if reason is None else f"not here: {reason}"
        print(f"  {name:<11}{state}\n             needs {BACKENDS[name].needs}")


def _print_experiments(pattern: str) -> None:
    """Prints the presets of the command line."""
    from adaptok.config.menu import presets

    known = presets()
    found = fnmatch.filter(known, pattern)
    if not found:
        raise ValueError(f"no experiment matches {pattern!r}; there are {', '.join(known)}")
    print("experiments (adaptok train experiment=NAME)")
    for name in found:
        print(
            textwrap.fill(
                f"{name}: {known[name]}", 98, initial_indent="  ", subsequent_indent="    "
            )
        )
    print()


def _print_combinations(pattern: str) -> None:
    """Builds every combination and prints what is typed for it, or why it is refused."""
    counts = {"valid": 0, "refused": 0}
    for combination in combinations(pattern):
        state = "valid" if combination.reason is None else "refused"
        counts[state] += 1
        because = "" if combination.reason is None else f": {combination.reason}"
        print(f"{state:<8} {' '.join(combination.overrides)}{because}")
    if not any(counts.values()):
        raise ValueError(
            f"no combination matches {pattern!r}; a pattern is part of what is typed, such as "
            "processor=axial or 'tokenizer=iap*decoder=linear'"
        )
    print(", ".join(f"{number} {state}" for state, number in counts.items()))


def _plural(registry: Registry) -> str:
    return registry.group.removeprefix("adaptok.")


def _kinds() -> dict[str, Registry]:
    from adaptok.evaluation import metrics  # noqa: F401  enters the metrics
    from adaptok.training import optim  # noqa: F401  enters the losses

    registries = [*REGISTRIES]
    with contextlib.suppress(ModuleNotFoundError):  # the core alone has no data
        from adaptok.data.synthetic import SOLVERS

        registries.append(SOLVERS)
    return {registry.kind: registry for registry in registries}
