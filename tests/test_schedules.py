"""Schedules: settings as pure functions of seed and step."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest

from adaptok import SCHEDULES, create_schedule

SETTINGS = [{"budget": 512}, {"budget": 1024}, {"budget": 2048, "seed": 3}]


@pytest.mark.parametrize("name", SCHEDULES.names())
@pytest.mark.parametrize("seed", [0, 7])
def test_every_schedule_is_a_pure_function_of_seed_and_step(name, seed):
    settings = SETTINGS[:1] if name in ("fixed", "seeds", "ramp") else SETTINGS
    part = {"name": name, "settings": settings, "seed": seed}
    schedule, again = create_schedule(part), create_schedule(part)
    forwards = [schedule(step) for step in range(50)]
    backwards = [again(step) for step in reversed(range(50))]
    assert forwards == backwards[::-1]
    if name == "seeds":
        assert len({setting.pop("seed") for setting in forwards}) == 50
    assert all(setting in SETTINGS for setting in forwards)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_what_a_caller_does_to_a_setting_stays_with_the_caller(name):
    settings = [{"budget": 512}]
    schedule = create_schedule({"name": name, "settings": settings})
    schedule(0)["budget"] = 3
    settings[0]["budget"] = 4
    assert {**schedule(0), "seed": 1} == {"budget": 512, "seed": 1}


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_without_settings_nothing_is_set(name):
    assert create_schedule(name)(17).keys() == ({"seed"} if name == "seeds" else set())


def test_fixed_cyclic_and_random():
    fixed = create_schedule({"name": "fixed", "settings": SETTINGS[:1]})
    assert [fixed(step) for step in (0, 1, 10**9)] == [{"budget": 512}] * 3
    cyclic = create_schedule({"name": "cyclic", "settings": SETTINGS})
    assert [cyclic(step) for step in range(4)] == [*SETTINGS, SETTINGS[0]]
    shifted = create_schedule({"name": "cyclic", "settings": SETTINGS, "seed": 1})
    assert [shifted(step) for step in range(3)] == [*SETTINGS[1:], SETTINGS[0]]
    drawn = create_schedule({"name": "random", "settings": SETTINGS})
    counts = collections.Counter(drawn(step)["budget"] for step in range(3000))
    assert all(abs(count - 1000) < 120 for count in counts.values())
    other = create_schedule({"name": "random", "settings": SETTINGS, "seed": 1})
    assert [other(step) for step in range(20)] != [drawn(step) for step in range(20)]


def test_random_draws_never_change():
    """The same on all ranks, machines and days: nothing depends on hash seeds or global state."""
    schedule = create_schedule({"name": "random", "settings": SETTINGS, "seed": 5})
    drawn = [schedule(step)["budget"] for step in range(10)]
    assert drawn == [2048, 512, 2048, 1024, 2048, 512, 2048, 2048, 512, 2048]


@pytest.mark.parametrize("count", [3, 4])
def test_draws_of_ckm(count):
    golden = np.load(Path(__file__).parent / "golden" / "ckm_draws.npz")[str(count)]
    settings = [{"patch_size": 4 + i} for i in range(count)]
    for seed in (0, 7):
        schedule = create_schedule(
            {"name": "random", "settings": settings, "seed": seed, "compat": True}
        )
        drawn = [schedule(step)["patch_size"] - 4 for step in range(200 - seed)]
        assert drawn == golden[seed:].tolist()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("random_", "unknown schedule 'random_'.*'random'"),
        ({"name": "fixed", "setting": [{}]}, "has no knob 'setting'.*'settings'"),
        ({"name": "fixed", "settings": []}, "settings (is a non-empty|must be a) list"),
        ({"name": "fixed", "settings": {"budget": 3}}, "settings (is a non-empty|must be a) list"),
        ({"name": "fixed", "settings": "512"}, "settings (is a non-empty|must be a) list"),
        ({"name": "cyclic", "settings": 512}, "settings (is a non-empty|must be a) list"),
        ({"name": "random", "settings": [512, 1024]}, "of length 1 or more, each a mapping"),
        ({"settings": [{}]}, "a mapping such as {.name"),
    ],
)
def test_bad_schedules(part, message):
    with pytest.raises(ValueError, match=message):
        create_schedule(part)


def test_a_fixed_schedule_takes_one_setting():
    with pytest.raises(ValueError, match="takes one setting, got 3"):
        create_schedule({"name": "fixed", "settings": SETTINGS})
