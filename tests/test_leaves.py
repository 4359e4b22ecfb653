"""Leaves of configurations: type and range, and that every leaf has one."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
from sampled import sampled

from adaptok.config.leaves import LEAVES, check_leaves
from adaptok.config.menu import GROUPS, compose, plain
from adaptok.data import WellData
from adaptok.data.synthetic import SOLVERS
from adaptok.tasks.classify import ClassifierOptim, ImageData
from adaptok.tasks.classify.models import build_timm
from adaptok.training.optim import Optim
from adaptok.utils.arguments import hints_of
from adaptok.utils.keys import flattened

FACTORIES = {"data": WellData, "optim": Optim, "trainer": L.Trainer}
OF_IMAGES = {
    "data": ImageData,
    "optim": ClassifierOptim,
    "model": build_timm,
    "trainer": L.Trainer,
}
COMMANDS: list[tuple[str, list[str]]] = [
    ("train", []),
    ("train", ["task=pretrain"]),
    ("train", ["task=classify"]),
    ("finetune", ["ckpt=x"]),
    ("eval", ["ckpt=x"]),
    ("tokenize", []),
    ("data", []),
    ("demo", []),
]
# Read as they are: what they hold is somebody else's, or no argument of anything.
FREE = ("task", "compare", "logger.", "schedule.settings", "model.", "tokenizer.")


@pytest.mark.parametrize(("command", "overrides"), COMMANDS)
def test_every_leaf_has_a_type_and_the_defaults_pass(command, overrides):
    config = plain(compose(command, overrides))
    images = config.get("task") == "classify"
    check_leaves(config, OF_IMAGES if images else FACTORIES)
    for key, _ in flattened(config):
        group, _, leaf = key.rpartition(".")
        hints: dict[str, Any] = {}
        if group in FACTORIES:
            hints = hints_of((OF_IMAGES if images else FACTORIES)[group])
        elif group in GROUPS and not images:
            if config[group]["name"] in ("auto", "surrogate"):
                continue
            hints = GROUPS[group].hints(config[group]["name"]) | {"name": str}
        elif group == "data.generate":
            hints = hints_of(SOLVERS.get(config["data"]["name"])) | {"seed": int}
        known = key in LEAVES or leaf in hints or (images and key.startswith(FREE))
        assert known or key.startswith(FREE[:4]), key


@pytest.mark.parametrize(
    "override",
    sampled(
        [
            "tokenizer.k=1.5",
            "tokenizer.power=abc",
            "tokenizer.per_frame=maybe",
            "resume=7",
            "test.settings=null",
            "test.settings=[]",
            "test.steps=0.5",
            "size.dim=null",
            "size.depth=0",
            "size.mlp_ratio=-1",
            "optim.ema=abc",
            "optim.lr=abc",
            "optim.betas=0.9",
            "trainer.max_steps=null",
            "trainer.val_check_interval=0",
            "data.batch_size=true",
            "data.cache=1",
            "data.generate.frames=two",
            "data.generate.seed=-1",
            "data.base=null",
            "logger.wandb=7",
            "processor.name=7",
            "trainer.devices=-7",
            "trainer.precision=abc",
            "trainer.compile=fast",
            "trainer.enable_progress_bar=null",
            "history=0",
            "seed=-1",
            "name=null",
            "name=../../x",
            "name=''",
            "budget=0",
            "processor.heads=two",
            "processor.qk_norm=1",
        ],
        4,
    ),
)
def test_a_wrong_leaf_is_named(override):
    config = plain(compose("train", ["tokenizer=iap", override]))
    with pytest.raises(ValueError, match=rf"^{override.split('=')[0]} must be "):
        check_leaves(config, FACTORIES)


@pytest.mark.parametrize(
    "key", ["test.predictions", "size.deep", "optim.rl", "trainer.step", "data.nane", "tokenizer.b"]
)
def test_a_key_that_nothing_takes_is_refused(key):
    config = plain(compose("train", [f"+{key}=1"]))
    with pytest.raises(ValueError, match=key.rpartition(".")[2]):
        check_leaves(config, FACTORIES)
