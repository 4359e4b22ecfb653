"""What one trained surrogate is worth, sample by sample, and what a step of it costs."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptok.data import WellData
from adaptok.evaluation.cost import cost_of
from adaptok.evaluation.evaluate import count_tokens, plain, precision, rollouts
from adaptok.evaluation.metrics import vrmse
from adaptok.models.schedules import Schedule
from adaptok.training import SurrogateModule

REPEATS = 4  # steps that are timed
DECILE = 0.1


class Tested(NamedTuple):
    """A test on the test split.

    Attributes:
        one_step: VRMSE per sample (n,), mean over fields.
        rollout: VRMSE per trajectory and step (m, steps), mean over fields; None without steps.
        tokens: per sample (n,); empty for a baseline.
        flops: of a forward pass, per sample.
        memory: bytes of the tensors of one batch.
    """

    one_step: Tensor
    rollout: Tensor | None
    tokens: Tensor
    flops: float
    memory: int


@torch.no_grad()
def tested(
    module: SurrogateModule, data: WellData, schedule: Schedule, steps: int, cycle: int
) -> Tested:
    """Tests the weights that a module holds on the device that they are on.

    Args:
        module: whose `predict` is tested; batch i with the settings of step i.
        schedule: settings of the steps of rollouts.
        steps: of the rollouts; 0 for none.
        cycle: settings that take turns; operations and bytes are means over them.
    """
    model, errors = module.surrogate.eval(), []
    place, counted = model.mean.device, cost_of_batch(module, data, "test", cycle)
    with count_tokens(model) as counts:
        for number, loaded in enumerate(data.loader("test", 1)):
            batch = on(place, loaded)
            prediction = predicted(module, batch, number).float()
            errors.append(vrmse(prediction, batch["target"][:, :1], model.ndim).cpu())
    rolled = [
        vrmse(prediction, batch["target"], model.ndim).mean(-1)
        for batch, prediction in (
            rollouts(model, data, "test", schedule, steps, place) if steps else ()
        )
    ]
    tokens = torch.cat([one.tokens for one in counts]).double() if counts else torch.empty(0)
    one_step = torch.cat(errors).flatten(1).mean(1)
    return Tested(one_step, torch.cat(rolled) if rolled else None, tokens, *counted)


@torch.no_grad()
def cost_of_batch(
    module: SurrogateModule, data: WellData, split: str, cycle: int
) -> tuple[float, int]:
    """Counts forward passes of the first batch of a split, one per setting of a cycle: mean
    operations per sample, and the most bytes.
    """
    model, costs = module.surrogate, []
    batch = on(model.mean.device, next(iter(data.loader(split, 1))))
    for number in range(cycle):
        call = functools.partial(predicted, module, batch, number)
        cost = cost_of(model, call, [batch["input"]])
        assert cost is not None, "benchmarks do not compile"
        costs.append(cost)
    operations = sum(cost.flops["total"] for cost in costs) / cycle
    return operations / len(batch["input"]), max(cost.memory["total"] for cost in costs)


def predicted(module: SurrogateModule, batch: Mapping[str, Any], number: int) -> Tensor:
    """Predicts with the settings of a step, in the precision of evaluations."""
    with precision(module.surrogate.mean.device):
        return module.predict(batch, number)


def on(place: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the tensors of a batch."""
    return {k: v.to(place) if isinstance(v, Tensor) else v for k, v in batch.items()}


def worst_decile(errors: Tensor) -> Tensor:
    """Mean of the largest tenth of the errors (n,), at least one."""
    count = max(1, round(DECILE * len(errors)))
    return errors.topk(count).values.mean()


def rollout_of(errors: Tensor, first: int, windows: Mapping[str, slice]) -> dict[str, Any]:
    """Makes the "rollout" of a row: errors (m, steps), and the windows that they are long enough
    for.

    Args:
        first: index in the trajectory of the first predicted frame.
    """
    mean = errors.double().mean(0)
    within = {name: part for name, part in windows.items() if part.stop <= len(mean)}
    return {
        "first": first,
        "errors": plain(mean),
        "windows": {name: plain(mean[part].mean()) for name, part in within.items()},
    }


def step_seconds(module: SurrogateModule, data: WellData, cycle: int) -> dict[str, float]:
    """Measures the seconds per step of a batch, tokenizer and optimizer included; the least of
    some, so that other processes count little, and the mean over the settings of a cycle. Processor
    time on a CPU, which is that of one core if torch has one thread. The model is trained a few
    steps by it.
    """
    place = module.surrogate.mean.device
    clock = time.process_time if place.type == "cpu" else time.perf_counter
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6)
    batch = on(place, next(iter(data.loader("train", 1))))
    least = {"training": 0.0, "inference": 0.0}

    def waited() -> float:
        if place.type == "cuda":
            torch.cuda.synchronize()
        return clock()

    for number in range(cycle):
        took: dict[str, list[float]] = {name: [] for name in least}
        for _ in range(REPEATS):
            start = waited()
            with precision(place):
                loss = module.loss(batch, number)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            took["training"].append(waited() - start)
            with torch.no_grad():
                start = waited()
                predicted(module, batch, number)
                took["inference"].append(waited() - start)
        least = {name: total + min(took[name]) / cycle for name, total in least.items()}
    return least
