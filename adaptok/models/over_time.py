"""The settings of a model that are about the steps of a rollout: jitter, cells that cohere, a
number of tokens that is held, a goal that weighs what is scored, and blocks that are reused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adaptok.cells import Cells
from adaptok.models.goals import Goal
from adaptok.models.jitter import jitter_at, periodic_on_host
from adaptok.processors.reuse import Reuse, check_reuse
from adaptok.tokenizers.coherence import check_past
from adaptok.tokenizers.given import GivenTokenizer
from adaptok.tokenizers.marking import PriceController, PriceMarking
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.utils.arguments import NonNegativeFloat, Positive, PositiveFloat, check_value

COHERENT = ("hysteresis", "buffer", "regrid")
OF_ROLLOUTS = ("regrid", "tokens", "reuse")  # which a single step has no use for
CHOOSING = (*COHERENT, "tokens", "goal")  # with which cells are chosen here
NO_TREE = "{} is about cells of a tree that a surrogate chooses, and this model has none"


def settings_over_time(tokenizer: Any) -> tuple[str, ...]:
    """Names the settings of a model with this tokenizer that are about the steps of a rollout."""
    if isinstance(tokenizer, GivenTokenizer):
        return ()
    if not isinstance(tokenizer, TreeTokenizer):
        return ("jitter",)
    held = ("tokens",) if isinstance(tokenizer.marking, PriceMarking) else ()
    return ("jitter", *COHERENT, *held)


class OverTime:
    """What a rollout keeps from step to step: which axes are periodic, the last cells, the price of
    tokens, what a goal feels, and what blocks computed.

    Args:
        model: the `OneStepModel` that is rolled out.
        boundary: codes of all steps.
    """

    def __init__(self, model: Any, boundary: Tensor | None):
        self.model, self.boundary = model, boundary
        self.periodic: tuple[bool, ...] | None = None
        self.cells: Cells | None = None
        self.controller: PriceController | None = None
        self.sensitivity: tuple[int, Tensor] | None = None  # and the step that it is of
        self.reuse: Reuse | None = None

    def settings_at(
        self, step: int, chosen: Mapping[str, Any], field: Any, constants: Any
    ) -> dict[str, Any]:
        """Returns the settings of the call of a step.

        A seed of jitter becomes an offset. With hysteresis, a buffer, regridding, a goal or a
        number of tokens the cells are chosen here, outside of any compiled graph, with those of the
        step before at hand.

        Args:
            step: its number, from 0.
            chosen: settings as given.
            field: what the model gets, a tensor (or a list, whose cells are not chosen here).
            constants: likewise.

        Raises:
            ValueError: settings that the model does not have or that do not go together.
        """
        own = {k: chosen[k] for k in CHOOSING if chosen.get(k) is not None}
        call = {k: value for k, value in chosen.items() if k not in (*CHOOSING, "reuse")}
        reused = self._reused(chosen.get("reuse"), field)
        for name in own:
            self._check(name)
        if call.get("jitter") is not None:
            if any(name in own for name in (*COHERENT, "goal")):
                raise ValueError(
                    "jitter moves the cells in every step, hysteresis, buffer and regrid keep "
                    "those of the step before, and a goal lies where it is: choose one or the other"
                )
            if self.periodic is None:
                self.periodic = periodic_on_host(self.boundary, self.model.ndim)
            device = (field if isinstance(field, Tensor) else field[0]).device
            place = (self.model.ndim, device)
            call["jitter"] = jitter_at(call["jitter"], (step,), *place, periodic=self.periodic)
        if not own:
            return call | reused
        if not isinstance(field, Tensor):
            raise ValueError(
                f"{', '.join(own)}: cells over time are those of one field, not a list"
            )
        if "tokens" in own:
            call |= self._price(own["tokens"], call.get("price"))
        self.cells = self._cells_at(step, own, call, field, constants)
        if self.controller is not None:
            self.controller.update(len(self.cells) / self.cells.batch_size)
        return {**call, "cells": self.cells, **reused}  # a first pass asks for the budget, too

    def _reused(self, tolerance: Any, field: Any) -> dict[str, Reuse]:
        if tolerance is None:
            return {}
        if "reuse" not in self.model.over_time:
            check_reuse(getattr(self.model, "processor", self.model))
            raise ValueError("reuse is a setting of surrogates, and this model is not one")
        if not isinstance(field, Tensor):
            raise ValueError("reuse takes one field, not a list")
        check_value(tolerance, NonNegativeFloat, "reuse")
        self.reuse = self.reuse or Reuse(tolerance)
        self.reuse.tolerance = tolerance
        return {"reuse": self.reuse}

    def _check(self, name: str) -> None:
        if name in self.model.over_time:
            return
        if name == "tokens" and "hysteresis" in self.model.over_time:
            raise ValueError(
                "tokens are held by their price: choose a tokenizer that marks by one, such as "
                'tokenizer={"name": "near_best", "price": 1e-4}'
            )
        raise ValueError(NO_TREE.format(name))

    def _price(self, tokens: Any, price: Any) -> dict[str, float]:
        """The price of this step, which starts with that of the call, or of the tokenizer."""
        if self.controller is None:
            start = self.model.tokenizer.marking.price if price is None else price
            self.controller = PriceController(start, tokens)
        check_value(tokens, PositiveFloat, "tokens")
        self.controller.tokens = tokens
        return {"price": self.controller.price}

    def _cells_at(
        self, step: int, own: dict[str, Any], call: dict[str, Any], field: Tensor, constants: Any
    ) -> Cells:
        every = own.get("regrid", 1)
        check_value(every, Positive, "regrid")
        past: dict[str, Any] = {
            "hysteresis": own.get("hysteresis", 0.0),
            "buffer": own.get("buffer", 0),
        }
        check_past(**past)
        if self.cells is not None and step % every:
            return self.cells
        previous = self.cells if any(name in own for name in COHERENT) else None
        known = {"constants": constants, "boundary": self.boundary, **call}
        if "goal" in own:
            goal = Goal.of(own["goal"])
            if self.sensitivity is None or step - self.sensitivity[0] >= goal.every:
                self.sensitivity = step, self.model.sensitivity(field, goal, **known)
            past["sensitivity"] = self.sensitivity[1]
        return self.model.cells(field, **known, previous=previous, **past)
