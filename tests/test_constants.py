"""Cached constants: made once, never inside a trace."""

from __future__ import annotations

import pytest
import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from adaptok.cells.lengths import offsets_tensor
from adaptok.tree import Tree
from adaptok.utils.constants import cached_constant

CPU = torch.device("cpu")


@cached_constant()
def ramp(n: int, device: torch.device) -> torch.Tensor:
    return torch.arange(n, device=device)


def test_a_constant_is_made_once():
    assert ramp(5, CPU) is ramp(5, CPU)
    with torch.inference_mode():
        made = ramp(6, CPU)
    assert not made.is_inference()


def own(n: int) -> torch.Tensor:
    return ramp(n, CPU)


def nodes(n: int) -> torch.Tensor:
    return Tree((n, n + 3), ((8, 8), (4, 4))).nodes(CPU).origin


def offsets(n: int) -> torch.Tensor:
    return offsets_tensor((0, n), CPU)


@pytest.mark.parametrize("make", [own, nodes, offsets])
def test_what_a_trace_makes_stays_in_it(make):
    with FakeTensorMode():
        assert isinstance(make(301), FakeTensor)
    assert not isinstance(make(301), FakeTensor)

    class Adds(torch.nn.Module):
        def forward(self, x):
            return x + make(302)

    x = torch.zeros(())
    exported = torch.export.export(Adds(), (x,), strict=False)
    expected = make(302)
    assert not isinstance(expected, FakeTensor)
    assert torch.equal(exported.module()(x), expected.float())


@pytest.mark.parametrize("make", [own, nodes, offsets])
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.jacfwd])
def test_what_a_transform_makes_outlives_it(make, transform):
    n = 311 + len(transform.__name__)  # made for the first time inside
    seen = []

    def inside(x):
        seen.append(make(n))
        return (x * seen[0].sum()).sum()

    transform(inside)(torch.zeros(3))
    assert make(n) is seen[0] or make is offsets
    assert not is_functorch_wrapped_tensor(make(n))
    assert (make(n) + 1).sum() > 0


def test_graphs_keep_constants():
    """Neither traced again nor made anew in every run."""
    seen = []

    def look(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(lambda x: x + own(303), backend=look, fullgraph=True)
    assert torch.equal(compiled(torch.zeros(303)), own(303).float())
    assert not any("arange" in name for name in seen)
