"""The menu: files compose, every key is read, every part is a choice, mistakes are explained."""

from __future__ import annotations

import inspect
import itertools
import re
from importlib.util import find_spec
from pathlib import Path

import lightning
import pytest
import small_runs
import wandb
import yaml
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch.loggers import WandbLogger
from sampled import sampled

from adaptok.cli.listing import _kinds, parts_markdown
from adaptok.config import build
from adaptok.config import menu as config
from adaptok.data import WellData
from adaptok.data.synthetic import SOLVERS, generate
from adaptok.evaluation.evaluate import evaluate
from adaptok.registry import TOKENIZERS
from adaptok.tasks.classify import ClassifierOptim, ImageData, evaluate_classifier
from adaptok.tasks.classify.models import build_timm
from adaptok.training import make_trainer
from adaptok.training.optim import Optim
from adaptok.vision import IMAGE_TOKENIZERS

FOLDER = config.config_dir()
COMMANDS = ("train", "finetune", "eval", "tokenize", "data", "demo")
YAML = "".join(path.read_text() for path in FOLDER.rglob("*.yaml"))
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))
CHOICES = [path.removesuffix(".yaml") for path in FILES if "/" in path and "/_" not in path]
# Who reads the keys of a group, and which keys its reader takes beside its own parameters.
READERS = {
    "data": ([WellData.__init__, ImageData.__init__], {"generate", "format"}),
    "optim": ([Optim, ClassifierOptim], set()),
    "trainer": ([lightning.Trainer, make_trainer], {"compile"}),
    "logger": ([make_trainer], {"tensorboard", "mlflow"}),
    "callbacks": ([], {"early_stopping", "learning_rate"}),
    "size": ([], {"dim", "depth", "heads", "mlp_ratio"}),
    "tokenizer": ([], set()),
    "processor": ([], set()),
    "decoder": ([], {"name"}),
    "schedule": ([], set()),
    "model": ([build_timm], {"name"}),
}
CKPT = {name: ["ckpt=x"] for name in ("eval", "finetune")}
ROOT = Path(__file__).parents[1]
SOURCES = "".join(path.read_text() for path in (ROOT / "adaptok").rglob("*.py"))
GLOBAL = ("task", "recipe", "launcher", "search", "experiment")  # they set keys of other groups
PLUGINS = {
    "launcher/joblib": ["hydra_joblib_launcher"],
    "launcher/submitit": ["hydra_submitit_launcher"],
    "launcher/slurm": ["hydra_submitit_launcher"],
    "launcher/slurm_fsdp": ["hydra_submitit_launcher"],
    "launcher/ray": ["hydra_ray_launcher"],
    "search/apt_thresholds": ["hydra_optuna_sweeper"],
}
MANDATORY = {
    "data/well": ["data.name=shear_flow"],
    "data/images": ["data.path=x"],
    "data/pdebench": ["data.path=2D.h5"],
}
COMMAND_KEYS = {
    "finetune": {
        "task",
        "callbacks",
        "sweep",
        "ckpt",
        "mode",
        "data_fraction",
        "from_scratch",
        "init",
        "resume",
        "resume_anyway",
        "activation_checkpointing",
        "test",
        "schedule",
        "optim",
        "trainer",
        "logger",
    },
    "train": {
        "task",
        "callbacks",
        "sweep",
        "budget",
        "init",
        "resume",
        "resume_anyway",
        "activation_checkpointing",
        "test",
        "schedule",
        "optim",
        "trainer",
        "logger",
    },
    "demo": {
        "task",
        "callbacks",
        "sweep",
        "budget",
        "init",
        "resume",
        "resume_anyway",
        "activation_checkpointing",
        "test",
        "schedule",
        "optim",
        "trainer",
        "logger",
        "compare",
    },
    "eval": {
        "ckpt",
        "split",
        "settings",
        "steps",
        "patch_size",
        "device",
        "save_predictions",
        "video",
    },
    "tokenize": {"split", "samples", "settings", "tokenizers", "budget"},
    "data": {"overwrite", "picture"},
}


