"""Malformed command lines, drawn from the composed configurations: each is wrong in one word.

What a leaf may be follows from its default alone, so that the checks are not compared with
themselves; the few values that make sense against that rule are listed here.
"""

from __future__ import annotations

import fnmatch
import functools
import random
from collections.abc import Iterator
from typing import NamedTuple

import small_runs
from PIL import Image

from adaptok.config.menu import compose, default_choices, plain
from adaptok.utils.keys import flattened


def small_images() -> list[str]:
    """Overrides that choose four tiny images for one step."""
    root = small_runs.root() / "images"
    for name in ("train/a/1", "train/b/1", "val/a/1", "val/b/1"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / f"{name}.png")
    sizes = ["data.batch_size=2", "data.num_workers=0", "trainer.max_steps=1"]
    return [f"data.path={root}", *sizes]


# Command and what is typed besides, so small that a line that is accepted ends soon.
BASES: dict[str, tuple[str, list[str]]] = {
    "train": ("train", small_runs.train()),
    "composed": ("train", [*small_runs.data(), *small_runs.SIZE, *small_runs.RUN]),
    "baseline": ("train", [*small_runs.data(), *small_runs.RUN, "model=fno"]),
    "pretrain": ("train", ["task=pretrain", *small_runs.train()]),
    "classify": ("train", ["task=classify", "model=test_vit", "data=images", *small_images()]),
    "finetune": ("finetune", ["ckpt=nowhere.ckpt", *small_runs.data(), *small_runs.RUN]),
    "eval": ("eval", ["ckpt=nowhere.ckpt"]),
    "tokenize": ("tokenize", small_runs.data()),
    "data": ("data", small_runs.data()),
    "demo": ("demo", [*small_runs.data(), "trainer=debug"]),
}
BASES["composed"][1].append("tokenizer=composed")
WRONG: dict[str, dict[str, str]] = {  # by the type of the default: kind -> value
    "int": {
        "type": "abc",
        "fraction": "1.5",
        "range": "-7",
        "null": "null",
        "large": "1" + 30 * "0",
    },
    "float": {"type": "abc", "range": "-7", "null": "null", "nan": "nan"},
    "bool": {"type": "maybe", "number": "7", "null": "null"},
    "str": {"type": "7", "null": "null", "choice": "no_such_thing", "list": "[[]]"},
    "list": {"type": "7", "null": "null", "list": "[[]]"},
    "NoneType": {"type": "{no: 7}", "list": "[[]]"},
}
SENSIBLE = {  # kind -> patterns of keys for which the value is none that is wrong
    "null": "data.path data.name trainer.limit_val_batches trainer.gradient_clip_val"
    " trainer.val_check_interval data.auto_augment optim.lr_batch optim.warmup_epochs"
    " trainer.max_epochs optim.warmup_steps tokenizer.embedding* tokenizer.marking*",
    "choice": "name sweep ckpt data.name data.base data.path",
    "range": "schedule.seed trainer.max_steps",
    "number": "*.weighted",
    "type": "callbacks optim.optimizer data.storage_options model.options logger.wandb"
    " data.augment",
}
TYPOS = 6  # keys per base that get a wrong letter


class Line(NamedTuple):
    """A command line with one mistake: in the value of `key`, or in its name."""

    command: str
    words: list[str]
    key: str
    kind: str

    def is_named_in(self, text: str) -> bool:
        """Tells whether a message names the key, or the group whose choice it is."""
        group, _, leaf = self.key.rpartition(".")
        if leaf == "name" and group:
            return group.rpartition(".")[2] in text
        return leaf.removesuffix("s") in text  # "unknown position" of positions


def lines(count: int, seed: int = 0) -> list[Line]:
    """Draws different malformed lines, the same for a seed, each kind of mistake about as often."""
    draw = random.Random(seed)
    by_kind: dict[str, list[Line]] = {}
    for line in every_line():
        by_kind.setdefault(line.kind, []).append(line)
    for of_kind in by_kind.values():
        draw.shuffle(of_kind)
    found: list[Line] = []
    while len(found) < count and any(by_kind.values()):
        found += [of_kind.pop() for of_kind in by_kind.values() if of_kind]
    return found[:count]


def every_line() -> Iterator[Line]:
    """Yields every leaf of every base with every value that is wrong for it."""
    for name in BASES:
        yield from _lines_of(name)


def _lines_of(name: str) -> Iterator[Line]:
    command, base = BASES[name]
    leaves, groups = _composed(name)
    for key, value in leaves.items():
        kinds = WRONG[type(value).__name__]
        for kind, wrong in kinds.items():
            if not any(fnmatch.fnmatch(key, p) for p in SENSIBLE.get(kind, "").split()):
                yield Line(command, [*base, f"{key}={wrong}"], key, kind)
    for key in list(leaves)[:: max(len(leaves) // TYPOS, 1)]:
        typo = key[:-1] + chr(ord(key[-1]) + 1)
        yield Line(command, [*base, f"{typo}=1"], typo, "key")
    for group in groups:
        yield Line(command, [*base, f"{group}=no_such_thing"], group, "group")


@functools.cache
def _composed(name: str) -> tuple[dict[str, object], list[str]]:
    command, base = BASES[name]
    config = plain(compose(command, base))
    leaves = {key: value for key, value in flattened(config) if key != "task"}
    return leaves, [
        g for g, chosen in default_choices(command, base).items() if chosen and g != "task"
    ]
