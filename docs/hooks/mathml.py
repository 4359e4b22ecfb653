"""Turns formulas into MathML while the site is built, so that it needs no script and no network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with the HTML of each page."""
    return FORMULA.sub(_converted, content)


def _converted(found: re.Match[str]) -> str:
    block = found["tag"] == "div"
    return convert(html.unescape(found["tex"]), display="block" if block else "inline")
