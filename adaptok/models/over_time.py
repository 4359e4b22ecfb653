"""The settings of a model that are about the steps of a rollout: jitter, and cells that cohere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adaptok.cells import Cells
from adaptok.models.jitter import jitter_at, periodic_on_host
from adaptok.tokenizers.coherence import check_past
from adaptok.tokenizers.given import GivenTokenizer
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.utils.arguments import Positive, check_value

COHERENT = ("hysteresis", "buffer", "regrid")


def settings_over_time(tokenizer: Any) -> tuple[str, ...]:
    """Names the settings of a model with this tokenizer that are about the steps of a rollout."""
    if isinstance(tokenizer, GivenTokenizer):
        return ()
    return ("jitter", *(COHERENT if isinstance(tokenizer, TreeTokenizer) else ()))


class OverTime:
    """What a rollout keeps from step to step: which axes are periodic, and the last cells.

    Args:
        model: the `OneStepModel` that is rolled out.
        boundary: codes of all steps.
    """

    def __init__(self, model: Any, boundary: Tensor | None):
        self.model, self.boundary = model, boundary
        self.periodic: tuple[bool, ...] | None = None
        self.cells: Cells | None = None

    def settings_at(
        self, step: int, chosen: Mapping[str, Any], field: Any, constants: Any
    ) -> dict[str, Any]:
        """Returns the settings of the call of a step.

        A seed of jitter becomes an offset. With hysteresis, a buffer or regridding the cells are
        chosen here, outside of any compiled graph, with those of the step before at hand.

        Args:
            step: its number, from 0.
            chosen: settings as given.
            field: what the model gets, a tensor (or a list, which does not go with coherence).
            constants: likewise.

        Raises:
            ValueError: settings that the model does not have or that do not go together.
        """
        given = {name: chosen.get(name) for name in COHERENT}
        call = {name: value for name, value in chosen.items() if name not in COHERENT}
        coheres = any(value is not None for value in given.values())
        for name in COHERENT:
            if given[name] is not None and name not in self.model.over_time:
                raise ValueError(f"{name} is about cells of a tree, and this model has none")
        jitter = call.get("jitter")
        if jitter is not None:
            if coheres:
                raise ValueError(
                    "jitter moves the cells in every step, hysteresis, buffer and regrid keep "
                    "those of the step before: choose one or the other"
                )
            if self.periodic is None:
                self.periodic = periodic_on_host(self.boundary, self.model.ndim)
            device = (field if isinstance(field, Tensor) else field[0]).device
            place = (self.model.ndim, device)
            call["jitter"] = jitter_at(jitter, (step,), *place, periodic=self.periodic)
        return call | self._cells_at(step, given, call, field, constants) if coheres else call

    def _cells_at(
        self, step: int, given: dict[str, Any], call: dict[str, Any], field: Any, constants: Any
    ) -> dict[str, Any]:
        if not isinstance(field, Tensor):
            raise ValueError("hysteresis, buffer and regrid take one field, not a list")
        every = 1 if given["regrid"] is None else given["regrid"]
        check_value(every, Positive, "regrid")
        past = {"hysteresis": given["hysteresis"] or 0.0, "buffer": given["buffer"] or 0}
        check_past(**past)
        if self.cells is None or step % every == 0:
            known = {"constants": constants, "boundary": self.boundary, **call}
            self.cells = self.model.cells(field, **known, previous=self.cells, **past)
        return {"cells": self.cells}
