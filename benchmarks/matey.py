"""What refinement saves: packed against padded tokens, and adaptive against uniform cells.

Run ``python -m benchmarks.matey [folder]``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptok.evaluation.bench.timing import median_ratio, paired, target_of, write_results
from adaptok.layers.blocks import Block
from adaptok.models.parts import create_tokenizer
from adaptok.models.surrogate import Surrogate, create_surrogate
from adaptok.tokens import TokenSet

FINE, COARSE, CHANNELS = 8, 32, 4
NOTE = (
    "Medians of paired runs in milliseconds, one thread, float32. The ratio is the median of the "
    "ratios of paired runs. `block`: one transformer block of MATEY's Ti (width 192, 3 heads) on "
    "the tokens of four samples of two 128² frames, cells 32 to 8, with 1, 1, 1 and 16 of 16 cells "
    "refined; `padded` holds the slots of MATEY's code, all coarse cells and 16 fine ones for each "
    "refined cell of the fullest sample, with a mask (checked to agree with the packed block). "
    "`step`: forward, backward and AdamW of MATEY's Ti (12 blocks, Fourier positions, linear "
    "embedding and decoder, scores included) on two samples of two 256² frames; adaptive 32 to 8 "
    "with 4 of 64 cells refined, 124 tokens a frame, against uniform cells of 16, 256 tokens a "
    "frame."
)


def spotted(counts: Sequence[int], side: int, frames: int = 1) -> Tensor:
    """Makes fields of zeros with noise in `counts` coarse cells of each sample."""
    generator = torch.Generator().manual_seed(0)
    per_axis = side // COARSE
    field = torch.zeros(len(counts), frames, CHANNELS, side, side)
    for sample, count in enumerate(counts):
        for cell in range(count):
            row, column = cell // per_axis * COARSE, cell % per_axis * COARSE
            noise = torch.randn(frames, CHANNELS, COARSE, COARSE, generator=generator)
            field[sample, :, :, row : row + COARSE, column : column + COARSE] = noise
    return field


def padded_block(block: Block, x: Tensor, mask: Tensor) -> Tensor:
    """The block on padded rows (b, m, d) with a mask over the keys."""
    attention, y = block.attention, block.norm_attention(x)
    parts = [attention.q(y), *attention.kv(y).chunk(2, 2)]
    q, k, v = (part.unflatten(2, (attention.heads, -1)).transpose(1, 2) for part in parts)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    x = x + attention.out(out.transpose(1, 2).flatten(2))
    y = block.norm_mlp(x)
    return x + block.mlp.down(F.gelu(block.mlp.up(y)))


def slots(tokens: TokenSet, count: int) -> tuple[Tensor, Tensor]:
    """Padded features with `count` slots per sample, and the mask of the real ones."""
    dense, mask = tokens.padded()
    extra = count - dense.shape[1]
    return F.pad(dense, (0, 0, 0, extra)), F.pad(mask, (0, extra))


def measure_block(repeats: int) -> list[dict[str, Any]]:
    """One transformer block, packed and padded: forward, and forward with backward."""
    dim, counts, frames = 192, (1, 1, 1, 16), 2
    tokenizer = create_tokenizer(
        "matey", ndim=2, in_channels=CHANNELS, dim=dim, sizes=(FINE, COARSE)
    )
    cells = tokenizer.cells(spotted(counts, 128, frames))
    tokens = TokenSet(torch.randn(len(cells), dim), cells)
    fine = (COARSE // FINE) ** 2
    dense, mask = slots(tokens, frames * (16 + max(counts) * fine))
    block = Block(dim, 3)
    groups, sample = cells.groups(), cells.sample

    def packed() -> Tensor:
        return block(tokens.features, groups, None, sample, cells.batch_size)

    def padded() -> Tensor:
        return padded_block(block, dense, mask)

    torch.testing.assert_close(packed(), padded()[mask], rtol=1e-4, atol=1e-4)
    rows = []
    for what, wrap in (("block forward", _forward), ("block forward, backward", _backward)):
        seconds = paired({"packed": wrap(packed), "padded": wrap(padded)}, repeats=repeats)
        rows.append(_row(what, len(cells), mask.numel(), seconds["packed"], seconds["padded"]))
    return rows


def measure_step(repeats: int) -> list[dict[str, Any]]:
    """A training step on adaptive cells with half of the tokens, and on uniform ones."""
    field = spotted((4, 4), 256, frames=2)
    adaptive = _surrogate({"name": "matey", "sizes": (FINE, COARSE)})
    uniform = _surrogate({"name": "uniform", "size": 16})
    tokens = [len(model.cells(field)) for model in (adaptive, uniform)]
    steps = {name: _step(m, field) for name, m in (("adaptive", adaptive), ("uniform", uniform))}
    ours, others = paired(steps, repeats=repeats).values()
    return [_row("step", tokens[0], tokens[1], ours, others)]


def _surrogate(tokenizer: dict[str, Any]) -> Surrogate:
    return create_surrogate(
        ndim=2,
        in_channels=CHANNELS,
        history=2,
        history_mode="frames",
        tokenizer=tokenizer,
        processor={"name": "vit", "positions": "fourier"},
        dim=192,
        depth=12,
        heads=3,
        score_on="raw",
    )


def _step(model: Surrogate, field: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    target = torch.randn_like(field[:, :1])

    def step() -> None:
        optimizer.zero_grad()
        F.mse_loss(model(field), target).backward()
        optimizer.step()

    return step


def _forward(function: Callable[[], Tensor]) -> Callable[[], Any]:
    return torch.no_grad()(function)


def _backward(function: Callable[[], Tensor]) -> Callable[[], Any]:
    return lambda: function().square().mean().backward()


def _row(
    what: str, rows: int, other_rows: int, ours: list[float], others: list[float]
) -> dict[str, Any]:
    milliseconds = [round(1e3 * statistics.median(s), 1) for s in (ours, others)]
    ratios = sorted(a / b for a, b in zip(ours, others, strict=True))
    return {
        "what": what,
        "tokens": rows,
        "slots or uniform tokens": other_rows,
        "packed or adaptive ms": milliseconds[0],
        "padded or uniform ms": milliseconds[1],
        "ratio": round(median_ratio(ours, others), 2),
        "lowest to highest ratio": f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
    }


if __name__ == "__main__":
    target = target_of(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = measure_block(repeats=41) + measure_step(repeats=11)
    print(write_results(target, "matey", results, NOTE).read_text())
