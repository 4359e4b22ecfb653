"""Hydra's menu in Python: finds the YAML files and composes them.

Parts in the registries need no YAML: each becomes a choice of its group, with its knobs and their
defaults, third-party plug-ins included.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adaptok.config.run_ids import register_run_id, register_set_names, register_tokenizer_names
from adaptok.data.synthetic import SOLVERS
from adaptok.models.baselines import BASELINES
from adaptok.models.schedules import SCHEDULES
from adaptok.registry import (
    DECODERS,
    EMBEDDINGS,
    INDICATORS,
    MARKINGS,
    PROCESSORS,
    TOKENIZERS,
    Registry,
    close_matches,
)
from adaptok.utils.keys import flattened, quoted

GROUPS: dict[str, Registry] = {
    "tokenizer": TOKENIZERS,
    "tokenizer/indicator": INDICATORS,
    "tokenizer/marking": MARKINGS,
    "tokenizer/embedding": EMBEDDINGS,
    "processor": PROCESSORS,
    "decoder": DECODERS,
    "schedule": SCHEDULES,
    "model": BASELINES,  # beside "surrogate", the model made of the parts above
}
TASKS = ("surrogate", "pretrain", "classify")
NO_CHOICE = "Config group override must be a string or a list"
OPTIONAL = ("callbacks", "experiment", "launcher", "logger", "search")  # groups
# Knobs that follow another key of the configuration unless they are set.
FOLLOWS = {
    **{("processor", k): f"${{size.{k}}}" for k in ("depth", "heads", "mlp_ratio")},
    **{("decoder", k): f"${{size.{k}}}" for k in ("depth", "heads", "mlp_ratio")},
    ("schedule", "seed"): "${seed}",
}


_TIMM_MODELS: dict[str, Any] = {}  # hundreds of nodes, made once
MANY = 60  # choices of a group that are not all listed
OF_SWEEPS = "'adaptok[sweeps]'"
PACKAGES = {  # of Hydra's launchers
    "ray": "'adaptok[ray]'",
    **dict.fromkeys(("joblib", "submitit_local", "submitit_slurm"), OF_SWEEPS),
}


def config_dir() -> Path:
    """Finds the YAML files: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ValueError(f"no configuration files in {here / 'conf'} or {here.parent / 'conf'}")


def label_of_model(model: Any, tokenizer: Any) -> Any:
    """Names a run after its tokenizer, or its baseline; both are checked after it is composed."""
    return tokenizer if model == "surrogate" else model


def name_of_folder(path: Any) -> str:
    """Names a data set after its folder.

    Raises:
        ValueError: no folder.
    """
    if path is None:
        raise ValueError("data.name must be given, below data.base, or data.path=<folder>")
    if "://" in str(path):
        return str(path).rstrip("/").rpartition("/")[2]
    return Path(str(path)).resolve().name


def task_of(overrides: Sequence[str]) -> str:
    """Finds the task that overrides choose; the choices of other groups depend on it.

    Raises:
        ValueError: an unknown task, or more than one.
    """
    words = [o.partition("=")[::2] for o in overrides]
    given = [value for key, value in words if key == "task"]
    presets = [task_of_preset(value) for key, value in words if key == "experiment"]
    task = given[-1] if given else presets[-1] if presets else TASKS[0]
    if task not in TASKS:
        several = "; a sweep has one task" if "," in task else close_matches(task, TASKS)
        raise ValueError(f"unknown task {task!r}{several}; choices: {', '.join(TASKS)}")
    return task


@cache
def task_of_preset(names: str) -> str:
    """Finds the task that ``experiment=`` chooses; of a list or a sweep, all its names'.

    A preset of the user's, in a folder of ``--config-dir``, has the task that is typed.
    """
    found = dict.fromkeys(_task_in(name.strip()) for name in names.strip("[]").split(","))
    return ",".join(found)


def _task_in(preset: str) -> str:
    file = config_dir() / "experiment" / f"{preset}.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    chosen = [one for one in content.get("defaults", []) if isinstance(one, dict)]
    return next((one[key] for one in chosen if (key := "override /task") in one), TASKS[0])


