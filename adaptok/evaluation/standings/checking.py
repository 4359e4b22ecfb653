"""What is no row: keys, names and numbers that a file may not hold, each with the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from adaptok.evaluation.standings.row import (
    KEYS,
    KINDS,
    MEASURES,
    METRICS,
    SCHEMA,
    SECONDS,
    TRACKS,
    VERSIONS,
    Row,
    digest_of,
    key_of,
)
from adaptok.utils.arguments import shown

CLOSE = 1e-5  # relative
LARGEST = 1e100  # of numbers: sums over steps and seeds, and milliseconds, stay finite
# Names are shown in pages and are parts of file names.
NAME = re.compile(r"[\w.+-][\w .,=()+-]{0,79}")
METRIC = re.compile(r"[a-z][a-z0-9_]{0,39}")
_NONE = type(None)
TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("track", "set", "method", "source", "key", "commit", "hardware"), (str,)),
    **dict.fromkeys(("budget", "config", "versions", "metrics"), (dict,)),
    **dict.fromkeys(("tokens", "flops"), (int, float, _NONE)),
    **dict.fromkeys(("seed", "parameters", "memory"), (int, _NONE)),
    **dict.fromkeys(("seconds", "rollout"), (dict, _NONE)),
    **{"when": (str,), "measured": (bool,), "digest": (str,)},
}


def row_of(content: Any) -> Row:
    """Reads and checks the content of a file.

    Raises:
        ValueError: the reason why it is no row: a key that is missing, unknown or of another kind,
            numbers that contradict each other, or content that was changed after it was written.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"a row is an object with keys, not {type(content).__name__}")
    wanted = {*KEYS, "digest"}
    if missing := [name for name in (*KEYS, "digest") if name not in content]:
        raise ValueError(f"missing keys: {', '.join(missing)}")
    if unknown := sorted(map(str, {*content} - wanted)):
        raise ValueError(f"unknown key {unknown[0]!r}")
    if type(content["schema"]) is not int or content["schema"] != SCHEMA:
        raise ValueError(f"schema {shown(content['schema'])}; this version reads {SCHEMA}")
    for name, kinds in TYPES.items():
        value = content[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            accepted = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
            accepted = accepted.replace("NoneType", "null")
            raise ValueError(f"{name} is {shown(value)}, not {accepted}")
    row = Row(**{name: content[name] for name in KEYS})
    _check_names(row)
    _check_budget(row.budget)
    _check_origin(row)
    _check_numbers(row)
    _check_metrics(row)
    if row.rollout is not None:
        _check_rollout(row.rollout)
    _check_config(row)
    if content["digest"] != digest_of(content):
        raise ValueError("the digest does not fit: the content was changed after it was written")
    return row


def _check_names(row: Row) -> None:
    if row.track not in TRACKS:
        raise ValueError(f"track is {row.track!r}, not one of {', '.join(TRACKS)}")
    if not row.set or not row.method:
        raise ValueError("set and method are names, got an empty one")
    for name in ("set", "method", *(["commit"] if row.measured else [])):
        value = getattr(row, name)
        if value and not NAME.fullmatch(value):
            raise ValueError(
                f"{name} is at most 80 letters, digits, spaces and any of _.,=()+-, "
                f"got {shown(value)}"
            )
    for name in ("hardware", "source"):
        value = getattr(row, name)
        if not value.isprintable() or len(value) > 200:
            raise ValueError(f"{name} is one line of at most 200 characters, got {shown(value)}")


def _check_budget(budget: Mapping[str, Any]) -> None:
    if {*budget} != {"kind", "value"} or budget["kind"] not in KINDS:
        raise ValueError(f"budget has kind ({', '.join(KINDS)}) and value, got {shown(budget)}")
    kind, value = budget["kind"], budget["value"]
    if value is not None and not (_is_number(value) and value > 0):
        raise ValueError(f"budget.value is above 0 or null, got {shown(value)}")
    if (kind == "none") != (value is None):
        raise ValueError(
            f"budget.value must be null for kind none, and only then, got {shown(budget)}"
        )


def _check_origin(row: Row) -> None:
    if not row.measured:
        if not row.source:
            raise ValueError("not measured and without a source")
        return
    absent = [name for name in ("commit", "hardware", "when") if not getattr(row, name)]
    absent += [f"versions.{n}" for n in VERSIONS if not isinstance(row.versions.get(n), str)]
    if absent:
        raise ValueError(f"measured, but without {', '.join(absent)}")
    for name in VERSIONS:
        if not NAME.fullmatch(row.versions[name]):
            raise ValueError(f"versions.{name} is a version, got {shown(row.versions[name])}")
    try:
        has_zone, moment = datetime.fromisoformat(row.when).tzinfo is not None, row.moment
    except (ValueError, OverflowError):
        has_zone, moment = False, datetime.now(UTC)
    if not has_zone:
        raise ValueError(
            "when is a time of ISO 8601 with its zone, such as 2026-01-31T12:00:00+00:00, "
            f"got {shown(row.when)}"
        )
    if moment > datetime.now(UTC) + timedelta(days=1):  # clocks differ
        raise ValueError(f"when is in the future, {shown(row.when)}")


def _check_numbers(row: Row) -> None:
    for name in ("tokens", "flops", "parameters", "memory", "seed"):
        value = getattr(row, name)
        if value is not None and not (_is_number(value) and value >= 0):
            raise ValueError(f"{name} is {_accepted('of at least 0')} or null, got {shown(value)}")
    for name, value in (row.seconds or {}).items():
        if name not in SECONDS:
            raise ValueError(f"seconds are {', '.join(SECONDS)}, got {shown(name)}")
        if not (_is_number(value) and value > 0):
            raise ValueError(f"seconds.{name} is {_accepted('above 0')}, got {shown(value)}")


def _check_metrics(row: Row) -> None:
    metrics = row.metrics
    for name, value in metrics.items():
        if name in (*KEYS, "digest", *SECONDS) or not METRIC.fullmatch(name):
            raise ValueError(
                "metrics have names of a-z, 0-9 and _ that mean nothing else in a row, "
                f"got {shown(name)}"
            )
        if value is not None and not (_is_number(value) and value >= 0):
            said = _accepted("of at least 0")
            raise ValueError(f"metrics.{name} is {said} or null, got {shown(value)}")
    wanted = METRICS[row.track] if row.measured else (MEASURES[row.track],)
    if absent := [name for name in wanted if name not in metrics]:
        raise ValueError(f"metrics without {', '.join(absent)}")
    mean, worst = row.score, metrics.get("worst_decile")
    if mean is not None and worst is not None and worst < mean * (1 - CLOSE):
        raise ValueError(f"the worst decile, {worst:g}, is better than the mean, {mean:g}")
    if row.track == "T2" and mean is not None and mean > 1:
        raise ValueError(f"error is a share, got {mean:g}")


def _check_rollout(rollout: Mapping[str, Any]) -> None:
    if {*rollout} != {"first", "errors", "windows"}:
        raise ValueError(f"rollout has first, errors and windows, got {shown([*rollout])}")
    first, errors, windows = rollout["first"], rollout["errors"], rollout["windows"]
    if type(first) is not int or first < 1:
        raise ValueError(f"rollout.first is the index of a predicted frame, got {shown(first)}")
    if not isinstance(errors, list):
        raise ValueError(f"rollout.errors is a list, got {shown(errors)}")
    for error in errors:
        if error is not None and not (_is_number(error) and error >= 0):
            said = _accepted("of at least 0")
            raise ValueError(f"an error of the rollout is {said} or null, got {shown(error)}")
    if not isinstance(windows, dict):
        raise ValueError("rollout.windows is an object")
    for name, value in windows.items():
        start, _, stop = str(name).partition(":")
        if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop) <= len(errors)):
            raise ValueError(
                f"rollout.windows has {name!r}, which is not a range within the {len(errors)} steps"
            )
        part = errors[int(start) : int(stop)]
        mean = None if None in part else math.fsum(part) / len(part)
        if not _same(value, mean):
            raise ValueError(f"the window {name} is {shown(value)}, the mean of its errors {mean}")


def _check_config(row: Row) -> None:
    config = row.config
    if row.key != key_of(config):
        raise ValueError(f"key {row.key!r} is not that of its config, {key_of(config)!r}")
    for name in ("set", "method", "seed"):
        if name in config and config[name] != getattr(row, name):
            said = f"{shown(config[name])} in config and {shown(getattr(row, name))} beside it"
            raise ValueError(f"{name} is {said}")
    words = config.get("words")
    for word in words if isinstance(words, list) else []:
        if str(word).startswith("seed=") and word != f"seed={row.seed}":
            raise ValueError(f"seed is {row.seed}, but config.words has {shown(word)}")


def _accepted(range_: str) -> str:
    return f"a finite number {range_} and at most {LARGEST:g}"


def _same(a: Any, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return _is_number(a) and math.isclose(a, b, rel_tol=CLOSE)


def _is_number(value: Any) -> bool:
    """Tells numbers from other values; NaN, and whole numbers of any size, are compared safely."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= LARGEST
