"""The promises that adaptok makes for its own tokenizers, kept by mine."""

import pytest
import torch
from my_package import MyIndicator

import adaptok
from adaptok.testing import check_indicator, check_tokenizer


@pytest.mark.parametrize("ndim", [2, 3])
def test_my_tokenizer_keeps_its_promises(ndim):
    made = adaptok.create_tokenizer(
        "my_tokenizer", ndim=ndim, in_channels=2, dim=24, min_size=2, max_size=8, budget=64
    )
    check_tokenizer(made)


def test_my_indicator_keeps_its_promises():
    check_indicator(MyIndicator())


def test_it_spends_cells_where_the_field_bends():
    field = torch.zeros(1, 1, 1, 32, 32)
    field[..., :8, :8] = torch.rand(8, 8)
    made = adaptok.create_tokenizer(
        "my_tokenizer", ndim=2, in_channels=1, dim=24, min_size=2, max_size=8, budget=31
    )
    cells = made.cells(field)
    fine = cells.origin[cells.level == cells.level.max()]
    assert len(fine)
    assert (fine[:, -2:] < 16).all()
