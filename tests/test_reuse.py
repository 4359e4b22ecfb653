"""Reuse: cells that were there before, and blocks for the tokens that moved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptok
from adaptok.models.baselines import create_baseline
from adaptok.processors.reuse import Reuse

IAP = {"name": "iap", "budget": 40, "max_size": 8}


def model_of(processor="vit", tokenizer=IAP, **changes) -> adaptok.Surrogate:
    """A small model with weights far from the start, in double precision."""
    torch.manual_seed(0)
    made = {"ndim": 2, "in_channels": 1, "dim": 12, "depth": 2, "heads": 2, "tokenizer": tokenizer}
    model = adaptok.create_surrogate(**made | {"processor": processor} | changes)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.double().eval()


def moving(step: int, n: int = 16, frames: int = 1) -> torch.Tensor:
    """A bump that moves by a point per step, beside one that stays."""
    x, y = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    steps = range(step, step + frames)
    one = [torch.exp(-((x - 4 - t) ** 2 + (y - 5) ** 2) / 6.0) for t in steps]
    other = torch.exp(-((x - 11) ** 2 + (y - 11) ** 2) / 3.0)
    return torch.stack([torch.stack(one) + other, 2 * torch.stack(one)])[:, :, None].double()


def boxes(cells) -> list[tuple[int, ...]]:
    return torch.cat([cells.sample[:, None], cells.origin, cells.size], 1).tolist()


@given(st.integers(0, 1000), st.sampled_from([(48,), (21, 13), (16, 16), (9, 8, 12)]))
@settings(max_examples=5, deadline=None)
def test_rows_are_those_of_the_same_box(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    tokenizer = adaptok.create_tokenizer(
        {"name": "iap", "min_size": 2, "max_size": 4}, ndim=len(shape), in_channels=1, dim=4
    )
    fields = torch.randn(2, 2, 1, *shape, generator=generator)
    least = tokenizer.tree(shape).counts().leaves  # and some splits
    before, after = (tokenizer.cells(x[:, None], budget=least + 7) for x in fields.unbind(1))
    rows = {tuple(box): row for row, box in reversed([*enumerate(boxes(before))])}
    assert after.match(before).tolist() == [rows.get(tuple(box), -1) for box in boxes(after)]
    itself = before.match(before)
    assert torch.equal(before.origin[itself], before.origin)


def test_boxes_whose_codes_overflow_still_match():
    """A domain of 2^40 points per axis: the wrong rows that equal codes may name are not taken."""
    cells = model_of().cells(moving(0))
    wide = cells.replace(shape=(1, 2**40, 2**40))
    rows = wide.match(wide)
    assert torch.equal(cells.origin[rows], cells.origin)
    with pytest.raises(ValueError, match="same samples"):
        wide.match(cells)
    with pytest.raises(ValueError, match="same samples"):
        cells.match(cells.samples(0, 1))
    none = cells.replace(shape=cells.shape).select(torch.zeros(len(cells), dtype=torch.bool))
    assert (cells.match(none) == -1).all()


def by_hand(layer, x, rows, match, kept, tolerance):
    """All rows, with keys and values of those that moved little as they were."""
    moved = torch.ones(len(x), dtype=torch.bool)
    old = None
    if kept is not None:
        old = [part[match.clamp(min=0)] for part in kept]
        near = (x - old[0]).norm(dim=1) < tolerance * x.norm(dim=1)
        moved = ~near | (match < 0)
    attention, normal = layer.attention, layer.norm_attention(x, None)
    k, v = attention.keys_values(normal)
    q = attention.queries(normal)
    if rows.rotate is not None:
        q, k = rows.rotate(q), rows.rotate(k)
    if old is not None:
        k, v = (
            torch.where(moved[:, None, None], new, was)
            for new, was in zip((k, v), old[2:], strict=True)
        )
    partitions = [rows.groups] if hasattr(rows.groups, "cu_seqlens") else rows.groups
    results = []
    for groups in partitions:
        ids = groups.ids(len(x))
        score = torch.einsum("qhe,khe->hqk", q, k) / q.shape[-1] ** 0.5
        score = score.masked_fill(ids[:, None] != ids[None], -torch.inf)
        if rows.key_bias is not None:
            score = score + rows.key_bias
        results.append(torch.einsum("hqk,khe->qhe", score.softmax(-1), v).flatten(1))
    out = x + attention.out(torch.stack(results).mean(0))
    if hasattr(layer, "mlp"):
        out = out + layer.mlp(layer.norm_mlp(out, None))
    made = [x, out, k, v]
    if old is not None:
        shape = [(-1, *[1] * (part.ndim - 1)) for part in made]
        made = [
            torch.where(moved.view(s), new, was)
            for s, new, was in zip(shape, made, old, strict=True)
        ]
    return made, moved


@pytest.mark.parametrize(
    "processor",
    [
        {"name": "vit", "weighted": True, "qk_norm": True},
        pytest.param(
            {"name": "vit", "attention": "local", "positions": "fourier"}, marks=pytest.mark.slow
        ),
        pytest.param({"name": "spacetime"}, marks=pytest.mark.slow),
        pytest.param({"name": "axial"}, marks=pytest.mark.slow),
        pytest.param({"name": "vit", "positions": "film"}, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_rows_that_moved_are_computed_and_others_are_as_they_were(processor):
    frames = 2 if processor["name"] in ("spacetime", "axial") else 1
    model = model_of(processor, history=frames, history_mode="frames")
    blocks, reuse, kept = model.processor, Reuse(0.05), {}
    before, shares = None, []
    for step in range(3):
        tokens = model.tokenizer(moving(step, frames=frames), budget=40 * frames)
        made = blocks(tokens, reuse)
        cells = tokens.cells
        match = None if before is None else cells.match(before)
        center = blocks.spec.position_center(cells)
        x, rotate = blocks.positions(tokens.features, cells, center)
        bias = blocks.weighted * tokens.weight.log() if blocks.weighted else None
        place, moved = blocks._place(cells, rotate, bias, None), []
        for i in range(2):
            x = blocks.placed(i, x, place)
            for name, rows in zip(blocks.stacks, place.rows, strict=True):
                layer = getattr(blocks, name)[i]
                kept[layer], own = by_hand(layer, x, rows, match, kept.get(layer), 0.05)
                x, moved = kept[layer][1], [*moved, own]
        x = x if blocks.norm is None else blocks.norm(x, None)
        torch.testing.assert_close(made.features, x)
        assert reuse.share == pytest.approx(1 - torch.stack(moved).double().mean())
        before = cells
        shares.append(reuse.share)
    assert shares[0] == 0
    assert 0.1 < shares[1] < 0.95


def test_tolerance_0_is_no_reuse():
    model, field = model_of(), moving(0)
    assert torch.equal(model.rollout(field, 3, reuse=0), model.rollout(field, 3))


@pytest.mark.slow
def test_more_tolerance_keeps_more():
    model, field = model_of(), moving(0)
    reference = model.rollout(field, 4, hysteresis=0.25)
    errors, shares = [], []
    for tolerance in (1e-12, 0.02, 0.2, 1e9):
        seen: list[float] = []
        with model.processor.register_forward_hook(
            lambda _, given, __, seen=seen: seen.append(given[1].share)
        ):
            made = model.rollout(field, 4, reuse=tolerance, hysteresis=0.25)
        errors.append(float((made - reference).abs().max()))
        shares.append(sum(seen))
        assert seen[0] == 0
    assert errors[0] < 1e-9
    assert errors == sorted(errors)
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


@pytest.mark.slow
def test_what_does_not_change_is_computed_once():
    """A field that stays is kept whole; samples are alone; other settings go along."""
    model, field, reuse = model_of(), moving(0), Reuse(1e-6)
    with torch.no_grad():
        first = model(field, reuse=reuse)
        again = model(field, reuse=reuse)
        assert reuse.share == 1
        torch.testing.assert_close(first, model(field))
        assert torch.equal(again, first)
        both = model.rollout(field, 3, reuse=0.05)
        torch.testing.assert_close(model.rollout(field[1:], 3, reuse=0.05), both[1:])
        for more in ({"jitter": 0}, {"regrid": 2}, {"goal": {"region": [3, 4]}}):
            assert model.rollout(field, 3, reuse=0.05, **more).isfinite().all()
        single = model_of().float()
        with torch.autocast("cpu", torch.bfloat16):
            made = single.rollout(field.float(), 3, reuse=0.01)
        torch.testing.assert_close(made, single.rollout(field.float(), 3), atol=0.2, rtol=0.2)
    uniform = model_of(tokenizer={"name": "uniform", "size": 4})
    assert uniform.rollout(field, 3, reuse=0.1).isfinite().all()


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ("windowed", "not all blocks of Windowed"),
        ("transolver", "keys and values"),
        ({"name": "vit", "norm": "instance"}, "instance norm"),
        ({"name": "vit", "reducer": {"name": "tome"}}, "merges or drops"),
    ],
)
def test_who_keeps_nothing(processor, message):
    with pytest.raises(ValueError, match=message):
        model_of(processor).rollout(moving(0), 2, reuse=0.1)


def test_bad_reuse():
    model, field = model_of(), moving(0)
    with pytest.raises(ValueError, match="reuse must be"):
        model.rollout(field, 2, reuse=-0.1)
    with pytest.raises(ValueError, match="reuse must be"):
        model.rollout(field, 2, reuse=float("nan"))
    with pytest.raises(ValueError, match="reuse is for inference"):
        model.rollout(field, 2, reuse=0.1, grad=True)
    with pytest.raises(ValueError, match="not a list"):
        model.rollout(list(field), 2, reuse=0.1)
    with pytest.raises(ValueError, match="has none"):
        create_baseline("persistence", ndim=2, in_channels=1).rollout(field, 2, reuse=0.1)
    assert torch.equal(model(field, reuse=0.1), model(field))  # a single step has nothing to keep
    with torch.no_grad():
        reuse = Reuse(0.1)
        model(field, reuse=reuse)
        with pytest.raises(ValueError, match="same samples"):
            model(field[:1], reuse=reuse)
