"""Load: many cells, large batches, threads, worker processes, memory, long rollouts."""

from __future__ import annotations

import resource
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import small_runs
import torch
from reliability.rows import Row, Wrong, row, tried

import adaptok
from adaptok.config.build import build_data
from adaptok.config.menu import compose, plain
from adaptok.data import WellData
from adaptok.data.synthetic import generate

TOKENIZERS: dict[str, dict[str, Any]] = {
    "iap": {"budget": 40, "max_size": 8},
    "apt": {"min_size": 2, "thresholds": (4.5, 3.5)},
    "matey": {"sizes": (2, 8)},
    "ckm": {"patch_sizes": (4, 8)},
    "csm": {"patch_sizes": (4, 8)},
    "uniform": {"size": 4},
    "composed": {"indicator": "variance", "marking": {"name": "budget", "budget": 40}},
}
KNOBS = {"resolution": 16, "frames": 6, "nodes": 4, "train": 4, "valid": 1, "test": 1}


def tokenizer(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    knobs = TOKENIZERS[name] | changes
    return adaptok.create_tokenizer(name, ndim=2, in_channels=2, dim=24, **knobs).eval()


def surrogate(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    part = {"name": name, **TOKENIZERS[name]}
    make: dict[str, Any] = {"ndim": 2, "in_channels": 2, "dim": 24, "depth": 1, "heads": 2}
    return adaptok.create_surrogate(**make, tokenizer=part, **options)


def draw(batch: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 1, 2, side, side, generator=generator).cumsum(-1)


def many_cells(name: str, changes: dict[str, Any]) -> Wrong:
    """A hundred thousand cells cover the domain exactly."""
    cells = tokenizer(name, **changes).cells(draw(1, 1024))
    cells.validate()
    area = int(cells.size.prod(-1).sum())
    if len(cells) < 100_000:
        return f"only {len(cells)} cells"
    return None if area == 1024**2 else f"area {area}"


def large_batch(name: str, count: int) -> Wrong:
    """A large batch equals its samples one by one."""
    made, x = tokenizer(name), draw(count)
    with torch.no_grad():
        whole = made(x)
        for i, features in enumerate(whole.split()):
            alone = made(x[i : i + 1]).features
            if alone.shape != features.shape or not torch.allclose(alone, features, atol=1e-5):
                return f"sample {i} differs"
    return None


def threads(name: str, count: int = 50, each: int = 18) -> list[Wrong]:
    """Tokenizes in many threads at once; every result must have the bits of one thread."""
    made, fields = tokenizer(name), [draw(n % 4 + 1) for n in range(4)]
    with torch.no_grad():
        wanted = [made(x) for x in fields]
    found: list[Wrong] = []

    def work(number: int) -> None:
        for k in range(each):
            n = (number + k) % len(fields)
            try:
                with torch.no_grad():
                    tokens = made(fields[n])
                same = torch.equal(tokens.features, wanted[n].features)
                found.append(None if same else "other bits")
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def workers(folder: Path, method: str, cache: bool) -> list[Wrong]:
    """Loads two epochs in worker processes; every batch must be that of this process."""
    options: dict[str, Any] = {"path": folder, "batch_size": 2, "augment": ["flip"], "cache": cache}
    serial = WellData(**options)
    serial.setup("fit")
    data = WellData(**options, num_workers=2)
    data.setup("fit")
    found: list[Wrong] = []
    loader = data.train_dataloader()
    loader.multiprocessing_context = method
    plain_loader = serial.train_dataloader()
    for epoch in range(2):
        for one in (loader, plain_loader):
            one.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        pairs = zip(loader, plain_loader, strict=True)
        found += [None if _same(a, b) else f"epoch {epoch}: other values" for a, b in pairs]
    return found


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def resident() -> float:
    """Megabytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def memory(name: str, steps: int) -> tuple[Wrong, float]:
    """Trains for many steps; the second half must not take more memory."""
    model = surrogate(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    half = 0.0
    for step in range(steps):
        x = draw(step % 3 + 1)
        loss = (model(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        half = resident() if step == steps // 2 else half
    more = resident() - half
    return (f"{name}: {more:.1f} MB more" if more > 20 else None), more


def rollout(steps: int) -> Row:
    """A long rollout stays finite and takes no more memory. The model predicts states: the changes
    that an untrained one predicts may add up beyond every number."""
    model = surrogate("iap", predict="state").eval()
    x = draw(1)
    with torch.no_grad():
        state, before, begin = x, 0.0, time.monotonic()
        for k in range(10):
            state = model.rollout(state[:, -1:], steps // 10)
            before = resident() if k == 1 else before
    more = resident() - before
    wrong = None if state.isfinite().all() and more < 20 else f"{more:.1f} MB more, or not finite"
    note = f"{steps} steps, {time.monotonic() - begin:.0f} s, {more:+.1f} MB"
    return row("long rollout: finite, memory", [wrong], note)


def bits(name: str) -> Wrong:
    """One thread and two give the same bits."""
    model, x, results = surrogate(name).eval(), draw(4), []
    for count in (1, 2):
        torch.set_num_threads(count)
        with torch.no_grad():
            results.append((model.cells(x).origin, model(x)))
    torch.set_num_threads(1)
    same = [torch.equal(a, b) for a, b in zip(*results, strict=True)]
    return None if all(same) else f"other bits: cells {not same[0]}, output {not same[1]}"


def configured(method: str) -> Wrong:
    """A run's data with worker processes of the default kind, from the command line's keys."""
    config = plain(compose("train", [*small_runs.train(), "data.num_workers=2"]))
    data = build_data(config)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.multiprocessing_context = method
    return None if len(list(loader)) else "no batch"


def run(folder: Path, quick: bool = False) -> list[Row]:
    """All of it; `quick`: a few of each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = [*TOKENIZERS][:2] if quick else [*TOKENIZERS]
    fine: dict[str, dict[str, Any]] = {
        "iap": {"budget": 100_000, "min_size": 2, "max_size": 16},
        "composed": {
            "min_size": 2,
            "max_size": 16,
            "marking": {"name": "budget", "budget": 120_000},
        },
        "uniform": {"size": 2},
        "matey": {"sizes": (2, 8), "gamma": 1e-12},
    }
    begin = time.monotonic()
    large = [(name, lambda n=name, c=changes: many_cells(n, c)) for name, changes in fine.items()]
    first = tried("100,000 cells: exact area", large[:1] if quick else large)
    rows = [first._replace(note=f"{first.note} {time.monotonic() - begin:.1f} s in all".strip())]
    count = 32 if quick else 512
    tries: list[tuple[str, Callable[[], Wrong]]]
    tries = [(name, lambda n=name: large_batch(n, count)) for name in names]
    rows.append(tried(f"batch of {count} equals its samples (1e-5)", tries))
    found = [w for name in names for w in threads(name, *((8, 4) if quick else (50, 18)))]
    rows.append(row(f"tokenizations in {8 if quick else 50} threads at once", found, "same bits"))
    made = generate("acoustic_scattering_maze", folder, **KNOBS, progress=False)
    for method in ("fork", "spawn"):
        for cache in (True, False)[: 1 if quick else 2]:
            found = workers(made, method, cache)
            if not cache or quick:
                found.append(configured(method))
            rows.append(row(f"batches of {method} workers, cache={cache}", found, "same bits"))
    outcomes = [memory(name, 60 if quick else 500) for name in names[:3]]
    note = f"at most {max(more for _, more in outcomes):+.1f} MB in the second half"
    steps = 60 if quick else 500
    rows.append(row(f"memory over {steps} training steps", [w for w, _ in outcomes], note))
    rows.append(rollout(100 if quick else 5000))
    tries = [(name, lambda n=name: bits(n)) for name in names]
    rows.append(tried("bits of 1 and 2 threads", tries))
    return rows
