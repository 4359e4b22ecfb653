"""Checks arguments against the annotations of their parameters, ranges included.

One mechanism for knobs of parts, ours and those of plug-ins, and for leaves of configurations:
``depth: Annotated[int, Ge(1)]`` with the constraints of the package annotated-types is all that a
parameter needs; a string in place of constraints is what messages say is accepted. What an
annotation does not say, such as "a divisor of dim", stays with the code.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import annotated_types as at
import numpy as np
import torch

NEAR = 0.8  # likeness of a name that is rather meant than a knob of a part
LARGEST = 2**31 - 1  # of counts and sizes: beyond it, memory would be asked for that no machine has
Positive = Annotated[int, at.Interval(ge=1, le=LARGEST)]
NonNegative = Annotated[int, at.Interval(ge=0, le=LARGEST)]
Dimensions = Annotated[int, at.Interval(ge=1, le=3)]  # of space
Depth = Annotated[int, at.Interval(ge=0, le=10_000)]  # blocks, levels
Degree = Annotated[int, at.Interval(ge=0, le=1)]  # of polynomials on cells
Seed = Annotated[int, at.Interval(ge=-(2**63), le=2**63 - 1)]
PerAxis = Positive | Sequence[Positive]  # grid points, one number or one per space axis
LevelSizes = Annotated[tuple[tuple[Positive, ...], ...], at.Len(1)]
PositiveFloat = Annotated[float, at.Gt(0), at.Predicate(math.isfinite)]
NonNegativeFloat = Annotated[float, at.Ge(0), at.Predicate(math.isfinite)]
Finite = Annotated[float, at.Predicate(math.isfinite)]
Share = Annotated[float, at.Interval(ge=0, le=1)]
PositiveShare = Annotated[float, at.Interval(gt=0, le=1)]
Rate = Annotated[float, at.Interval(ge=0, lt=1)]  # of what is dropped
Power = Annotated[float, at.Interval(gt=0, le=100)]
SizePower = Annotated[float, at.Interval(ge=0, le=8)]  # of a cell's size, in a score
Base = Annotated[float, at.Interval(gt=0, le=1e12)]  # of rotary frequencies
Scale = Annotated[float, at.Interval(ge=-1e6, le=1e6)]
Ratio = Annotated[float, at.Interval(gt=0, le=1024)]  # of widths

NOUNS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}


def check_arguments(factory: Callable[..., Any], given: Mapping[str, Any], what: str = "") -> None:
    """Checks the arguments of a call by name; one without an annotation passes.

    Args:
        factory: a function, or a class whose constructor takes them.
        given: values by the name of their parameter.
        what: is built, in front of the message.

    Raises:
        ValueError: a value of another type or outside its range; says what is accepted.
    """
    tests = _tests_of(factory)
    for name, value in given.items():
        if name in tests and not tests[name](value):
            check_value(value, hints_of(factory)[name], f"{what}: {name}" if what else name)


Pair = Annotated[Sequence[Finite], at.Len(2, 2)]  # the ends of a range
Weights = Sequence[NonNegativeFloat]
Bins = Annotated[int, at.Interval(ge=2, le=2**20)]
Weighted = bool | Annotated[float, at.Interval(ge=0, le=100)]  # True is 1
Settings = Annotated[Sequence[Mapping[str, Any]], at.Len(1)]  # controls by name, one or several
Halvings = Annotated[int, at.Interval(ge=0, le=16)]

Function = TypeVar("Function", bound=Callable[..., Any])


def checked(function: Function) -> Function:
    """Decorates a function or constructor whose arguments are checked before it runs, but for
    ``**options``; in a graph that is traced they are not.
    """
    signature = inspect.signature(function)
    rest = {p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            given = _bound(function, signature, args, kwargs)
            check_arguments(function, {k: v for k, v in given.items() if k not in rest})
        return function(*args, **kwargs)

    return cast(Function, call)


def checked_names(function: Function) -> Function:
    """Decorates a function of which only the names and number of arguments are checked."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _bound(function, signature, args, kwargs)
        return function(*args, **kwargs)

    return cast(Function, call)


