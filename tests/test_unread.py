"""A given key that is not read is refused, or named in a sweep."""

from __future__ import annotations

import pytest
import small_runs

from adaptok.cli import main
from adaptok.config.menu import compose, plain
from adaptok.config.unread import RULES, unread
from adaptok.tasks import fit, surrogate


def given(*overrides: str) -> list[str]:
    return [*unread(plain(compose("train", list(overrides))), [o.split("=")[0] for o in overrides])]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["data=shear_flow", "data.path=/nonexistent"], "data.path"),
        (["data=shear_flow", "data.storage_options={a: 1}"], "data.storage_options"),
        (["data=well", "data.name=x", "data.path=/x", "data.base=/y"], "data.base"),
        (["data.cache=false", "data.cache_limit=3"], "data.cache_limit"),
        (["model=fno", "tokenizer=iap"], "tokenizer"),
        (["model=fno", "tokenizer.share=0.3"], "tokenizer.share"),
        (["model=fno", "size=base"], "size"),
        (["model=persistence", "optim.lr=1"], "optim.lr"),
        (["resume_anyway=true"], "resume_anyway"),
        (["optim=paper", "optim.warmup=0.1"], "optim.warmup"),
        (["optim=cosine", "optim.gamma=0.5"], "optim.gamma"),
        (["optim=cosine", "optim.gamma_steps=5"], "optim.gamma_steps"),
        (["optim.betas=[0.5,0.9]", "optim.optimizer={_target_: torch.optim.SGD}"], "optim.betas"),
        (["optim.through_time=true"], "optim.through_time"),
        (["test.patch_size=8", "test.steps=0"], "test.patch_size"),
        (["task=classify", "optim.warmup_steps=3"], "optim.warmup_steps"),
        (["task=classify", "data.flip=0.5", "data.augment=false"], "data.flip"),
        (["task=classify", "data.mix=0.5", "data.augment=true"], "data.mix"),
        (["task=classify", "data.cutmix_share=0.5", "data.mixup=0.2"], "data.cutmix_share"),
    ],
)
def test_a_key_that_nothing_reads_is_named_with_the_reason(overrides, key):
    (line,) = given(*overrides)
    assert line.startswith(f"{key} is not read: ")


@pytest.mark.parametrize(
    "overrides",
    [
        ["tokenizer=apt", "processor.depth=2", "size.dim=32", "data.base=/x", "data.cache_limit=3"],
        ["model=fno", "model.width=8", "optim.lr=1", "history=2", "budget=64"],
        ["data=well", "data.name=x", "data.path=/x", "data.storage_options={a: 1}"],
        ["resume=auto", "resume_anyway=true"],
        ["optim.gamma=0.9", "optim.gamma_steps=5", "optim.betas=[0.5,0.9]", "test.patch_size=8"],
        ["optim.through_time=true", "optim.unroll=2"],
        ["optim.through_time=true", "schedule=stages", "schedule.settings=[{}, {unroll: 2}]"],
        ["task=classify", "optim.warmup_epochs=null", "optim.warmup_steps=3"],
    ],
)
def test_a_key_that_is_read_passes(overrides):
    assert given(*overrides) == []


@pytest.mark.slow
def test_the_command_line_refuses_it_and_a_sweep_names_it(tmp_path, capsys):
    # gray_scott is generated, so that data.path was once dropped without a word
    single = ["data", *small_runs.data(), "data.path=/nonexistent/mine"]
    assert main(single) == 2
    assert "data.path is not read" in capsys.readouterr().err
    sweep = ["train", "-m", *small_runs.data(), "model=persistence", "trainer=debug"]
    assert main([*sweep, "test.steps=1", f"hydra.sweep.dir={tmp_path}"]) == 0
    assert "trainer is not read: model=persistence trains nothing" in capsys.readouterr().out


@pytest.mark.parametrize("base", ["s3://bucket/sets", "http://127.0.0.1:9/sets"])
def test_a_set_is_not_generated_behind_a_url(base, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "data=shear_flow", f"data.base={base}"]) == 2
    assert f"data.base={base}" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


class Recorded(dict):
    """A configuration that knows which of its top-level keys were read."""

    def __init__(self, config: dict):
        super().__init__(config)
        self.seen: set[str] = set()

    def __getitem__(self, key: str):
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default=None):
        self.seen.add(key)
        return super().get(key, default)


@pytest.mark.slow
def test_the_rules_name_what_a_run_of_a_baseline_does_not_read(tmp_path, monkeypatch):
    """The other way round: the keys that a surrogate's run reads and that of a baseline does not
    are those of the rules. So were they found; `dict(config)` hides other reads."""
    for module in (fit, surrogate):
        monkeypatch.setattr(module, "write_config", lambda config, folder: None)
    monkeypatch.setattr(surrogate.pictures, "of_run", lambda *_, **__: None)
    size = [*small_runs.data(), *small_runs.SIZE, *small_runs.RUN, "trainer.max_steps=1"]
    seen = {}
    for model in ("surrogate", "fno"):
        config = plain(compose("train", [*size, f"model={model}"]))
        recorded = Recorded(config)
        surrogate.fit_and_test(recorded, tmp_path / model)
        seen[model] = recorded.seen
    (rule,) = [rule for rule in RULES if "baseline" in rule.why]
    only = seen["surrogate"] - seen["fno"] - {"task"}  # which a set that is made first hides
    assert only == {*rule.keys.split()} - {"activation_checkpointing"}
