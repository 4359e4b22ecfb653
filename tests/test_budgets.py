"""Tokens per sample as the one currency of all tokenizers: what it becomes, and what it gives."""

from __future__ import annotations

import itertools
import json

import pytest
import small_runs
import torch
import yaml
from sampled import sampled

import adaptok
from adaptok import create_tokenizer
from adaptok.cli import main
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.evaluation.budgets import resolve_settings
from adaptok.evaluation.evaluate import evaluate
from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.at_budget import at_budget, part_at_budget

SMALL = {"ndim": 2, "in_channels": 2, "dim": 24}
# Knobs with which 20 to 100 tokens of a 32 x 32 field are within reach.
REACH = {
    "amr": {"max_size": 8},
    "matey": {"sizes": [2, 4, 8]},
    "apt": {"min_size": 2, "max_size": 8},
    "composed": {"max_size": 8},
    "focus": {"max_size": 8},
    "iap": {"max_size": 8},
    "meshtok": {"sizes": [4, 8]},
    "msvit": {"sizes": [2, 4, 8]},
    "near_best": {"max_size": 8},
    "quadformer": {"max_size": 8},
    "radial": {"max_size": 8},
    "random": {"max_size": 8},
}
# What a budget becomes, per call.
CONTROL = {
    "amr": {"price"},
    "apf": {"budget"},
    "focus": {"budget"},
    "patch_dropout": set(),
    "uniform": set(),
    "iap": {"budget"},
    "composed": {"budget"},
    "apt": {"thresholds"},
    "matey": {"gamma"},
    "coarse_fine": set(),  # of one size
    "rlt": set(),  # of one frame
    "ckm": {"patch_size"},
    "csm": {"patch_size"},
    "meshtok": {"ratio"},
    "dart": {"budget"},
    "msvit": {"budget"},
    "near_best": {"budget"},
    "quadformer": {"budget"},
    "radial": {"budget"},
    "random": {"budget"},
}


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape).cumsum(-1).cumsum(-2)


def mean_tokens(tokenizer, field, **control) -> float:
    return len(tokenizer.eval().cells(field, **control)) / len(field)


@pytest.mark.parametrize("name", sorted(CONTROL))
@pytest.mark.parametrize("budget", [30, 64])
def test_every_tokenizer_meets_a_budget(name, budget):
    assert {*CONTROL, "given"} == set(TOKENIZERS.names())
    knobs, field = REACH.get(name, {}), draw(4, 1, 2, 32, 32)
    tokenizer = create_tokenizer(name, **SMALL, **knobs)
    if not CONTROL[name] and (budget == 64 or name == "coarse_fine"):  # 16 cells, and 4
        with pytest.raises(ValueError, match=r"all cells are of .*, not about"):
            at_budget(tokenizer, budget, field)
        controls = {}
    else:
        controls = at_budget(tokenizer, budget, field)
        assert set(controls) == CONTROL[name]
    part = part_at_budget({"name": name, **knobs}, tokenizer, budget, field)
    built = create_tokenizer(**part, **SMALL)
    got = mean_tokens(built, field)
    if name in ("uniform", "coarse_fine", "patch_dropout", "rlt", "ckm", "csm"):
        assert got in {mean_tokens(built, field), 16, 9, 49, 64}
        assert abs(got / budget - 1) < 0.75
    else:
        assert budget - 3 <= got <= budget
    if controls:
        assert mean_tokens(tokenizer, field, **controls) == got
    assert yaml.safe_load(yaml.safe_dump(part)) == part


@pytest.mark.parametrize("name", ["uniform", "ckm", "csm"])
def test_the_nearest_patch_size(name):
    """Beside a search that counts the cells of each size."""
    field, tokenizer = draw(1, 2, 2, 32, 48), create_tokenizer(name, **SMALL)
    sizes = [p for p in (1, 2, 4, 8, 16, 32) if 48 % p == 0] if name == "uniform" else [4, 8, 16]
    built = {p: create_tokenizer(name, **SMALL, size=p) for p in sizes}
    counts = {p: mean_tokens(one, field) for p, one in built.items()}
    for budget in (1, 20, 30, 50, 100, 190, 200, 300):
        part = part_at_budget(name, tokenizer, budget, field)
        ratios = {p: max(n / budget, budget / n) for p, n in counts.items()}
        if name != "uniform" and part["size"] not in counts:  # of the table: 1, 12, 32
            continue
        assert ratios[part["size"]] == pytest.approx(min(ratios.values()))