def side_by_side() -> list[list[str]]:
    """Every choice once: those of groups that set keys of their own alone, one of each group."""
    groups: dict[str, list[str]] = {}
    for choice in CHOICES:
        groups.setdefault(choice.split("/")[0], []).append(choice)
    groups.pop("experiment")  # tests/test_presets.py
    alone = [[choice] for group in GLOBAL if group in groups for choice in groups.pop(group)]
    together = itertools.zip_longest(*groups.values())
    return [*alone, *([choice for choice in one if choice] for one in together)]


@pytest.mark.parametrize("chosen", sampled(side_by_side(), 2), ids=" ".join)
def test_every_file_composes_and_every_key_is_read(chosen):
    overrides = []
    for choice in chosen:
        for plugin in PLUGINS.get(choice, []):
            if find_spec(f"hydra_plugins.{plugin}") is None:
                pytest.skip(f"{plugin} is not installed")
        group, name = choice.split("/")
        overrides += [f"{group}={name}", *MANDATORY.get(choice, [])]
        overrides += ["task=classify"] if group == "recipe" else []
    composed = config.plain(config.compose("train", overrides))
    for choice in chosen:
        group = choice.split("/")[0]
        assert group in GLOBAL or composed[group]
    for key in READERS:  # all groups: a choice may set keys of others
        check_group(key, composed.get(key) or {})
    check_test(composed)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_and_every_key_of_it_is_read(command):
    composed = config.plain(config.compose(command, [*CKPT.get(command, [])]))
    known = {
        "seed",
        "name",
        "model",
        "tokenizer",
        "processor",
        "decoder",
        "size",
        "data",
        "lookahead",
        "conserve",
    }
    known |= {*build.MODEL_KEYS, *COMMAND_KEYS[command]}
    assert set(composed) <= known
    assert COMMAND_KEYS[command] <= set(composed)
    for key, value in composed.items():
        if key in READERS and value is not None:
            check_group(key, value)
        assert f'"{key}"' in SOURCES or f"${{{key}}}" in YAML, f"nothing reads {key}"
    check_test(composed)


def check_group(group: str, chosen: dict) -> None:
    """Each key of a group is a parameter of who reads it."""
    readers, more = READERS[group]
    known = more.union(*(inspect.signature(reader).parameters for reader in readers))
    if group in config.GROUPS and chosen:
        known = {"name", "checkpoint", "pretrained", *known}
        if chosen["name"] in config.GROUPS[group].names():
            known |= set(config.GROUPS[group].knobs(chosen["name"]))
        if chosen["name"] in IMAGE_TOKENIZERS.names():
            known |= set(IMAGE_TOKENIZERS.knobs(chosen["name"]))
    assert set(chosen) <= known, group
    if group == "logger" and chosen.get("wandb"):
        known = {
            *inspect.signature(WandbLogger).parameters,
            *inspect.signature(wandb.init).parameters,
        }
        assert set(chosen["wandb"]) <= known


def check_test(composed: dict) -> None:
    """What happens after the fit takes the keys of `test`."""
    known = {
        *inspect.signature(evaluate).parameters,
        *inspect.signature(evaluate_classifier).parameters,
    }
    assert set(composed.get("test") or {}) <= known


def test_every_shared_file_is_included_by_another():
    for path in FILES:
        name = path.removesuffix(".yaml").rpartition("/")[2]
        if name.startswith("_"):
            others = [FOLDER / other for other in FILES if other != path]
            assert any(re.search(rf"\b{name}\b", other.read_text()) for other in others), path


