"""One row of the benchmark: a set, a method, a budget and a seed; its schema and its checks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptok.utils.arguments import shown

SCHEMA = 1
TRACKS = {
    "T0": "what tilings hold, without training",
    "T1": "surrogates of PDEs",
    "T2": "images",
}
# What a track is sorted by, lower is better, and the other metrics that a measured row has.
MEASURES = {"T0": "change_0", "T1": "vrmse", "T2": "error"}
METRICS = {
    "T0": ("field_0", "field_1", "change_0", "change_1"),
    "T1": ("vrmse", "worst_decile", "persistence"),
    "T2": ("error", "chance", "dense_loss"),
}
KINDS = ("tokens", "flops", "seconds", "none")
VERSIONS = ("adaptok", "torch", "python")
CLOSE = 1e-5  # relative


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row; every field is a key of its file.

    Attributes:
        schema: version of these keys.
        track: "T0", "T1" or "T2".
        set: of fields or images.
        method: what was measured.
        budget: "kind", what is equal (tokens, flops, seconds of a training step, none for methods
            without tokens), and "value", the tokens per sample that it is named after, or None.
        seed: of data (T0) or of weights and order; None for what was published without one.
        measured: False for a number that is quoted from a paper.
        source: where a quoted number stands; empty for measured rows.
        key: hash of `config`, see `key_of`.
        config: all that decides the numbers.
        commit: of the code, with a plus if files had changed.
        versions: of adaptok, torch and python.
        hardware: processor, and threads or name of the GPU.
        when: UTC, ISO 8601.
        tokens: mean per sample, or None for methods without them.
        flops: of a forward pass per sample, or None.
        parameters: weights, or None.
        seconds: by name: "training" and "inference" step of a batch, "cells" of a sample, tokenizer
            included; None if nothing was timed.
        memory: bytes of the tensors of a forward pass, or None.
        metrics: numbers by name; None for one that is not finite, or could not be had.
        rollout: None, or "first", the index of the first predicted frame in the trajectory,
            "errors", one per step, and "windows", from "a:b" to the mean of the errors [a, b).
    """

    schema: int
    track: str
    set: str
    method: str
    budget: dict[str, Any]
    seed: int | None
    measured: bool
    source: str
    key: str
    config: dict[str, Any]
    commit: str
    versions: dict[str, str]
    hardware: str
    when: str
    tokens: float | None
    flops: float | None
    parameters: int | None
    seconds: dict[str, float] | None
    memory: int | None
    metrics: dict[str, float | None]
    rollout: dict[str, Any] | None

    @property
    def score(self) -> float | None:
        """The metric that the track is sorted by."""
        return self.metrics.get(MEASURES[self.track])

    @property
    def definition(self) -> str:
        """Its configuration without the seed: rows that share it may be averaged."""
        word = f"seed={self.seed}"
        shared = {
            name: [one for one in value if one != word] if isinstance(value, list) else value
            for name, value in self.config.items()
            if name != "seed"
        }
        return json.dumps(shared, sort_keys=True)

    @property
    def stem(self) -> str:
        """Name of its file, without the ending."""
        return stem_of(self.track, self.set, self.method, self.budget, self.seed)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of its file, with a digest of all the rest."""
        content = dataclasses.asdict(self)
        return content | {"digest": digest_of(content)}


KEYS = tuple(field.name for field in dataclasses.fields(Row))


def stem_of(track: str, data: str, method: str, budget: Mapping[str, Any], seed: int | None) -> str:
    """Names the file of a row."""
    kind, value = budget["kind"], budget["value"]
    parts = [track, data, method, kind if value is None else f"{kind}{value:g}"]
    parts += [] if seed is None else [str(seed)]
    return "-".join("".join(c if c.isalnum() or c in "_." else "_" for c in p) for p in parts)


def key_of(config: Mapping[str, Any]) -> str:
    """Hashes a plain configuration."""
    return _hash(config)[:12]


def digest_of(content: Mapping[str, Any]) -> str:
    """Hashes the content of a row without its digest."""
    return _hash({name: value for name, value in content.items() if name != "digest"})


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        raise ValueError(f"without {', '.join(missing)}")
    if unknown := sorted(map(str, {*content} - wanted)):
        raise ValueError(f"unknown key {unknown[0]!r}")
    if type(content["schema"]) is not int or content["schema"] != SCHEMA:
        raise ValueError(f"schema {content['schema']!r}; this version reads {SCHEMA}")
    for name, kinds in TYPES.items():
        value = content[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            accepted = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
            raise ValueError(f"{name} is {value!r}, not {accepted.replace('NoneType', 'null')}")
    row = Row(**{name: content[name] for name in KEYS})
    _check_names(row)
    _check_numbers(row)
    if row.rollout is not None:
        _check_rollout(row.rollout)
    if row.key != key_of(row.config):
        raise ValueError(f"key {row.key!r} is not that of its config, {key_of(row.config)!r}")
    if content["digest"] != digest_of(content):
        raise ValueError("the digest does not fit: the content was changed after it was written")
    return row


_NONE = type(None)
TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("track", "set", "method", "source", "key", "commit", "hardware"), (str,)),
    **dict.fromkeys(("budget", "config", "versions", "metrics"), (dict,)),
    **dict.fromkeys(("tokens", "flops"), (int, float, _NONE)),
    **dict.fromkeys(("seed", "parameters", "memory"), (int, _NONE)),
    **dict.fromkeys(("seconds", "rollout"), (dict, _NONE)),
    **{"when": (str,), "measured": (bool,), "digest": (str,)},
}


def _check_names(row: Row) -> None:
    if row.track not in TRACKS:
        raise ValueError(f"track is {row.track!r}, not one of {', '.join(TRACKS)}")
    if not row.set or not row.method:
        raise ValueError("set and method are names, got an empty one")
    if {*row.budget} != {"kind", "value"} or row.budget["kind"] not in KINDS:
        raise ValueError(f"budget has kind ({', '.join(KINDS)}) and value, got {shown(row.budget)}")
    value = row.budget["value"]
    if value is not None and not (_is_number(value) and value > 0):
        raise ValueError(f"budget.value is above 0 or null, got {shown(value)}")
    if row.measured:
        absent = [name for name in ("commit", "hardware", "when") if not getattr(row, name)]
        absent += [f"versions.{n}" for n in VERSIONS if not isinstance(row.versions.get(n), str)]
        if absent:
            raise ValueError(f"measured, but without {', '.join(absent)}")
    elif not row.source:
        raise ValueError("not measured and without a source")


def _check_numbers(row: Row) -> None:
    metrics = row.metrics
    for name, value in {**metrics, "tokens": row.tokens, "flops": row.flops}.items():
        if value is not None and not (_is_number(value) and value >= 0):
            raise ValueError(f"{name} is a finite number of at least 0 or null, got {shown(value)}")
    for name, value in (row.seconds or {}).items():
        if not (_is_number(value) and value > 0):
            raise ValueError(f"seconds.{name} is a finite number above 0, got {shown(value)}")
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
    if not isinstance(errors, list) or not all(e is None or _is_number(e) for e in errors):
        raise ValueError("rollout.errors is a list of finite numbers or null")
    if not isinstance(windows, dict):
        raise ValueError("rollout.windows is an object")
    for name, value in windows.items():
        start, _, stop = str(name).partition(":")
        if not (start.isdigit() and stop.isdigit() and int(start) < int(stop) <= len(errors)):
            raise ValueError(f"rollout.windows has {name!r}, which are no steps of {len(errors)}")
        part = errors[int(start) : int(stop)]
        mean = None if None in part else math.fsum(part) / len(part)
        if not _same(value, mean):
            raise ValueError(f"the window {name} is {value!r}, the mean of its errors {mean!r}")


def _same(a: Any, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return _is_number(a) and math.isclose(a, b, rel_tol=CLOSE)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # of whole numbers of any size, and NaN
