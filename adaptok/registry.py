"""Named parts: the one mechanism behind `tokenizer=iap` in Python, in YAML and on the command line.

A parameter *without* a default is wired by the model (``ndim``, ``in_channels``, ``dim``, ``spec``
...); a parameter *with* a default is a knob and may appear in YAML and on the command line.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import inspect
import re
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from adaptok.utils.arguments import check_arguments, described, has_range, hints_of, shown

Factory = TypeVar("Factory", bound=Callable[..., Any])
# A name, {"name": name, **knobs}, a class or factory (also as that "name"), or a ready part.
Part = str | Mapping[str, Any] | Callable[..., Any]
RENAMED = {"recipe": "norm_placement"}  # former names of knobs, for messages


class Registry:
    """Named factories of one kind of part.

    Third-party packages add entries through the Python entry-point group ``adaptok.<kind>s``,
    loaded on first use; an entry that fails to load warns and is left out.

    Args:
        kind: singular name of the part ("tokenizer"), used in messages and in the entry-point
            group.
        plural: of `kind`, if it does not end in s.
        needs: attributes that every such part has.
    """

    def __init__(self, kind: str, plural: str = "", needs: Collection[str] = ()):
        self.kind, self.needs = kind, needs
        self.group = f"adaptok.{plural or kind + 's'}"
        self._factories: dict[str, Callable[..., Any]] = {}
        self._finishing: list[Callable[..., Any]] = []
        self._plugins_loaded = self._loading = False
        self._lock = threading.RLock()

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Decorates a class or factory to register it under `name`; one that is defined again, as
        by a cell of a notebook, replaces itself, and any other duplicate raises ``ValueError``.
        """

        def enter(factory: Factory) -> Factory:
            there = self._factories.get(name)
            if there is not None and (
                _place_of(there) is None or _place_of(factory) != _place_of(there)
            ):
                raise ValueError(
                    f"{self.kind} {name!r} is already registered, by {_place_of(there) or there}; "
                    "choose another name, or give the class or function itself in place of a name"
                )
            self._factories[name] = factory
            return factory

        return enter

    def finish(self, function: Factory) -> Factory:
        """Decorates ``function(part, *, knob=default)``: its knobs are knobs of every part of this
        kind, and a part that is built with one of them goes through it. A factory with such a knob
        of its own keeps it.
        """
        self._finishing.append(function)
        return function

    def names(self, pattern: str = "*") -> list[str]:
        """Lists the names that match a shell-style pattern, sorted."""
        self._load_plugins()
        return sorted(fnmatch.filter(self._factories, pattern))

    def get(self, name: str | Callable[..., Any]) -> Callable[..., Any]:
        """Returns the factory of a name, or the one given; an unknown name raises ``ValueError``
        with close matches.
        """
        if not isinstance(name, str):
            return name
        self._load_plugins()
        if name not in self._factories:
            raise ValueError(
                f"unknown {self.kind} {name!r}{close_matches(name, self._factories)}; "
                f"registered: {', '.join(sorted(self._factories))}"
            )
        return self._factories[name]

    def knobs(self, name: str | Callable[..., Any]) -> dict[str, Any]:
        """Returns the parameters that have a default, with that default."""
        return {p.name: p.default for p in self._parameters(name) if p.default is not p.empty}

    def wired(self, name: str | Callable[..., Any]) -> list[str]:
        """Lists the parameters without a default, which the model fills in."""
        return [p.name for p in self._parameters(name) if p.default is p.empty]

    def meanings(self, name: str) -> dict[str, str]:
        """Returns what the docstring says of each knob under "Args:", or "" if it says nothing."""
        said = documented_args(self.get(name))
        for function in self._finishing:
            said = documented_args(function) | said
        return {knob: said.get(knob, "") for knob in self.knobs(name)}

    def hints(self, name: str | Callable[..., Any]) -> dict[str, Any]:
        """Returns the annotations of the parameters."""
        hints = hints_of(self.get(name))
        for function in self._finishing:
            hints = hints_of(function) | hints
        return hints

    def ranges(self, name: str) -> dict[str, str]:
        """Returns in words what each knob accepts whose annotation has a range."""
        hints = self.hints(name)
        named = {knob: hints.get(knob, Any) for knob in self.knobs(name)}
        return {knob: described(hint) for knob, hint in named.items() if has_range(hint)}

    def describe(self, name: str) -> str:
        """Returns name and first line of the docstring, then default, range and meaning of each
        knob.
        """
        doc = (inspect.getdoc(self.get(name)) or "").partition("\n")[0]
        defaults, ranges = self.knobs(name), self.ranges(name)
        lines = [
            f"  {knob}={defaults[knob]!r}"
            + (f" ({ranges[knob]})" if knob in ranges else "")
            + (f": {meaning}" if meaning else "")
            for knob, meaning in self.meanings(name).items()
        ]
        return "\n".join([f"{name}: {doc}", *lines])

    def create(self, name: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Builds the part.

        Raises:
            ValueError: an unknown knob, or a value that the annotation of its parameter does not
                accept, see `adaptok.utils.arguments`; lists what is accepted.
        """
        factory, what = self.get(name), f"{self.kind} {name_of(name)!r}"
        self.check_knobs(name, kwargs)
        names = [p.name for p in _parameters_of(factory)]
        own = {knob: value for knob, value in kwargs.items() if knob in names}
        check_arguments(factory, dict(zip(names, args, strict=False)) | own, what)
        finish = []
        for function in self._finishing:
            knobs = [p.name for p in _parameters_of(function)]
            more = {k: value for k, value in kwargs.items() if k in knobs and k not in own}
            check_arguments(function, more, what)
            finish += [functools.partial(function, **more)] * bool(more)
        part = factory(*args, **own)
        for function in finish:
            part = function(part)
        return part

    def check_knobs(self, name: str | Callable[..., Any], given: Iterable[str]) -> None:
        """Raises ``ValueError`` for a parameter that the factory does not have."""
        known = [p.name for p in self._parameters(name)]
        for knob in given:
            if knob not in known:
                raise ValueError(
                    f"{self.kind} {name_of(name)!r} has no knob {knob!r}"
                    f"{moved_later(knob) or close_matches(knob, known)}; "
                    f"its knobs: {', '.join(self.knobs(name)) or 'none'}"
                )

    def split(self, part: Part) -> tuple[Any, dict[str, Any]]:
        """Splits a part into its name, its factory or the ready part, and its knobs.

        Raises:
            ValueError: neither, or knobs for a part that is ready.
        """
        if isinstance(part, Mapping) and callable(part.get("name")):
            if not is_factory(part["name"]):
                raise ValueError(f"this {self.kind} is ready and takes no knobs: {name_of(part)}")
            return part["name"], {str(k): v for k, v in part.items() if k != "name"}
        if callable(part):
            return part, {}
        return split_part(part, self.kind)

    def says(self, part: Part, name: str) -> Any:
        """Returns what a part, or its class, says by an attribute; None without it."""
        source, _ = self.split(part)
        source = self.get(source)
        while isinstance(source, functools.partial):
            source = source.func
        return getattr(source, name, None)

    def build(self, part: Part, /, **wired: Any) -> Any:
        """Builds from a name, a class or factory, or one of those with knobs
        (``{"name": "iap", "budget": 256}``); a part that is ready is returned.

        The factory receives those of `wired` that its signature names.

        Raises:
            ValueError: an unknown name or knob, a factory with a parameter that nothing fills in,
                or a result that lacks what such a part needs.
        """
        source, knobs = self.split(part)
        if not isinstance(source, str) and not is_factory(source):
            return self.checked(source)
        wanted = self.wired(source)
        given = {k: v for k, v in wired.items() if k in wanted} | knobs
        if missing := [name for name in wanted if name not in given]:
            raise ValueError(
                f"{self.kind} {name_of(source)!r} is called to build one, and nothing fills in its "
                f"parameter(s) {', '.join(missing)} (filled in: {', '.join(wired) or 'none'}). "
                f"Give them as knobs, or give a {self.kind} that is ready: an object, no function"
            )
        return self.checked(self.create(source, **given))

    def checked(self, part: Any) -> Any:
        """Returns the part; one that lacks something raises ``ValueError`` with its name."""
        if missing := [name for name in self.needs if not hasattr(part, name)]:
            module = " (torch.nn.Module has these)" if "parameters" in missing else ""
            raise ValueError(
                f"{type(part).__name__} is no {self.kind}: it lacks {', '.join(missing)}{module}"
            )
        return part

    def _parameters(self, name: str | Callable[..., Any]) -> list[inspect.Parameter]:
        found = {p.name: p for p in _parameters_of(self.get(name))}
        for function in self._finishing:
            more = (p for p in _parameters_of(function) if p.default is not p.empty)
            found = found | {p.name: p for p in more if p.name not in found}
        return list(found.values())

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        with self._lock:  # other threads wait until all are there
            if self._loading or self._plugins_loaded:  # a plug-in that asks for names
                return
            self._loading = True
            try:
                for point in entry_points(group=self.group):
                    self._load_plugin(point)
            finally:
                self._loading = False
            self._plugins_loaded = True

    def _load_plugin(self, point: EntryPoint) -> None:
        before = set(self._factories)
        try:
            factory = point.load()
            if not callable(factory):
                raise TypeError(f"{point.value} is {factory!r}, which cannot be called")
            inspect.signature(factory)
            if self._factories.get(point.name) is not factory:  # it may have used the decorator
                self.register(point.name)(factory)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: a broken plug-in must not break the others
            for name in set(self._factories) - before:
                del self._factories[name]
            reason = type(error).__name__
            with suppress(Exception):  # its text is the plug-in's code too
                reason = " ".join(f"{reason}: {error}".split())
            where = f"{self.kind} plug-in {point.name!r} ({point.value})"
            warnings.warn(f"{where} was left out: {reason}", stacklevel=5)


@functools.lru_cache(maxsize=1024)
def _parameters_of(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    """Lists named parameters; ``**options`` of a constructor are those of its base class."""
    found: dict[str, inspect.Parameter] = {}
    for each in inspect.getmro(factory) if inspect.isclass(factory) else (factory,):
        given = inspect.signature(each).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        found = {p.name: p for p in given if p.kind in kinds} | found
        if not any(p.kind is p.VAR_KEYWORD for p in given):
            break
    return list(found.values())


def _place_of(factory: Any) -> str | None:
    """Where a class or function is defined; None if that does not tell it from others."""
    name = getattr(factory, "__qualname__", None)
    return None if name is None or "<lambda>" in name else f"{factory.__module__}.{name}"


def is_factory(part: Any) -> bool:
    """Whether a part is yet to be made: a class or function, also with some arguments filled in."""
    return inspect.isclass(part) or inspect.isroutine(part) or isinstance(part, functools.partial)


def name_of(part: Any) -> str:
    """How messages call a part."""
    while isinstance(part, functools.partial):
        part = part.func
    if isinstance(part, Mapping):
        part = part.get("name")
    return part if isinstance(part, str) else getattr(part, "__name__", type(part).__name__)


def split_part(part: Part, kind: str) -> tuple[str, dict[str, Any]]:
    """Splits ``"iap"`` or ``{"name": "iap", **knobs}`` into the name and its knobs."""
    if isinstance(part, str):
        return part, {}
    if isinstance(part, Mapping) and isinstance(part.get("name"), str):
        return part["name"], {str(k): v for k, v in part.items() if k != "name"}
    got = f"the object {name_of(part)}" if callable(part) else repr(part)
    raise ValueError(f"a {kind} is a name or a mapping with 'name' and its knobs, got {got}")


def close_matches(word: str, among: Iterable[Any], cutoff: float = 0.6) -> str:
    """Returns ``" (did you mean 'x'?)"``, or nothing if no name is close in any case."""
    names = [name for name in among if isinstance(name, str)]
    if RENAMED.get(word) in names:
        return f" (it is called {RENAMED[word]!r} now)"
    written = {name.lower(): name for name in names}
    near = [written[one] for one in difflib.get_close_matches(word.lower(), written, 3, cutoff)]
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def moved_later(word: str) -> str:
    """Returns how to place what is built, if `word` asks for that."""
    return f": what is built takes it later, .to({word})" if word in ("device", "dtype") else ""


def choice(name: str, value: Any, accepted: Collection[Any]) -> Any:
    """Returns the value if it is accepted.

    Raises:
        ValueError: it is not; the message lists what is accepted, and close matches.
    """
    if value in accepted:
        return value
    near = close_matches(value, accepted) if isinstance(value, str) else ""
    raise ValueError(f"{name} must be one of {', '.join(map(str, accepted))}, got {value!r}{near}")


def documented_args(factory: Callable[..., Any]) -> dict[str, str]:
    """Reads what a docstring says of each parameter, in "Args:" (Google style).

    A class also has those that its base classes describe.
    """
    owners = inspect.getmro(factory) if inspect.isclass(factory) else (factory,)
    found: dict[str, str] = {}
    for owner in owners:
        doc = inspect.cleandoc(owner.__doc__ or "")
        section = re.search(r"^Args:\n((?: +.*\n?|\n)*)", doc, re.MULTILINE)
        entry = re.compile(r"^    (\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
        for name, text in entry.findall(section[1] if section else ""):
            found.setdefault(name, " ".join(text.split()))
    return found


def knob_of_part(knob: str, value: Any, given: Mapping[str, Any]) -> str:
    """Returns how to give a knob to the part that has it, or nothing if none has.

    Args:
        given: parts by their kind, among other arguments; of one that is None any may be chosen.
    """
    for registry in (TOKENIZERS, PROCESSORS, DECODERS, MARKINGS):
        if registry.kind in given:
            part = given[registry.kind]
            names = [n for n in registry.names() if part is None or n == name_of(part)]
            names = [n for n in names if knob in registry.knobs(n)]
            if names:
                name = knob if knob in names else names[0]
                how = f'{registry.kind}={{"name": "{name}", "{knob}": {shown(value)}}}'
                return f", a knob of the {registry.kind}: give {how}"
    return ""


_MODULE = ("__call__", "parameters", "state_dict")  # what every torch.nn.Module has
TOKENIZERS = Registry("tokenizer", needs=("spec", "controls", "cells", "embed", *_MODULE))
PROCESSORS = Registry("processor", needs=_MODULE)
DECODERS = Registry("decoder", needs=_MODULE)
INDICATORS = Registry("indicator", needs=("__call__",))
MARKINGS = Registry("marking", needs=("__call__", "controls"))
EMBEDDINGS = Registry("embedding", needs=_MODULE)
REDUCERS = Registry("reducer", needs=("acts", "place", "drops", "weighted", *_MODULE))
POSITIONS = Registry("position", needs=("__call__",))
LOSSES = Registry("loss", "losses")
METRICS = Registry("metric")
