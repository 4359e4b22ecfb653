"""Hostile values, and the calls that get them: one value in place of one good argument."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import adaptok
from adaptok import cells_from_boxes, create_surrogate, create_tokenizer
from adaptok.cells import Cells
from adaptok.data.synthetic.solver import SOLVERS
from adaptok.evaluation.metrics import mse, nmse
from adaptok.layers.mixed import painted
from adaptok.models.baselines import BASELINES, create_baseline
from adaptok.registry import LOSSES, METRICS
from adaptok.tokens import TokenSet

NAN, INF = float("nan"), float("inf")


class Hostile:
    """A class that takes no arguments."""


VALUES: dict[str, Callable[[], Any]] = {  # made anew for each call: some are used up
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "np.bool": lambda: np.True_,
    "nan": lambda: NAN,
    "inf": lambda: INF,
    "-inf": lambda: -INF,
    "0": lambda: 0,
    "-0.0": lambda: -0.0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "3": lambda: 3,
    "1.5": lambda: 1.5,
    "1e-30": lambda: 1e-30,
    "10**30": lambda: 10**30,
    "-(10**30)": lambda: -(10**30),
    "1j": lambda: 1j,
    "empty text": lambda: "",
    "abc": lambda: "abc",
    "digit": lambda: "1",
    "NUL": lambda: "a\0/../b",
    "bytes": lambda: b"1",
    "[]": lambda: [],
    "()": lambda: (),
    "[None]": lambda: [None],
    "[[]]": lambda: [[]],
    "[nan, 1]": lambda: [NAN, 1.0],
    "[1, 0]": lambda: [1, 0],
    "[10**30, 10**30]": lambda: [10**30] * 2,
    "['a']": lambda: ["a"],
    "{}": lambda: {},
    "{1: 2}": lambda: {1: 2},
    "set": lambda: {1, 2},
    "range": lambda: range(2),
    "generator": lambda: (n for n in (4, 8)),
    "object": object,
    "class": lambda: Hostile,
    "lambda": lambda: lambda: None,
    "module": lambda: np,
    "np.int64": lambda: np.int64(2),
    "np.float32": lambda: np.float32(NAN),
    "np 0-d": lambda: np.array(4),
    "np array": lambda: np.array([4, 8]),
    "np objects": lambda: np.array([None, "a"], dtype=object),
    "tensor 0-d": lambda: torch.tensor(4),
    "tensor nan": lambda: torch.full((2, 2), NAN),
    "tensor int": lambda: torch.full((2, 2), 9),
    "tensor bool": lambda: torch.ones(2, 2, dtype=torch.bool),
    "tensor half": lambda: torch.zeros(2, dtype=torch.float16),
    "tensor complex": lambda: torch.zeros(2, 1, 2, 16, 16, dtype=torch.complex64),
    "tensor empty": lambda: torch.zeros(0),
    "tensor meta": lambda: torch.empty(2, 2, device="meta"),
    "tensor int meta": lambda: torch.empty(2, 2, dtype=torch.int64, device="meta"),
}


class Case(NamedTuple):
    """A call, the argument that a hostile value replaces, and what messages may call it."""

    where: str
    argument: str
    call: Callable[[Any], Any]
    names: tuple[str, ...] = ()


def outcome(case: Case, value: Any) -> str | None:
    """Says what is wrong with how a call ends, None if nothing is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = case.call(value)
    except ValueError as error:
        words = (case.argument, *SYNONYMS.get(case.argument, ()), *case.names)
        return None if any(w in str(error) for w in words) else f"does not name it: {error}"
    except Exception as error:
        if type(error).__name__ == "TypeCheckError":
            return None  # of the tests' own hook, after a call that has succeeded
        return f"{type(error).__name__}: {error}"
    return wrong_result(result)


def wrong_result(result: Any) -> str | None:
    """Says what is wrong with a result: numbers that are not finite, cells that are none."""
    if isinstance(result, TokenSet):
        return wrong_result(result.cells) or wrong_result(result.features)
    if isinstance(result, Cells) and not result.cu_seqlens.is_meta:
        try:
            result.validate()
        except Exception as error:
            return f"silently invalid: {type(error).__name__}: {error}"
    if isinstance(result, torch.Tensor) and not result.is_meta:
        return None if bool(result.isfinite().all()) else "silently not finite"
    return None