def validation_error(task: str) -> str:
    """Names what a task minimises on the validation split."""
    return "val/error" if task == "classify" else "val/vrmse"


def run_folder() -> str:
    """Returns the folder of the running job; outside of one, the working folder."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(
        HydraConfig.get().runtime, "output_dir"
    ):
        return "."
    return HydraConfig.get().runtime.output_dir


def register_parts(task: str = TASKS[0]) -> None:
    """Makes every registry entry a choice of its Hydra group; may be called repeatedly.

    Args:
        task: its tokenizers and models become the choices of those groups.
    """
    OmegaConf.register_new_resolver("adaptok.label", label_of_model, replace=True)
    OmegaConf.register_new_resolver("adaptok.folder", name_of_folder, replace=True)
    OmegaConf.register_new_resolver("adaptok.validation_error", validation_error, replace=True)
    OmegaConf.register_new_resolver("adaptok.run_folder", run_folder, replace=True)
    register_set_names()
    register_tokenizer_names()
    if not OmegaConf.has_resolver("adaptok.run_id"):  # a sweep registers one that knows its keys
        register_run_id()
    store = ConfigStore.instance()
    for group in ("tokenizer", "model"):
        store.repo.pop(group, None)  # drops those of another task
    if task == "classify":
        _register_image_parts(store)
        return
    for group, registry in GROUPS.items():
        _register(store, group, registry)
    _store(store, "model", "surrogate", {"name": "surrogate"})
    for name in SOLVERS.names():
        knobs = {k: v for k, v in SOLVERS.knobs(name).items() if _is_plain(v)}
        node = {"defaults": ["_base", "_self_"], "name": name, "generate": {"seed": 0, **knobs}}
        _store(store, "data", name, node)


def _register(store: ConfigStore, group: str, registry: Registry) -> None:
    for name in registry.names():
        own = registry.says(name, "own_sizes") or ()
        knobs = registry.knobs(name)
        knobs |= {k: FOLLOWS[group, k] for k in knobs if (group, k) in FOLLOWS and k not in own}
        node = {"name": name, **{k: v for k, v in knobs.items() if _is_plain(v)}}
        _store(store, group, name, node)


def _store(store: ConfigStore, group: str, name: str, node: Mapping[str, Any]) -> None:
    folder = store.repo
    for word in group.split("/"):
        folder = folder.setdefault(word, {})
    folder[f"{name}.yaml"] = _made(group, name, json.dumps(node))


@cache
def _made(group: str, name: str, node: str) -> ConfigNode:
    """Makes a choice from JSON once: it takes a millisecond, and every composition asks for all."""
    config = DictConfig(json.loads(node))
    return ConfigNode(f"{name}.yaml", config, group, package=None, provider="adaptok")


def _register_image_parts(store: ConfigStore) -> None:
    # timm takes seconds to import
    from adaptok.tasks.classify.models import build_timm
    from adaptok.vision import IMAGE_TOKENIZERS, supported

    _register(store, "tokenizer", IMAGE_TOKENIZERS)
    if not _TIMM_MODELS:
        parameters = inspect.signature(build_timm).parameters.values()
        knobs = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        for name in supported():
            _store(store, "model", name, {"name": name, **knobs})
        _TIMM_MODELS.update(store.repo["model"])
    store.repo["model"] = _TIMM_MODELS


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def compose(
    name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str | Path] = ()
) -> DictConfig:
    """Composes a configuration as the command line would.

    Args:
        name: file of the command: "train", "eval", "tokenize", "data" or "demo".
        overrides: such as ``["tokenizer=uniform", "tokenizer.size=4"]``.
        config_dirs: further folders of YAML files.

    Raises:
        ValueError: an unknown group, choice or key; names the valid ones.
    """
    search = _searched(config_dirs)
    with readable_errors(name, overrides, config_dirs), _hydra(task_of(overrides)):
        return hydra_compose(name, [*search, *overrides])


def _searched(config_dirs: Sequence[str | Path]) -> list[str]:
    folders = [Path(folder).resolve().as_uri() for folder in config_dirs]
    return [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []


def presets() -> dict[str, str]:
    """Maps the presets of ``experiment=`` to what their files say of them."""
    found = {}
    for name in choices("experiment"):
        lines = (config_dir() / "experiment" / f"{name}.yaml").read_text("utf-8").splitlines()
        about = itertools.takewhile(lambda line: line.startswith("#"), lines[1:])
        found[name] = " ".join(line.lstrip("# ") for line in about)
    return found


def choices(group: str = "", task: str = TASKS[0]) -> list[str]:
    """Lists the choices of a group, from YAML files and registries; by default, the groups."""
    with _hydra(task):
        loader = GlobalHydra.instance().config_loader()
        names = loader.get_group_options(group) if group else loader.list_groups("")
    return [name for name in names if not name.startswith("_") and name != "hydra"]


def check_choices(overrides: Sequence[str]) -> None:
    """Checks what is chosen from groups and taken away.

    Raises:
        ValueError: a list of choices that are not all names, or a key less that every run needs.
    """
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if override.is_delete() and "." not in key and key not in OPTIONAL:
            raise ValueError(f"~{key}: a run needs {key}; {key}=... changes it")
        value: Any = override.value()
        listed = override.key_or_group in groups and isinstance(value, list)
        if listed and not all(isinstance(name, (str, QuotedString)) for name in value):
            raise ValueError(
                f"{override.key_or_group} takes a name or a list of names, got "
                f"{override.get_value_string()}"
            )


def default_choices(name: str, overrides: Sequence[str] = ()) -> dict[str, str | None]:
    """Maps the groups of a command to what it chooses from each."""
    with _hydra(task_of(overrides)):
        composed = hydra_compose(name, list(overrides), return_hydra_config=True)
    chosen = composed.hydra.runtime.choices
    return {group: chosen[group] for group in choices() if group in chosen}


@contextmanager
def _hydra(task: str = TASKS[0]) -> Iterator[None]:
    """Initialises Hydra with our folder; restores the state of a running job afterwards."""
    register_parts(task)
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


@contextmanager
def readable_errors(
    name: str = "", overrides: Sequence[str] = (), config_dirs: Sequence[str | Path] = ()
) -> Iterator[None]:
    """Turns Hydra's and OmegaConf's errors into a ``ValueError`` of one helpful sentence."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_explain(error, name, overrides, config_dirs)) from error
    except ValueError as error:
        if not str(error).startswith(NO_CHOICE):  # of Hydra, too
            raise
        raise ValueError(_without_name(overrides) or str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        text = "it refers to itself" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"cannot read a YAML file: {' '.join(text.split())}") from error


