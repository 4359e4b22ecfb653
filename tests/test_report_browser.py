"""The page of `adaptok report` in headless Chromium, opened from a file as a reader would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
import report_runs as make
from PIL import Image

from adaptok.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
waiting = pytest.importorskip("selenium.webdriver.support.ui")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
]

HOSTILE = "<img src=x onerror=alert(1)></script>"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="chromium or chromedriver is not installed"
    ),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A page with everything in it: two data sets, transfer, baselines, bad runs, classifiers."""
    root = tmp_path_factory.mktemp("runs")
    for kind in ("uniform", "iap", "apt"):
        for seed in range(2):
            make.write_surrogate(root, kind, seed)
    make.write_surrogate(root, "fno", 0)
    make.write_surrogate(root, "persistence", 0)
    for budget in (64, 256):
        blast = {"name": "blast"}
        make.write_surrogate(root, "iap", 0, budget=budget, tests=(64, 256), data=blast)
    make.write_surrogate(root, "csm", 0, error=None)
    hostile = {"name": "vit", "note": HOSTILE}
    make.write_surrogate(root / "odd <b>& name", "matey", 0, processor=hostile)
    make.write_surrogate(root / "another", "matey", 0, processor=hostile | {"note": "plain"})
    for seed in range(2):
        make.write_classifier(root, "apt", seed, 0.8)
        make.write_classifier(root, "uniform", seed, 0.7)
    (root / "empty").mkdir()
    pictures = root / "maze_iap_256_0" / "pictures"
    pictures.mkdir()
    Image.new("RGB", (1600, 400), "teal").save(pictures / "cells.png")
    long = "a_run_with_a_name_that_never_ends_" * 5
    for number, end in enumerate("ab"):
        processor = {"name": "vit", "remark": f"{long}{end}"}
        where = make.write_surrogate(root / f"{long}{end}", "ckm", 0, processor=processor)
        (where / "pictures").mkdir()
        Image.new("RGB", (600, 400), "olive").save(where / "pictures" / f"cells_{long}.png")
        (make.write_surrogate(root / f"{long}failed{end}", "ckm", 1) / "metrics.json").unlink()
        make.write_surrogate(root / long, "iap", number, data={"name": long, "stride": 2})
    return write_report([root], root / "report")[2]


def start(folder: Path) -> Any:
    options = webdriver.ChromeOptions()
    for flag in [*FLAGS, f"--user-data-dir={folder}"]:
        options.add_argument(flag)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@pytest.fixture(scope="module")
def browser(report, tmp_path_factory) -> Iterator[Any]:
    driver = start(tmp_path_factory.mktemp("profile"))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(browser, report) -> Any:
    """The freshly opened page, without what a test before it logged."""
    for name in ("browser", "performance"):
        browser.get_log(name)
    browser.get(report.as_uri())
    return browser


def drawn(page: Any) -> list[Any]:
    """The plots, each scrolled to and drawn."""
    plots = page.find_elements("css selector", ".plot")
    for plot in plots:
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        waiting.WebDriverWait(page, 20).until(
            lambda _, plot=plot: plot.find_elements("css selector", ".main-svg")
        )
    return plots


def errors(page: Any) -> list[str]:
    return [entry["message"] for entry in page.get_log("browser") if entry["level"] != "INFO"]


def test_every_plot_is_drawn_without_an_error(page):
    plots = drawn(page)
    stored = page.find_elements("css selector", "script[data-for]")
    assert len(plots) == len(stored) > 20
    for plot in plots:
        size = plot.find_element("css selector", ".main-svg").size
        assert size["width"] > 200, plot.get_attribute("id")
        assert size["height"] > 150
        marks = "path.js-line, .points path, .scatterlayer path, .heatmaplayer image, .hm image"
        assert plot.find_elements("css selector", marks), plot.get_attribute("id")
    assert errors(page) == []


def test_nothing_is_requested(page, report):
    drawn(page)
    names = "return performance.getEntriesByType('resource').map(e => e.name)"
    assert [name for name in page.execute_script(names) if not name.startswith("data:")] == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    inside = ("data:", "blob:", "chrome:", report.as_uri())
    assert report.as_uri() in sent
    assert [url for url in sent if not url.startswith(inside)] == []


def test_the_page_forbids_requests(page):
    """Whatever a library might try: the policy of the page refuses it."""
    message = page.execute_async_script(
        "const done = arguments[0];"
        "fetch('https://example.org/').then(() => done('loaded'), (e) => done(String(e)))"
    )
    assert "Failed to fetch" in message
    assert any("Content Security Policy" in text for text in errors(page))


