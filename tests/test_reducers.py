"""Reducers: merged and dropped tokens in processors, against loops and the authors' arrays."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

import adaptok
from adaptok import REDUCERS, Cells, TokenSet, create_processor, create_surrogate, create_tokenizer
from adaptok.processors.reducers import Sequences, Trail, match, per_block

LENGTHS = (9, 4, 16, 2)
SPEC = create_tokenizer("iap", ndim=2, in_channels=1, dim=24, min_size=2, max_size=8).spec
ACTIVE = {  # knobs with which each reducer acts in a processor of two blocks
    "tome": {"r": [3, 2]},
}


def tensors(golden) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(x) for name, x in golden("tome_matching").items()}


@pytest.mark.parametrize(("tag", "prefix"), [("nocls", 0), ("cls", 1), ("cls_dist", 2)])
def test_the_matching_is_that_of_the_authors(golden, tag, prefix):
    arrays = tensors(golden)
    metric, x, size = (arrays[name].flatten(0, 1) for name in ("metric", "x", "size"))
    found = match(metric, Sequences((16, 16), prefix, x.device), (5, 5))
    merged, mass = found.merge(x, size[:, 0])
    torch.testing.assert_close(merged.view(2, 11, 8), arrays[f"{tag}_merged"])
    assert torch.equal(mass.view(2, 11, 1), arrays[f"{tag}_size"])
    assert torch.equal(
        found.target.view(2, 16) - torch.tensor([[0], [11]]), arrays[f"{tag}_assign"]
    )
    plain, count = found.merge(x, torch.ones(32))
    torch.testing.assert_close(plain.view(2, 11, 8), arrays[f"{tag}_merged_unitsize"])
    assert torch.equal(count.view(2, 11), arrays[f"{tag}_source"].sum(2))
    if f"{tag}_unmerged" in arrays:
        back = Trail().after(found, x, False).unmerge(merged)
        torch.testing.assert_close(back.view(2, 16, 8), arrays[f"{tag}_unmerged"])


def test_more_than_half_is_clipped_with_one_warning(golden):
    arrays = tensors(golden)
    tome = REDUCERS.create("tome", depth=1, r=100)
    rows = Sequences((16, 16), 1, torch.device("cpu"))
    with pytest.warns(UserWarning, match="r = 100 is clipped to 7"):
        taken = tome.at_most_half(rows, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tome.at_most_half(rows, 100) == taken == (7, 7)
    found = match(arrays["metric"].flatten(0, 1), rows, taken)
    merged, _ = found.merge(arrays["x"].flatten(0, 1), torch.ones(32))
    torch.testing.assert_close(merged.view(2, 9, 8), arrays["clip_merged"])


@pytest.mark.parametrize(
    ("r", "name"),
    [(8, "parse_r_12_8"), ((8, -1.0), "parse_r_12_8_m1"), ([16, 0.5], "parse_r_12_16_p05")],
)
def test_schedules_are_those_of_the_authors(golden, r, name):
    assert per_block(r, 12) == tuple(tensors(golden)[name].tolist())


def test_a_number_per_block():
    assert per_block([5, 3], 4) == (5, 3, 0, 0)
    assert per_block([8, 1], 2) == (8, 1)
    for wrong in ([1, 2, 3], [1, -2, 0], [1.5], (8, 1.5), (-8, 0.5)):
        with pytest.raises(ValueError, match=r"r (is|as)"):
            per_block(wrong, 2)
    with pytest.raises(ValueError, match="r must be"):
        REDUCERS.create("tome", depth=2, r="8")


def matched_by_loops(metric, lengths, prefix, taken):
    """New row of each old one: pairs by pairs of each sequence, as the paper says it."""
    targets, start, first = [], 0, 0
    for length, r in zip(lengths, taken, strict=True):
        own = metric[first : first + length]
        even = [i for i in range(0, length, 2) if i >= prefix]
        odd = [j for j in range(1, length, 2) if j >= prefix]
        best = {}
        for i in even if odd else []:
            cosine = [float(F.cosine_similarity(own[i], own[j], dim=0)) for j in odd]
            best[i] = max(cosine), odd[cosine.index(max(cosine))]
        ranked = sorted(best, key=lambda i: -best[i][0])
        sources = ranked[:r]
        left = [i for i in even if i not in sources]
        if not prefix and odd:
            left = ranked[r:]
        order = [*range(prefix), *left, *odd]
        into = [best[i][1] if i in sources else i for i in range(length)]
        targets += [start + order.index(i) for i in into]
        start, first = start + length - r, first + length
    return targets


@pytest.mark.parametrize("prefix", [0, 1, 2, 3])
def test_matching_of_sequences_that_differ_in_length_against_loops(prefix):
    lengths = (9, 4, 16, 2 + prefix, prefix + 1)
    metric = torch.randn(sum(lengths), 5, generator=torch.Generator().manual_seed(prefix))
    taken = tuple(min(4, (n - prefix) // 2) for n in lengths)
    found = match(metric, Sequences(lengths, prefix, metric.device), taken)
    assert found.target.tolist() == matched_by_loops(metric, lengths, prefix, taken)
    assert found.lengths == tuple(n - r for n, r in zip(lengths, taken, strict=True))
    assert torch.equal(found.target[found.kept], torch.arange(len(found.kept)))


def tokens_of(lengths=LENGTHS, dim=24) -> TokenSet:
    """Random features of cells of samples that differ in length."""
    n = sum(lengths)
    origin = torch.arange(n, dtype=torch.int32)[:, None].expand(-1, 3).remainder(8) * 2
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    origin = origin * torch.tensor([0, 1, 1], dtype=torch.int32)
    size = torch.tensor([[1, 2, 2]], dtype=torch.int32).expand(n, -1)
    level = torch.full((n,), 2, dtype=torch.int8)
    fixed = (ends, max(lengths), tuple(lengths), (1, 16, 16), SPEC.sizes, False)
    cells = Cells(origin, size, level, *fixed, on_grid=True, bounded=False)
    return TokenSet(torch.randn(n, dim, generator=torch.Generator().manual_seed(0)), cells)


def processor_of(name="vit", depth=2, **knobs):
    torch.manual_seed(1)
    more = {"layer_scale": 0.5} if name == "spacetime_parallel" else {}
    return create_processor(name, SPEC, depth=depth, heads=2, **more, **knobs).eval()


def fields_of(frames=2) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(2, frames, 1, 16, 16)


def tokenized(budget=40, frames=2) -> TokenSet:
    knobs = {"min_size": 2, "max_size": 8, "budget": budget}
    tokenizer = create_tokenizer("iap", ndim=2, in_channels=1, dim=24, **knobs)
    return tokenizer(fields_of(frames))


@pytest.mark.parametrize("reducer", REDUCERS.names())
def test_samples_of_different_length_do_not_see_each_other(reducer):
    tokens = tokens_of()
    process = processor_of(reducer={"name": reducer, **ACTIVE[reducer]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the shortest sample is clipped
        together = process(tokens)
        alone = [process(tokens.samples(i, i + 1)).features for i in range(len(LENGTHS))]
    assert together.cells is tokens.cells
    torch.testing.assert_close(together.features, torch.cat(alone), atol=1e-5, rtol=1e-5)
    plain = processor_of()(tokens).features
    assert (together.features - plain).abs().max() > 1e-3


@pytest.mark.parametrize("reducer", REDUCERS.names())
@pytest.mark.parametrize("name", adaptok.PROCESSORS.names())
def test_every_processor_has_every_reducer(name, reducer):
    if "reducer" not in adaptok.PROCESSORS.knobs(name):
        pytest.skip("no knob")
    tokens = tokenized()
    part = {"name": reducer, **ACTIVE[reducer]}
    if not getattr(adaptok.PROCESSORS.get(name), "reducible", True):
        with pytest.raises(ValueError, match="takes no reducer"):
            processor_of(name, reducer=part)
        return
    process = processor_of(name, reducer=part)
    out = process(tokens)
    assert out.cells is tokens.cells
    assert out.features.isfinite().all()
    process.train()(tokens).features.square().mean().backward()
    lacking = [key for key, p in process.named_parameters() if p.grad is None]
    assert not [key for key in lacking if "reducer" in key]
    left = processor_of(name, reducer=part, unmerge=False)(tokens)
    left.cells.validate()
    assert len(left) < len(tokens)
    assert not left.cells.tiling
    if not REDUCERS.create(reducer, **sizes_of(reducer)).drops:
        assert float(left.payload["weight"].sum()) == pytest.approx(len(tokens))


def sizes_of(reducer):
    sizes = {"dim": 24, "heads": 2, "depth": 2}
    return {key: sizes[key] for key in REDUCERS.wired(reducer)} | ACTIVE[reducer]


@pytest.mark.parametrize("name", ["vit", "axial", "spacetime", "spacetime_parallel"])
def test_nothing_to_take_away_changes_nothing(name):
    tokens, reducer = tokenized(), {"name": "tome", "r": 0}
    out = processor_of(name, reducer=reducer)(tokens).features
    torch.testing.assert_close(out, processor_of(name)(tokens).features)


@pytest.mark.parametrize("weighted", [True, 0.5, False])
def test_equal_tokens_merge_without_a_trace_if_they_count_as_two(weighted):
    tokens = tokens_of((8, 8))
    twins = torch.arange(8).repeat_interleave(2)
    tokens = tokens.replace(features=tokens.features[twins])
    reducer = {"name": "tome", "r": [2], "weighted": weighted}
    out = processor_of(positions="none", reducer=reducer)(tokens).features
    away = (out - processor_of(positions="none")(tokens).features).abs().max()
    assert away < 1e-5 if weighted is True else away > 1e-4


def test_a_merged_token_is_the_mean_by_area():
    tokens = tokenized(budget=20, frames=1)
    process = processor_of(depth=1, weighted=True, reducer={"name": "tome", "r": 4}, unmerge=False)
    left = process(tokens)
    assert left.payload["weight"].sum() == tokens.weight.sum()
    assert set(left.payload["weight"].tolist()) - {1.0, 4.0, 16.0}


def test_decoders_get_all_cells_and_merged_ones_are_refused():
    made = {"ndim": 2, "in_channels": 1, "dim": 24, "depth": 2, "heads": 2}
    made["tokenizer"] = {"name": "iap", "min_size": 2, "max_size": 8, "budget": 40}
    reducer = {"name": "tome", "r": 4}
    model = create_surrogate(processor={"name": "vit", "reducer": reducer}, **made)
    assert model.rollout(fields_of(1), 2).shape == (2, 2, 1, 16, 16)
    with pytest.raises(ValueError, match="decoder 'linear' paints every cell from its own token"):
        create_surrogate(processor={"name": "vit", "reducer": reducer, "unmerge": False}, **made)
    with pytest.raises(ValueError, match="unknown reducer 'tomme'"):
        create_surrogate(processor={"name": "vit", "reducer": "tomme"}, **made)


@pytest.mark.slow
def test_it_compiles_to_one_graph():
    tokens = tokenized()
    process = processor_of(reducer={"name": "tome", "r": [3, 2]})
    compiled = torch.compile(process, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens).features, process(tokens).features)
