"""One row of the benchmark: a set, a method, a budget and a seed; its schema."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

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
SECONDS = ("training", "inference", "cells")
VERSIONS = ("adaptok", "torch", "python")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row; every field is a key of its file.

    Attributes:
        schema: version of these keys.
        track: "T0", "T1" or "T2".
        set: of fields or images.
        method: what was measured.
        budget: "kind", what is equal (tokens, flops, seconds of a training step, none for methods
            without tokens), and "value", the tokens per sample that it is named after; with "none"
            it is None.
        seed: of data (T0) or of weights and order; None for what was published without one.
        measured: False for a number that is quoted from a paper.
        source: where a quoted number stands; empty for measured rows.
        key: hash of `config`, see `key_of`.
        config: all that decides the numbers.
        commit: hash of the code, with a plus if files had changed, or "version" and that of the
            package, where it has no repository of its own.
        versions: of adaptok, torch and python.
        hardware: processor, and threads or name of the GPU.
        when: ISO 8601 with the time zone.
        tokens: mean per sample, or None for methods without them.
        flops: of a forward pass per sample, or None.
        parameters: weights, or None.
        seconds: by name: "training" and "inference" step of a batch, "cells" of a sample, tokenizer
            included; None if nothing was timed.
        memory: bytes of the tensors of a forward pass, or None.
        metrics: numbers by name, which is no name of another value; None for one that is not
            finite, or could not be had.
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
    def moment(self) -> datetime:
        """When it was measured, in UTC."""
        return datetime.fromisoformat(self.when).astimezone(UTC)

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
