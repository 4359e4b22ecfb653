"""``resume=RUN``: the configuration of that run, and the overrides that were typed."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from adaptok.config.leaves import names_a_folder
from adaptok.config.menu import TASKS
from adaptok.tasks.fit import read_config
from adaptok.utils.keys import FIXED, Role, counts, flattened, identifying, quoted, role_of

Config = Mapping[str, Any]

RESUMED = ("train", "finetune")  # commands
# Classes that a saved configuration may name without being typed again: what they do is harmless.
HARMLESS = (
    "lightning.pytorch.callbacks.EarlyStopping",
    "lightning.pytorch.callbacks.LearningRateMonitor",
)


def run_named(resume: Any) -> Path | None:
    """Returns the run folder that ``resume=`` names; None for a file, ``auto`` or nothing."""
    path = None if resume in (None, "", "auto") else Path(str(resume))
    return path if path is not None and path.is_dir() else None


def completed(command: str, args: Sequence[str]) -> list[str]:
    """Adds to the arguments of a single run what Hydra must know of the run that it resumes.

    That is the task, whose groups have other keys, the name of its folder and the checkpoint that
    it began with. Keys of its choices, which the default ones may lack, are added by force.

    Raises:
        ValueError: a run of another command.
    """
    typed = [arg.partition("=") for arg in args if "=" in arg and not arg.startswith("-")]
    given = {key: value for key, _, value in typed}
    run = run_named(_value(given.get("resume", "")))
    if run is None or command not in RESUMED:
        return list(args)
    saved = read_config(run)
    task = saved.get("task")
    if (task == "finetune") is not (command == "finetune") or task not in (*TASKS, "finetune"):
        right = "finetune" if task == "finetune" else "train" if task in TASKS else task
        raise ValueError(f"{run} is a run of adaptok {right}, not {command}")
    more = [f"task={task}"] if command == "train" and "task" not in given else []
    if "name" not in given and names_a_folder(str(saved.get("name"))):
        more.append(quoted("name", saved["name"]))
    if "ckpt" not in given and "ckpt" in saved:
        more.append(quoted("ckpt", saved["ckpt"]))
    return [*(f"++{arg}" if _is_leaf(arg) else arg for arg in args), *more]


def _value(text: str) -> Any:
    try:
        return OverridesParser.create().parse_overrides([f"resume={text}"])[0].value()
    except HydraException:
        return None  # Hydra will say what is wrong with it


def _is_leaf(arg: str) -> bool:
    key, equals, _ = arg.partition("=")
    return bool(equals) and "." in key and not key.startswith(("-", "+", "~", "hydra."))


def own_configuration(wanted: Config, typed: Sequence[Any]) -> dict[str, Any]:
    """Returns the configuration of the run that is resumed, with the overrides that were typed.

    What concerns the command rather than the run, such as loggers, is never the run's.

    Args:
        wanted: plain, as composed; ``wanted["resume"]`` is the folder of the run.
        typed: Hydra's parsed overrides.

    Raises:
        ValueError: an override changes what must not change, without ``resume_anyway``; or the run
            names a class that is made only if it is typed.
    """
    run = wanted["resume"]
    saved = read_config(Path(run))
    config = {**copy.deepcopy(dict(wanted)), **copy.deepcopy(saved)}
    config.pop("resolved", None)  # found anew
    for key in wanted:
        if role_of(key) is Role.START or key in ("logger", "sweep"):
            config[key] = wanted[key]
    changes: list[str] = []
    for override in typed:
        key = override.key_or_group.replace("/", ".")
        if key in ("experiment", "recipe") and override.value() is not None:
            raise ValueError(f"resume={run} has the run's configuration: leave out {key}=")
        if isinstance(config.get("data"), list) and key.partition(".")[0] == "data":
            changes += _put_in_sets(config, key, override.value())
        elif key not in ("task", "launcher", "search"):
            changes += _put(config, wanted, key)
        elif key == "task" and override.value() != saved.get("task"):
            changes.append(_change(key, saved.get("task"), override.value()))
    if changes and not wanted["resume_anyway"]:
        raise ValueError(
            f"{run} cannot be resumed with {'; '.join(changes)}: leave that out, or type "
            "resume_anyway=true"
        )
    allowed = dict(_targets(wanted))
    for place, target in _targets(config):
        if target not in HARMLESS and allowed.get(place) != target:
            raise ValueError(f"{run} makes a {target}: to allow that, type {place}=... again")
    return config


def _put(config: dict[str, Any], wanted: Config, key: str) -> Iterator[str]:
    """Puts the wanted value of a key into a configuration; yields what must not change."""
    old, new = _at(config, key), _at(wanted, key)
    if isinstance(old, Mapping) and isinstance(new, Mapping) and "name" in old:
        if old["name"] == new.get("name"):
            return  # the same part: its knobs follow if they are typed
        if counts(key, FIXED):
            yield _change(key, old["name"], new.get("name"))
    else:
        before, after = dict(flattened(old, key)), dict(flattened(new, key))
        for leaf in {**before, **after}:
            a, b = (identifying(leaf, values.get(leaf)) for values in (before, after))
            if a != b and counts(leaf, FIXED):
                yield _change(leaf, a, b)
    _set(config, key, new)


def _put_in_sets(config: dict[str, Any], key: str, value: Any) -> Iterator[str]:
    """Does the same for all sets that have the key."""
    if key == "data":
        names = [one["name"] for one in config["data"]]
        if value != names:
            yield _change(key, names, value)
        return
    leaf = key.removeprefix("data.")
    for one in config["data"]:
        old = _at(one, leaf)
        if leaf not in dict(flattened(one)):
            continue
        if old != value and counts(key, FIXED):
            yield _change(f"{key} of {one['name']}", old, value)
        _set(one, leaf, value)


def _change(key: str, old: Any, new: Any) -> str:
    new, old = ("null" if value is None else value for value in (new, old))
    return f"{key}={new} (was {old})"


def _at(config: Any, key: str) -> Any:
    for word in key.split("."):
        config = config.get(word) if isinstance(config, Mapping) else None
    return config


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for word in parents:
        if not isinstance(config.get(word), dict):
            config[word] = {}
        config = config[word]
    config[last] = value


def _targets(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the places and names of all classes that a configuration makes."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield place, value["_target_"]
        pairs: Collection[tuple[Any, Any]] = value.items()
    else:
        pairs = [*enumerate(value)] if isinstance(value, (list, tuple)) else []
    for key, inner in pairs:
        yield from _targets(inner, f"{place}.{key}" if place else str(key))


def typed_values(wanted: Config, typed: Sequence[Any], group: str) -> dict[str, Any]:
    """Maps the keys of a group that were typed to their values."""
    keys = [o.key_or_group for o in typed if o.key_or_group.startswith(f"{group}.")]
    return {key.removeprefix(f"{group}."): _at(wanted, key) for key in keys}
