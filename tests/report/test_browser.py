"""The pages in headless Chromium: nothing asked of the network, no error, figures there, tables that sort."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfcal.report.comparison import compare_runs
from selfcal.report.study import build_study_report
from selfcal.run.atomic import write_json
from tests.report.summaries import study_summary

PAGES = ("run", "comparison", "study")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser: ``SELFCAL_CHROMIUM``, one on the path, or playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser' (playwright)")
    given = os.environ.get("SELFCAL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as driver:
        found = given or driver.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("needs Chromium: on the path, in SELFCAL_CHROMIUM, or 'playwright install chromium'")
        browser = driver.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory, report, write_run) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = [
        write_run(folder / name, seed=seed, small=True) for seed, name in enumerate(("one", "two"), start=1)
    ]
    write_json(folder / "study" / "summary.json", study_summary())
    return {
        "run": report.path / "report.html",
        "comparison": compare_runs(*runs, folder / "both")[-1],
        "study": build_study_report(folder / "study")[-1],
    }


@pytest.fixture(params=PAGES)
def opened(request, chromium, pages) -> Iterator[tuple[Any, Path, list[str], list[str]]]:
    """A page opened from disk without network, what it asked for, and what it complained of."""
    context = chromium.new_context(
        offline=True, accept_downloads=True, viewport={"width": 1280, "height": 900}
    )
    page = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(pages[request.param].as_uri())
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    yield page, pages[request.param], asked, complaints
    context.close()


def test_nothing_is_asked_of_the_network_and_nothing_complains(opened):
    page, path, asked, complaints = opened
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert complaints == []
    assert page.title()


def test_every_figure_on_disk_is_drawn_in_the_page(opened):
    page, path, _, _ = opened
    shown = page.eval_on_selector_all(
        "figure",
        "all => all.map(one => { const box = one.querySelector('svg').getBoundingClientRect();"
        " return [one.id, box.width, box.height, one.querySelectorAll('svg path').length]; })",
    )
    assert {name for name, *_ in shown} == {file.stem for file in (path.parent / "figures").glob("*.png")}
    for name, width, height, paths in shown:
        assert min(width, height) > 100, name
        assert paths > 5, name


def test_contents_lead_to_every_chapter(opened):
    page, _, _, _ = opened
    links = page.query_selector_all("nav a")
    assert len(links) == len(page.query_selector_all("main section"))
    for link in links:
        link.click()
        target = link.get_attribute("href").removeprefix("#")
        top = page.evaluate(f"document.getElementById('{target}').getBoundingClientRect().top")
        bottom = page.evaluate("document.documentElement.getBoundingClientRect().bottom - window.innerHeight")
        assert abs(top) < 2 or abs(bottom) < 2, target


def test_every_column_of_every_table_sorts_both_ways(opened):
    page, _, _, _ = opened
    read = "(table, column) => Array.from(table.tBodies[0].rows).map(row => row.cells[column].dataset.value)"
    for table in page.query_selector_all("table"):
        name = table.get_attribute("id")
        for column, button in enumerate(table.query_selector_all("th button")):
            values = [
                value for value in page.evaluate(f"([t, c]) => ({read})(t, c)", [table, column]) if value
            ]
            numeric = all(_is_number(value) for value in values)
            if not numeric and any(_is_number(value) for value in values):
                continue  # numbers and words in one column have no order
            order = page.evaluate(
                "([values, numeric]) => values.sort((a, b) => numeric ? a - b : a.localeCompare(b))",
                [values, numeric],
            )
            for wanted, direction in ((order, "ascending"), (order[::-1], "descending")):
                button.evaluate("one => one.click()")
                found = page.evaluate(f"([t, c]) => ({read})(t, c)", [table, column])
                shown = [value for value in found if value]
                keys = [float(value) for value in shown] if numeric else shown
                assert keys == ([float(value) for value in wanted] if numeric else wanted), (name, column)
                assert found[: len(shown)] == shown, "cells without a value come last"
                state = button.evaluate("one => one.closest('th').getAttribute('aria-sort')")
                assert state == direction


def test_figures_can_be_taken_away_as_png_and_pdf(opened):
    page, path, _, _ = opened
    for suffix in (".png", ".pdf"):
        link = page.query_selector(f'a[download$="{suffix}"]')
        with page.expect_download() as waiting:
            link.click()
        taken = waiting.value
        assert (
            Path(taken.path()).read_bytes()
            == (path.parent / "figures" / taken.suggested_filename).read_bytes()
        )


def test_light_and_dark_are_readable(opened):
    """Ink on paper, of text and of figures, with a contrast of 7 at least (WCAG 2.2, level AAA)."""
    page, _, _, _ = opened
    papers = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        inks = {
            page.evaluate("getComputedStyle(document.body).color"),
            page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill"),
        }
        papers.add(paper)
        assert len(inks) == 1
        assert _contrast(inks.pop(), paper) > 7
    assert len(papers) == 2


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _contrast(one: str, other: str) -> float:
    """(L₁ + 0.05)/(L₂ + 0.05) of two ``rgb(...)`` colours, L the relative luminance."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