def test_the_page_of_parts_is_up_to_date():
    page = (FOLDER.parent / "docs" / "parts.md").read_text()
    assert page == parts_markdown(), "adaptok list markdown > docs/parts.md"
    for kind, registry in _kinds().items():
        for name in registry.names():
            assert f"- **{name}**: " in page
            about = (inspect.getdoc(registry.get(name)) or "").partition("\n")[0]
            assert len(about) > 20, f"{kind} {name} has no docstring"
            without = [knob for knob, text in registry.meanings(name).items() if not text]
            assert not without, f"{kind} {name}: these knobs are missing in Args of its docstring"


def test_no_file_is_left_out():
    top = {path.removesuffix(".yaml") for path in FILES if "/" not in path}
    assert top == {*COMMANDS, "run", "sweep", "model"}
    groups = {choice.split("/")[0] for choice in CHOICES}
    assert groups <= {*READERS, *GLOBAL}


def parts_side_by_side(nested: bool) -> list[dict[str, str]]:
    """Every part once, by its group: one of each group at a time."""
    registries = {g: r.names() for g, r in config.GROUPS.items() if ("/" in g) is nested}
    together = itertools.zip_longest(*registries.values())
    return [{g: n for g, n in zip(registries, one, strict=True) if n} for one in together]


@pytest.mark.parametrize(
    "chosen", sampled([*parts_side_by_side(True), *parts_side_by_side(False)], 6)
)
def test_every_part_is_a_choice_with_its_knobs(chosen):
    nested = any("/" in group for group in chosen)
    overrides = [f"{'+' if nested else ''}{group}={name}" for group, name in chosen.items()]
    overrides += ["tokenizer=composed"] if nested else []
    composed = config.plain(config.compose("train", overrides))
    for group, name in chosen.items():
        node = composed
        for key in group.split("/"):
            node = node[key]
        assert node["name"] == name
        plain_knobs = {k for k, v in config.GROUPS[group].knobs(name).items() if not callable(v)}
        assert set(node) == {"name", *plain_knobs}


def test_a_part_registered_later_needs_no_file():
    @TOKENIZERS.register("for_this_test")
    def part(ndim: int, in_channels: int, dim: int, *, knob: int = 1, more: float = 0.5):
        """Never built."""

    try:
        composed = config.compose("train", ["tokenizer=for_this_test", "tokenizer.knob=3"])
        chosen = config.plain(composed)["tokenizer"]
    finally:
        del TOKENIZERS._factories["for_this_test"]
    shared = {"halo": 0, "halo_pooled": False}  # what every tokenizer has
    assert chosen == {"name": "for_this_test", "knob": 3, "more": 0.5, **shared}


def test_a_part_that_changed_is_another_choice():
    for default in (1, True):  # equal in Python, not in a configuration

        def part(ndim: int, in_channels: int, dim: int, *, knob=default):
            """Never built."""

        TOKENIZERS._factories["for_this_test"] = part
        composed = config.compose("train", ["tokenizer=for_this_test"])
        assert str(config.plain(composed)["tokenizer"]["knob"]) == str(default)
    del TOKENIZERS._factories["for_this_test"]
    with pytest.raises(ValueError, match="unknown tokenizer 'for_this_test'"):
        config.compose("train", ["tokenizer=for_this_test"])


def test_size_and_seed_reach_the_parts():
    composed = config.plain(config.compose("train", ["size=iap", "seed=7", "size.heads=3"]))
    assert composed["processor"]["depth"] == 7
    assert composed["processor"]["heads"] == 3
    assert composed["schedule"]["seed"] == 7
    own = config.plain(config.compose("train", ["processor.depth=2"]))
    assert own["processor"]["depth"] == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["tokenizer=aip"],
            r"unknown tokenizer 'aip' \(did you mean 'iap'.*\?\); choices: .*uniform",
        ),
        (["tokenzer=iap"], r"unknown key 'tokenzer' \(did you mean 'tokenizer'\?\)$"),
        (
            ["tokenizer=iap", "tokenizer.bugdet=1"],
            r"'tokenizer.bugdet' \(did you mean 'tokenizer.budget'\?\)$",
        ),
        (
            ["tokenizer=iap", "tokenizer.zzz=1"],
            "'tokenizer.zzz'; valid here: tokenizer.name, tokenizer.min_size",
        ),
        (
            ["tokenizer=uniform", "tokenizer.budget=1"],
            r"'tokenizer.budget' \(did you mean 'budget'\?\)",
        ),
        (["processor.recipe=matey"], r"'processor.recipe'.*'processor.norm_placement' now"),
        (["trainer.max_step=3"], r"did you mean 'trainer.max_steps'\?"),
        (["data.generate.nods=3"], r"did you mean 'data.generate.nodes'\?"),
        (["data=well"], "^data.name must be given, below data.base, or data.path"),
        (["a=b=c"], "cannot read 'a=b=c'"),
    ],
)
def test_mistakes_are_explained_in_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        config.plain(config.compose("train", overrides))
    assert "\n" not in str(error.value)