def _without_name(overrides: Sequence[str]) -> str | None:
    """Names the first group that is given something other than a name."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if not override.is_delete() and key in ("", *choices()) and not isinstance(value, str):
            return f"{key or 'a key'} must be given a name, got {override.input_line!r}"
    return None


def _explain(
    error: Exception, name: str, overrides: Sequence[str], config_dirs: Sequence[str | Path]
) -> str:
    text = str(error).removeprefix("ValueError raised while resolving interpolation: ")
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and choice in PACKAGES:
            return f"launcher={choice} needs a package: pip install {PACKAGES[choice]}"
        if group.startswith("data/"):
            path = f"{group.removeprefix('data/')}/{choice}"
            return (
                f"data={path} is not the name of a set; for a set in a folder: "
                f"data=well data.path={path}"
            )
        options = [name for name in error.options if not name.startswith("_")]
        return f"unknown {group} {choice!r}{_among(choice, options)}"
    if isinstance(error, OverrideParseException):
        key, _, value = str(error.override).partition("=")
        return (
            f"cannot read {error.override!r}: {text.splitlines()[0]}; values with blanks, commas, "
            f'brackets, ~ and the like need quotes of their own: "{quoted(key, value)}"'
        )
    if found := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, value = found[1], found[2]
        return (
            f"{key}={value} has several values, for a sweep: adaptok {name} -m {key}={value}; a "
            f"list is {key}=[{value}]"
        )
    if found := re.search(r"Error merging override (.*)", text):
        return f"cannot set {found[1]}: what it replaces is of another kind, such as a list, [...]"
    if found := re.search(r"Could not load '(\w+)/([^']+)'", text):
        return f"unknown {found[1]} {found[2]!r}{_among(found[2], choices(found[1]))}"
    if found := re.search(r"Could not override '([^']+)'", text):
        inside = re.search(r"full_key: (\S+)", str(error.__cause__))  # of key={knob: value}
        key = inside[1] if inside else found[1]
        if key in choices():  # a group of other tasks or commands
            return (
                f"unknown key {key!r}: adaptok {name} with task={task_of(overrides)} has no {key}"
            )
        return f"unknown key {key!r}{_valid_keys(key, name, overrides, config_dirs)}"
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{found[1]} must be given: {found[1]}=..."
    return re.sub(r"\s+", " ", re.split(r"\nSee |\n\s*full_key", text)[0]).strip()


def _among(word: str, options: Sequence[str]) -> str:
    """Lists choices; of many, only those that begin almost like a word."""
    if len(options) <= MANY:
        return f"{close_matches(word, options)}; choices: {', '.join(options)}"
    beginnings = {name[: len(word) + 1]: name for name in reversed(options)}
    near = difflib.get_close_matches(word, beginnings, n=3)
    hint = f" (did you mean {' or '.join(repr(beginnings[one]) for one in near)}?)" if near else ""
    return f"{hint}; there are {len(options)} choices: adaptok.vision.supported() lists them"


def _valid_keys(
    key: str, name: str, overrides: Sequence[str], config_dirs: Sequence[str | Path]
) -> str:
    """Names a key that may be meant, or lists those beside a wrong one, given the choices."""
    groups = choices()
    words = [(o, *o.partition("=")[::2]) for o in overrides]
    chosen = [o for o, key, value in words if key.lstrip("+") in groups and value[:1] != "{"]
    parent, _, word = key.partition("@")[0].rpartition(".")
    with _hydra(task_of(overrides)):
        config = hydra_compose(name, [*_searched(config_dirs), *chosen])
    node = OmegaConf.select(config, parent) if parent else config
    keys = [str(k) for k in node] if isinstance(node, DictConfig) else []
    if not keys:
        return f"; to change one value that has no default here: +{key}=..."
    full = [f"{parent}.{one}" if parent else one for one in keys]
    plain = OmegaConf.to_container(config)
    inner = [path for path, _ in flattened(plain) if path.rpartition(".")[2] == word]
    if near := close_matches(word, keys):
        return near.replace(" '", f" '{parent}.") if parent else near
    if inner:  # it stands elsewhere
        return f" (did you mean {' or '.join(map(repr, inner[:3]))}?)"
    return f"; valid here: {', '.join(full)}"


def plain(config: Any) -> Any:
    """Resolves a configuration to dicts, lists and values.

    Raises:
        ValueError: a mandatory value (``???``) is missing.
    """
    if not isinstance(config, (DictConfig, ListConfig)):
        return config
    with readable_errors():
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


@cache
def _known_keys(name: str, task: str | None) -> list[str]:
    """Lists the top-level keys of a command; jobs of a sweep ask again and again."""
    given = [f"task={task}"] if task else []
    return list(dict.fromkeys([*map(str, compose(name, given)), *default_choices(name, given)]))


def check_keys(config: Mapping[str, Any], name: str) -> None:
    """Raises ``ValueError`` for a top-level key that nothing reads (added with a plus)."""
    known = _known_keys(name, config["task"] if config.get("task") in TASKS else None)
    for key in config:
        if key not in known:
            raise ValueError(
                f"unknown key {key!r}{close_matches(str(key), known)}; valid: {', '.join(known)}"
            )
