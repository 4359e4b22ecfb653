"""Type and range of every leaf of a configuration, checked before anything starts.

A leaf that becomes an argument has the annotation of its parameter; the others stand here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from annotated_types import Len, Predicate

from adaptok.config.build import check_knobs
from adaptok.config.menu import GROUPS
from adaptok.data.synthetic import SOLVERS
from adaptok.models.lookahead import Lookahead
from adaptok.models.one_step import NORMALISATIONS
from adaptok.registry import Registry, choice, close_matches
from adaptok.utils.arguments import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    PositiveShare,
    Settings,
    Share,
    check_value,
    hints_of,
)

Config = Mapping[str, Any]


def names_a_folder(text: str) -> bool:
    """Tells whether text can be part of the name of one folder."""
    return re.fullmatch(r"[^/\\\0]+", text) is not None and text not in (".", "..")


Name = Annotated[str, Predicate(names_a_folder)]


def any_of(*hints: Any) -> Any:
    """Joins annotations; type checkers know no "|" between values."""
    return Union[hints]  # noqa: UP007


Unlimited = Literal[-1]
PatchSize = any_of(Positive, Sequence[Positive], None)

PRECISIONS = (  # auto, or Lightning's words
    *("auto", "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"),
    *("transformer-engine", "transformer-engine-float16", "32", "16", "bf16", "64", 32, 16, 64),
)
COMPILED = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
LEAVES: dict[str, Any] = {
    "name": Name,
    "sweep": Name,
    "seed": NonNegative,
    "history": Positive,
    "history_mode": str,
    "predict": str,
    "normalise": str,
    "score_on": str,
    "budget": any_of(Positive, None),
    "conserve": any_of(Literal["all"], Sequence[NonNegative | str], None),
    "lookahead": any_of(Lookahead, None),
    "size.dim": Positive,
    "size.depth": Positive,
    "size.heads": Positive,
    "size.mlp_ratio": PositiveFloat,
    "field_width": Positive,
    "task": Literal["surrogate", "pretrain", "classify", "finetune"],
    "compare": Mapping[str, Sequence[str]],
    "logger.wandb": Mapping[str, Any] | None,
    "test.settings": Settings,
    "test.steps": NonNegative,
    "test.patch_size": PatchSize,
    "settings": Settings,
    "steps": NonNegative,
    "patch_size": PatchSize,
    "split": Literal["train", "valid", "test"],
    "samples": any_of(Annotated[Sequence[NonNegative], Len(1)], None),
    "tokenizers": any_of(Annotated[Sequence[str | Mapping[str, Any]], Len(1)], None),
    "device": Literal["auto", "cpu", "cuda", "mps"],
    "save_predictions": bool,
    "video": Literal["gif", "mp4"] | None,
    "ckpt": str,
    "mode": Literal["all", "prepost"],
    "data_fraction": PositiveShare,
    "from_scratch": bool,
    "train.only": Literal["all", "new"],
    "activation_checkpointing": bool,
    "callbacks": Mapping[str, Any] | None,
    "init": any_of(Annotated[str, Len(1)], None),
    "resume": any_of(Annotated[str, Len(1)], None),
    "resume_anyway": bool,
    "overwrite": bool,
    "picture": str | None,
    "trainer.compile": any_of(bool, Literal[COMPILED]),
    "trainer.enable_progress_bar": bool,
    "trainer.precision": Literal[PRECISIONS],
    "trainer.profiler": Literal["simple", "advanced", "pytorch"] | None,
    "trainer.val_check_interval": any_of(Positive, None),
    "trainer.max_steps": any_of(Positive, Unlimited),
    "trainer.max_epochs": any_of(Positive, Unlimited, None),
    "trainer.accumulate_grad_batches": Positive,
    "trainer.log_every_n_steps": Positive,
    "trainer.gradient_clip_val": any_of(NonNegativeFloat, None),
    "trainer.limit_val_batches": any_of(NonNegative, Share, None),
    "trainer.num_nodes": Positive,
    "trainer.devices": any_of(Positive, Unlimited, Sequence[NonNegative], Literal["auto"]),
    "trainer.accelerator": Literal["auto", "cpu", "cuda", "gpu", "mps", "tpu"],
    "data.format": Literal["well", "pdebench"],
    "data.generate": Mapping[str, Any] | None,
    "data.generate.seed": NonNegative,
}
GENERATED = {"data.name": str, "data.base": str}  # of a set that is generated


WITHOUT_KNOBS = {"model": "surrogate", "decoder": "auto"}  # no entries of the registries
# Checked before any data is generated; models know the same.
CHOICES = {
    "history_mode": ("auto", "fold", "frames"),
    "normalise": NORMALISATIONS,
    "score_on": ("normalised", "raw"),
    "predict": ("delta", "state"),
}


def check_leaves(config: Config, factories: Mapping[str, Callable[..., Any]]) -> None:
    """Checks a plain configuration.

    Args:
        factories: what the leaves of a group become arguments of, by group.

    Raises:
        ValueError: names the key of a value of another type or outside its range, says what is
            accepted and what was given; or a key that nothing reads.
    """
    is_generated = _parent(config, "data.generate.seed") is not None
    for key, hint in {**LEAVES, **(GENERATED if is_generated else {})}.items():
        node, leaf = _parent(config, key), key.rpartition(".")[2]
        if isinstance(node, Mapping) and leaf in node:
            check_value(node[leaf], hint, key)
    for key, accepted in CHOICES.items():
        if key in config:
            choice(key, config[key], accepted)
    for group in ("size", "test", "train"):
        _check_names(config.get(group), group)
    for group, factory in factories.items():
        nodes = config.get(group)
        for node in nodes if isinstance(nodes, list) else [nodes]:  # several data sets
            _check(node, factory, group)
            if isinstance(node, Mapping):
                others = [leaf for leaf in node if f"{group}.{leaf}" not in LEAVES]
                check_knobs(factory, group, others)
    groups = {name: registry for name, registry in GROUPS.items() if "/" not in name}
    if config.get("task") == "classify":
        groups = _of_images()
    for group, registry in groups.items():
        _check_part(config.get(group), registry, group)
    data = config.get("data")
    for node in data if isinstance(data, list) else [data]:
        if isinstance(node, Mapping) and node.get("name") in SOLVERS.names():
            _check(node.get("generate"), SOLVERS.get(node["name"]), "data.generate")


def _parent(config: Config, key: str) -> Any:
    """Finds the node that a dotted key is in."""
    node: Any = config
    for name in key.split(".")[:-1]:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _of_images() -> dict[str, Registry]:
    from adaptok.vision import IMAGE_TOKENIZERS  # timm takes seconds to import

    return {"tokenizer": IMAGE_TOKENIZERS}


def _check(node: Any, factory: Callable[..., Any], group: str) -> None:
    if isinstance(node, Mapping):
        _check_hints(node, hints_of(factory), group)


def _check_hints(node: Config, hints: Mapping[str, Any], group: str) -> None:
    for leaf, value in node.items():
        if f"{group}.{leaf}" not in LEAVES:
            check_value(value, hints.get(leaf, Any), f"{group}.{leaf}")


def _check_names(node: Any, group: str) -> None:
    """Refuses keys of a group that stands here with all its keys."""
    known = [key.removeprefix(f"{group}.") for key in LEAVES if key.startswith(f"{group}.")]
    for leaf in node if isinstance(node, Mapping) else ():
        if leaf not in known:
            near = close_matches(leaf, known)
            raise ValueError(f"unknown key '{group}.{leaf}'{near}; valid: {', '.join(known)}")


def _check_part(node: Any, registry: Registry, group: str) -> None:
    """Checks the knobs of a part, and of the parts that are knobs of it."""
    if not isinstance(node, Mapping) or "name" not in node:
        return  # a name alone, or nothing
    check_value(node["name"], str, f"{group}.name")
    if node["name"] == WITHOUT_KNOBS.get(group):
        return
    _check_hints(node, registry.hints(node["name"]), group)
    registry.check_knobs(node["name"], [leaf for leaf in node if leaf != "name"])
    for leaf, inner in node.items():
        if parts := GROUPS.get(f"{group}/{leaf}"):
            _check_part(
                {"name": inner} if isinstance(inner, str) else inner, parts, f"{group}.{leaf}"
            )
