"""Names runs after their configurations: the same job has the same name tomorrow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adaptok.utils.keys import NEW_RUN, counts, flattened, identifying


def run_id(config: DictConfig, overrides: Iterable[str] = (), swept: Sequence[str] = ()) -> str:
    """Makes a readable label with ten digits of a hash: ``shear_flow_iap_vit_seed0_3f9ab2c104``.

    Args:
        config: of the job, Hydra's part aside.
        overrides: of the job. Different lists ``data=[a,b]`` may merge into the same values, so the
            list itself is hashed.
        swept: keys that a sweep varies; these count whatever their role.
    """
    values = {
        key: value if _below(key, swept) else identifying(key, value)
        for key, value in flattened(_resolved(config))
        if counts(key, NEW_RUN) or _below(key, swept)
    }
    overrides = list(overrides)
    lists = [override for override in overrides if override.startswith("data=[")]
    text = json.dumps([values, lists], sort_keys=True, default=str)
    values["data.name"] = name_of_sets(overrides, values.get("data.name"))
    return "_".join([*_label(values), hashlib.sha256(text.encode()).hexdigest()[:10]])


def name_of_sets(overrides: Iterable[str], name: Any) -> Any:
    """Names the sets of ``data=[a,b]``, shortened to about 40 characters; else, what is given.

    Args:
        overrides: of a job.
        name: of the set that Hydra has merged the list into, the last one.
    """
    lists = [o.partition("[")[2].rstrip("] ") for o in overrides if o.startswith("data=[")]
    names = [one.strip() for one in lists[-1].split(",")] if lists else []
    if len(names) < 2 or names[-1] != name:
        return name
    return _joined(names)


def _joined(names: Sequence[str]) -> str:
    longest = len("-".join(names)) if len("-".join(names)) <= 40 else max(40 // len(names) - 1, 6)
    return "-".join(one[:longest].rstrip("_") for one in names)


def register_set_names() -> None:
    """Makes ``${adaptok.sets:${data.name}}`` name all sets that a job is given."""

    def resolve(name: Any, *, _root_: DictConfig) -> Any:
        hydra = _root_.get("hydra")  # the task's configuration has none
        if hydra is None and HydraConfig.initialized():
            hydra = HydraConfig.get()
        return name if hydra is None else name_of_sets(hydra.overrides.task, name)

    OmegaConf.register_new_resolver("adaptok.sets", resolve, replace=True)


def register_tokenizer_names() -> None:
    """Makes ``${adaptok.tokenizers:${tokenizer.name},${tokenizers}}`` name all tokenizers that
    stand side by side, or else the one.
    """

    def resolve(name: Any, several: Any) -> Any:
        if not several:
            return name
        return _joined([str(one if isinstance(one, str) else one["name"]) for one in several])

    OmegaConf.register_new_resolver("adaptok.tokenizers", resolve, replace=True)


def register_run_id(swept: Sequence[str] = ()) -> None:
    """Makes ``${adaptok.run_id:}`` resolve to the name of the job whose configuration uses it."""

    def resolve(*, _root_: DictConfig) -> str:
        return id_of_job(_root_, _root_.get("hydra"), swept)

    OmegaConf.register_new_resolver("adaptok.run_id", resolve, replace=True)


def id_of_job(config: DictConfig, hydra: Any, swept: Sequence[str]) -> str:
    """Makes the `run_id` of a job, given Hydra's part of its configuration, if any."""
    if hydra is None:
        return run_id(config, (), swept)
    of_sweeper = hydra.get("sweeper", {}).get("params") or {}
    return run_id(config, hydra.overrides.task, [*swept, *of_sweeper])


def _resolved(config: DictConfig) -> Any:
    """Resolves to plain values, except the logger, whose name may be a run id."""
    keys = [str(key) for key in config if key not in ("hydra", "logger")]
    kept = OmegaConf.masked_copy(config, keys)
    try:
        plain: Any = OmegaConf.to_container(kept, resolve=True)
    except OmegaConfBaseException:  # the job will report it
        plain = OmegaConf.to_container(kept)
    if "logger" in config:
        plain["logger"] = OmegaConf.to_container(config["logger"])
    return plain


def _below(key: str, parents: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{parent}.") for parent in parents)


def _label(values: dict[str, Any]) -> list[str]:
    """Names data, model, budget and seed."""
    model = values.get("model.name", "surrogate")
    keys = ["data.name"]
    if model != "surrogate":
        keys.append("model.name")
    if model == "surrogate" or values.get("task") == "classify":
        keys += ["tokenizer.name", "processor.name"]
    words = [str(values[key]) for key in keys if values.get(key) not in (None, "???")]
    words = [word for word in words if "${" not in word]  # could not be resolved
    numbers = {key: values.get(key) for key in ("budget", "seed")}
    return [*words, *(f"{key}{value}" for key, value in numbers.items() if value is not None)]
