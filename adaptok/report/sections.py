"""A data set in the page: its tables, figures and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from adaptok.report.costs import cost_note, cost_panels
from adaptok.report.curves import rollout_panels, spectrum_panels
from adaptok.report.gallery import pictures_of
from adaptok.report.heatmaps import TRANSFER_NOTE, transfer_panels
from adaptok.report.html import (
    breakable,
    legend_html,
    panels_html,
    pictures_html,
    sheet_html,
)
from adaptok.report.learning import learning_panels
from adaptok.report.notes import Section
from adaptok.report.panels import Panel
from adaptok.report.records import Problem
from adaptok.report.results import results_sheet
from adaptok.report.sheets import fields_sheet, rollout_sheet
from adaptok.report.theme import Look, looks
from adaptok.report.transfer import transfers


class Block(NamedTuple):
    """A part of a section."""

    name: str
    title: str
    html: str


def blocks_of(section: Section, name: str, out: Path, problems: list[Problem]) -> list[Block]:
    """The parts of a data set that there is something for.

    Args:
        name: of the section in the page, which the names of its parts begin with.
        out: folder of the page.
        problems: where pictures that cannot be read are added.
    """
    looked = looks(section.groups)
    blocks = []
    if section.rows:
        blocks.append(Block(f"{name}-results", "Results", _tables(section, looked)))
    for key, (title, panels, note) in _panels(section, looked).items():
        if panels:
            html = panels_html(panels, f"{name}-{key}-plot", note)
            html += _rollout_table(section, looked) if key == "rollout" else ""
            blocks.append(Block(f"{name}-{key}", title, html))
    pictures = pictures_of(section.groups, problems)
    if pictures:
        html = pictures_html(pictures, out)
        blocks.append(Block(f"{name}-cells", "Cells and fields", html))
    return blocks


def _panels(
    section: Section, looked: Mapping[str, Look]
) -> dict[str, tuple[str, list[Panel], str]]:
    """Title, figures, and what all of them show."""
    rows, groups = section.rows, section.groups
    cost = "Error and cost" if section.table.measure.lower else "Accuracy and cost"
    return {
        "cost": (cost, cost_panels(rows, looked), cost_note(section.table.measure)),
        "transfer": ("Budget transfer", transfer_panels(transfers(rows)), TRANSFER_NOTE),
        "learning": ("Learning curves", learning_panels(groups, looked), ""),
        "rollout": ("Rollouts", rollout_panels(rows, looked), ""),
        "spectra": ("Spectra", spectrum_panels(rows, looked), ""),
    }


def section_html(section: Section, name: str, blocks: Sequence[Block]) -> str:
    """A data set: title, warnings, legend, parts."""
    parts = "".join(
        f'<section class="part" id="{b.name}"><h3>{escape(b.title)}</h3>{b.html}</section>'
        for b in blocks
    )
    measure = section.table.measure
    return (
        f'<section class="set" id="{name}"><h2>{breakable(section.table.title)}</h2>'
        f'<p class="direction">{escape(measure.title)}: {escape(measure.direction)}</p>'
        f"{warnings_html(section.warnings)}{legend_html(looks(section.groups))}{parts}</section>"
    )


def _tables(section: Section, looked: Mapping[str, Look]) -> str:
    fields = fields_sheet(section.rows)
    text = sheet_html(results_sheet(section.rows), looked)
    if fields is not None:
        text += f"<details><summary>By field</summary>{sheet_html(fields, looked)}</details>"
    return text


def _rollout_table(section: Section, looked: Mapping[str, Look]) -> str:
    sheet = rollout_sheet(section.rows)
    if sheet is None:
        return ""
    return f"<details><summary>As a table</summary>{sheet_html(sheet, looked)}</details>"


def warnings_html(warnings: Sequence[str]) -> str:
    """What a reader has to know before the numbers."""
    return "".join(f'<p class="careful"><b>Careful:</b> {escape(text)}.</p>' for text in warnings)
