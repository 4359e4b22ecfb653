"""Run ids: the same job has the same name everywhere, two jobs never share one."""

from __future__ import annotations

import functools
import itertools

import pytest

from adaptok.config import menu as config
from adaptok.config.run_ids import name_of_sets, run_id


@functools.cache
def identity(*overrides: str, swept: tuple[str, ...] = ()) -> str:
    return run_id(config.compose("train", overrides), overrides, swept)


def test_readable_part():
    assert identity().startswith("acoustic_scattering_maze_coarse_fine_vit_seed0_")
    assert identity("model=fno", "seed=3").startswith("acoustic_scattering_maze_fno_seed3_")
    assert "_uniform_vit_budget64_seed0_" in identity("tokenizer=uniform", "budget=64")
    images = identity("task=classify", "tokenizer=random")
    assert images.startswith("mnist_5k_vit_small_patch16_224_random_seed0_")


def test_what_the_machine_decides_does_not_count():
    machine = [
        *("data.base=/elsewhere", "data.num_workers=7", "trainer.devices=4", "logger=wandb"),
        *("trainer.accelerator=cuda", "trainer.strategy=fsdp", "name=mine", "sweep=another"),
        *("resume=auto", "resume_anyway=true", "+trainer.num_nodes=2", "trainer.compile=true"),
    ]
    assert identity(*machine) == identity()


@pytest.mark.parametrize("key", ["trainer.devices=1,2", "data.num_workers=0,4", "name=a,b"])
def test_unless_it_is_swept_over(key):
    name, _, values = key.partition("=")
    given = [identity(f"{name}={value}", swept=(name,)) for value in values.split(",")]
    assert len(set(given)) == 2


def test_a_swept_group_counts_with_all_its_keys():
    ids = {identity(f"logger={name}", swept=("logger",)) for name in ("csv", "wandb")}
    assert len(ids) == 2


@pytest.mark.slow
def test_other_keys_count():
    changes = [
        *("seed=1", "size=tiny", "tokenizer=uniform", "tokenizer.share=0.3", "optim.lr=1e-5"),
        *("trainer.max_steps=7", "history=2", "data=active_matter"),
        *("test.steps=3", "schedule=random", "data.generate.resolution=32", "model=unet"),
        *("data.batch_size=3", "trainer.precision=64-true", "tokenizer=composed"),
    ]
    ids = [identity(), *map(identity, changes)]
    for (a, first), (b, second) in itertools.combinations(enumerate(ids), 2):
        assert first != second, (a, b)


def test_lists_of_sets_that_merge_into_the_same():
    lists = ["data=[shear_flow,active_matter,euler_multi_quadrants_openBC]"]
    lists.append("data=[active_matter,shear_flow,euler_multi_quadrants_openBC]")
    composed = [config.compose("train", ["task=pretrain", given]) for given in lists]
    assert config.plain(composed[0]) == config.plain(composed[1])
    first, second = (identity("task=pretrain", given) for given in lists)
    assert first != second
    assert first.startswith("shear_flow-active_matte-euler_multi_iap_vit_seed0_")


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["shear_flow"], "last"),
        (["shear_flow", "last"], "shear_flow-last"),
        (["acoustic_scattering_maze", "rayleigh_benard", "last"], "acoustic_sca-rayleigh_ben-last"),
        ([*"abcdefgh", "x" * 99, "last"], "a-b-c-d-e-f-g-h-xxxxxx-last"),
        (["last", "of_another_job"], "last"),
    ],
)
def test_a_list_of_sets_is_named_after_all(names, short):
    given = ["seed=1", f"data=[{','.join(names)}]"]
    assert name_of_sets(given, "last") == short


def test_the_resolver_gives_the_same_and_may_stand_in_the_configuration():
    composed = config.compose("train", ["logger=wandb", "+logger.wandb.notes=${adaptok.run_id:}"])
    assert config.plain(composed)["logger"]["wandb"]["notes"] == identity()


def test_a_configuration_with_a_mistake_has_a_name_too():
    name = identity("size.depth=${nowhere}")
    assert name.startswith("acoustic_scattering_maze_coarse_fine")


def test_a_name_that_cannot_be_resolved_is_left_out():
    assert identity("data=well", "seed=1").startswith("coarse_fine_vit_seed1_")