def field(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Two samples of two channels on 16 x 16 points, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 1, 2, 16, 16, generator=generator).to(dtype)


SMALL: dict[str, Any] = {"ndim": 2, "in_channels": 2, "dim": 16}
SYNONYMS = {  # what else a message may call a knob, which becomes one of another name
    "fraction": ("ratio",),
    "thresholds": ("threshold(s)",),
    "positions": ("position",),
    "settings": ("schedule",),
    "max_size": ("cells of at most",),
    "out_channels": ("output",),
}


def all_cases() -> Iterator[Case]:
    """Every knob of every registered part, and every argument of the public calls."""
    yield from knobs_of_parts()
    yield from knobs_of_models()
    yield from measures()
    yield from calls()


def _knobs(registry: Any, name: str, make: Callable[..., Any]) -> Iterator[Case]:
    for knob in registry.knobs(name):
        yield Case(f"{registry.kind} {name}", knob, lambda v, k=knob: make(**{k: v}))


def knobs_of_parts() -> Iterator[Case]:
    """Tokenizers and what they are composed of, processors, decoders, positions."""
    x = field()
    small = {"min_size": 2, "max_size": 8}
    for name in adaptok.TOKENIZERS.names():

        def whole(name: str = name, **knobs: Any) -> TokenSet:
            return create_tokenizer(name, **SMALL, **knobs)(x)

        yield from _knobs(adaptok.TOKENIZERS, name, whole)
    inner = {
        "indicator": adaptok.INDICATORS,
        "marking": adaptok.MARKINGS,
        "embedding": adaptok.EMBEDDINGS,
    }
    for kind, registry in inner.items():
        for name in registry.names():

            def composed(kind: str = kind, name: str = name, **knobs: Any) -> TokenSet:
                part = {"name": name, **knobs}
                return create_tokenizer("composed", **SMALL, **small, **{kind: part})(x)

            yield from _knobs(registry, name, composed)
    ckm = create_tokenizer("ckm", **SMALL)
    iap = create_tokenizer("iap", **SMALL, **small, budget=32)
    tokens = {"ckm": ckm(x), "iap": iap(x)}
    for name in adaptok.PROCESSORS.names():

        def process(name: str = name, **knobs: Any) -> TokenSet:
            given = {"depth": 1, "heads": 2} | knobs
            return adaptok.create_processor(name, iap.spec, **given).eval()(tokens["iap"])

        yield from _knobs(adaptok.PROCESSORS, name, process)
    for name in adaptok.POSITIONS.names():

        def place(name: str = name, **knobs: Any) -> TokenSet:
            part = {"name": name, **knobs}
            made = adaptok.create_processor("vit", iap.spec, depth=1, heads=2, positions=part)
            return made.eval()(tokens["iap"])

        yield from _knobs(adaptok.POSITIONS, name, place)
    for name in adaptok.DECODERS.names():
        source = "ckm" if name == "modulated" else "iap"

        def paint(name: str = name, source: str = source, **knobs: Any) -> torch.Tensor:
            given = {"heads": 2} | knobs if "heads" in adaptok.DECODERS.knobs(name) else knobs
            spec = {"ckm": ckm, "iap": iap}[source].spec
            decoder = adaptok.create_decoder(name, spec, 2, **given)
            return painted(decoder, tokens[source], field=x)

        yield from _knobs(adaptok.DECODERS, name, paint)


