"""What the rows say of each claim: ratios of errors, seed by seed, and their spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

from adaptivity.rows import LARGE, SEEDS, TUNED, winner
from studies import Found, Study


class Claim(NamedTuple):
    """One model is ahead of another, and what they differ in.

    Attributes:
        earner: adaptive cells, adaptive points, help or place.
        text: the comparison.
        ahead: name of the model.
        behind: name of the other.
    """

    earner: str
    text: str
    ahead: str
    behind: str


CELLS, POINTS, HELP, PLACE = "adaptive cells", "adaptive points", "help", "place"
CLAIMS = (
    Claim(POINTS, "the best of each, equal operations", "coarse_fine_tuned", "tuned"),
    Claim(POINTS, "best dense help of equal operations", "coarse_fine", "tuned"),
    Claim(POINTS, "the same, equal seconds", "coarse_fine", "tuned_seconds"),
    Claim(
        POINTS, "the best of each, four times the training", "coarse_fine_tuned_long", "tuned_long"
    ),
    Claim(POINTS, "dense help, four times the training", "coarse_fine_long", "uniform_help_long"),
    Claim(PLACE, "points at random", "coarse_fine", "coarse_fine_random"),
    Claim("all", "uniform as published, equal tokens", "coarse_fine", "uniform"),
    Claim("all", "uniform as published, equal operations", "coarse_fine", "uniform_flops"),
    Claim(
        "all", "uniform as published, four times the training", "coarse_fine_long", "uniform_long"
    ),
    Claim(HELP, "uniform as published, equal tokens", "uniform_help", "uniform"),
    Claim(HELP, "uniform as published, equal operations", "uniform_help", "uniform_flops"),
    Claim(CELLS, "uniform, both as published", "iap", "uniform"),
    Claim(CELLS, "uniform, the indicator ignores static channels", "iap_ignoring", "uniform"),
    Claim(CELLS, "uniform, both with the dense help", "iap_help", "uniform_help"),
    Claim(CELLS, "uniform, both with the dense help", "near_best_help", "uniform_help"),
    Claim(CELLS, "uniform, both with the dense help", "learned_help", "uniform_help"),
    Claim(CELLS, "uniform, both with the dense help", "apt_help", "uniform_help"),
    Claim(CELLS, "uniform, both with the dense help", "matey_help", "uniform_help"),
    Claim(CELLS, "uniform, both with refined points", "coarse_fine_iap", "coarse_fine"),
    Claim(PLACE, "cells at random, both with the dense help", "iap_help", "random_help"),
    Claim(PLACE, "cells by distance, both with the dense help", "iap_help", "radial_help"),
    Claim(POINTS, "dense help, 256 tokens", "coarse_fine_256", "uniform_help_256"),
    Claim(POINTS, "dense help, 512 tokens", "coarse_fine_512", "uniform_help_512"),
    Claim(CELLS, "uniform, 256 tokens, both with the help", "iap_help_256", "uniform_help_256"),
    Claim(CELLS, "uniform, 512 tokens, both with the help", "iap_help_512", "uniform_help_512"),
)


class Verdict(NamedTuple):
    """Ratios of errors over the seeds that both models have.

    Attributes:
        ratio: geometric mean.
        spread: sample standard deviation of the logarithms; 0 for one seed.
        seeds: how many.
        worst: ratio of the errors of the worst samples.
        rollout: ratio of the errors of the last rollout step; None if one diverged.
    """

    ratio: float
    spread: float
    seeds: int
    worst: float
    rollout: float | None

    @property
    def said(self) -> str:
        """The verdict in a word."""
        if self.seeds < 2:
            return "one seed"
        if abs(math.log(self.ratio)) <= self.spread:
            return "level"
        return "earned" if self.ratio < 1 else "lost"


def seeds_of(study: Study, data: str, name: str) -> dict[int, Found]:
    """Returns the rows of a model by seed, without those that do not beat persistence.

    The first seed of the tuned model is that of the winner; large domains are not tuned.
    """
    if name == "tuned" and data in LARGE:
        name = "uniform_help"
    names = dict.fromkeys(SEEDS, name)
    if name in TUNED and data not in LARGE:
        names[SEEDS[0]] = winner(data, study.done, name) or name
    labels = {seed: f"{data}-{one}-{seed}" for seed, one in names.items()}
    found = {seed: study.done[label] for seed, label in labels.items() if label in study.done}
    return {seed: row for seed, row in found.items() if counts(row)}


def counts(row: Mapping) -> bool:
    """Tells whether a row beats persistence in one step."""
    return row["vrmse"] < row["persistence"]["vrmse"]


def judged(claim: Claim, study: Study, data: str) -> Verdict | None:
    """Compares two models seed by seed; None without a seed that both have."""
    ahead, behind = (seeds_of(study, data, name) for name in (claim.ahead, claim.behind))
    both = sorted({*ahead} & {*behind})
    if not both:
        return None

    def ratios(of: str) -> list[float]:
        return [math.log(ahead[seed][of] / behind[seed][of]) for seed in both]

    logs = ratios("vrmse")
    last = [(ahead[seed]["rollout"][-1], behind[seed]["rollout"][-1]) for seed in both]
    finite = all(a is not None and b is not None for a, b in last)
    return Verdict(
        ratio=math.exp(statistics.mean(logs)),
        spread=statistics.stdev(logs) if len(logs) > 1 else 0.0,
        seeds=len(both),
        worst=math.exp(statistics.mean(ratios("worst"))),
        rollout=math.exp(statistics.mean(math.log(a / b) for a, b in last)) if finite else None,
    )
