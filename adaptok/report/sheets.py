"""The other tables: by field, by rollout step, budget transfer, verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from adaptok.report import formats
from adaptok.report.sheet import Cell, Column, Sheet
from adaptok.report.summaries import Spread, Summary, Verdict, spread
from adaptok.report.transfer import Transfer


def fields_sheet(rows: Sequence[Summary]) -> Sheet | None:
    """VRMSE of every field, at the settings of training."""
    home = [row for row in rows if row.home]
    fields = list(dict.fromkeys(f for row in home for _, r in row.pairs for f in r.fields))
    if len(fields) < 2:
        return None
    body = []
    for row in home:
        values = [spread(r.fields.get(f) for _, r in row.pairs) for f in fields]
        cells = [Cell(formats.error_spread(v), v.mean if v else None) for v in values]
        body.append([Cell(row.group.label, row.group.label, weak=not row.counts), *cells])
    caption = "VRMSE of every field, one step ahead; lower is better."
    return Sheet(caption, [Column("model"), *(Column(f"{f} ↓") for f in fields)], body)


def rollout_sheet(rows: Sequence[Summary], *, columns: int = 8) -> Sheet | None:
    """VRMSE at some rollout steps, at the settings of training; persistence first."""
    home = [row for row in rows if row.home and any(row.curve("rollout"))]
    if not home:
        return None
    length = max(len(row.curve("rollout")) for row in home)
    chosen = sorted({round(i * (length - 1) / max(columns - 1, 1)) for i in range(columns)})
    reference = next((r.reference_rollout for row in home for r, _ in row.pairs), ())
    curves = [("persistence", reference, True)]
    curves += [(row.group.label, row.curve("rollout"), not row.counts) for row in home]
    body = []
    for label, curve, weak in curves:
        values = [curve[i] if i < len(curve) else None for i in chosen]
        texts = [
            "diverged" if v is None and i < len(curve) else formats.error(v)
            for v, i in zip(values, chosen, strict=True)
        ]
        cells = [Cell(text, value) for text, value in zip(texts, values, strict=True)]
        body.append([Cell(label, label, weak=weak), *cells])
    caption = (
        "VRMSE against the rollout step, mean over fields, trajectories and seeds; lower is better."
    )
    return Sheet(caption, [Column("model"), *(Column(f"step {i + 1} ↓") for i in chosen)], body)


def transfer_sheet(matrix: Transfer) -> Sheet:
    """Rows: budget in training; columns: budget in the test."""
    best = [_best([row[i] for row in matrix.cells]) for i in range(len(matrix.tested))]
    body = []
    for number, trained in enumerate(matrix.trained):
        cells = [Cell(str(trained), trained if isinstance(trained, int) else float("inf"))]
        for i, value in enumerate(matrix.cells[number]):
            bad = matrix.diverged[number][i]
            text = formats.error_spread(value) + (f" ({bad} diverged)" if bad else "")
            beaten = value and matrix.reference and value.mean >= matrix.reference.mean
            rank = 1 if best[i] == number and not beaten and not bad else None
            cells.append(Cell(text + (" †" if beaten else ""), value.mean if value else None, rank))
        body.append(cells)
    known = formats.error(matrix.reference.mean if matrix.reference else None)
    caption = (
        f"{matrix.label}: VRMSE, lower is better; rows: tokens per sample in training, columns: in "
        f"the test. Bold: best of a column. † not better than persistence ({known})."
    )
    return Sheet(caption, [Column("trained at"), *(Column(str(b)) for b in matrix.tested)], body)


def _best(column: Sequence[Spread | None]) -> int | None:
    known = [(value.mean, i) for i, value in enumerate(column) if value is not None]
    return min(known)[1] if len(known) > 1 else None


def verdict_sheet(found: Sequence[tuple[str, Verdict]]) -> Sheet:
    """Which comparisons count; data set and verdict each."""
    body = [
        [
            Cell(title, title),
            Cell(verdict.setting, verdict.setting),
            Cell(str(len(verdict.models)), len(verdict.models), hint="\n".join(verdict.models)),
            Cell("counts" if verdict.counts else "no result", str(verdict.counts)),
            Cell(". ".join(verdict.reasons), ""),
        ]
        for title, verdict in found
    ]
    caption = (
        "A comparison counts if every run of every model in it beats persistence (chance, for "
        "classifiers) on the test split and its learning curve is there."
    )
    return Sheet(caption, [*map(Column, ("data", "setting", "models", "verdict", "why"))], body)