def knobs_of_models() -> Iterator[Case]:
    """Baselines, schedules, solvers, losses and metrics, and what builds whole models."""
    x = field()
    for name in BASELINES.names():
        if name != "well":  # another package's

            def run(name: str = name, **knobs: Any) -> torch.Tensor:
                part = {"name": name, **knobs}
                return create_baseline(part, ndim=2, in_channels=2)(x)

            yield from _knobs(BASELINES, name, run)
    for name in adaptok.SCHEDULES.names():
        yield from _knobs(
            adaptok.SCHEDULES,
            name,
            lambda n=name, **knobs: adaptok.create_schedule({"name": n, **knobs})(3),
        )
    for name in SOLVERS.names():
        yield from _knobs(
            SOLVERS, name, lambda n=name, **knobs: SOLVERS.create(n, **knobs).settings
        )
    parts = {"tokenizer": {"name": "iap", "budget": 32, "max_size": 8}, "depth": 1, "heads": 2}
    surrogate = {**SMALL, **parts, "history": 1}
    yield from _arguments("create_surrogate", create_surrogate, surrogate, predicted)
    fields = {"ndim": 2, "fields": ["a", "b"], "dim": 16, "depth": 1, "heads": 2}
    yield from _arguments(
        "create_multiphysics",
        adaptok.create_multiphysics,
        fields,
        lambda m: predicted(m.system(m.fields)),
    )
    baseline = {"baseline": "fno", "ndim": 2, "in_channels": 2}
    yield from _arguments("create_baseline", create_baseline, baseline, predicted)
    tokenizer = {"name": "iap", **SMALL}
    yield from _arguments("create_tokenizer", create_tokenizer, tokenizer, tokenized)
    spec = create_tokenizer("iap", **SMALL).spec
    for build, given in (
        (adaptok.create_processor, {"name": "vit", "spec": spec}),
        (adaptok.create_decoder, {"name": "linear", "spec": spec, "out_channels": 2}),
        (adaptok.TokenizerSpec, {**SMALL, "sizes": ((1, 4, 4),)}),
    ):
        yield from _arguments(build.__name__, build, given, lambda made: made)


def measures() -> Iterator[Case]:
    """Arguments of metrics and losses."""
    x, y = field(), field().flip(-1)
    named = {name: METRICS.get(name) for name in METRICS.names()}
    for name, metric in {"mse": mse, "nmse": nmse, **named}.items():
        given = {"prediction": x, "target": y, "ndim": 2}
        yield from _arguments(name, metric, given, lambda made: made)
    for name in LOSSES.names():
        loss = LOSSES.get(name)
        yield from _arguments(name, loss, {"error": x, "target": y}, lambda made: made)


def predicted(model: Any) -> torch.Tensor:
    """The prediction of a model for a field that suits it."""
    space = (16,) * model.ndim
    constants = torch.rand(2, model.constant_channels, *space) if model.constant_channels else None
    x = torch.rand(2, model.history, model.in_channels, *space)
    return model.eval()(x, constants=constants)


def tokenized(tokenizer: Any) -> TokenSet:
    """The tokens of a field that suits the tokenizer."""
    spec = tokenizer.spec
    return tokenizer(torch.rand(2, 1, spec.in_channels, *(32,) * spec.ndim))


def _arguments(
    where: str, call: Callable[..., Any], given: Mapping[str, Any], use: Callable[[Any], Any]
) -> Iterator[Case]:
    """Each argument of a call, the others being given; the result is used."""
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD:
            name = parameter.name
            kind = (where.removeprefix("create_"),) if name == "name" else ()
            yield Case(where, name, lambda v, n=name: use(call(**{**given, n: v})), kind)


def calls() -> Iterator[Case]:
    """Fields, controls, boundary codes, cells and tokens in calls of tokenizers and models."""
    x = field()
    made = {
        "iap": create_tokenizer("iap", **SMALL, budget=32, max_size=8),
        "apt": create_tokenizer("apt", **SMALL, thresholds=(3.0, 2.0)),
        "matey": create_tokenizer("matey", **SMALL, sizes=(4, 8)),
        "matey fraction": create_tokenizer("matey", **SMALL, sizes=(4, 8), fraction=0.5),
        "random": create_tokenizer("composed", **SMALL, marking={"name": "random", "budget": 32}),
        "ckm": create_tokenizer("ckm", **SMALL),
        "csm": create_tokenizer("csm", **SMALL),
        "uniform": create_tokenizer("uniform", **SMALL, size=4, patch_sizes=[4, 8]),
    }
    for name, tokenizer in made.items():
        cells = tokenizer.cells(x)
        for argument in ("boundary", *tokenizer.controls):
            yield Case(name, argument, lambda v, t=tokenizer, a=argument: t(x, **{a: v}))
            yield Case(
                f"{name}.cells", argument, lambda v, t=tokenizer, a=argument: t.cells(x, **{a: v})
            )
        yield Case(name, "field", lambda v, t=tokenizer: t(v))
        yield Case(name, "field in a list", lambda v, t=tokenizer: t([x[0], v]), ("field",))
        yield Case(f"{name}.cells", "field", lambda v, t=tokenizer: t.cells(v))
        yield Case(f"{name}.embed", "field", lambda v, t=tokenizer, c=cells: t.embed(v, c))
        yield Case(f"{name}.embed", "cells", lambda v, t=tokenizer: t.embed(x, v))
        yield Case(
            f"{name}.embed", "boundary", lambda v, t=tokenizer, c=cells: t.embed(x, c, boundary=v)
        )
    tokens = made["iap"](x)
    for part in (
        adaptok.create_processor("vit", made["iap"].spec, depth=1, heads=2),
        adaptok.create_decoder("linear", made["iap"].spec, 2),
        adaptok.create_decoder("cross_attention", made["iap"].spec, 2, heads=2),
        adaptok.create_decoder("boxes", made["iap"].spec, 2),
    ):
        yield Case(type(part).__name__, "tokens", lambda v, p=part: p(v))
    yield from _calls_of_models(x)
    yield from _constructors(tokens)


