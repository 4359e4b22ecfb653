"""The tokenizer with a decoder of its own."""

from __future__ import annotations

import pytest
import torch

from adaptok import create_decoder, create_surrogate, create_tokenizer
from adaptok.config.menu import compose, plain
from adaptok.decoders.auto import decoder_for, painter_for

SMALL = {"in_channels": 2, "dim": 16}


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_its_cells_are_uniform_and_its_decoder_refines_the_share_that_is_asked_for(ndim):
    tokenizer = create_tokenizer("coarse_fine", ndim=ndim, **SMALL, size=4, share=0.25, smooth=3)
    alike = create_tokenizer("uniform", ndim=ndim, **SMALL, size=4)
    field = torch.randn(2, 2, *(8,) * ndim)
    assert torch.equal(tokenizer.cells(field).origin, alike.cells(field).origin)
    decoder = create_decoder("auto", tokenizer.spec, out_channels=2)
    assert type(decoder).__name__ == "RefineDecoder"
    assert decoder.choice.share == 0.25
    assert decoder.smoothing.first.out_channels == 3
    assert decoder.solver.head.in_features == (32 if ndim == 3 else 64)
    blocks = decoder.choice(field[:, None], None)
    assert len(blocks.index) == 2 * round(0.25 * 4**ndim)


def test_what_is_named_goes_before_its_own_decoder():
    spec = create_tokenizer("coarse_fine", ndim=2, **SMALL).spec
    assert decoder_for("linear", spec) == "linear"
    assert painter_for("auto", spec) == "linear"
    assert decoder_for({"name": "auto", "width": 5}, spec)["width"] == 5
    assert create_decoder("auto", spec, 2, width=5).solver.head.in_features == 5


def test_the_default_of_train_and_a_surrogate_of_it():
    config = plain(compose("train", ["budget=16"]))
    assert config["tokenizer"]["name"] == "coarse_fine"
    assert config["decoder"]["name"] == "auto"
    assert plain(compose("train", ["task=pretrain"]))["tokenizer"]["name"] == "iap"
    sizes = {"dim": 16, "depth": 1, "heads": 2}
    model = create_surrogate(ndim=2, in_channels=2, tokenizer="coarse_fine", **sizes)
    x = torch.randn(2, 1, 2, 32, 32)
    whole = model(x)
    assert whole.shape == x.shape
    alone = torch.cat([model(one[None]) for one in x])
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_one_row_of_codes_serves_all_samples_and_frames(share):
    tokenizer = create_tokenizer("coarse_fine", ndim=2, in_channels=1, dim=24, size=8)
    decoder = create_decoder({"name": "refine", "share": share}, tokenizer.spec, out_channels=1)
    x, codes = torch.randn(2, 2, 1, 16, 16), torch.tensor([[2, 2], [0, 1]])
    tokens = tokenizer(x, boundary=codes)
    out = [decoder(tokens, field=x, boundary=each) for each in (codes, codes[None])]
    assert torch.equal(*out)