def test_patch_sizes_that_were_built_are_those_to_choose_from():
    field = draw(1, 1, 2, 32, 32)
    tokenizer = create_tokenizer("uniform", **SMALL, size=8, patch_sizes=[8, 16])
    assert at_budget(tokenizer, 200, field) == {"patch_size": (8, 8)}
    assert at_budget(tokenizer, 5, field) == {"patch_size": (16, 16)}
    part = {"name": "uniform", "size": 8, "patch_sizes": [8, 16]}
    assert part_at_budget(part, tokenizer, 1000, field)["size"] == (8, 8)


def test_sizes_that_divide_nothing():
    """A prime number of points leaves any size."""
    tokenizer = create_tokenizer("uniform", ndim=1, in_channels=1, dim=8)
    part = part_at_budget("uniform", tokenizer, 10, torch.randn(1, 1, 1, 37))
    assert part["size"] == 4  # ceil(37 / 4) = 10


@pytest.mark.parametrize("per_frame", sampled([False, True], 2))
@pytest.mark.parametrize("mode", ["replace", "add"])
def test_gamma_is_the_best_one(mode, per_frame):
    """Beside a try of every gamma that makes a difference."""
    fields = [draw(2, 2, 2, 16, 24), draw(1, 2, 2, 13, 12)]
    knobs = {"sizes": [2, 4, 8], "mode": mode, "per_frame": per_frame}
    tokenizer = create_tokenizer("matey", **SMALL, **knobs)
    ratios = {0.0, 1.0}
    for field in fields:
        scores, tree = tokenizer.scores(field)
        highest = tree.per_level(scores)[0].amax((1, 2), keepdim=True)
        ratios |= {r for r in (scores / highest).flatten().tolist() if 0 < r < 1}

    def count(gamma: float) -> float:
        return sum(len(tokenizer.cells(f, gamma=gamma)) for f in fields) / 3

    tried = [(a + b) / 2 for a, b in itertools.pairwise(sorted(ratios))]
    reached = sorted({count(gamma) for gamma in (*tried, 1.0)})
    assert len(reached) > 4
    for wanted in (reached[0], reached[2], sum(reached[1:3]) / 2, reached[-1]):
        gamma = adaptok.calibrate(tokenizer, fields, wanted)
        assert count(gamma) == max(r for r in reached if r <= wanted)
    with pytest.raises(ValueError, match="tokens per sample, 9999 are asked for; other cell sizes"):
        adaptok.calibrate(tokenizer, fields, 9999)


def test_a_constant_field_has_no_gamma_but_the_coarse_one():
    tokenizer = create_tokenizer("matey", **SMALL, sizes=[4, 8])
    assert mean_tokens(tokenizer, torch.ones(1, 1, 2, 16, 16), gamma=1e-6) == 4
    assert adaptok.calibrate(tokenizer, torch.ones(1, 1, 2, 16, 16), 4) == 1.0
    with pytest.raises(ValueError, match="give 4 to 4 tokens"):
        adaptok.calibrate(tokenizer, torch.ones(1, 1, 2, 16, 16), 8)


@pytest.mark.parametrize("mode", sampled(["add", "replace"], 2))
def test_the_share_of_cells_that_split(mode):
    field = draw(2, 1, 2, 32, 32)
    knobs = {"sizes": [2, 4, 8], "mode": mode, "fraction": 0.3}
    tokenizer = create_tokenizer("matey", **SMALL, **knobs)
    every = {mean_tokens(tokenizer, field, ratio=i / 256) for i in range(257)}
    for budget in (16, 50, 111, 256):
        ratio = at_budget(tokenizer, budget, field)["ratio"]
        assert mean_tokens(tokenizer, field, ratio=ratio) == max(n for n in every if n <= budget)
    part = part_at_budget({"name": "matey", **knobs}, tokenizer, 111, field)
    assert part["fraction"] == at_budget(tokenizer, 111, field)["ratio"]
    with pytest.raises(ValueError, match="gives 16 to"):
        at_budget(tokenizer, 15, field)


def test_parts_of_a_composition_keep_their_other_knobs():
    marking = {"name": "threshold", "thresholds": [1.0, 2.0], "budget": 90}
    part = {"name": "composed", "indicator": "variance", "marking": marking, "max_size": 8}
    field, tokenizer = draw(3, 1, 2, 32, 32), create_tokenizer(**part, **SMALL)
    found = part_at_budget(part, tokenizer, 60, field)
    low, high = found["marking"].pop("thresholds")
    assert found == {**part, "marking": {"name": "threshold", "budget": 90}}
    assert high / low == pytest.approx(2)


