"""The page of an adaptation in a real browser: drawn, quiet, by itself, on a phone, in the dark, right to left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.report import adapt_page
from tests.pipeline.report.adapt_world import adaptation
from tests.pipeline.report.browser import Browser, chromium

pytestmark = pytest.mark.skipif(chromium() is None, reason="no chromium: python -m tests.pipeline.report.browser")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return adapt_page.render(adaptation(folder / "run"), folder / "out").page


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Browser]:
    with Browser() as opened:
        opened.open(page)
        yield opened


def test_it_draws_the_map_quietly_and_asks_for_nothing(browser: Browser, page: Path) -> None:
    assert browser.console == []
    assert browser.requests == [page.absolute().as_uri()]
    assert browser.value("document.querySelectorAll('#chart-tries svg').length") == 1
    texts = browser.value("[...document.querySelectorAll('#chart-tries svg text')].map(text => text.textContent)")
    assert {"chosen", "chat model", "tolerance", "TIES + slack 1"} <= set(texts)
    said = browser.value("document.getElementById('chart-tries').getAttribute('aria-label')")
    assert "TIES + slack 1, lambda 0.75: 0.500 and 0.590, chosen" in said


def test_no_answer_becomes_a_part_of_the_page(browser: Browser) -> None:
    assert browser.value("document.querySelectorAll('main script').length") == 0
    shown = browser.value("[...document.querySelectorAll('.said blockquote')].pop().textContent")
    assert shown.startswith("<script>alert('மழை')</script>")


def test_answers_run_as_their_script_does(browser: Browser) -> None:
    direction = "[...document.querySelectorAll('.asked')].map(each => getComputedStyle(each).direction)"
    assert browser.value(direction) == ["ltr", "rtl", "ltr"]


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_scrolls_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, 900)
    browser.open(page)
    assert browser.value("document.documentElement.scrollWidth") <= width
    table = "document.querySelector('.scores').getBoundingClientRect().right"
    assert browser.value(table) <= width


def test_it_is_dark_where_people_want_it_dark(browser: Browser, page: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser.value(paper)
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = browser.value(paper)
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    assert light == "rgb(255, 255, 255)" != dark