def _bound(
    function: Callable[..., Any],
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        name = function.__qualname__.removesuffix(".__init__")
        reason = _misfit(function, signature, args, kwargs) or str(error)
        raise TypeError(f"{name}: {reason}") from None


def _misfit(
    function: Callable[..., Any],
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> str | None:
    """Says which arguments of a call a signature has no place for, and what it takes."""
    from adaptok.registry import close_matches, knob_of_part, moved_later  # which need this module

    parameters = signature.parameters.values()
    kinds = {p.kind for p in parameters}
    known = [p.name for p in parameters if p.name != "self"]
    unknown = [name for name in kwargs if name not in known]
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        given = {p.name: kwargs.get(p.name, p.default) for p in parameters}
        word, value = unknown[0], kwargs[unknown[0]]
        free = [p for p in parameters if p.name not in kwargs]
        hints = hints_of(function)
        meant = [p for p in free if accepts(hints.get(p.name, Any), value)]
        needed = [p.name for p in meant if p.default is p.empty]
        hint = moved_later(word) or close_matches(word, needed, NEAR)
        hint = hint or close_matches(word, [p.name for p in meant], NEAR)
        hint = hint or knob_of_part(word, value, given)
        hint = hint or close_matches(word, known)
        return f"got an unexpected argument {unknown[0]!r}{hint}; accepted: {', '.join(known)}"
    ordered = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(args) > len(ordered) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        own = [name for name in ordered if name != "self"]
        count = len(args) - len(ordered) + len(own)
        named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        by_name = f"; by name: {', '.join(named)}" if named else ""
        return f"takes by position {', '.join(own) or 'nothing'}, got {count} arguments{by_name}"
    return None


def check_fields(instance: Any) -> None:
    """Checks the fields of a dataclass, for its ``__post_init__``."""
    check_arguments(type(instance), vars(instance))


def check_value(value: Any, hint: Any, name: str) -> None:
    """Checks a value against an annotation; in a graph that is traced it does not.

    Raises:
        ValueError: says what is accepted, and what was given.
    """
    if not torch.compiler.is_compiling() and not accepts(hint, value):
        big = isinstance(value, numbers.Integral) and abs(int(value)) > LARGEST
        large = ", which is too large" if big else ""
        raise ValueError(f"{name} must be {described(hint)}, got {shown(value)}{large}")


def shown(value: Any) -> str:
    """How messages show a value: in one line that is not long."""
    if isinstance(value, torch.Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def kind_of(value: Any) -> str:
    """How messages name the type of what is no tensor."""
    if isinstance(value, np.ndarray):
        return "a numpy array: torch.from_numpy makes a tensor of it"
    return _with_article(type(value).__name__)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeio' else 'a'} {noun}"


@functools.lru_cache(maxsize=1024)
def hints_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """Resolves the annotations of the parameters; ``**options`` are those of the base class."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    found: dict[str, Any] = {}
    # the constructor of a dataclass was made elsewhere
    if inspect.isclass(factory) and dataclasses.is_dataclass(factory):
        for each in inspect.getmro(factory):
            found = _resolved(each, vars(sys.modules[each.__module__])) | found
        return found
    for each in factory.__mro__[:-1] if inspect.isclass(factory) else (factory,):
        function = each.__init__ if inspect.isclass(each) else each
        function = inspect.unwrap(function)
        found = _resolved(function, getattr(function, "__globals__", {})) | found
        if not any(
            p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()
        ):
            break
    return found


def _resolved(source: Any, names: dict[str, Any]) -> dict[str, Any]:
    """Leaves out annotations that name what only type checkers import."""
    found = {}
    for name, hint in inspect.get_annotations(source).items():
        try:
            found[name] = eval(hint, {**names}) if isinstance(hint, str) else hint
        except Exception:
            continue
    return found


Test = Callable[[Any], bool]


def accepts(hint: Any, value: Any) -> bool:
    """Tells whether an annotation accepts a value. A bool is no number, an int is a float, a list
    does for a tuple, and NaN is no number.
    """
    return _test(hint)(value)


@functools.lru_cache(maxsize=1024)
def _tests_of(factory: Callable[..., Any]) -> dict[str, Test]:
    return {name: _test(hint) for name, hint in hints_of(factory).items()}


@functools.lru_cache(maxsize=1024)
def _test(hint: Any) -> Test:
    """Reads an annotation once, because calls of tokenizers and cells are checked too."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return lambda value: True
    if origin is Annotated:
        base, limits = _test(arguments[0]), [t for each in arguments[1:] for t in _limits(each)]
        return lambda value: base(value) and all(limit(value) for limit in limits)
    if origin in (typing.Union, types.UnionType):
        either = [_test(each) for each in arguments]
        return lambda value: any(test(value) for test in either)
    if origin is Literal:
        return lambda value: any(type(value) is type(one) and value == one for one in arguments)
    if hint is None or hint is type(None):
        return lambda value: value is None
    if hint in (bool, int, float, str):
        return functools.partial(_is_plain, hint)
    if origin is tuple and arguments[-1:] != (...,):
        each = [_test(one) for one in arguments]
        return lambda value: (
            _is_list(value)
            and len(value) == len(each)
            and all(test(one) for test, one in zip(each, value, strict=True))
        )
    if origin in (tuple, list, Sequence, Collection) or hint in (tuple, list, Sequence):
        one_of = _test(arguments[0] if arguments else Any)
        return lambda value: _is_list(value) and all(map(one_of, value))
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        key, item = (_test(one) for one in arguments or (Any, Any))
        return lambda value: (
            isinstance(value, Mapping) and all(key(k) and item(v) for k, v in value.items())
        )
    if origin is Callable or hint is Callable:
        return callable
    kind = origin or hint
    if not inspect.isclass(kind) or getattr(kind, "_is_protocol", False) or kind is object:
        return lambda value: True
    if getattr(hint, "array_type", None) is torch.Tensor:  # of jaxtyping
        return lambda value: isinstance(value, torch.Tensor) and _is_of_dtype(hint, value)
    return lambda value: isinstance(value, kind)


def _is_plain(kind: type, value: Any) -> bool:
    if kind is str:
        return isinstance(value, str)
    if isinstance(value, (bool, np.bool_)):
        return kind is bool
    if kind is float:
        return isinstance(value, numbers.Real) and bool(value == value)
    return kind is int and isinstance(value, numbers.Integral)


def _is_of_dtype(hint: Any, value: torch.Tensor) -> bool:
    named = isinstance(hint.dtypes, (list, tuple))  # else any will do
    return not named or str(value.dtype).removeprefix("torch.") in hint.dtypes


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (
        isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    )


def _limits(constraint: Any) -> list[Test]:
    """Reads a constraint; what is no constraint always holds."""
    tests: dict[Any, Callable[[Any], Test]] = {
        at.Gt: lambda c: lambda value: value > c.gt,
        at.Ge: lambda c: lambda value: value >= c.ge,
        at.Lt: lambda c: lambda value: value < c.lt,
        at.Le: lambda c: lambda value: value <= c.le,
        at.MinLen: lambda c: lambda value: len(value) >= c.min_length,
        at.MaxLen: lambda c: lambda value: len(value) <= c.max_length,
        at.MultipleOf: lambda c: lambda value: value % c.multiple_of == 0,
        at.Predicate: lambda c: lambda value: bool(c.func(value)),
    }
    if isinstance(constraint, at.GroupedMetadata):
        return [test for each in constraint for test in _limits(each)]
    return [tests[type(constraint)](constraint)] if type(constraint) in tests else []


def described(hint: Any) -> str:
    """Says in words what an annotation accepts."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated and isinstance(arguments[1], str):
        return arguments[1]
    if origin is Annotated:
        words = [_words(c) for each in arguments[1:] for c in _parts(each)]
        about = " ".join(["", " and ".join(filter(None, words))]).rstrip()
        kind, comma, each_of = described(arguments[0]).partition(", ")  # of a list, its items
        if at.Predicate(math.isfinite) in arguments[1:]:
            kind = kind.replace("a number", "a finite number")
        return f"{kind}{about}{comma}{each_of}"
    if origin in (typing.Union, types.UnionType):
        lists = [Sequence[each] for each in arguments]  # of what one may be given of, too
        words = ("a list of them" if each in lists else described(each) for each in arguments)
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if hint is None:
        return NOUNS[type(None)]
    if hint in NOUNS:
        return NOUNS[hint]
    if origin is tuple and arguments[-1:] != (...,):
        return f"a list of {', '.join(described(each) for each in arguments)}"
    if origin in (tuple, list, Sequence, Collection):
        return f"a list, each {described(arguments[0])}"
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return "a mapping"
    if origin is Callable or hint is Callable:
        return "something to call"
    if getattr(hint, "array_type", None) is torch.Tensor:
        kind = hint.dtype.__name__.lower().replace("float", "floating-point ").strip()
        return f"{_with_article(kind)} tensor ({hint.dim_str})"
    return _with_article(getattr(hint, "__name__", str(hint)))


def has_range(hint: Any) -> bool:
    """Whether an annotation says more than a type."""
    return get_origin(hint) is Annotated or any(map(has_range, get_args(hint)))


def _parts(constraint: Any) -> list[Any]:
    if isinstance(constraint, at.Len) and constraint.min_length == constraint.max_length:
        return [constraint]
    return list(constraint) if isinstance(constraint, at.GroupedMetadata) else [constraint]


def _words(constraint: Any) -> str:
    words: dict[Any, Callable[[Any], str]] = {
        at.Gt: lambda c: f"above {c.gt}",
        at.Ge: lambda c: f"of at least {c.ge}",
        at.Lt: lambda c: f"below {c.lt}",
        at.Le: lambda c: "" if c.le == LARGEST else f"of at most {c.le}",
        at.Len: lambda c: f"of length {c.min_length}",
        at.MinLen: lambda c: f"of length {c.min_length} or more",
        at.MaxLen: lambda c: f"of length {c.max_length} or less",
        at.MultipleOf: lambda c: f"that {c.multiple_of} divides",
        at.Predicate: lambda c: (
            "" if c.func is math.isfinite else f"that {c.func.__name__.replace('_', ' ')}"
        ),
    }
    word = words.get(type(constraint))
    return word(constraint) if word else ""
