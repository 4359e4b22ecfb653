"""The short ways of adapted models give what the long ones give."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptok import collate, create_tokenizer
from adaptok.layers.attention import attention_backend
from adaptok.patches import gather_blocks, patchify
from adaptok.tokenizers.embeddings import ResizeZeroEmbedding
from adaptok.tokenizers.indicators import entropy
from adaptok.tree import Tree
from adaptok.vision import Tokenize, apply_apt, pooling
from adaptok.vision.tiling import ImageCells

SIZES = ((1, 8, 8), (1, 4, 4), (1, 2, 2))


@pytest.fixture
def branch(monkeypatch):
    """An embedding, a field with cells, and the levels that its branch ran on."""
    torch.manual_seed(0)
    embedding, ran = ResizeZeroEmbedding(2, 8, SIZES).eval(), []
    detail = ResizeZeroEmbedding._detail

    def counted(self, every, cells, level, rows):
        ran.append(level)
        return detail(self, every, cells, level, rows)

    monkeypatch.setattr(ResizeZeroEmbedding, "_detail", counted)
    x = torch.randn(2, 1, 2, 20, 14)
    knobs: dict = {"min_size": 2, "max_size": 8, "border": "split"}
    knobs |= {"ndim": 2, "in_channels": 2, "dim": 8, "marking": {"name": "budget", "budget": 30}}
    cells = create_tokenizer("composed", **knobs).cells(x)
    return embedding, x, cells, ran


def test_a_zero_branch_is_left_out_and_a_write_to_it_is_seen_at_once(branch):
    embedding, x, cells, ran = branch
    loud = embedding(x, cells)  # gradients are wanted
    assert ran == [0, 1]
    with torch.no_grad():
        torch.testing.assert_close(embedding(x, cells), loud, rtol=1e-6, atol=1e-6)
        assert ran == [0, 1]
        embedding.zero.weight.data[3, 2] = 0.5  # leaves the version of the parameter as it is
        now = embedding(x, cells)
    assert ran == [0, 1] * 2
    torch.testing.assert_close(now, embedding(x, cells))
    assert not torch.allclose(now, loud)
    with torch.no_grad():
        embedding.zero.weight.data.zero_()
        embedding.zero.bias.data[7] = 1e-30
        embedding(x, cells)
        embedding.load_state_dict({k: 0 * v for k, v in embedding.state_dict().items()})
        assert len(ran) == 8
        embedding(x, cells)
        assert len(ran) == 8


def test_a_zero_branch_runs_in_training_and_under_hooks(branch):
    embedding, x, cells, ran = branch
    with torch.no_grad():
        embedding.train()(x, cells)
        assert len(ran) == 2
        seen = []
        embedding.eval().merge.register_forward_hook(lambda *_: seen.append(1))
        embedding(x, cells)
    assert len(ran) == 4
    assert len(seen) == 3  # two merges of the coarsest cells, one of the others


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 21), st.integers(1, 19), st.integers(0, 99))
def test_counts_do_not_depend_on_how_points_are_counted(b, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    tree = Tree((height, width), ((8, 8), (4, 4), (2, 2)))
    bins = torch.randint(0, 16, (b, height, width), generator=generator)
    fast = entropy.histograms(bins, tree, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "reads_are_free", lambda _: False)
        slow = entropy.histograms(bins, tree, 16)
    assert torch.equal(fast, slow)
    assert int(fast.sum()) == b * height * width


@pytest.mark.parametrize("rows", [1, 60])  # few are gathered, many copied
def test_blocks_are_rows_of_patchify(rows):
    x = torch.randn(2, 2, 3, 10, 7)
    grid = (2, 2, 5, 3)
    index = torch.randint(0, 60, (rows,))
    places = torch.unravel_index(index, grid)
    assert torch.equal(
        gather_blocks(x, (1, 2, 3), places), patchify(x, (1, 2, 3)).flatten(0, 1)[index]
    )


def small_vit(**more):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    knobs = {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **knobs, num_classes=5, **more).eval()


@pytest.mark.parametrize("batch", [1, 3])
def test_equal_lengths_take_timms_own_pass(batch):
    fast = apply_apt(small_vit(reg_tokens=2), (6.0,), marking={"name": "budget", "budget": 22})
    x = torch.rand(batch, 3, 64, 64) * 2 - 1
    short = fast(x)
    for backend in ("dense", "loop"):
        with attention_backend(backend):
            torch.testing.assert_close(fast(x), short, rtol=1e-5, atol=1e-5)


def test_images_that_are_cut_in_workers_are_not_cut_again(monkeypatch):
    fast = apply_apt(small_vit(), (6.0, 5.0))
    tokenize = Tokenize(fast)
    x = torch.rand(3, 3, 64, 80) * 2 - 1
    x[:, :, :32] = x[:, :, :1, :1]
    images = [x[0], x[1], x[2][:, :, :66], x[2]]
    data = [(tokenize(image), label) for label, image in enumerate(images)]
    assert tokenize(images[0], thresholds=-1.0).cells.count == 80
    wanted = fast(images)
    monkeypatch.setattr(ImageCells, "make", None)
    loader = torch.utils.data.DataLoader(data, batch_size=4, collate_fn=collate)
    ((cut, labels),) = loader
    assert labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(fast(cut), wanted)
    alone = collate([tokenize_of for tokenize_of, _ in data[:2]])
    assert isinstance(alone.images, torch.Tensor)
    torch.testing.assert_close(fast(alone.to("cpu")), wanted[:2], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="cells come with the images"):
        fast(cut, cells=fast.last_cells)
    with pytest.raises(ValueError, match="cells come with the images"):
        fast(cut, thresholds=3.0)
    other = apply_apt(small_vit(), (6.0,))
    with pytest.raises(ValueError, match="sizes"):
        other(cut)


def test_a_tokenizer_for_workers_holds_no_weights():
    fast = apply_apt(small_vit(), (6.0, 5.0))
    tokenize = pickle.loads(pickle.dumps(Tokenize(fast)))
    assert not list(tokenize.tiling.parameters())
    image = torch.rand(3, 64, 64) * 2 - 1
    assert torch.equal(tokenize(image).cells.origin, fast.tiling(image[None]).origin)
    for wrong, match in ((image[None], "one image"), (image[:, :8], "smaller")):
        with pytest.raises(ValueError, match=match):
            tokenize(wrong)
    with pytest.raises(ValueError, match="apply_apt"):
        Tokenize(small_vit())


@pytest.mark.parametrize("pool", ["map", "prr"])
def test_hooks_of_pooling_and_stochastic_depth_fire(pool):
    fast = apply_apt(small_vit(global_pool=pool, drop_path_rate=0.5), (6.0,))
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    x[0, :, :32] = 0
    before, seen = fast(x), []
    fast.attn_pool.register_forward_hook(lambda _, args, out: seen.append("pool") or out + 1)
    depth = fast.blocks[1].drop_path1
    depth.register_forward_hook(lambda _, args, out: seen.append("depth") or 0 * out)
    after = fast(x)
    assert seen == ["depth", "pool"]
    assert not torch.allclose(before, after)
    rows = fast.forward_features(x, thresholds=-1.0)  # in timm's layout
    torch.testing.assert_close(fast.forward_head(rows.padded()[0]), fast.forward_head(rows))


def test_attention_that_pools_without_projections_is_in_half_precision_under_autocast(monkeypatch):
    """As in timm, whose attention autocast converts; packed attention needs its inputs so."""
    fast, x = apply_apt(small_vit(global_pool="prr"), (-1.0,)).eval(), torch.rand(2, 3, 64, 64)
    rows, seen, original = fast.forward_features(x), [], pooling.attend

    def attend(query, *args, **kwargs):
        seen.append(query.dtype)
        return original(query, *args, **kwargs)

    monkeypatch.setattr(pooling, "attend", attend)
    with torch.autocast("cpu", torch.bfloat16):
        out = fast.forward_head(rows, pre_logits=True)
        expected = fast.forward_head(rows.padded()[0], pre_logits=True)
    assert seen == [torch.bfloat16]
    torch.testing.assert_close(out.float(), expected.float(), atol=0.02, rtol=0.02)
    fast.forward_head(rows)
    assert seen[1:] == [torch.float32]
