"""Measures a forward pass, stage by stage: operations, memory, time, weights."""

from __future__ import annotations

import functools
import itertools
import platform
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from adaptok.models.compiling import is_compiled

# What runs before the processor counts as tokenizer (normalisation too, and the first pass of a
# model that looks ahead), what follows as decoder.
STAGES = ("tokenizer", "processor", "decoder")
Number = TypeVar("Number", int, float)


class Cost(NamedTuple):
    """Operations and memory of one call.

    Attributes:
        flops: floating-point operations of its matrix products, convolutions and attention, by
            stage and in "total"; a multiplication and an addition are two.
        memory: most bytes that the tensors made in a stage, and alive in it, take; weights and
            inputs do not count. "total" is the largest.
    """

    flops: dict[str, int]
    memory: dict[str, int]


def cost_of(model: nn.Module, call: Callable[[], Any], given: Iterable[Any] = ()) -> Cost | None:
    """Counts one call of a model, on any device.

    Args:
        call: runs the model.
        given: tensors that exist beforehand.

    Returns:
        The cost, only "total" if the model has no processor; None for a compiled model, which
        cannot be inspected.
    """
    if is_compiled(model):
        return None
    flops, memory = [], []
    known = [*model.parameters(), *model.buffers(), *tree_leaves(list(given))]
    with operation_counter() as counter, _Live(known) as live:

        def mark() -> None:
            flops.append(counter.get_total_flops())
            memory.append(live.peak)
            live.peak = live.now

        with at_processor(model, mark):
            call()
        mark()
    done = [after - before for before, after in itertools.pairwise([0, *flops])]
    return Cost(_by_stage(done, sum(done)), _by_stage(memory, max(memory)))


def operation_counter() -> FlopCounterMode:
    """Makes torch's counter of floating-point operations; it counts varlen_attn, too, which earlier
    versions of torch leave out without a word.
    """
    with suppress(ImportError):
        import_module("torch.nn.attention.varlen")  # which makes the operators
        for direction in ("forward", "backward"):  # the first arguments are the same
            formula = flop_registry[getattr(torch.ops.aten, f"_flash_attention_{direction}")]
            name = "_varlen_attn" + "_backward" * (direction == "backward")
            flop_registry.setdefault(getattr(torch.ops.torch_attn, name), formula)
    return FlopCounterMode(display=False)


class Stopwatch:
    """Seconds per stage of the calls made inside; waits for the device at each mark.

    Attributes:
        rows: one per call: seconds of the stages, or of the whole without a processor.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.model, self.device = model, device
        self.rows: list[list[float]] = []

    def __call__(self, call: Callable[[], Tensor]) -> Tensor:
        """Runs a call and measures it."""
        marks = [_now(self.device)]
        with at_processor(self.model, lambda: marks.append(_now(self.device))):
            out = call()
        marks.append(_now(self.device))
        self.rows.append([b - a for a, b in itertools.pairwise(marks)])
        return out

    def seconds(self) -> dict[str, float]:
        """Means over all calls except the first, a warm-up; by stage, and "total"."""
        warm = self.rows[1:] or self.rows
        means = [sum(column) / len(warm) for column in zip(*warm, strict=True)]
        return _by_stage(means, sum(means))


def _by_stage(values: Sequence[Number], total: Number) -> dict[str, Number]:
    """Names values of the stages, and their total; one value is that of a model without stages."""
    stages = STAGES if len(values) == len(STAGES) else ()
    return {**dict(zip(stages, values, strict=False)), "total": total}


@contextmanager
def at_processor(model: nn.Module, mark: Callable[[], None]) -> Iterator[None]:
    """Calls `mark` before and after the processor of a model, unless it has none or is compiled,
    since a mark would break the graph.
    """
    processor: Any = getattr(model, "processor", None)
    if processor is None or is_compiled(model):
        yield
        return
    before = processor.register_forward_pre_hook(lambda *_: mark())
    after = processor.register_forward_hook(lambda *_: mark())
    with before, after:
        yield


class _Live(TorchDispatchMode):
    """Tracks the bytes of the live tensors that were made inside."""

    def __init__(self, known: Iterable[Any]):
        super().__init__()
        self.now = self.peak = 0
        self._known = {x.untyped_storage()._cdata for x in known if isinstance(x, Tensor)}
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._add(x.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._alive:
            return
        self._alive[key] = weakref.ref(storage, functools.partial(self._drop, key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int, size: int, _: weakref.ref) -> None:
        self.now -= size
        self._alive.pop(key, None)


def parameters_by_stage(model: nn.Module) -> dict[str, int]:
    """Counts the weights of each stage, and those outside all stages ("other")."""
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name in STAGES
        if isinstance(part := getattr(model, name, None), nn.Module)
    }
    return {**counts, "other": sum(p.numel() for p in model.parameters()) - sum(counts.values())}


def environment(device: torch.device) -> dict[str, str]:
    """Describes the machine and versions of a measurement."""
    from adaptok import __version__

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = torch.get_num_threads()
    return {
        "adaptok": __version__,
        "torch": torch.__version__,
        "device": name,
        "hardware": f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def _processor() -> str:
    """Names the model of the processor where the system tells it, else its architecture."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        pairs = [line.partition(":") for line in lines]
        found = [value.strip() for key, _, value in pairs if key.strip() == "model name"]
        if found and found[0]:
            return found[0]
    return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes so far, of tensors on a CUDA device, else of the process (None on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
