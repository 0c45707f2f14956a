"""The page in a real browser: drawn, quiet, by itself, filtered by its legend, on a phone, in the dark, on paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.report.browser import Browser, chromium
from tests.pipeline.report.points import frontier
from tests.pipeline.report.synthetic import GOOD, LOST, Run

pytestmark = pytest.mark.skipif(chromium() is None, reason="no chromium: python -m tests.pipeline.report.browser")
DRAWN = "document.querySelectorAll('#chart-{} svg').length"
LINES = "document.querySelectorAll('#chart-curves svg .mark-line path').length"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    run = Run(folder / "run", GOOD, LOST)
    places = {"ties": [(2.0, 0.35), (2.4, 0.45)], "ct_then_sft": [(2.1, 0.3), (2.5, 0.4)]}
    points = [each for method in places for each in frontier(folder / "points", method, places[method], budget=10_000)]
    return run.render(folder / "out", untuned=run.untuned, frontier=points).page


@pytest.fixture(scope="module")
def browser(report: Path) -> Iterator[Browser]:
    with Browser() as opened:
        opened.open(report)
        yield opened


def test_it_draws_everything_quietly_and_asks_for_nothing(browser: Browser, report: Path) -> None:
    assert browser.console == []
    assert browser.requests == [report.absolute().as_uri()]
    assert report.stat().st_size < 1.5e6
    charts = ("claims", "curves", "tradeoff", "frontiers", "gap", "forest", "heat", "slack", "predictions", "hours")
    for chart in charts:
        assert browser.value(DRAWN.format(chart)) == 1, chart
        assert "table below" in browser.value(f"document.getElementById('chart-{chart}').getAttribute('aria-label')")
    told = browser.value("document.getElementById('chart-curves').getAttribute('aria-label')")
    assert "TIES from 0.650 at 10k to 0.450 at 1M" in told


def test_a_screen_reader_hears_headings_terms_claims_and_what_the_charts_show(browser: Browser, report: Path) -> None:
    browser.send("Accessibility.enable")
    nodes = [node for node in browser.send("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]
    named: dict[str, list[str]] = {}
    for node in nodes:
        named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert named["heading"][0].startswith("Chichewa, experiment A <small> run & more")
    assert {"Terms", "Claims and verdicts", "Frontiers", "How to read this page"} < set(named["heading"])
    assert "" not in named["combobox"] and "" not in named["image"]
    said = next(name for name in named["image"] if name.startswith("Gaps in accuracy at equal bits per byte."))
    assert re.search(r"10k: TIES \u2212 CT-then-SFT, exploratory: \+0\.\d{3}, 95% CI \+0\.\d{3} to \+0\.\d{3}", said)
    assert not any(role.startswith("graphics") for role in map(str.lower, named)), "nobody listens to ticks of axes"
    claims = next(name for name in named["image"] if name.startswith("Effects of the claims"))
    assert "1. supported, +0.300 in accuracy, 95% CI" in claims


def test_the_legend_filters_by_method_and_by_family(browser: Browser) -> None:
    assert browser.value(LINES) == 4  # CT, CT-then-SFT, TIES, TIES with slack
    browser.value("document.querySelector('#curves [data-method=ties]').click()")
    browser.until(f"{LINES} === 3")
    assert browser.value("document.querySelector('#curves [data-method=ties]').getAttribute('aria-pressed')") == "false"
    browser.value("document.querySelector('#curves [data-family=TIES]').click()")
    browser.until(f"{LINES} === 5")  # TIES, and TIES at a norm
    browser.value("[...document.querySelectorAll('#curves .legend button')].find(b => b.innerText === 'none').click()")
    browser.until(f"{LINES} === 0")
    browser.value(
        "[...document.querySelectorAll('#curves .legend button')].find(b => b.innerText === 'first selection').click()"
    )
    browser.until(f"{LINES} === 4")


def test_a_gap_is_shown_with_its_frontiers(browser: Browser) -> None:
    lines = "document.querySelectorAll('#chart-frontiers svg .mark-line path').length"
    assert browser.until(f"{lines} === 2")
    browser.value("[...document.querySelectorAll('#curves .legend button')].find(b => b.innerText === 'none').click()")
    browser.until(f"{lines} === 0")
    select = "document.querySelector('select[data-state=pair]')"
    browser.value(f"{select}.dispatchEvent(new Event('change'))")
    browser.until(f"{lines} === 2")
    browser.value(
        "[...document.querySelectorAll('#curves .legend button')].find(b => b.innerText === 'first selection').click()"
    )


def test_tables_sort_and_follow_the_measure(browser: Browser) -> None:
    first = "document.querySelector('#results-table tbody tr th').innerText"
    assert browser.value(first) == "base"
    browser.value("document.querySelectorAll('#results-table thead button')[2].click()")
    assert browser.value(first) == "TIES + slack 1"
    assert browser.value("document.querySelectorAll('#results-table thead th')[2].ariaSort") == "descending"
    browser.value(
        "(() => { const choose = document.querySelector('select[data-state=measure]');"
        " choose.value = [...choose.options].find(option => option.text.endsWith(': bits per byte')).value;"
        " choose.dispatchEvent(new Event('change')); })()"
    )
    assert "lower is better" in browser.value("document.getElementById('measured').innerText")
    assert "bits per byte" in browser.value("document.querySelector('#results-table caption').innerText")


def test_every_chart_has_its_data_as_a_table(browser: Browser) -> None:
    browser.value("document.querySelector('details.data[data-chart=tradeoff]').open = true")
    rows = browser.until("document.querySelectorAll('details.data[data-chart=tradeoff] tbody tr').length")
    assert rows == 2 + 4 * 3  # base and SFT; four methods at three budgets
    details = "document.querySelector('details.data[data-chart=frontiers]')"
    browser.value(f"{details}.open = true")
    heads = browser.until(f"[...{details}.querySelectorAll('thead th')].map(head => head.innerText.split(' ')[0])")
    assert {"method", "CT", "knob", "bits", "accuracy"} <= set(heads)


def test_the_untuned_stand_under_the_tuned_in_the_same_measure(browser: Browser) -> None:
    rows = "document.querySelectorAll('#{}-table tbody th').length"
    assert 0 < browser.value(rows.format("untuned")) < browser.value(rows.format("results"))
    captions = "['results', 'untuned'].map(name => document.querySelector(`#${name}-table caption`).innerText)"
    tuned, untuned = browser.value(captions)
    assert untuned == f"{tuned}; without tuning"


def test_the_sentence_and_the_first_chart_come_before_everything_else(browser: Browser, report: Path) -> None:
    browser.open(report)
    marks = browser.value("performance.getEntriesByType('mark').map(mark => mark.name)")
    charts = [mark for mark in marks if mark.startswith("chart ")]
    assert marks == ["painted", *charts, "drawn"] and charts[:2] == ["chart claims", "chart curves"]
    painted = "performance.getEntriesByName('painted')[0].startTime"
    first_paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert browser.value(f"{first_paint} < performance.getEntriesByName('chart claims')[0].startTime")
    assert browser.value(f"{painted} < performance.getEntriesByName('chart claims')[0].startTime")


@pytest.mark.parametrize("width", [360, 3840])
def test_nothing_scrolls_sideways(browser: Browser, report: Path, width: int) -> None:
    browser.resize(width, 900)
    browser.open(report)
    assert browser.value("document.documentElement.scrollWidth") <= width
    drawn = browser.value("document.querySelector('#chart-curves svg').getBoundingClientRect().width")
    assert drawn <= width and drawn > min(300, width / 3)


def test_it_is_dark_where_people_want_it_dark(browser: Browser, report: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    label = "getComputedStyle(document.querySelector('#chart-curves svg .role-axis-label text')).fill"
    light = browser.value(paper), browser.value(label)
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = browser.value(paper), browser.value(label)
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    assert light[0] == "rgb(255, 255, 255)" and all(one != other for one, other in zip(light, dark, strict=True))


def test_it_prints(browser: Browser, report: Path) -> None:
    browser.resize(1280, 900)
    browser.open(report)
    assert browser.pdf().startswith(b"%PDF") and browser.console == []
