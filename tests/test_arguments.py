"""Arguments against annotations: types and ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import annotated_types as at
import numpy as np
import pytest
import torch
from jaxtyping import Float, Int

from adaptok.utils.arguments import (
    Finite,
    NonNegative,
    Positive,
    PositiveFloat,
    Rate,
    Share,
    accepts,
    check_arguments,
    check_value,
    described,
)

if TYPE_CHECKING:
    from somewhere import Something

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -3, np.int64(2)], [True, 1.0, "1", None, [1], NAN]),
        (float, [0.5, 1, np.float32(2), INF], [True, "1", None, NAN, 1j]),
        (bool, [True, False, np.True_], [1, 0, "no", None]),
        (str, ["", "x"], [1, None, ["x"], b"x"]),
        (None, [None], [0, False, ""]),
        (int | None, [None, 3], [1.5, True]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
        (Sequence[int], [[], [1, 2], (3,)], ["12", 1, [1.5], [True], None, {1: 2}]),
        (tuple[int, ...], [[1, 2], ()], ["1", [None]]),
        (tuple[int, str], [[1, "a"], (1, "a")], [[1], [1, 2], 3]),
        (list[list[int]], [[[1], []]], [[1], "x"]),
        (Mapping[str, int], [{}, {"a": 1}], [{"a": 1.5}, {1: 1}, [1], None]),
        (Callable[..., int], [len, lambda: 0], [3, "len"]),
        (Any, [None, NAN, "x"], []),
        (Positive, [1, 7], [0, -1, 1.5, True, None]),
        (NonNegative, [0, 7], [-1, "0"]),
        (PositiveFloat, [1, 0.1], [0, -0.1, NAN, INF, None, True]),
        (Finite, [-1e30, 0], [INF, -INF, NAN]),
        (Share, [0, 1, 0.5], [-0.1, 1.1, NAN]),
        (Rate, [0, 0.9], [1, NAN]),
        (Annotated[list, at.Len(1, 2)], [[1], [1, 2]], [[], [1, 2, 3]]),
        (Annotated[int, at.MultipleOf(4)], [8], [6]),
        (Annotated[int, "a note"], [8], ["x"]),
        (Positive | Sequence[Positive], [2, [2, 3]], [0, [2, 0], "2"]),
        (torch.Tensor, [torch.zeros(2)], [1, None]),
        (Float[torch.Tensor, " n"], [torch.zeros(2)], [1, np.zeros(2)]),
    ],
)
def test_what_an_annotation_accepts(hint, good, bad):
    for value in good:
        assert accepts(hint, value), value
        check_value(value, hint, "knob")
    for value in bad:
        assert not accepts(hint, value), value
        with pytest.raises(ValueError, match=r"^knob must be .*, got "):
            check_value(value, hint, "knob")


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Positive, "a whole number of at least 1"),
        (
            Positive | Sequence[Positive] | None,
            "a whole number of at least 1 or a list of them or null",
        ),
        (Share, "a number of at least 0 and of at most 1"),
        (PositiveFloat, "a finite number above 0"),
        (Literal["mean", "max"], "mean or max"),
        (bool, "true or false"),
    ],
)
def test_the_message_says_what_is_accepted(hint, words):
    assert words in described(hint)


class Base:
    def __init__(self, spec: int, *, heads: Positive = 1, other: Something = None):
        pass


class Child(Base):
    def __init__(self, spec: int, *, width: Positive = 1, **options: Any):
        pass


class Grandchild(Child):
    pass


@pytest.mark.parametrize("factory", [Child, Grandchild])
def test_options_of_a_constructor_are_checked_as_those_of_its_base(factory):
    check_arguments(factory, {"width": 2, "heads": 2, "other": "anything", "new": 1}, "part")
    for name in ("width", "heads"):
        with pytest.raises(ValueError, match=f"part: {name} must be .* got 0"):
            check_arguments(factory, {name: 0}, "part")


def test_what_begins_with_a_vowel_has_its_article():
    assert described(Int[torch.Tensor, " n"]) == "an int tensor (n)"
    assert described(OSError) == "an OSError"


def test_a_long_value_is_cut():
    with pytest.raises(ValueError, match=r"got 'x{70,80}\.\.\.$"):
        check_value("x" * 500, int, "a")