def test_tables_sort(page):
    table = page.find_element("css selector", "#set1-results table, #set0-results table")
    heads = table.find_elements("css selector", "thead th")
    number = next(i for i, head in enumerate(heads) if "VRMSE" in head.text or "accur" in head.text)

    def column() -> list[float]:
        cells = table.find_elements("css selector", f"tbody tr > :nth-child({number + 1})")
        return [float(v) for cell in cells if (v := cell.get_attribute("data-value"))]

    button = heads[number].find_element("css selector", "button")
    page.execute_script("arguments[0].click()", button)
    assert heads[number].get_attribute("aria-sort") == "ascending"
    assert column() == sorted(column())
    page.execute_script("arguments[0].click()", button)
    assert heads[number].get_attribute("aria-sort") == "descending"
    assert column() == sorted(column(), reverse=True)
    assert len(set(column())) > 1


def test_tables_filter(page):
    table = page.find_element("id", "runs")
    count = "return [...arguments[0].querySelectorAll('tbody tr')].filter((r) => !r.hidden).length"
    every = page.execute_script(count, table)
    field = table.find_element("css selector", "input.filter")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
    field.send_keys("BLAST finished")
    assert page.execute_script(count, table) == 2 < every
    field.clear()
    field.send_keys(" ")
    assert page.execute_script(count, table) == every


def test_dark_and_light(page):
    plots = drawn(page)
    color = "return getComputedStyle(document.body).backgroundColor"
    text = "return arguments[0].querySelector('.xtick text').style.fill"
    before = page.execute_script(color), page.execute_script(text, plots[0])
    page.execute_script("document.getElementById('theme').click()")
    after = page.execute_script(color), page.execute_script(text, plots[0])
    assert before[0] != after[0]
    assert before[1] != after[1]
    page.execute_script("document.getElementById('theme').click()")
    assert (page.execute_script(color), page.execute_script(text, plots[0])) == before
    assert errors(page) == []


def test_a_legend_hides_a_model_everywhere(page):
    drawn(page)
    section = page.find_element("css selector", "#set1")
    chip = section.find_element("css selector", ".chip")
    label = chip.get_attribute("data-label")
    count = (
        "return [...arguments[0].querySelectorAll('.plot')].flatMap((p) => p.data)"
        ".filter((t) => t.legendgroup === arguments[1] && t.visible !== false).length"
    )
    shown = page.execute_script(count, section, label)
    assert shown > 1
    page.execute_script("arguments[0].click()", chip)
    assert page.execute_script(count, section, label) == 0
    page.execute_script("arguments[0].click()", chip)
    assert page.execute_script(count, section, label) == shown


def test_text_of_runs_is_text(page):
    """Names and settings with markup are shown, not run."""
    shown = page.find_element("id", "runs").text
    assert "odd <b>& name/maze_matey_256_0" in shown
    assert f"matey, note={HOSTILE}" in shown
    drawn(page)
    assert not page.find_elements("css selector", "main img:not([src^='data:'])")
    assert errors(page) == []


def test_links_lead_to_run_folders(page, report):
    links = page.find_elements("css selector", "#runs tbody th a")
    assert len(links) > 10
    for link in links:
        target = Path(unquote(urlparse(link.get_attribute("href")).path))
        assert (target / "config.yaml").is_file()


def test_pictures_are_inside_and_enlarge(page):
    widths = set()
    for picture in page.find_elements("css selector", ".picture img"):
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
        assert picture.get_attribute("src").startswith("data:image/webp")
        page.execute_async_script("arguments[0].decode().then(arguments[1])", picture)
        widths.add(page.execute_script("return arguments[0].naturalWidth", picture))
    assert widths == {600, 1100}  # of 600 and 1600: reduced to what a page shows, never enlarged
    page.execute_script("arguments[0].parentElement.click()", picture)
    assert page.find_element("id", "zoom").is_displayed()


def resize(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 840, "deviceScaleFactor": 1, "mobile": False},
    )


# Elements whose content is wider than they are, or that reach beyond the window or the element
# around them; what scrolls by itself, and plots, may hold more than they show.
OVERFLOWING = """
const inner = (e) => e.closest('.scroll, .plot, #toc, .legend.many, svg, .skip, dialog') !== null;
return [...document.querySelectorAll('body *')].filter((e) => {
  const box = e.getBoundingClientRect();
  if (!box.width || inner(e) || getComputedStyle(e).display === 'inline') return false;
  return box.right > innerWidth + 1 || e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0
    || box.right > e.parentElement.getBoundingClientRect().right + 1;
}).map((e) => e.tagName + '.' + e.className + ': ' + e.textContent.trim().slice(0, 60));
"""


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_nothing_overflows_with_the_longest_names(page, width):
    resize(page, width)
    try:
        drawn(page)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        assert page.execute_script(OVERFLOWING) == []
        captions = "return [...document.querySelectorAll('figcaption')].map((e) => e.innerText)"
        assert any("never_ends" in text for text in page.execute_script(captions))
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_narrow_window_has_a_menu(page):
    resize(page, 390)
    try:
        drawn(page)
        menu = page.find_element("id", "menu")
        assert menu.is_displayed()
        menu.click()
        assert page.find_element("id", "toc").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
