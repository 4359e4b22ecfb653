"""Reducers: merged and dropped tokens in processors, against loops and the authors' arrays."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

import adaptok
from adaptok import REDUCERS, Cells, TokenSet, create_processor, create_surrogate, create_tokenizer
from adaptok.processors.reducers import (
    DTEM,
    EViT,
    Seen,
    Sequences,
    Trail,
    largest,
    match,
    per_block,
)
from adaptok.processors.reducers.pitome import by_energy, share_of
from adaptok.utils.auxiliary import collect_auxiliary

LENGTHS = (9, 4, 16, 2)
SPEC = create_tokenizer("iap", ndim=2, in_channels=1, dim=24, min_size=2, max_size=8).spec
ACTIVE = {  # knobs with which each reducer acts in a processor of two blocks
    "tome": {"r": [3, 2]},
    "pitome": {"r": [3, 2]},
    "evit": {"keep": 0.6, "blocks": [0, 1]},
    "dynamicvit": {"keep": 0.6, "blocks": [0, 1]},
    "dtem": {"r": [3, 2]},
    "random": {"r": [3, 2]},
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


PAIRS = [(name, reducer) for name in adaptok.PROCESSORS.names() for reducer in REDUCERS.names()]
QUICK = [("vit", "pitome"), ("axial", "tome"), ("vit", "dynamicvit"), ("axial", "random")]
QUICK += [("spacetime", "evit"), ("spacetime_parallel", "dtem")]


@pytest.mark.parametrize(
    ("name", "reducer"),
    [pytest.param(*p, marks=[pytest.mark.slow] * (p not in QUICK)) for p in PAIRS],
)
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


def test_energies_against_loops():
    lengths, prefix, margin, alpha = (9, 3, 14), 1, 0.3, 0.5
    metric = torch.randn(26, 5, generator=torch.Generator().manual_seed(0))
    taken = (3, 1, 4)
    found = by_energy(metric, Sequences(lengths, prefix, metric.device), taken, margin, alpha)
    expected, start, first = [], 0, 0
    for length, r in zip(lengths, taken, strict=True):
        own = F.normalize(metric[first : first + length], dim=-1)
        energy = {}
        for i in range(prefix, length):
            others = [float(own[i] @ own[j]) for j in range(prefix, length) if j != i]
            pulls = [x if x >= margin else alpha * (math.exp(x - margin) - 1) for x in others]
            energy[i] = sum(pulls) / (length - prefix)
        ranked = sorted(energy, key=lambda i: -energy[i])[: 2 * r]
        into = {i: max(ranked[1::2], key=lambda j: float(own[i] @ own[j])) for i in ranked[::2]}
        left = [i for i in range(length) if i not in into]
        expected += [start + left.index(into.get(i, i)) for i in range(length)]
        start, first = start + length - r, first + length
    assert found.target.tolist() == expected


@pytest.mark.parametrize(("keep", "lost"), [(0.7, (2, 0, 4)), (0.25, (4, 1, 7)), (1.0, (0, 0, 0))])
def test_a_share_is_kept_up_to_one_half(keep, lost):
    assert tuple(share_of(n, keep) for n in (8, 2, 14)) == lost


def seen_of(lengths=(9, 2, 6), prefix=1, heads=2) -> Seen:
    generator = torch.Generator().manual_seed(0)
    n = sum(lengths)
    x, q, k = (
        torch.randn(n, *shape, generator=generator) for shape in ((8,), (heads, 4), (heads, 4))
    )
    mass = torch.randint(1, 4, (n,), generator=generator).float()
    rows = Sequences(lengths, prefix, x.device)
    return Seen(0, x, mass, rows, lengths, x, q, k, key_bias=mass.log())


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_attention_of_the_class_token_against_loops(prefix, normalised):
    seen = seen_of(prefix=prefix)
    evit = EViT(1, keep=0.6, blocks=[0], normalised=normalised)
    out = evit(seen)
    rows, masses, start = [], [], 0
    for length in seen.sequences.lengths:
        own = slice(start, start + length)
        x, q, k, mass = seen.x[own], seen.q[own], seen.k[own], seen.mass[own]
        query = q[0] if prefix else q.mean(0)
        attention = torch.zeros(length)
        for head in range(2):
            score = torch.stack([query[head] @ key for key in k[:, head]]) / 2 + mass.log()
            attention += score.softmax(0) / 2
        free = sorted(range(prefix, length), key=lambda i: -float(attention[i]))
        kept = free[: math.ceil(0.6 * len(free))]
        stay, rest = [*range(prefix), *sorted(kept)], free[len(kept) :]
        rows, masses = [*rows, *x[stay]], [*masses, *mass[stay]]
        if len(rest) == 1:
            rows.append(x[rest[0]] * (1 if normalised else attention[rest[0]]))
        elif rest:
            fused = (x[rest] * attention[rest, None]).sum(0)
            rows.append(fused / attention[rest].sum() if normalised else fused)
        masses += [mass[rest].sum()] * bool(rest)
        start += length
    torch.testing.assert_close(out.x, torch.stack(rows))
    torch.testing.assert_close(out.mass, torch.stack(masses))


def test_what_is_dropped_keeps_its_feature():
    tokens = tokens_of((8, 5))
    knobs = {"depth": 1, "norm_placement": "matey"}  # no norm at the end
    reducer = {"name": "random", "r": 2}
    process = processor_of(reducer=reducer, **knobs)
    out, left = process(tokens), processor_of(reducer=reducer, unmerge=False, **knobs)(tokens)
    assert left.cells.lengths == (6, 3)
    stays = (out.features[:, None] == left.features).all(2).any(1)
    assert int(stays.sum()) == 9
    with torch.no_grad():  # what is dropped after the attention is as if there were no MLP
        process.blocks[0].mlp.down.weight.zero_()
        process.blocks[0].mlp.down.bias.zero_()
        process.blocks[0].norm_mlp.bias.zero_()
        process.reducer = None
        torch.testing.assert_close(process(tokens).features[~stays], out.features[~stays])
    other = processor_of(reducer={**reducer, "seed": 1}, **knobs)
    assert not torch.equal(other(tokens).features, out.features)


def test_dropping_is_hiding(monkeypatch):
    """Training with the tokens that evaluation keeps gives what evaluation gives."""
    tokens = tokens_of((12, 7))
    process = processor_of(depth=3, reducer={"name": "dynamicvit", "keep": 0.6, "blocks": [1, 2]})
    expected = process(tokens)
    stage = iter(((7, 4), (4, 2)))

    def best(rating, hard):
        rows = Sequences((12, 7), 0, rating.device)
        score, gate = rows.spread(rating[:, 0]), best.gate
        score = score.masked_fill(rows.spread(gate) == 0, -torch.inf)
        keep = torch.tensor(next(stage))[:, None]
        best.gate = rows.collect(largest(score, rows.free(), keep)).float()
        return torch.stack([best.gate, 1 - best.gate], 1) + 0 * rating

    best.gate = torch.ones(19)
    monkeypatch.setattr(F, "gumbel_softmax", best)
    with collect_auxiliary() as collected:
        out = process.train()(tokens)
    torch.testing.assert_close(out.features, expected.features, atol=1e-4, rtol=1e-4)
    rates = [float(collected.figures[f"reducer_rate_{i}"]) for i in (0, 1)]
    first, second = (7 / 12 - 0.6, 4 / 7 - 0.6), (4 / 12 - 0.36, 2 / 7 - 0.36)
    expected = [(a**2 + b**2) / 2 for a, b in (first, second)]
    assert rates == pytest.approx(expected, abs=1e-6)
    collected.total().backward()
    assert all(p.grad is not None for p in process.reducer.predictors[0].parameters())


def test_what_is_out_stands_for_nothing_in_training():
    process = processor_of(reducer={"name": "dynamicvit", "blocks": [1]}, unmerge=False).train()
    weight = process(tokens_of((12, 7))).payload["weight"]
    assert 0 < int((weight == 0).sum()) < 19


def test_soft_merging_against_loops():
    seen, taken = seen_of((9, 4, 6), prefix=1), (3, 1, 2)
    dtem = DTEM(1, 8, 2, r=3, nearest=2, temperature=0.5)
    metric = dtem.metric["0"](seen.normed)
    found = match(metric, seen.sequences, taken)
    x, mass = dtem.soft(seen, metric, taken, found)
    rows, masses, start = seen.x.clone(), seen.mass.clone(), 0
    for length, r in zip(seen.sequences.lengths, taken, strict=True):
        even, odd = range(start + 2, start + length, 2), range(start + 1, start + length, 2)
        unit = F.normalize(metric, dim=-1).detach()
        cosine = {i: {j: float(unit[i] @ unit[j]) for j in odd} for i in even}
        logits = torch.tensor([max(cosine[i].values()) / 0.5 for i in even])
        moved = torch.zeros(len(even))
        for _ in range(r):
            share = logits.softmax(0)
            moved, logits = moved + share, logits + torch.log1p(-share.clamp(max=1 - 1e-6))
        leave = sorted(even, key=lambda i: -max(cosine[i].values()))[:r]
        for i, part in zip(even, moved.clamp(max=1).tolist(), strict=True):
            part = 1.0 if i in leave else part
            near = sorted(odd, key=lambda j: -cosine[i][j])[:2]
            share = torch.tensor([cosine[i][j] / 0.5 for j in near]).softmax(0)
            for j, s in zip(near, share.tolist(), strict=True):
                gain = part * s * seen.mass[i]
                rows[j] = (rows[j] * masses[j] + gain * seen.x[i]) / (masses[j] + gain)
                masses[j] += gain
            masses[i] = seen.mass[i] * (1 - part)
        start += length
    torch.testing.assert_close(mass, masses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x, rows, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mass[found.kept].sum(), seen.mass.sum())


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


def test_a_saved_model_has_its_reducer(tmp_path):
    reducer = {"name": "dtem", "r": [3, 2]}
    made = {"ndim": 2, "in_channels": 1, "dim": 24, "depth": 2, "heads": 2}
    made["tokenizer"] = {"name": "iap", "min_size": 2, "max_size": 8, "budget": 40}
    model = create_surrogate(processor={"name": "vit", "reducer": reducer}, **made).eval()
    adaptok.save_pretrained(model, tmp_path)
    again, x = adaptok.from_pretrained(tmp_path).eval(), fields_of(1)
    assert torch.equal(again.rollout(x, 1), model.rollout(x, 1))


@pytest.mark.parametrize(
    "reducer",
    [pytest.param(r, marks=[pytest.mark.slow] * (r != "dtem")) for r in REDUCERS.names()],
)
def test_other_precisions(reducer):
    tokens = tokens_of((12, 7))
    process = processor_of(reducer={"name": reducer, **ACTIVE[reducer]})
    expected = process(tokens).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert process(tokens).features.isfinite().all()
        process.train()(tokens).features.float().mean().backward()
    double = process.eval().double()(tokens.to(torch.float64)).features
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, atol=1e-4, rtol=1e-4)
