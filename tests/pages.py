"""The pages of the documentation, and their fenced blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "plugin" / "README.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("README.md")),
]
REASON = r"(?:^<!-- not (?:run|composed): ([^\n]+) -->\n\n?)?"
FENCE = re.compile(
    REASON + r"^(`{3,})([^\n`]*)\n(.*?)^\2[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: what stands behind the opening fence.
        reason: why it is not run, from the comment before it.
        text: its lines.
        line: number of its first line on the page.
    """

    language: str
    reason: str | None
    text: str
    line: int


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, all or of one language."""
    text = page.read_text()
    found = [
        Block(match[3].strip(), match[1], match[4], text[: match.start(4)].count("\n") + 1)
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())
