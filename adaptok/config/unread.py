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


def _optim(config: Config) -> Config:
    return config.get("optim") or {}


def _has_warmup_in_steps(config: Config) -> bool:
    return any(_optim(config).get(key) is not None for key in ("warmup_steps", "warmup_epochs"))


def _unrolls(config: Config) -> bool:
    settings = (config.get("schedule") or {}).get("settings") or []
    return any(one.get("unroll") not in (None, 1) for one in [_optim(config), *settings])


def _mixed(config: Config) -> int:
    """Counts the ways in which images are mixed."""
    return sum(bool(_data(config).get(key)) for key in ("mixup", "cutmix"))


RULES = (
    Rule(
        "data.path data.storage_options",
        _is_generated,
        "the set is generated below data.base; for a set that is there: data=well data.path=...",
    ),
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
        "optim.warmup_steps",
        lambda config: _optim(config).get("warmup_epochs") is not None,
        "optim.warmup_epochs is set; add optim.warmup_epochs=null",
    ),
    Rule(
        "optim.gamma optim.gamma_steps",
        lambda config: _optim(config).get("decay", "exponential") != "exponential",
        "the learning rate does not decay exponentially",
    ),
    Rule(
        "optim.betas",
        lambda config: _optim(config).get("optimizer") is not None,
        "they are those of AdamW; others go into optim.optimizer",
    ),
    Rule("optim.through_time", lambda config: not _unrolls(config), "the training does not unroll"),
    Rule(
        "test.patch_size",
        lambda config: (config.get("test") or {}).get("steps") == 0,
        "test.steps=0 makes no rollouts",
    ),
    Rule("patch_size video", lambda config: config.get("steps") == 0, "steps=0 makes no rollouts"),
    Rule(
        "data.crop_scale data.flip data.auto_augment data.random_erase data.mixup data.cutmix"
        " data.mix data.cutmix_share",
        lambda config: _data(config).get("augment") is False,
        "data.augment=false",
    ),
    Rule(
        "data.mix",
        lambda config: _mixed(config) == 0,
        "images are mixed by data.mixup and data.cutmix, and both are 0",
    ),
    Rule(
        "data.cutmix_share",
        lambda config: _mixed(config) in (0, 1),
        "it chooses between data.mixup and data.cutmix, and not both are given",
    ),
    Rule(
        "data_fraction",
        lambda config: (
            _data(config).get("train_fraction") not in (None, config.get("data_fraction"))
        ),
        "data.train_fraction is set",
    ),
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
