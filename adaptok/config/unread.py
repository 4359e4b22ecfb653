"""Keys that were given although nothing reads them, given what else was chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Config = Mapping[str, Any]


class Rule(NamedTuple):
    """Some keys that are not read in some configurations.

    Attributes:
        keys: as dotted names; those below them are meant too.
        applies: takes the plain configuration of a job.
        why: as the end of "... is not read: ".
    """

    keys: str
    applies: Callable[[Config], bool]
    why: str


def _data(config: Config) -> Config:
    data = config.get("data")
    return data if isinstance(data, Mapping) else {}


def _is_generated(config: Config) -> bool:
    return _data(config).get("generate") is not None


def _is_baseline(config: Config) -> bool:
    model = config.get("model") or {}
    return config.get("task") == "surrogate" and model.get("name", "surrogate") != "surrogate"


def _trains_nothing(config: Config) -> bool:
    return _is_baseline(config) and config["model"]["name"] == "persistence"


def _has_warmup_in_steps(config: Config) -> bool:
    optim = config.get("optim") or {}
    return any(optim.get(key) is not None for key in ("warmup_steps", "warmup_epochs"))


RULES = (
    Rule("data.path data.storage_options", _is_generated, "the set is generated below data.base"),
    Rule(
        "data.base",
        lambda config: not _is_generated(config) and _data(config).get("path") is not None,
        "data.path says where the set is",
    ),
    Rule(
        "data.cache_limit", lambda config: _data(config).get("cache") is False, "data.cache=false"
    ),
    Rule(
        "overwrite",
        lambda config: bool(_data(config)) and not _is_generated(config),
        "the set is not generated",
    ),
    Rule(
        "tokenizer processor decoder size score_on lookahead activation_checkpointing",
        _is_baseline,
        "the model is a baseline, without tokens",
    ),
    Rule(
        "lookahead",
        lambda config: config.get("task") == "pretrain",
        "a model of several sets runs once per step",
    ),
    Rule(
        "conserve",
        lambda config: config.get("task") == "pretrain",
        "a model of several sets has no list of channels",
    ),
    Rule(
        "optim trainer schedule callbacks init resume resume_anyway",
        _trains_nothing,
        "model=persistence trains nothing",
    ),
    Rule(
        "tokenizer settings",
        lambda config: config.get("tokenizers") is not None,
        "tokenizers are drawn as named; knobs go into the list, [{name: iap, k: 2}]",
    ),
    Rule("init", lambda config: bool(config.get("from_scratch")), "from_scratch=true"),
    Rule("optim.warmup", _has_warmup_in_steps, "optim.warmup_steps or warmup_epochs is set"),
    Rule(
        "seed",
        lambda config: "ckpt" in config and "task" not in config,
        "a checkpoint is tested with the seed of its training",
    ),
    Rule(
        "resume_anyway",
        lambda config: "resume_anyway" in config and not config.get("resume"),
        "nothing is resumed",
    ),
)


def unread(config: Config, given: Iterable[str]) -> Iterator[str]:
    """Yields a sentence for each given key that nothing reads.

    Args:
        config: plain, of one job.
        given: dotted keys, as typed.
    """
    for key in given:
        name = key.lstrip("+~").partition("@")[0].replace("/", ".")
        for rule in RULES:
            parents = [k for k in rule.keys.split() if name == k or name.startswith(f"{k}.")]
            if parents and rule.applies(config):
                yield f"{key} is not read: {rule.why}"
                break


def check_place(data: Config) -> None:
    """Refuses a URL as the place of a generated set.

    Raises:
        ValueError: sets are generated in folders alone.
    """
    if "://" in str(data["base"]):
        raise ValueError(
            f"data.base={data['base']}: a set is generated in a folder; for an existing set there: "
            f"data.generate=null data.path={data['base']}/{data['name']}"
        )