def test_thresholds_that_merge_nothing_are_capped():
    field = draw(2, 1, 2, 32, 32)
    tokenizer = create_tokenizer("apt", **SMALL, min_size=2, thresholds=(-1, -1))
    assert at_budget(tokenizer, 60, field) == {"budget": 60}
    assert 57 < mean_tokens(tokenizer, field, budget=60) <= 60


def test_bad_budgets():
    field, tokenizer = draw(1, 1, 2, 32, 32), create_tokenizer("iap", **SMALL)
    for budget in (0, -3, 2.5, True, None, "64"):
        with pytest.raises(ValueError, match="positive whole number of tokens per sample, got"):
            at_budget(tokenizer, budget, field)
    with pytest.raises(ValueError, match="at least one field"):
        at_budget(tokenizer, 64, [])
    model = adaptok.create_surrogate(ndim=2, in_channels=2, dim=8, depth=1, heads=1)
    with pytest.raises(ValueError, match="budget must be"):
        resolve_settings(model, None, [{"budget": [64, 64]}])
    tokenizer.marking.controls = ("sharpness",)
    with pytest.raises(ValueError, match="this tokenizer's controls: sharpness"):
        at_budget(tokenizer, 64, field)


# ---- in runs

SIZES = {"matey": ["tokenizer.sizes=[2,4,8]"], "apt": ["tokenizer.min_size=2"]}


def small(name: str) -> list[str]:
    without = [o for o in small_runs.train() if not o.startswith("tokenizer")]
    return [*without, f"tokenizer={name}", *SIZES.get(name, [])]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apt", "iap", "ckm", "matey"])
def test_a_run_at_a_budget(name, tmp_path):
    """Thresholds, an exact number, a ladder of sizes (as in csm and uniform), and a share."""
    rows = "test.settings=[{}, {budget: 8}]"
    assert main(["train", *small(name), "budget=16", rows, f"hydra.run.dir={tmp_path}"]) == 0
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert results["budget"] == 16
    built, half = results["settings"]
    assert half["label"] == "budget=8"
    assert half["setting"] == {"budget": 8}
    if name == "ckm":  # it learns kernels of 16, the largest that fits
        assert built["tokens"]["mean"] in (9, 16)
    else:
        assert 12 <= built["tokens"]["mean"] <= 20  # the test split differs from the training split
        assert half["tokens"]["mean"] < built["tokens"]["mean"]
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    again = main(["eval", f"ckpt={tmp_path}", "steps=0", f"hydra.run.dir={tmp_path}/again"])
    assert again == 0
    once_more = json.loads((tmp_path / "again" / "metrics.json").read_text())["settings"][0]
    assert once_more["tokens"] == built["tokens"]
    assert once_more["vrmse"] == built["vrmse"]
    if name == "apt":
        assert saved["tokenizer"]["thresholds"] != [5.5, 4.0]


@pytest.mark.slow
def test_budgets_of_a_schedule_are_calibrated(tmp_path):
    schedule = ["schedule=random", "schedule.settings=[{budget: 8}, {budget: 16}]"]
    assert main(["train", *small("matey"), *schedule, f"hydra.run.dir={tmp_path}"]) == 0
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())["schedule"]["settings"]
    gammas = [setting["gamma"] for setting in saved]
    assert gammas[0] > gammas[1]


@pytest.mark.slow
def test_what_has_no_budget_says_so(tmp_path, capsys):
    where = f"hydra.run.dir={tmp_path}"
    for given, reason in (
        ("matey tokenizer.sizes=[4,8] budget=200", "tokenizer.sizes=[1,2,4] would fit"),
        ("apt tokenizer.min_size=4 budget=100", "tokenizer.min_size=1 tokenizer.max_size=4 would"),
        ("matey budget=300", "the fields have 256 points"),
        ("uniform tokenizer.size=4 test.settings=[{budget:16},{budget:60}]", "size=2 gives 64"),
    ):
        chosen = f"tokenizer={given}".split()
        assert main(["train", *small("iap"), *chosen, where]) == 2
        assert reason in capsys.readouterr().err


# ---- what a run costs


