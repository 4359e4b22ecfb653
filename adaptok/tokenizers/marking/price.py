"""Refinement by a price of a token, and its control in rollouts."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adaptok.registry import MARKINGS
from adaptok.tokenizers.marking.base import Marks, rankable
from adaptok.tree import Tree
from adaptok.utils.arguments import (
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    check_value,
    checked,
)

REACH = 1e4  # of a price in a rollout, up and down


@MARKINGS.register("price")
class PriceMarking:
    """Splits a node iff ``score > price``, strictly, on every level and for every sample.

    With the indicator `near_best`, whose scores are errors relative to the sample, samples and
    steps thus share their tokens where they save most: `adaptok.calibrate` finds the price of a
    mean number of tokens over samples (and the frames of rollouts, if they are among them). Above
    all scores, a price leaves the coarsest tiling; at 0 everything splits that scores at all. The
    number of cells depends on the values: one host synchronisation per call.

    Args:
        price: of a token, in units of the score; also per call.
    """

    controls = ("price",)

    @checked
    def __init__(self, *, price: NonNegativeFloat = 1e-4):
        self.price = price

    def __call__(
        self,
        scores: Float[Tensor, "b f inner"],
        tree: Tree,
        *,
        monotone: bool = False,
        shared: int = 1,
        price: NonNegativeFloat | None = None,
    ) -> Marks:
        """Marks the nodes above the price, and those that cross the border."""
        if price is None:
            price = self.price
        elif not torch.compiler.is_compiling():
            check_value(price, NonNegativeFloat, "price")
        return Marks(rankable(scores, tree) > float(price), None)  # whole numbers of any size


class PriceController:
    """Holds the mean number of tokens over the steps of a rollout, by the price of each step.

    ``price <- price * (tokens / wanted)^gain``, with `tokens` those of the step that was taken and
    `wanted` the target less what earlier steps used too much (spread over `horizon` steps), between
    half and twice the target. Where no price gives the tokens, as of a field at rest, it stays
    within a factor of 10^4 of the first, from which it is back in a few steps.

    Its state is of one rollout: make a new one for each. It is a schedule, so that it goes to
    ``model.rollout(field, n, settings=controller)`` once it watches the processor.

    Args:
        price: of the first step, such as `adaptok.calibrate` gives it.
        tokens: wanted mean per sample and step.
        gain: how strongly the price answers; tokens that change as 1 / price are met at once by 1.
        horizon: steps in which a surplus is paid back.
    """

    @checked
    def __init__(
        self,
        price: PositiveFloat,
        tokens: PositiveFloat,
        *,
        gain: PositiveFloat = 1.0,
        horizon: Positive = 4,
    ):
        self.price, self.tokens = price, tokens
        self.gain, self.horizon = gain, horizon
        self.surplus = 0.0
        self.bounds = (price / REACH, price * REACH)

    def update(self, tokens: PositiveFloat) -> float:
        """Takes the tokens per sample of a step; returns the price of the next one."""
        check_value(tokens, PositiveFloat, "tokens")
        # What was used too little is owed for one horizon at most: a field may rest for long.
        owed = -self.horizon * self.tokens
        self.surplus = max(self.surplus + tokens - self.tokens, owed)
        wanted = max(self.tokens - self.surplus / self.horizon, self.tokens / 2)
        least, highest = self.bounds
        self.price = min(max(self.price * (tokens / wanted) ** self.gain, least), highest)
        return self.price

    def __call__(self, step: int) -> dict[str, float]:
        """Controls of the next step."""
        return {"price": self.price}

    def watch(self, processor: nn.Module) -> RemovableHandle:
        """Updates with the tokens of every call of a processor, until the handle is removed."""

        def count(_: nn.Module, given: tuple) -> None:
            cells = given[0].cells
            self.update(len(cells) / cells.batch_size)

        return processor.register_forward_pre_hook(count)
