"""A setting per call, training step and rollout step, for every tokenizer that has one."""

from __future__ import annotations

import pytest
import small_runs
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampled import sampled

import adaptok
from adaptok import TOKENIZERS, create_schedule, create_tokenizer
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.decoders.auto import decoder_for
from adaptok.evaluation.evaluate import evaluate
from adaptok.training import SurrogateModule
from adaptok.training.optim import Optim

# Three values of a control of each tokenizer, few tokens and many.
VALUES = {
    "budget": (10, 22, 40),
    "patch_size": (1, 4, 8),
    "gamma": (1.0, 0.9, 0.5),
    "ratio": (0.1, 0.4, 1.0),
    "price": (9.0, 2.0, 1.0),
    "threshold": (9.0, 0.03, 0.0),
}
KNOBS = {  # what makes a setting of it
    "amr": {"mode": "passing"},
    "uniform": {"patch_sizes": [1, 4, 8], "size": 8},
    "matey": {"sizes": [2, 8]},
    "meshtok": {"sizes": [2, 8]},
    "msvit": {"sizes": [2, 8]},
    "patch_dropout": {"patch_sizes": [1, 4, 8], "size": 8, "drop": 0.0},
    "rlt": {"size": 4},
    "apt": {"min_size": 2, "max_size": 8, "thresholds": [-1.0, -1.0]},
}


def elastic_names() -> list[str]:
    """Tokenizers with a setting."""
    names = [name for name in TOKENIZERS.names() if name != "given"]
    return [name for name in names if make_tokenizer(name).controls]


def make_tokenizer(name: str):
    return create_tokenizer(name, ndim=2, in_channels=2, dim=24, **KNOBS.get(name, {}))


def choices_of(tokenizer) -> list[dict]:
    control = next(control for control in tokenizer.controls if control in VALUES)
    return [{control: value} for value in VALUES[control]]


def decoder_of(tokenizer) -> str:
    return decoder_for("auto", tokenizer.spec)


def parts_of(name: str):
    """Data and a model of three small steps."""
    tokenizer = make_tokenizer(name)
    chosen = [f"tokenizer.{k}={v}" for k, v in KNOBS.get(name, {}).items()]
    if name == "rlt":  # which needs frames that may change
        chosen += ["history=2", "history_mode=frames"]
    overrides = [f"tokenizer={name}", f"decoder={decoder_of(tokenizer)}", *chosen]
    config = plain(compose("train", [*small_runs.data(), *small_runs.SIZE, *overrides]))
    data = build_data(config)
    torch.manual_seed(0)
    return build_surrogate(config, data.info), data, choices_of(tokenizer)


def test_every_tokenizer_is_here():
    assert {*elastic_names(), "given", "coarse_fine"} == {*TOKENIZERS.names()}
    for name in elastic_names():
        controls = make_tokenizer(name).controls
        assert set(controls) & set(VALUES), f"give values of {controls} for the tests below"


def counting(surrogate) -> list[int]:
    """The tokens of every call from now on."""
    counts: list[int] = []
    surrogate.processor.register_forward_pre_hook(
        lambda _, args: counts.append(len(args[0].cells) // args[0].cells.batch_size)
    )
    return counts


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("iap", "uniform") else pytest.mark.slow)
        for name in elastic_names()
    ],
)
def test_training_evaluation_and_rollouts_take_settings(name):
    surrogate, data, choices = parts_of(name)
    batch = next(iter(data.train_dataloader()))
    counts = counting(surrogate)
    for choice in choices:
        surrogate(
            batch["input"], constants=batch["constants"], boundary=batch["boundary"], **choice
        )
    expected = list(counts)
    assert len(set(expected)) == 3

    schedule = create_schedule({"name": "random", "settings": choices, "seed": 1})
    module = SurrogateModule(surrogate, Optim(lr=1e-3, warmup_steps=0), schedule)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    counts.clear()
    for step in range(6):  # the loop of Lightning, by hand
        optimizer.zero_grad()
        module.loss(batch, step).backward()
        optimizer.step()
    assert counts == [expected[choices.index(schedule(step))] for step in range(6)]
    assert len(set(counts)) > 1

    cycle = {"name": "cyclic", "settings": choices}
    counts.clear()
    rows = evaluate(surrogate, data, settings=[choices[1], cycle], steps=4, device="cpu").settings
    assert all(row.vrmse.mean is not None for row in rows)
    if name in ("matey", "rlt", "amr"):  # what a threshold gives depends on the field
        assert expected == sorted(expected)
        assert len({*counts[-4:]}) > 1
        return
    assert rows[0].tokens.mean == expected[1]
    assert counts[-4:] == [*expected, expected[0]]  # the last rollout


@pytest.mark.parametrize("name", sampled(elastic_names(), 4))
def test_settings_that_do_not_exist_are_refused_with_those_that_do(name):
    surrogate, data, choices = parts_of(name)
    with pytest.raises(ValueError, match=rf"unknown control 'colour'.*{next(iter(choices[0]))}"):
        evaluate(surrogate, data, settings=[{"colour": 3}], device="cpu")


@pytest.mark.parametrize("name", ["ckm", "csm"])
@given(
    lengths=st.lists(st.integers(16, 80), min_size=2, max_size=2),
    patch=st.sampled_from([4, 8, 16]),
    boundary=st.lists(st.sampled_from([(0, 0), (0, 1), (1, 1), (2, 2)]), min_size=2, max_size=2),
)
def test_any_lengths_go_through_a_whole_model(name, lengths, patch, boundary):
    model = adaptok.create_surrogate(
        ndim=2, in_channels=1, tokenizer=name, decoder="modulated", dim=8, depth=1, heads=1
    ).eval()
    field = torch.randn(2, 1, 1, *lengths)
    codes = torch.tensor([boundary, [(2, 2), (0, 0)]])  # another kind of boundary in each sample
    with torch.no_grad():
        both = model(field, patch_size=patch, boundary=codes)
        assert both.shape == field.shape
        for i in range(2):
            alone = model(field[i : i + 1], patch_size=patch, boundary=codes[i])
            torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_fixed_baselines_have_the_cells_of_their_patch_size(patch):
    """Kernels equal strides: whole patches side by side, at patch 8 too."""
    tokenizer = create_tokenizer("csm", ndim=2, in_channels=1, dim=24, patch_sizes=[patch])
    cells = tokenizer(torch.randn(1, 1, 1, 48, 64)).cells
    assert len(cells) == 48 * 64 // patch**2
    assert (cells.size[:, 1:] == patch).all()
    assert (cells.origin[:, 1:] % patch == 0).all()