def test_costs_are_those_of_each_stage():
    """FLOPs of a model whose products can be counted by hand."""
    dim, depth, hidden, tokens, batch = 24, 2, 48, 22, 2
    model = adaptok.create_surrogate(
        ndim=2,
        in_channels=1,
        dim=dim,
        tokenizer={"name": "iap", "budget": tokens, "max_size": 8},
        processor={"name": "vit", "depth": depth, "heads": 2, "mlp_ratio": 2.0},
        decoder="linear",
    )
    from adaptok.evaluation.cost import cost_of, parameters_by_stage

    field = torch.randn(batch, 1, 1, 16, 16)
    cost = cost_of(model, lambda: model(field), [field])
    assert cost is not None
    block = 2 * tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * 2 * tokens * tokens * dim
    assert cost.flops["processor"] == batch * depth * block
    stages = ("tokenizer", "processor", "decoder")
    assert sum(cost.flops[s] for s in stages) == cost.flops["total"]
    assert cost.flops["decoder"] > 0
    assert cost.memory["total"] == max(cost.memory[s] for s in stages)
    assert cost.memory["processor"] >= 4 * batch * tokens * hidden  # the widest activation
    assert sum(parameters_by_stage(model).values()) == sum(p.numel() for p in model.parameters())


def test_memory_is_what_lives_at_once():
    """Two tensors of a kilobyte at a time, however many are made."""
    from adaptok.evaluation.cost import cost_of

    kilo = torch.zeros(256)

    class Chain(torch.nn.Module):
        def forward(self, x):
            for _ in range(10):
                x = x + 1
            return x.sum()

    model = Chain()
    cost = cost_of(model, lambda: model(kilo), [kilo])
    assert cost is not None
    assert 2 * 1024 <= cost.memory["total"] < 3 * 1024
    assert set(cost.flops) == {"total"}


def test_a_compiled_model_is_not_counted():
    from adaptok.evaluation.cost import cost_of

    model = torch.nn.Linear(3, 3)
    model.compile()
    assert cost_of(model, lambda: model(torch.ones(1, 3))) is None


@pytest.mark.slow
def test_a_compiled_model_is_timed_as_a_whole():
    """Marks inside would break its graph; so the stages are not known."""
    from adaptok.evaluation.cost import Stopwatch

    make = {"ndim": 2, "in_channels": 1, "dim": 24, "depth": 1, "heads": 2}
    model = adaptok.create_surrogate(**make, tokenizer={"name": "iap", "budget": 22, "max_size": 8})
    field = torch.randn(1, 1, 1, 16, 16)
    for compiled in (False, True):
        if compiled:
            model.compile(backend="eager", fullgraph=True)
        watch = Stopwatch(model, torch.device("cpu"))
        watch(lambda: model(field))
        seconds = watch.seconds()
        assert len(seconds) == (1 if compiled else 4)
        assert seconds["total"] > 0


@pytest.mark.parametrize("name", ["iap", "apt"])  # compiled whole, and in buckets
def test_a_compiled_model_is_tested_without_its_graphs(name):
    from adaptok.models.compiling import compile_model, is_compiled

    config = plain(compose("train", [*small(name), "processor.depth=1"]))
    data = build_data(config)
    model = build_surrogate(config, data.info)
    expected = evaluate(model, data).settings[0]
    compile_model(model)
    forward = vars(model.processor).get("forward")
    found = evaluate(model, data).settings[0]
    assert found.flops == expected.flops
    assert found.vrmse == expected.vrmse
    assert set(found.seconds) == set(expected.seconds)
    assert is_compiled(model)
    assert vars(model.processor).get("forward") is forward


@pytest.mark.slow
def test_an_evaluation_says_what_it_cost(monkeypatch):
    monkeypatch.setattr("adaptok.evaluation.evaluate.COUNTED", 16)  # every batch
    config = plain(compose("train", small_runs.train()))
    data = build_data(config)
    results = evaluate(build_surrogate(config, data.info), data, settings=[{}, {"budget": 64}])
    built, more = results.settings
    assert more.flops["processor"] > built.flops["processor"] > 0
    assert set(built.seconds) == set(built.flops) == set(built.memory)
    assert built.seconds["total"] > 0
    assert built.tokens.min == built.tokens.max == 22
    assert {"torch", "device", "hardware", "adaptok", "when"} == set(results.environment)
    windows = len(data.loader("test", 1).dataset)
    from adaptok.evaluation.evaluate import count_tokens

    assert windows  # counting twice would change the mean over the split
    surrogate = build_surrogate(config, data.info)
    with count_tokens(surrogate) as counts:
        evaluate(surrogate, data)
    assert sum(len(c.tokens) for c in counts) >= windows


@pytest.mark.parametrize("name", ["iap", "apt", "matey", "meshtok"])
def test_a_budget_below_the_number_of_frames(name):
    tokenizer = create_tokenizer(name, **SMALL, **REACH[name])
    with pytest.raises(ValueError, match="8 frames of cells need at least 8"):
        at_budget(tokenizer, 4, torch.randn(1, 8, 2, 32, 32).cumsum(-1))
