"""Named parts: the one mechanism behind `tokenizer=iap` in Python, in YAML and on the command line.

A parameter *without* a default is wired by the model (``ndim``, ``in_channels``, ``dim``, ``spec``
...); a parameter *with* a default is a knob and may appear in YAML and on the command line.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

Factory = TypeVar("Factory", bound=Callable[..., Any])
Part = str | Mapping[str, Any]  # a name, or {"name": name, **knobs}
RENAMED = {"recipe": "norm_placement"}  # former names of knobs, for messages


class Registry:
    """Named factories of one kind of part.

    Third-party packages add entries through the Python entry-point group ``adaptok.<kind>s``,
    loaded on first use; an entry that fails to load warns and is left out.

    Args:
        kind: singular name of the part ("tokenizer"), used in messages and in the entry-point
            group.
        plural: of `kind`, if it does not end in s.
    """

    def __init__(self, kind: str, plural: str = ""):
        self.kind = kind
        self.group = f"adaptok.{plural or kind + 's'}"
        self._factories: dict[str, Callable[..., Any]] = {}
        self._plugins_loaded = False

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Decorates a class or factory to register it under `name`; a duplicate raises
        ``ValueError``.
        """

        def enter(factory: Factory) -> Factory:
            if name in self._factories:
                raise ValueError(f"{self.kind} {name!r} is already registered")
            self._factories[name] = factory
            return factory

        return enter

    def names(self, pattern: str = "*") -> list[str]:
        """Lists the names that match a shell-style pattern, sorted."""
        self._load_plugins()
        return sorted(fnmatch.filter(self._factories, pattern))

    def get(self, name: str) -> Callable[..., Any]:
        """Returns the factory; an unknown name raises ``ValueError`` with close matches."""
        self._load_plugins()
        if name not in self._factories:
            raise ValueError(
                f"unknown {self.kind} {name!r}{close_matches(name, self._factories)}; "
                f"registered: {', '.join(sorted(self._factories))}"
            )
        return self._factories[name]

    def knobs(self, name: str) -> dict[str, Any]:
        """Returns the parameters that have a default, with that default."""
        return {p.name: p.default for p in self._parameters(name) if p.default is not p.empty}

    def wired(self, name: str) -> list[str]:
        """Lists the parameters without a default, which the model fills in."""
        return [p.name for p in self._parameters(name) if p.default is p.empty]

    def meanings(self, name: str) -> dict[str, str]:
        """Returns what the docstring says of each knob under "Args:", or "" if it says nothing."""
        said = documented_args(self.get(name))
        return {knob: said.get(knob, "") for knob in self.knobs(name)}

    def describe(self, name: str) -> str:
        """Returns name and first line of the docstring, then default and meaning of each knob."""
        doc = (inspect.getdoc(self.get(name)) or "").partition("\n")[0]
        defaults = self.knobs(name)
        lines = [
            f"  {knob}={defaults[knob]!r}" + (f": {meaning}" if meaning else "")
            for knob, meaning in self.meanings(name).items()
        ]
        return "\n".join([f"{name}: {doc}", *lines])

    def create(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Builds the part; an unknown knob raises ``ValueError`` that lists the valid ones."""
        factory = self.get(name)
        known = [p.name for p in self._parameters(name)]
        for knob in kwargs:
            if knob not in known:
                raise ValueError(
                    f"{self.kind} {name!r} has no knob {knob!r}{close_matches(knob, known)}; "
                    f"its knobs: {', '.join(self.knobs(name)) or 'none'}"
                )
        return factory(*args, **kwargs)

    def build(self, part: Part, /, **wired: Any) -> Any:
        """Builds from a name or from a name with knobs (``{"name": "iap", "budget": 256}``).

        The factory receives those of `wired` that its signature names.
        """
        name, knobs = split_part(part, self.kind)
        wanted = self.wired(name)
        return self.create(name, **{k: v for k, v in wired.items() if k in wanted}, **knobs)

    def _parameters(self, name: str) -> list[inspect.Parameter]:
        """Named parameters; ``**options`` of a constructor are those of its base class."""
        factory, found = self.get(name), {}
        for each in factory.__mro__ if inspect.isclass(factory) else (factory,):
            given = inspect.signature(each).parameters.values()
            kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            found = {p.name: p for p in given if p.kind in kinds} | found
            if not any(p.kind is p.VAR_KEYWORD for p in given):
                break
        return list(found.values())

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        for point in entry_points(group=self.group):
            try:
                factory = point.load()
                if self._factories.get(point.name) is not factory:  # it may have used the decorator
                    self.register(point.name)(factory)
            except Exception as error:  # a broken plug-in must not break the others
                warnings.warn(
                    f"{self.kind} plug-in {point.name!r} was left out: {error}", stacklevel=3
                )


def split_part(part: Part, kind: str) -> tuple[str, dict[str, Any]]:
    """Splits ``"iap"`` or ``{"name": "iap", **knobs}`` into the name and its knobs."""
    if isinstance(part, str):
        return part, {}
    if isinstance(part, Mapping) and isinstance(part.get("name"), str):
        return part["name"], {str(k): v for k, v in part.items() if k != "name"}
    raise ValueError(f"a {kind} is a name or a mapping with 'name' and its knobs, got {part!r}")


def close_matches(word: str, among: Iterable[Any]) -> str:
    """Returns ``" (did you mean 'x'?)"``, or nothing if no name is close."""
    names = [name for name in among if isinstance(name, str)]
    if RENAMED.get(word) in names:
        return f" (it is called {RENAMED[word]!r} now)"
    near = difflib.get_close_matches(word, names, n=3)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


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


TOKENIZERS = Registry("tokenizer")
PROCESSORS = Registry("processor")
DECODERS = Registry("decoder")
INDICATORS = Registry("indicator")
MARKINGS = Registry("marking")
EMBEDDINGS = Registry("embedding")
POSITIONS = Registry("position")
LOSSES = Registry("loss", "losses")
METRICS = Registry("metric")
