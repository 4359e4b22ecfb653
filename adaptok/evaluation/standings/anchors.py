"""Numbers of papers as rows of their own, marked as not measured here."""

from __future__ import annotations

from pathlib import Path

import yaml

from adaptok.evaluation.standings.row import SCHEMA, Row, key_of

FILE = Path(__file__).with_name("anchors.yaml")


def anchors() -> list[Row]:
    """Returns the published one-step errors on sets of the Well, see the sources in the rows."""
    found = []
    for paper in yaml.safe_load(FILE.read_text(encoding="utf-8")):
        for data, methods in paper["vrmse"].items():
            tokens = paper.get("tokens", {}).get(data)
            for method, error in methods.items():
                about = {"source": paper["source"], "history": paper["history"]}
                found.append(_row(about, data, method, error, tokens))
    return found


def _row(about: dict, data: str, method: str, error: float, tokens: int | None) -> Row:
    config = {"set": data, "method": method, **about}
    return Row(
        schema=SCHEMA,
        track="T1",
        set=data,
        method=method,
        budget={"kind": "none" if tokens is None else "tokens", "value": tokens},
        seed=None,
        measured=False,
        source=about["source"],
        key=key_of(config),
        config=config,
        commit="",
        versions={},
        hardware="",
        when="",
        tokens=tokens,
        flops=None,
        parameters=None,
        seconds=None,
        memory=None,
        metrics={"vrmse": error},
        rollout=None,
    )
