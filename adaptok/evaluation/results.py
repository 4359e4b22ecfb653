"""What an evaluation found, as files: metrics.json and its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptok.utils.atomic import replacing
from adaptok.utils.tables import table


def write_results(
    results: Mapping[str, Any], folder: str | Path, text: str | None = None
) -> list[Path]:
    """Writes metrics.json and metrics.md; the text of the latter is `markdown`'s unless given."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "metrics.json", folder / "metrics.md"]
    texts = [json.dumps(results, indent=2, allow_nan=False) + "\n", text or markdown(results)]
    for file, text in zip(files, texts, strict=True):
        with replacing(file) as temporary:
            temporary.write_text(text)
    return files


def markdown(results: Mapping[str, Any]) -> str:
    """Tables of the one-step and rollout errors."""
    fields = results["fields"]
    header = ["setting", "tokens", "s/step", "VRMSE mean", "median", *fields]
    rows = [["persistence", "", "", *_row(results["persistence"]["vrmse"], fields)]]
    for row in results["settings"]:
        seconds = f"{row['seconds_per_step']:.3g}"
        rows.append(
            [row["label"], tokens_cell(row["tokens"]), seconds, *_row(row["vrmse"], fields)]
        )
    text = f"# {results['data']}, {results['split']} split\n\n"
    text += "One step; per field the mean over samples.\n\n" + table(header, rows)
    header = ["setting", "low", "middle", "high"]
    rows = [[row["label"], *map(_cell, row["spectral_nmse"])] for row in results["settings"]]
    text += "\nOne step: squared error over energy in three bands of wavenumbers (BSNMSE).\n\n"
    text += table(header, rows)
    return text + _rollout_tables(results) if "rollout" in results["persistence"] else text


def _rollout_tables(results: Mapping[str, Any]) -> str:
    curves = {"persistence": results["persistence"]["rollout"]}
    curves |= {row["label"]: row["rollout"] for row in results["settings"]}
    steps = [f"step {i + 1}" for i in range(len(curves["persistence"]["mean"]))]
    windows = list(curves["persistence"]["windows"])
    rows = [
        [k, *map(_cell, c["mean"]), *(_cell(c["windows"][w]) for w in windows)]
        for k, c in curves.items()
    ]
    text = "\nRollout: VRMSE, mean over fields and trajectories.\n\n"
    text += table(["setting", *steps, *windows], rows)
    peaks = {k: c["patch_harmonics"] for k, c in curves.items() if c.get("patch_harmonics")}
    if peaks:
        size = " x ".join(map(str, results["patch_size"]))
        text += f"\nRollout: power of the residual at the harmonics of patches of {size} over that "
        text += "beside them; 1 without artifacts.\n\n"
        text += table(["setting", *steps], [[k, *map(_cell, v)] for k, v in peaks.items()])
    return text


def _row(summary: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
    per_field = [summary["fields"][f]["mean"] for f in fields]
    return [_cell(v) for v in (summary["mean"], summary["median"], *per_field)]


def _cell(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.4f}"


def tokens_cell(tokens: Mapping[str, float] | None) -> str:
    """Tokens per sample; empty for a baseline."""
    if tokens is None:
        return ""
    if tokens["min"] == tokens["max"]:
        return f"{tokens['mean']:.0f}"
    return f"{tokens['mean']:.0f} ({tokens['min']:.0f}-{tokens['max']:.0f})"
