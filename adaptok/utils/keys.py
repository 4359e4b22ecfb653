"""What each key of a configuration decides: run ids, resuming and the report ask this table."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import Any


class Role(Enum):
    """What a key decides."""

    MODEL = "the weights and what the model computes"
    DATA = "what is in the data"
    FILE = "name of a set or file; the folder in front of it is a place"
    TRAINING = "objective, optimizer and settings per step"
    FIT = "length and numerics of the fit, which may be extended"
    SEED = "random numbers"
    TEST = "what is measured after the fit"
    PLACE = "where data is"
    MACHINE = "hardware, memory and speed"
    DISPLAY = "names, logs and progress"
    START = "whether a run starts anew or resumes"
    NEUTRAL = "how often validation looks, which trains nothing"
    DERIVED = "follows from the data and the machine"


KEYS: dict[Role, str] = {
    Role.MODEL: "model tokenizer processor decoder size history history_mode predict normalise"
    " score_on field_width budget conserve lookahead ckpt",
    Role.DATA: "data",
    Role.FILE: "data.path",
    Role.TRAINING: "task optim schedule train compare mode data_fraction from_scratch init",
    Role.FIT: "trainer callbacks",
    Role.SEED: "seed",
    Role.TEST: "test split settings steps patch_size samples tokenizers save_predictions video",
    Role.PLACE: "data.base data.storage_options",
    Role.MACHINE: "data.num_workers data.cache data.cache_limit trainer.accelerator trainer.devices"
    " trainer.num_nodes trainer.strategy trainer.compile activation_checkpointing device hydra",
    Role.DISPLAY: "name sweep logger picture trainer.enable_progress_bar trainer.log_every_n_steps"
    " trainer.profiler",
    Role.START: "resume resume_anyway overwrite",
    Role.NEUTRAL: "trainer.val_check_interval trainer.limit_val_batches",
    Role.DERIVED: "vocabulary resolved",
}
# A key that is not listed has the role of its nearest parent.
ROLES = {key: role for role, keys in KEYS.items() for key in keys.split()}

MOST_VALUES = 1_000_000  # in a file; a few lines of YAML can stand for billions

# Roles of keys that ...
WEIGHTS = frozenset({Role.MODEL, Role.DATA, Role.FILE})  # ... the shapes of weights depend on
FIXED = WEIGHTS | {Role.TRAINING, Role.SEED}  # ... must not change when a run resumes
NEW_RUN = FIXED | {Role.FIT, Role.TEST}  # ... make another run
NEW_MODEL = WEIGHTS | {Role.TRAINING, Role.FIT}  # ... tell models apart in the report


def role_of(key: str) -> Role | None:
    """Finds the role of a dotted key, None if unknown; skips numbers in it (``data.0.base``)."""
    parts = [part for part in key.split(".") if not part.isdigit()]
    parents = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((ROLES[parent] for parent in parents if parent in ROLES), None)


def counts(key: str, roles: Collection[Role]) -> bool:
    """Tells whether a key has one of the roles; an unknown key always counts."""
    role = role_of(key)
    return role is None or role in roles


def identity(config: Mapping[str, Any], roles: Collection[Role]) -> dict[str, Any]:
    """Maps the dotted keys that count to their values; of a path, to its last part."""
    data = config.get("data")
    if isinstance(data, list):  # of several sets
        config = {**config, "data": {str(number): one for number, one in enumerate(data)}}
    return {k: identifying(k, v) for k, v in flattened(config) if counts(k, roles)}


def identifying(key: str, value: Any) -> Any:
    """Strips from the value of a key what merely says where a set is."""
    if role_of(key) is Role.FILE and value is not None:
        return str(value).rstrip("/").rpartition("/")[2]
    return value


def differences(
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    roles: Collection[Role],
    where: str = "in the checkpoint",
) -> Iterator[str]:
    """Yields a sentence per dotted key in which two configurations differ; none if one is empty.

    Args:
        where: the first one is.
    """
    if not there or not here:
        return
    flat_there, flat_here = identity(there, roles), identity(here, roles)
    for key in {**flat_there, **flat_here}:
        a, b = flat_there.get(key, "absent"), flat_here.get(key, "absent")
        if a != b:
            yield f"{key} is {a} {where}, {b} here"


def flattened(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted keys with their values."""
    if not isinstance(config, Mapping):
        yield prefix, config
        return
    for key, value in config.items():
        yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))


def is_small(content: Any) -> bool:
    """Tells whether nested mappings and lists hold at most `MOST_VALUES` values, of which those
    that several places share, or that contain themselves, count each time.
    """
    rest, count = [content], 0
    while rest and count <= MOST_VALUES:
        value = rest.pop()
        if isinstance(value, (Mapping, list, tuple)):
            count += len(value)
            rest.extend(value.values() if isinstance(value, Mapping) else value)
    return count <= MOST_VALUES


def quoted(key: str, value: object) -> str:
    """Writes an override in which the value, such as a path, stands for itself whatever its
    characters are.
    """
    text = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), str(value))
    return f"{key}='{text}'"
