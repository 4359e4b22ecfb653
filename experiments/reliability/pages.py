"""Reports of hostile run folders: nothing in them runs, and no other run is lost."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import report_runs as make
from reliability.rows import Row, Wrong, row, tried

from adaptok.report import write_report

ATTACK = "window.attacked=1"
MARKUP = (
    f"<script>{ATTACK}</script>",
    f"</script><script>{ATTACK}</script>",
    f"<img src=x onerror={ATTACK}>",
    f'"><svg onload={ATTACK}>',
    f"'><body onload='{ATTACK}'>",
    f"<a href='javascript:{ATTACK}' autofocus onfocus='{ATTACK}'>a</a>",
    f"--><script>{ATTACK}</script><!--",
    f"]]><script>{ATTACK}</script>",
    f"</style></title></textarea><script>{ATTACK}</script>",
    f"{{{{constructor.constructor('{ATTACK}')()}}}}${{{ATTACK}}}",
    f"\u2028{ATTACK}//<iframe srcdoc='<script>parent.{ATTACK}</script>'>",
)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking")


def with_markup(text: str, folder: Path) -> Path:
    """Writes runs with the text in every place that a report shows; returns the page."""
    runs = folder / "runs"
    make.write_surrogate(runs, "iap", 0)
    processor = {"name": text, "note": text}
    odd = make.write_surrogate(
        runs / text.replace("/", "\u2215")[:80], "matey", 0, processor=processor
    )
    results = json.loads((odd / "metrics.json").read_text())
    first = results["settings"][0]
    first |= {"label": text, "setting": {"budget": text}, text: {"mean": 0.5}}
    first["vrmse"]["fields"] = {text: {"mean": 0.5}}
    results |= {"fields": [text], "data": text, "environment": {"device": text, "hardware": text}}
    (odd / "metrics.json").write_text(json.dumps(results))
    failed = make.write_surrogate(runs / "failed", "apt", 0)
    (failed / "metrics.json").unlink()
    (failed / "failed.json").write_text(json.dumps({"error": text}))
    (runs / "bad").mkdir()
    (runs / "bad" / "config.yaml").write_text(f"{text}: [")
    return write_report([runs], folder / "out")[-1]


def injections(folder: Path, texts: tuple[str, ...]) -> list[tuple[str, Callable[[], Wrong]]]:
    """One page per text, opened in a browser; raises ImportError without one."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        raise ImportError("chromium or chromedriver is not installed")

    def opened(number: int, text: str) -> Wrong:
        page = with_markup(text, folder / f"page{number}")
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in FLAGS:
            options.add_argument(flag)
        window = webdriver.Chrome(options=options, service=Service(driver))
        try:
            window.get(page.as_uri())
            for plot in window.find_elements("css selector", ".plot"):
                window.execute_script("arguments[0].scrollIntoView()", plot)
            time.sleep(0.5)
            if window.execute_script("return window.attacked"):
                return "it ran"
            shown = window.find_element("id", "runs").text
            return None if "iap" in shown else "the good run is lost"
        finally:
            window.quit()

    return [(t[:40], lambda n=n, t=t: opened(n, t)) for n, t in enumerate(texts)]


CONTENTS: dict[str, bytes | None] = {
    "empty": b"",
    "NUL": b"\0" * 1000,
    "list": b"[1, 2]",
    "null": b"null",
    "half": b'{"settings": [{"vrmse": ',
    "NaN": b'{"settings": [{"vrmse": NaN}], "seed": .nan}',
    "deep": b'{"settings": ' + b"[" * 50_000,
    "no UTF-8": b"\xff\xfe\x00\xd8",
    "huge number": b'{"settings": [{"vrmse": {"mean": 1' + b"0" * 5000 + b'}, "tokens": -1e999}]}',
    "wrong types": b'{"settings": {"vrmse": "x"}, "fields": 3, "training": [], "data": 1}',
    "strings": b'{"settings": [{"vrmse": {"mean": "x"}, "tokens": "y", "rollout": 3}]}',
    "a folder": None,
}
FILES = ("config.yaml", "metrics.json", "metrics.csv", "failed.json")


def beside_bad(name: str, content: bytes | None, folder: Path) -> Wrong:
    """A report of a good run and a damaged one keeps the good one."""
    good = make.write_surrogate(folder, "iap", 0)
    bad = make.write_surrogate(folder, "uniform", 0)
    (bad / name).unlink(missing_ok=True)
    if content is None:
        (bad / name).mkdir()
    else:
        (bad / name).write_bytes(content)
    page = write_report([folder], folder / "out")[-1].read_text()
    return None if good.name in page else "the good run is lost"


def pictures(name: str, content: bytes, folder: Path) -> Wrong:
    good = make.write_surrogate(folder, "iap", 0)
    (good / "pictures").mkdir()
    (good / "pictures" / name).write_bytes(content)
    page = write_report([folder], folder / "out")[-1].read_text()
    return None if good.name in page else "the run is lost"


def bomb() -> bytes:
    """A picture of a few kilobytes that claims a hundred thousand pixels a side."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(100_001) * 10)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def many(folder: Path, count: int) -> Row:
    """A report of many runs; how long and how large."""
    kinds = ("uniform", "iap", "apt", "matey", "ckm")
    for number in range(count):
        make.write_surrogate(folder, kinds[number % len(kinds)], number // len(kinds))
    begin = time.monotonic()
    page = write_report([folder], folder / "out")[-1]
    seconds, size = time.monotonic() - begin, page.stat().st_size / 1e6
    wrong = None if page.read_text().count("maze_iap_256_1") else "a run is missing"
    return row(f"{count} runs in a report", [wrong], f"{seconds:.1f} s, {size:.1f} MB")


def run(folder: Path, quick: bool = False) -> list[Row]:
    """All of it; `quick`: every tenth."""
    rows, step = [], 10 if quick else 1
    try:
        tries = injections(folder / "pages", MARKUP[::step])
        rows.append(tried("HTML injection, page opened in Chromium", tries, "none ran"))
    except ImportError as error:
        rows.append(row("HTML injection, page opened in Chromium", [], f"not tried: {error}"))
    bad = [
        (
            f"{name}: {what}",
            lambda n=name, c=content, f=folder / f"{name}-{what}": beside_bad(n, c, f),
        )
        for name in FILES
        for what, content in CONTENTS.items()
    ]
    bad += [
        (f"picture: {what}", lambda n=n, c=c, f=folder / f"picture-{what}": pictures(n, c, f))
        for what, n, c in (
            ("bomb", "cells.png", bomb()),
            ("text", "cells.png", b"text"),
            ("empty", "cells.png", b""),
            ("SVG", "cells.svg", f"<svg onload='{ATTACK}'/>".encode()),
        )
    ]
    rows.append(tried("hostile run folders in a report", bad[::step], "the others are kept"))
    rows.append(many(folder / "many", 20 if quick else 200))
    return rows