def _calls_of_models(x: torch.Tensor) -> Iterator[Case]:
    iap = {"name": "iap", "budget": 32, "max_size": 8}
    options: dict[str, Any] = {"ndim": 2, "in_channels": 2}
    model = create_surrogate(**SMALL, tokenizer=iap, depth=1, heads=2)
    baseline = create_baseline("unet", **options)
    fixed = create_surrogate(**SMALL, tokenizer=iap, depth=1, heads=2, constant_channels=1)
    for name, each in (("surrogate", model), ("baseline", baseline)):
        yield Case(name, "field", each)
        for argument in ("constants", "boundary", "all_frames"):
            yield Case(name, argument, lambda v, m=each, a=argument: m(x, **{a: v}))
        yield Case(f"{name}.rollout", "field", lambda v, m=each: m.rollout(v, 1))
        for argument in ("constants", "boundary", "settings", "grad"):
            yield Case(
                f"{name}.rollout", argument, lambda v, m=each, a=argument: m.rollout(x, 1, **{a: v})
            )
    yield Case("surrogate.rollout", "n_steps", lambda v: model.rollout(x, v))
    yield Case("surrogate", "budget", lambda v: model(x, budget=v))
    yield Case("surrogate.cells", "budget", lambda v: model.cells(x, budget=v))
    yield Case("surrogate with constants", "constants", lambda v: fixed(x, constants=v))
    yield Case("list", "constants", lambda v: fixed([x[0], x[1]], constants=v), ("constant",))


def _constructors(tokens: TokenSet) -> Iterator[Case]:
    cells = tokens.cells
    for name in ("features", "cells", "cond", "payload"):
        given = {"features": tokens.features, "cells": cells}
        yield Case("TokenSet", name, lambda v, n=name, g=given: TokenSet(**{**g, n: v}))
    for name in (
        "origin",
        "size",
        "level",
        "cu_seqlens",
        "max_seqlen",
        "lengths",
        "shape",
        "sizes",
    ):
        yield Case("Cells", name, lambda v, n=name: cells.replace(**{n: v}).validate())
    boxes: dict[str, Any] = {"origin": [[0, 0, 0]], "size": [[1, 4, 4]], "lengths": [1]}
    boxes |= {"shape": (1, 4, 4), "sizes": [(1, 4, 4)]}
    yield from _arguments("cells_from_boxes", cells_from_boxes, boxes, lambda made: made)
    score: dict[str, Any] = {"score": torch.rand(2, 16, 16), "min_size": 2, "max_size": 8}
    score["budget"] = 32
    yield from _arguments("cells_from_score", adaptok.cells_from_score, score, lambda made: made)
    q = torch.rand(len(cells), 2, 8)
    attend: dict[str, Any] = {"q": q, "k": q, "v": q, "groups_q": cells.groups()}
    yield from _arguments("attend", adaptok.attend, attend, lambda made: made)
    kernel: dict[str, Any] = {"weight": torch.rand(2, 2, 4, 4), "new_size": 2}
    yield from _arguments("pi_resize", adaptok.pi_resize, kernel, lambda made: made)


@contextlib.contextmanager
def little_memory(gigabytes: float = 6.0) -> Iterator[None]:
    """Refuses large allocations in the block, so that a size that is not checked is an error."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gigabytes * 1e9), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