def test_a_key_added_with_a_plus_must_be_read_by_something():
    composed = config.plain(config.compose("train", ["+sede=3"]))
    with pytest.raises(ValueError, match=r"unknown key 'sede' \(did you mean 'seed'"):
        config.check_keys(composed, "train")
    composed = config.plain(config.compose("data", [*small_runs.data(), "+data.batchsize=3"]))
    with pytest.raises(ValueError, match=r"'data.batchsize' \(did you mean 'batch_size'"):
        build.build_data(composed)


def test_own_folder_of_files(tmp_path):
    (tmp_path / "size").mkdir()
    (tmp_path / "size" / "own.yaml").write_text("dim: 8\ndepth: 1\nheads: 1\nmlp_ratio: 1.0\n")
    composed = config.plain(config.compose("train", ["size=own"], [tmp_path]))
    assert composed["size"]["dim"] == 8


def test_composing_inside_a_job_leaves_hydra_as_it_was():
    before = GlobalHydra.instance().hydra
    config.compose("train")
    assert GlobalHydra.instance().hydra is before


@pytest.mark.parametrize("name", SOLVERS.names())
def test_every_solver_is_a_data_set_with_its_knobs(name):
    chosen = config.plain(config.compose("data", [f"data={name}"]))["data"]
    assert chosen["name"] == name
    assert set(chosen["generate"]) - {"seed"} == set(SOLVERS.knobs(name))


def test_build_data_by_folder_and_by_name():
    overrides = small_runs.data()
    generated = build.build_data(config.plain(config.compose("data", overrides)))
    name = generated.info.name
    well = ["data=well", f"data.name={name}", f"data.base={small_runs.root()}"]
    by_name = build.build_data(config.plain(config.compose("data", well)))
    folder = ["data=well", f"data.path={generated.folder}/"]
    assert config.plain(config.compose("data", folder))["data"]["name"] == name
    assert config.name_of_folder("hf://datasets/mine/") == "mine"
    by_path = build.build_data(config.plain(config.compose("data", folder)))
    assert by_name.info.shape == by_path.info.shape == generated.info.shape == (16, 16)


def test_the_surrogate_is_the_configured_one():
    composed = config.plain(config.compose("train", [*small_runs.train(), "normalise=dataset"]))
    data = build.build_data(composed)
    surrogate = build.build_surrogate(composed, data.info)
    assert surrogate.normalise == "dataset"
    assert surrogate.tokenizer.spec.dim == 24
    assert surrogate.mean.tolist() == data.info.mean.tolist()
    batch = next(iter(data.loader("test")))
    out = surrogate(batch["input"], constants=batch["constants"], boundary=batch["boundary"])
    assert out.shape == batch["target"].shape


def test_files_are_valid_alone():
    for path in FILES:
        assert isinstance(yaml.safe_load((FOLDER / path).read_text()), dict), path


def test_generate_takes_what_the_menu_passes():
    assert {"seed", "overwrite"} <= set(inspect.signature(generate).parameters)
    assert isinstance(FOLDER, Path)
