"""The page of the leaderboard in headless Chromium, opened from a file as a reader would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_rows import made_up

from adaptok.evaluation.standings import Folder, anchors
from adaptok.report.leaderboard import write_leaderboard

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from test_report_browser import CHROMIUM, DRIVER, errors, start, waiting

HOSTILE = "<img src=x onerror=alert(1)></script>"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="chromium or chromedriver is not installed"
    ),
]


@pytest.fixture(scope="module")
def leaderboard(tmp_path_factory) -> Path:
    """Three tracks, two sets, seeds, a hostile name, bad files and another schema."""
    rows = [
        made_up(method=method, seed=seed, metrics={"vrmse": error, "worst_decile": 0.9})
        for method, error in {"iap": 0.2, "uniform": 0.3, HOSTILE: 0.25}.items()
        for seed in range(3)
    ]
    rows += [made_up(method="uniform", set="blast_32", seconds=None)]
    rows += [made_up(track="T0", set="shear_flow", method="near_best", tokens=512.0)]
    rows += [made_up(track="T2", set="digits", method="apt", metrics={"error": 0.95})]
    found = Folder({f"{i}.json": row for i, row in enumerate(rows)})
    found.bad["broken.json"] = f"without seed {HOSTILE}"
    about = {"schema": 7, "track": "T1", "set": "maze_64", "method": "newer"}
    found.others["later.json"] = about
    return write_leaderboard(found, anchors(), tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def browser(leaderboard, tmp_path_factory) -> Iterator[Any]:
    driver = start(tmp_path_factory.mktemp("profile"))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(browser, leaderboard) -> Any:
    browser.get_log("browser")
    browser.get(leaderboard.as_uri())
    drawn = "return document.querySelector('#table thead th')?.innerText"
    waiting.WebDriverWait(browser, 20).until(lambda one: one.execute_script(drawn))
    return browser


def choose(page: Any, name: str, value: str) -> None:
    code = "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
    page.execute_script(code + "s.dispatchEvent(new Event('change'));", name, value)


def column(page: Any, title: str) -> list[str]:
    heads = [head.text for head in page.find_elements("css selector", "#table thead th")]
    place = next(i for i, head in enumerate(heads) if head.startswith(title))
    rows = page.find_elements("css selector", "#table tbody tr")
    return [row.find_elements("css selector", "th, td")[place].text for row in rows]


def test_nothing_is_requested_and_nothing_hostile_runs(page, leaderboard):
    choose(page, "track", "T1")
    choose(page, "set", "maze_64")
    assert errors(page) == []
    assert HOSTILE in column(page, "method")
    assert not page.find_elements("css selector", "img[src=x]")
    names = "return performance.getEntriesByType('resource').map(e => e.name)"
    assert [name for name in page.execute_script(names) if not name.startswith("data:")] == []
    assert page.find_elements("css selector", "#plot .main-svg")


def test_filters_by_track_set_and_budget(page):
    assert column(page, "method") == ["near_best"]
    choose(page, "track", "T1")
    choose(page, "set", "blast_32")
    assert column(page, "method") == ["uniform"]
    assert "no seconds" in column(page, "marks")[0]
    choose(page, "set", "maze_64")
    assert column(page, "method") == ["iap", HOSTILE, "uniform"]
    assert column(page, "VRMSE") == ["0.2 ± 0", "0.25 ± 0", "0.3 ± 0"]
    assert column(page, "seeds") == ["3"] * 3
    choose(page, "set", "supernova_explosion_64")
    quoted = page.find_elements("css selector", "tr.quoted")
    assert len(quoted) == len(column(page, "method")) >= 3
    assert all("published, not measured here" in marks for marks in column(page, "marks"))
    choose(page, "kind", "none")
    assert 0 < len(column(page, "method")) < len(quoted)
    choose(page, "track", "T2")
    assert "does not beat chance" in column(page, "marks")[0]


def test_columns_sort(page):
    choose(page, "track", "T1")
    choose(page, "set", "maze_64")
    heads = page.find_elements("css selector", "#table thead button")
    button = next(head for head in heads if head.text.startswith("VRMSE"))
    button.click()
    assert column(page, "method") == ["iap", HOSTILE, "uniform"]
    heads = page.find_elements("css selector", "#table thead button")
    next(head for head in heads if head.text.startswith("VRMSE")).click()
    assert column(page, "method") == ["uniform", HOSTILE, "iap"]


def test_the_pareto_front_is_of_measured_rows(page):
    choose(page, "track", "T1")
    choose(page, "set", "maze_64")
    choose(page, "cost", "training, ms")
    front = page.execute_script("return document.getElementById('plot').data[0]")
    assert front["y"] == [pytest.approx(0.2)]
    assert front["x"] == [pytest.approx(30)]
    choose(page, "set", "supernova_explosion_64")
    choose(page, "cost", "tokens")
    data = page.execute_script("return document.getElementById('plot').data")
    assert data[0]["x"] == []
    assert len(data) > 1
    assert all(trace["marker"]["symbol"].endswith("-open") for trace in data[1:])


def test_what_is_missing_bad_or_of_another_schema_is_said(page):
    text = {name: page.find_element("id", name).text for name in ("missing", "bad", "others")}
    assert "cnextunet" in text["missing"]
    assert "shear_flow" in text["missing"]
    assert f"broken.json: without seed {HOSTILE}" in text["bad"]
    assert "later.json: schema 7" in text["others"]
