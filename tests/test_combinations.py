"""`adaptok list combinations`: what it calls valid runs, what it refuses raises with its reason."""

from __future__ import annotations

import functools
import itertools
import random
import re

import pytest
import small_runs
import torch
from test_matrix import check_forward_and_backward

from adaptok.cli import main
from adaptok.config import menu as config
from adaptok.models.combinations import Combination, build, candidates, combinations, reason_against
from adaptok.registry import DECODERS, INDICATORS, PROCESSORS, TOKENIZERS

SHAPE = (48, 40)  # the second axis divides by no size of 16


@functools.cache
def some() -> list[Combination]:
    """Two hundred combinations, drawn, some with reducers: to build all of them takes minutes."""
    draw, every = random.Random(0), list(candidates())
    reduced = draw.sample([parts for parts in every if "processor.reducer" in parts], 20)
    drawn = draw.sample([parts for parts in every if "processor.reducer" not in parts], 180)
    return [Combination(parts, reason_against(parts)) for parts in drawn + reduced]


def valid() -> list[Combination]:
    return [one for one in some() if one.reason is None]


def pairs(one: Combination) -> set:
    return set(itertools.combinations(sorted(one.parts.items()), 2))


def covering() -> list[Combination]:
    """Few valid combinations in which every two parts that go together meet."""
    of = [(one, pairs(one)) for one in valid()]
    missing = set().union(*(own for _, own in of))
    chosen = []
    while missing:
        best, own = max(of, key=lambda one: len(one[1] & missing))
        missing -= own
        chosen.append(best)
    return chosen


def smoke(one: Combination) -> None:
    torch.manual_seed(0)
    model = build(one.parts, normalise="none")
    check_forward_and_backward(model, torch.randn(2, 2, 2, *SHAPE).cumsum(-1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:budget")
def test_every_two_parts_that_go_together_run_together():
    for one in covering():
        try:
            smoke(one)
        except Exception as error:
            error.add_note(" ".join(one.overrides))
            raise


def test_every_refused_one_raises_with_its_reason():
    refused = [one for one in some() if one.reason is not None]
    assert len(refused) > 20
    for one in refused[::10]:
        assert len(one.reason or "") > 20
        with pytest.raises(ValueError, match=re.escape(one.reason or "")):
            build(one.parts)


def test_the_list_is_the_product_of_the_registries(monkeypatch):
    monkeypatch.setattr("adaptok.models.combinations.reason_against", lambda parts: None)
    parts = [one.parts for one in combinations()]
    assert parts == list(candidates())
    seen = {(key, name) for one in parts for key, name in one.items()}
    for key, registry in (
        *(("tokenizer", TOKENIZERS), ("processor", PROCESSORS), ("decoder", DECODERS)),
        *(("tokenizer/indicator", INDICATORS), ("history_mode", None)),
    ):
        names = registry.names() if registry else ["fold", "frames"]
        assert {n for k, n in seen if k == key} == set(names)
    assert len({tuple(sorted(one.items())) for one in parts}) == len(parts)


def test_a_part_registered_later_is_in_the_list():
    @DECODERS.register("never_fits")
    def part(spec, out_channels: int):
        raise ValueError("this decoder fits nothing at all")

    found = list(combinations("tokenizer=iap processor=vit*decoder=never_fits"))
    assert found
    assert {one.reason for one in found} == {"this decoder fits nothing at all"}


@pytest.mark.slow
def test_printed_as_it_is_typed(capsys):
    assert main(["list", "combinations", "tokenizer=iap*decoder=modulated"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"0 valid, {len(lines)} refused"
    assert all(line.startswith("refused  tokenizer=iap processor=") for line in lines)
    assert main(["list", "combinations", "entropy +tokenizer/marking=budget*=linear"]) == 0
    assert re.search(r"valid +tokenizer=composed \+tokenizer/in.*fourier", capsys.readouterr().out)
    assert main(["list", "combinations", "nothing"]) == 2
    assert "no combination matches 'nothing'" in capsys.readouterr().err


def one_per_part() -> list[list[str]]:
    """Valid combinations in which every part appears."""
    missing = {item for one in valid() for item in one.parts.items()}
    chosen = []
    while missing:
        best = max(valid(), key=lambda one: len(set(one.parts.items()) & missing))
        missing -= set(best.parts.items())
        chosen.append(best)
    return [one.overrides for one in chosen]


@pytest.mark.slow
def test_valid_ones_can_be_typed():
    for overrides in one_per_part():
        chosen = config.plain(config.compose("train", overrides))
        typed = dict(o.removeprefix("+").replace("/", ".").split("=") for o in overrides)
        for key, name in typed.items():
            node = chosen
            for word in key.split("."):
                node = node[word]
            assert node == name or node["name"] == name


@pytest.mark.slow
def test_refused_ones_are_refused_on_the_command_line_with_the_printed_reason(tmp_path, capsys):
    reasons = {one.reason: one for one in some() if one.reason is not None}
    small = [*small_runs.data(), *small_runs.SIZE, *small_runs.RUN, "history=2"]
    for reason, one in reasons.items():
        assert main(["train", *small, *one.overrides, f"hydra.run.dir={tmp_path}"]) == 2
        assert capsys.readouterr().err.strip().endswith(f"adaptok: error: {reason}")


def test_reason_is_none_for_the_default():
    default = {"tokenizer": "iap", "processor": "vit", "decoder": "linear"}
    assert reason_against(default) is None
