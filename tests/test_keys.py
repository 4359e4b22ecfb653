"""The table of configuration keys: complete; run ids, resuming and the report agree."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_runs
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from sampled import sampled

from adaptok.config.build import build_data
from adaptok.config.menu import choices, compose, plain
from adaptok.config.run_ids import run_id
from adaptok.report.configs import significant
from adaptok.training.checkpoints import check_resume, fingerprint
from adaptok.utils.keys import NEW_MODEL, NEW_RUN, flattened, identity, quoted, role_of

TASKS = {
    "surrogate": ("tokenizer", "processor", "decoder", "data", "optim", "trainer", "schedule"),
    "classify": ("tokenizer", "data", "recipe"),
    "pretrain": (),
}
MODELS = ["model=fno", "model=unet", "model=persistence"]
CKPT = Path("x.ckpt")
PDEBENCH = ["data=pdebench", "data.path=/a/x.h5"]


@functools.cache
def of_pdebench(*overrides: str):
    return compose("train", [*PDEBENCH, *overrides])


def keys(command: str, *overrides: str) -> set[str]:
    from omegaconf import OmegaConf

    composed = OmegaConf.to_container(compose(command, overrides))
    return {key for key, _ in flattened(composed)}


@pytest.mark.parametrize("task", sampled(TASKS, 3))
def test_every_key_of_every_choice_has_a_role(task):
    seen = keys("train", f"task={task}")
    groups = {group: choices(group, task) for group in TASKS[task]}
    for number in range(max(map(len, groups.values()), default=0)):  # several choices at a time
        chosen = [f"{g}={names[number % len(names)]}" for g, names in groups.items()]
        seen |= keys("train", f"task={task}", *chosen)
    for other in MODELS if task == "surrogate" else []:
        seen |= keys("train", other)
    assert [key for key in sorted(seen) if role_of(key) is None] == []


@pytest.mark.parametrize("command", ["eval", "finetune", "tokenize", "data", "demo"])
def test_every_key_of_every_command_has_a_role(command):
    assert [key for key in sorted(keys(command)) if role_of(key) is None] == []


def test_the_nearest_parent_decides_and_unknown_keys_count():
    assert role_of("data.0.base") is role_of("data.base") is not role_of("data.batch_size")
    assert role_of("tokenizer.marking.budget") is role_of("tokenizer")
    assert role_of("nobody.knows") is None
    assert identity({"nobody": {"knows": 1}}, NEW_RUN) == {"nobody.knows": 1}


def test_sets_of_a_list_are_compared_without_their_places():
    one, other = ({"data": [{"name": "a", "base": b, "path": f"{b}/a"}]} for b in ("/x", "/y"))
    assert identity(one, NEW_MODEL) == identity(other, NEW_MODEL)
    assert "data.0.path" in identity(one, NEW_MODEL)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (["data.path=/b/x.h5"], True),  # moved to another disk
        (["data.path=s3://bucket/x.h5"], True),
        (["data.path=/a/y.h5"], False),
        (["data.base=/elsewhere"], True),
        (["data.storage_options={anon: true}"], True),
        (["data.skip_bad=true"], False),
        (["trainer.compile=true"], True),
        (["activation_checkpointing=true"], True),  # after an out-of-memory
        (["trainer.val_check_interval=7"], True),
        (["optim.lr=0.1"], False),
    ],
)
def test_run_ids_resuming_and_the_report_agree(change, same):
    before, after = of_pdebench(), of_pdebench(*change)
    assert (run_id(before) == run_id(after)) is same
    flat = [dict(flattened(plain(config))) for config in (before, after)]
    assert (significant(flat[0]) == significant(flat[1])) is same
    saved = {"adaptok_config": plain(before)}
    if same:
        check_resume(saved, plain(after), CKPT)
    else:
        with pytest.raises(ValueError, match=change[0].partition("=")[0]):
            check_resume(saved, plain(after), CKPT)


def test_a_swept_path_counts_as_it_is():
    one, other = (of_pdebench(f"data.path={p}/x.h5") for p in ("/a", "/b"))
    assert run_id(one) == run_id(other)
    assert run_id(one, swept=["data.path"]) != run_id(other, swept=["data.path"])


@functools.cache
def made():
    """The configuration of a run and what its data says of itself."""
    config = plain(compose("train", small_runs.train()))
    return config, build_data(config).info


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"mean": lambda info: info.mean + 1e-6 * info.std}, None),  # another machine's rounding
        ({"std": lambda info: info.std * 1.1}, "mean and std of pressure"),
        ({"shape": lambda info: (32, 32)}, "shape of .* in the checkpoint, .32, 32. here"),
        ({"fields": lambda info: ("p", *info.fields[1:])}, "fields of"),
        ({"name": lambda info: "other"}, "other here"),
    ],
)
def test_a_fingerprint_tells_other_data(change, said):
    config, info = made()
    saved = {"adaptok_config": config, "adaptok_data": fingerprint(SimpleNamespace(info=info))}
    changed = dataclasses.replace(info, **{name: new(info) for name, new in change.items()})
    data = SimpleNamespace(info=changed)
    if said is None:
        check_resume(saved, config, CKPT, data)
        return
    with pytest.raises(ValueError, match=said):
        check_resume(saved, config, CKPT, data)


@given(st.text(alphabet=st.sampled_from("aü0\\'\" $,=()[]{}~:%&@^|;/.\t")))
def test_a_quoted_value_stands_for_itself(value):
    (override,) = OverridesParser.create().parse_overrides([quoted("data.base", value)])
    assert (override.key_or_group, override.value()) == ("data.base", value)
